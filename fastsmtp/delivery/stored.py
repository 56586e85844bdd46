"""A message of the queue as a deliverer reads it, from the segment and the body file where it was written.

Rank 6: files.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastsmtp import errors
from fastsmtp._payload import decode
from fastsmtp._record import HEADER_BYTES, holds
from fastsmtp.message import Envelope
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import Disk, storage_error
from fastsmtp.queue.fileheader import SIZE_BYTES, Purpose, read_header
from fastsmtp.queue.model import BodyReference, QueuedMessage
from fastsmtp.queue.place import Place
from fastsmtp.queue.recovery import read_whole
from fastsmtp.queue.spool import Cutter
from fastsmtp.queue.store import Store

# Segments that are kept open: mail that comes in is in a few, mail that is due again may be in many.
OPEN_SEGMENTS = 64


class Reader:
    """Reads messages by their places.  One a process.

    store, bodies   for their paths and the program's version
    disk            where body files are read
    """

    def __init__(self, store: Store, bodies: Bodies, disk: Disk, system: Any = os) -> None:
        self._store = store
        self._bodies = bodies
        self._disk = disk
        self._system = system
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, place: Place) -> StoredMessage:
        """The message; raises errors.QueueDamaged, errors.QueueTooNew, errors.StorageFailed."""
        try:
            data = self._read(place)
        except FileNotFoundError:
            raise errors.QueueDamaged(f"{self._store.path(place.number)}: it isn't there") from None
        except OSError as error:
            raise storage_error(error) from error
        return StoredMessage(decode(data, HEADER_BYTES), self._bodies, self._disk)

    def _read(self, place: Place) -> bytes:
        """The whole record, its header included.  Raises OSError, errors.QueueDamaged."""
        number, epoch, offset, size_bytes = place
        fd = self._descriptor(number)
        try:
            data: bytes = self._system.pread(fd, HEADER_BYTES + size_bytes, offset)
        except OSError:
            data = b""
        if len(data) == HEADER_BYTES + size_bytes and holds(data, epoch, offset):
            return data
        # Once more with patience: a read that was cut short, a block of the disk that can't be read.
        return read_whole(self._system, fd, place, self._store.path(number))

    def tidy(self) -> None:
        """Let go of segments that were removed: while we have them open, the disk has their room no more."""
        for number, fd in list(self._open.items()):
            if not os.fstat(fd).st_nlink:
                del self._open[number]
                os.close(fd)

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _descriptor(self, number: int) -> int:
        fd = self._open.get(number)
        if fd is None:
            name = self._store.path(number)
            fd = self._open[number] = self._system.open(name, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > OPEN_SEGMENTS:
                _, old = self._open.popitem(last=False)
                os.close(old)
        else:
            self._open.move_to_end(number)
        return fd


class StoredMessage:
    """See delivery.job.Stored."""

    __slots__ = (
        "_bodies",
        "_disk",
        "_message",
        "_tail",
        "accepted_ms",
        "envelope",
        "id",
        "origins",
        "prefix",
    )

    def __init__(self, message: QueuedMessage, bodies: Bodies, disk: Disk) -> None:
        self._message = message
        self._bodies = bodies
        self._disk = disk
        self._tail: bytes | None = None
        self.id = message.id
        self.accepted_ms = message.accepted_ms
        self.envelope: Envelope = message.envelope
        self.origins = message.origins
        self.prefix = message.prefix

    @property
    def message(self) -> QueuedMessage:
        return self._message

    def open_body(self, system: Any) -> int | None:
        """A descriptor of the body's file, the caller's to close; None where the record has the body.

        Raises errors.QueueDamaged, OSError.
        """
        body = self._message.body
        return self._bodies.open(system, body.number) if isinstance(body, BodyReference) else None

    @property
    def size_bytes(self) -> int:
        message = self._message
        if not message.cuts:
            return message.body_bytes
        return message.body_bytes - sum(length for _, length in message.cuts)

    @property
    def tail(self) -> bytes:
        if self._tail is None:
            self._tail = self._last_two(os)
        return self._tail

    @property
    def chunks(self) -> Sequence[bytes] | None:
        body = self._message.body
        return None if isinstance(body, BodyReference) else body

    @property
    def ends_with_crlf(self) -> bool:
        """An empty body counts as one that does: nothing has to be added to it."""
        return self.tail in {b"\r\n", b""}

    async def pieces(self) -> AsyncIterator[bytes]:
        body = self._message.body
        if not isinstance(body, BodyReference):
            for chunk in body:
                yield chunk
            return
        blocking = self.blocking_pieces(os)
        while True:
            found = self._disk.run(_next, blocking)
            piece = found if isinstance(found, bytes) else await found
            if not piece:
                return
            yield piece

    def blocking_pieces(self, system: Any) -> Iterator[bytes]:
        message = self._message
        if not isinstance(message.body, BodyReference):
            yield from message.body
            return
        pieces = self._bodies.pieces(system, message.body, message.body_bytes)
        if not message.cuts:
            yield from pieces
            return
        cutter = Cutter(message.cuts)
        for piece in pieces:
            left = cutter.take(piece)
            if left:
                yield left

    def _last_two(self, system: Any) -> bytes:
        message = self._message
        if not isinstance(message.body, BodyReference):
            return b"".join(message.body)[-2:]
        if message.cuts and sum(message.cuts[-1]) == message.body_bytes:
            # What came before a header field, if anything did, ended a line.
            return b"\r\n" if self.size_bytes else b""
        name = self._bodies.path(message.body.number)
        try:
            fd = self._bodies.open(system, message.body.number)
            try:
                read_header(system.pread(fd, SIZE_BYTES, 0), name, Purpose.BODY, "")
                least = max(message.body_bytes - 2, 0)
                tail: bytes = system.pread(fd, 2, SIZE_BYTES + least)
                return tail
            finally:
                system.close(fd)
        except OSError as error:
            raise storage_error(error) from error


def _next(system: Any, pieces: Iterator[bytes]) -> bytes:
    """A job; b"" at the end, which no piece is."""
    return next(pieces, b"")
