"""A message of a Maildir as POP3 sends it: CRLF line ends, dots stuffed, and its size in octets.

Files have LF line ends, some CRLF; pieces may be cut anywhere, the result is the same.

Rank 8: pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def octets(pieces: Iterable[bytes]) -> int:
    """The size that RFC 1939 section 11 asks for: with CRLF line ends, without stuffing.

    The line end that an unfinished last line gets on the wire is counted.
    """
    total = 0
    last = b"\n"
    for piece in pieces:
        if not piece:
            continue
        pairs = piece.count(b"\r\n") + (last == b"\r" and piece.startswith(b"\n"))
        total += len(piece) + piece.count(b"\n") - pairs
        last = piece[-1:]
    return total if last == b"\n" else total + 2


def stuffed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The message of a multi-line response (RFC 1939 section 3), without the dot that ends it."""
    is_line_start = True
    held = b""  # a CR that may belong to a line end
    for piece in pieces:
        text = held + piece
        held = b"\r" if text.endswith(b"\r") else b""
        if held:
            text = text[:-1]
        if not text:
            continue
        is_dotted = is_line_start and text.startswith(b".")
        is_line_start = text.endswith(b"\n")
        text = text.replace(b"\r\n", b"\n").replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")
        yield b"." + text if is_dotted else text
    if held:
        is_line_start = False
        yield held
    if not is_line_start:
        yield b"\r\n"


def top(pieces: Iterable[bytes], lines: int) -> Iterator[bytes]:
    """The header, the empty line behind it, and so many lines of the body (RFC 1939 section 7, TOP)."""
    in_header = True
    begin = b""  # the first octets of the current line: enough to see that it is empty
    for piece in pieces:
        at = 0
        while in_header or lines:
            end = piece.find(b"\n", at)
            if end < 0:
                begin = (begin + piece[at : at + 2])[:2]
                break
            if not in_header:
                lines -= 1
            elif (begin + piece[at : min(end, at + 2)]) in (b"", b"\r"):
                in_header = False
            begin = b""
            at = end + 1
        else:
            yield piece[:at]
            return
        yield piece
