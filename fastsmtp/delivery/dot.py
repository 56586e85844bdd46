"""Line ends and dots: from a body's wire form to what a transport wants.

The form of a body is the wire form after unstuffing: CRLF, no bare CR or LF.
Pieces may be cut anywhere; the result is the same.

A message that is at hand as a whole goes through _stuff.text_of, which does the same in C.

Rank 6: pure, imports nothing.
"""

from __future__ import annotations


class LineEnds:
    """A CR at the end of a piece waits for what comes next, so that no CRLF is seen in halves."""

    __slots__ = ("_has_cr",)

    def __init__(self) -> None:
        self._has_cr = False

    def _whole(self, piece: bytes) -> bytes:
        """The piece behind the CR that waited, and without the one that waits now."""
        if self._has_cr:
            piece = b"\r" + piece
        self._has_cr = piece.endswith(b"\r")
        return piece[:-1] if self._has_cr else piece


class DotEncoder(LineEnds):
    """A body as the text of DATA (RFC 5321 section 4.5.2), with the end of data."""

    __slots__ = ("_is_line_start",)

    def __init__(self) -> None:
        super().__init__()
        self._is_line_start = True

    def feed(self, piece: bytes) -> bytes:
        """The encoded piece; a CR at its end waits for the next one.

        Raises ValueError for a bare CR or LF: to a lax next hop LF . LF is an end of data, and what
        follows would be a second message from nobody.  None can be in a body that our session let in.
        """
        piece = self._whole(piece)
        if not piece:
            return b""
        line_ends = piece.count(b"\r\n")
        if piece.count(b"\n") != line_ends or piece.count(b"\r") != line_ends:
            raise ValueError("a bare CR or LF in a body")
        is_dotted = self._is_line_start and piece.startswith(b".")
        self._is_line_start = piece.endswith(b"\n")
        stuffed = piece.replace(b"\r\n.", b"\r\n..")
        return b"." + stuffed if is_dotted else stuffed

    def finish(self) -> bytes:
        """The end of data, with the CRLF that an unfinished last line lacks."""
        if self._has_cr:
            raise ValueError("a bare CR at the end of a body")
        return b".\r\n" if self._is_line_start else b"\r\n.\r\n"


class LfDecoder(LineEnds):
    """A body with LF line ends, as files and pipes on Unix have them; a CR that ends no line stays."""

    __slots__ = ()

    def feed(self, piece: bytes) -> bytes:
        return self._whole(piece).replace(b"\r\n", b"\n")

    def finish(self) -> bytes:
        return b"\r" if self._has_cr else b""
