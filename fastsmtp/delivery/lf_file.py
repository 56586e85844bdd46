"""A message as qmail keeps it, a file with LF line ends, read as one of the queue's (job.Stored): CRLF on its way out.

A CRLF in the file stays one line end; qmail-remote of 1.03 made CR CR LF of it.  A CR that ends no line is
made a line end, since nothing may leave that a lax server could take for the end of the data.

Rank 6: reads a file that it is given.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from fastsmtp import errors
from fastsmtp.delivery.dot import LineEnds
from fastsmtp.message import Envelope
from fastsmtp.queue.model import Origins

PIECE_BYTES: Final = 65_536


class LfFile:
    """See job.Stored.  fd must be seekable; it stays the caller's.

    start          where in the file the message begins
    ends_with_lf   what RFC 5321 asks of a message, and qmail-remote of its input
    """

    prefix = b""
    chunks = None

    def __init__(self, fd: int, id: str, envelope: Envelope, accepted_ms: int, start: int = 0) -> None:
        """Reads the whole file once, for its size.  Raises errors.StorageFailed."""
        self.id = id
        self.accepted_ms = accepted_ms
        self.envelope = envelope
        self.origins = Origins(address="")
        self._fd = fd
        self._start = start
        self.size_bytes = 0
        self.tail = b""
        last = b""
        for piece in self.blocking_pieces(os):
            self.size_bytes += len(piece)
            last = (last + piece)[-2:]
        self.tail = last
        try:
            end = os.fstat(fd).st_size
            self.ends_with_lf = end > start and os.pread(fd, 1, end - 1) == b"\n"
        except OSError as error:
            raise errors.StorageFailed(f"the message: {error.strerror}") from None

    @property
    def ends_with_crlf(self) -> bool:
        return self.tail == b"\r\n"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file is the caller's own and in the page cache: reading it doesn't wait."""
        for piece in self.blocking_pieces(os):
            yield piece

    def blocking_pieces(self, system: Any) -> Iterator[bytes]:
        encoder = CrlfEncoder()
        at = self._start
        while True:
            try:
                data = system.pread(self._fd, PIECE_BYTES, at)
            except OSError as error:
                raise errors.StorageFailed(f"the message: {error.strerror}") from None
            if not data:
                break
            at += len(data)
            piece = encoder.feed(data)
            if piece:
                yield piece
        piece = encoder.finish()
        if piece:
            yield piece


class CrlfEncoder(LineEnds):
    """LF, CRLF and CR as CRLF; pieces may be cut anywhere."""

    __slots__ = ()

    def feed(self, piece: bytes) -> bytes:
        lines = self._whole(piece).replace(b"\r\n", b"\n")
        if b"\r" in lines:
            lines = lines.replace(b"\r", b"\n")
        return lines.replace(b"\n", b"\r\n")

    def finish(self) -> bytes:
        return b"\r\n" if self._has_cr else b""
