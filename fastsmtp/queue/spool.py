"""The body of one message while it is with us: in memory, or in a file without a name.

Up to 64 KiB are kept in memory as they came.  What is bigger, or comes when
the worker's budget is used up, goes to an unlinked spool file: nothing is left
behind by a crash, and the memory for bodies is bounded by a number in the
configuration, whatever the size and the number of clients.

Not here: the line ends and dots that transports want (delivery/dot.py), and
durability - a body in a spool file is not safe.

Rank 5: may import ranks 0 to 4.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock  # all that we want of threading
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from typing import Any

from fastsmtp import errors
from fastsmtp.metrics import Cell, Counter, Gauge, Sheet
from fastsmtp.queue.disk import Disk

# From here on a body has a file of its own (docs/architecture.md, "A message is").
MEMORY_BYTES = 65_536
# What is read from a spool file at once: one read window of the connection.
PIECE_BYTES = 65_536

MEMORY_IN_USE = Gauge("fastsmtp_body_memory_bytes", "Memory that holds message bodies")
SPOOLED = Counter("fastsmtp_bodies_spooled_total", "Message bodies that went into files of their own")

_NO_TMPFILE = frozenset({errno.EISDIR, errno.EOPNOTSUPP, errno.ENOTSUP})


class Budget:
    """How many bytes of bodies one worker may hold in memory (limits.body_memory_bytes).

    spooled  how many bodies went into files
    """

    __slots__ = ("_meter", "limit_bytes", "spooled", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.spooled = 0
        self._meter: tuple[Cell, Cell] | None = None

    def measure(self, sheet: Sheet) -> None:
        """From now on publish() copies the numbers to this sheet."""
        self._meter = MEMORY_IN_USE.of(sheet), SPOOLED.of(sheet)

    def publish(self) -> None:
        """Copy the numbers into the metrics, where measure() was called."""
        if self._meter is not None:
            used, spooled = self._meter
            used.set(self.used_bytes)
            spooled.set(self.spooled)

    def take(self, size_bytes: int) -> bool:
        """Count size_bytes more, unless that is over the limit."""
        used = self.used_bytes + size_bytes
        if used > self.limit_bytes:
            return False
        self.used_bytes = used
        return True

    def give(self, size_bytes: int) -> None:
        self.used_bytes -= size_bytes


class SpoolFile:
    """A file without a name.  All methods but the first block, and run as jobs of a Disk.

    The lock orders them: an abort may come while a write is under way in another
    thread, and closing under it would let that write go into a stranger's file.
    """

    __slots__ = ("_fd", "_is_closed", "_lock", "_size_bytes")

    def __init__(self) -> None:
        self._fd = -1
        self._is_closed = False
        self._size_bytes = 0
        self._lock = allocate_lock()

    def append(self, system: Any, directory: str, pieces: list[bytes]) -> None:
        """Write all pieces at the end; makes the file when there is none yet."""
        with self._lock:
            self._check_open()
            if self._fd < 0:
                self._fd = open_unnamed(system, directory)
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    written = system.pwrite(self._fd, view, self._size_bytes)
                    self._size_bytes += written
                    view = view[written:]

    def read(self, system: Any, offset: int, size_bytes: int = PIECE_BYTES) -> bytes:
        """Up to size_bytes from offset; never empty, so offset must be inside the file."""
        with self._lock:
            self._check_open()
            piece: bytes = system.pread(self._fd, min(size_bytes, self._size_bytes - offset), offset)
        if not piece:
            raise errors.StorageFailed("the spool file is shorter than what was written")
        return piece

    def close(self, system: Any) -> None:
        """Close for good; more than once does no harm.  A job that comes later fails with StorageFailed."""
        with self._lock:
            self._is_closed = True
            fd, self._fd = self._fd, -1
            if fd >= 0:
                system.close(fd)

    def _check_open(self) -> None:
        if self._is_closed:
            raise errors.StorageFailed("the body was given up")


class Body:
    """One message's body.

    size_bytes        bytes written so far, without what was cut
    tail              its last two bytes: what tells whether it ends in CRLF
    """

    __slots__ = (
        "_budget", "_chunks", "_cuts", "_directory", "_disk", "_file", "_memory_bytes", "_written_bytes",
        "size_bytes", "tail",
    )  # fmt: skip

    def __init__(self, disk: Disk, budget: Budget, directory: str) -> None:
        self._disk = disk
        self._budget = budget
        self._directory = directory
        self._chunks: list[bytes] = []
        self._memory_bytes = 0
        self._file: SpoolFile | None = None
        self._cuts: tuple[tuple[int, int], ...] = ()
        self._written_bytes = 0
        self.size_bytes = 0
        self.tail = b""

    @property
    def is_spooled(self) -> bool:
        return self._file is not None

    @property
    def ends_with_crlf(self) -> bool:
        """An empty body counts as one that does: nothing has to be added to it."""
        return self.tail in {b"\r\n", b""}

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        """Take the next chunk.  An awaitable is back-pressure: await it before the next write.

        Raises (or the awaitable does) errors.StorageFull and errors.StorageFailed; the body is then
        good for release() only.
        """
        size = len(chunk)
        self.size_bytes += size
        self.tail = chunk[-2:] if size > 1 else (self.tail + chunk)[-2:]
        if self._file is None:
            memory = self._memory_bytes + size
            if memory <= MEMORY_BYTES and self._budget.take(size):
                self._memory_bytes = memory
                self._chunks.append(chunk)
                return None
            self._file = SpoolFile()
            self._budget.spooled += 1
            pieces = [*self._chunks, chunk]
        else:
            pieces = [chunk]
        done = self._disk.run(self._file.append, self._directory, pieces)
        if done is None:
            self._forget_memory()
            return None
        return self._spooled(done) if self._chunks else done

    async def _spooled(self, done: Awaitable[None]) -> None:
        """The chunks count against the budget until they are in the file."""
        await done
        self._forget_memory()

    def _forget_memory(self) -> None:
        self._budget.give(self._memory_bytes)
        self._memory_bytes = 0
        self._chunks.clear()

    def cut(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Leave these header fields, (offset, length) in order, out of what is read from here on.

        For the end of the body only, and once: what is stored stays as it came (docs/decisions/0031).
        """
        written = self.size_bytes
        self._written_bytes = written
        self._cuts = tuple(ranges)
        self.size_bytes = written - sum(length for _, length in ranges)
        if ranges and sum(ranges[-1]) == written:
            # What came before a header field, if anything did, ended a line.
            self.tail = b"\r\n" if self.size_bytes else b""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body in pieces, from its beginning; none is empty."""
        cutter = Cutter(self._cuts) if self._cuts else None
        if self._file is None:
            for chunk in self._chunks:
                left = chunk if cutter is None else cutter.take(chunk)
                if left:
                    yield left
            return
        offset = 0
        written = self._written_bytes if self._cuts else self.size_bytes
        while offset < written:
            found = self._disk.run(self._file.read, offset)
            piece = found if isinstance(found, bytes) else await found
            offset += len(piece)
            left = piece if cutter is None else cutter.take(piece)
            if left:
                yield left

    def blocking_pieces(self, system: Any) -> Iterator[bytes]:
        """The same for a job that runs on the disk already."""
        cutter = Cutter(self._cuts) if self._cuts else None
        if self._file is None:
            if cutter is None:
                yield from self._chunks
            else:
                yield from filter(None, map(cutter.take, self._chunks))
            return
        offset = 0
        written = self._written_bytes if self._cuts else self.size_bytes
        while offset < written:
            piece = self._file.read(system, offset)
            offset += len(piece)
            left = piece if cutter is None else cutter.take(piece)
            if left:
                yield left

    def release(self) -> None:
        """Give back memory and file; at any time, more than once, also while a write is under way."""
        self._forget_memory()
        if self._file is not None:
            self._disk.forget(self._file.close)


class Cutter:
    """Takes the pieces of a body one after another and gives each back without the ranges."""

    __slots__ = ("_offset", "_ranges")

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges
        self._offset = 0

    def take(self, piece: bytes) -> bytes:
        start = at = self._offset
        self._offset = end = start + len(piece)
        kept = []
        for offset, length in self._ranges:
            if offset >= end:
                break
            if offset + length > at:
                kept.append(piece[at - start : max(offset, at) - start])
                at = min(end, offset + length)
        if at == start:
            return piece
        kept.append(piece[at - start :])
        return b"".join(kept)


def open_unnamed(system: Any, directory: str) -> int:
    """A file without a name in directory, for reading and writing; raises OSError.

    O_TMPFILE where kernel and file system have it (Linux), else mkstemp and unlink at once.
    """
    flag = getattr(os, "O_TMPFILE", None)
    if flag is not None:
        try:
            fd: int = system.open(directory, flag | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            # EISDIR: a kernel without it; EOPNOTSUPP: a file system without it (overlayfs before 6.3, NFS).
            if error.errno not in _NO_TMPFILE:
                raise
        else:
            return fd
    import tempfile

    fd, path = tempfile.mkstemp(prefix="body-", dir=directory)
    system.unlink(path)
    return fd
