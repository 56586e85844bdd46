"""Command lines of a POP3 client, whatever the pieces they come in.

Rank 8: pure.
"""

from __future__ import annotations

from collections.abc import Iterator

# RFC 2449 section 4: a command is at most 255 octets; who sends four times as much is no POP3 client.
LINE_BYTES_MAX = 1_024


class LineTooLong(Exception):
    """More than LINE_BYTES_MAX octets without a line end."""


class Lines:
    """Cuts at LF; a CR before it belongs to the line end, and may be missing as for qmail-pop3d."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that data completes, without line ends.  Raises LineTooLong."""
        data = self._rest + data
        self._rest = b""
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            if end - at > LINE_BYTES_MAX:
                raise LineTooLong
            yield data[at:end].removesuffix(b"\r")
            at = end + 1
        self._rest = data[at:]
        if len(self._rest) > LINE_BYTES_MAX:
            raise LineTooLong
