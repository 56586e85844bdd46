"""The files of segments: made, handed out, freed, used again; docs/queue.md, "The life of a segment".

Every method that touches a file is a job for a Disk: it blocks, and takes the
system as its first argument.  One owner a directory; several threads may run
its jobs.  Not here: what is in a segment.  Rank 5.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Any

from fastsmtp import errors
from fastsmtp._record import BLOCK
from fastsmtp.queue.fileheader import FileHeader, Purpose

# One sync of metadata for 64 MiB of mail: at 4 kB a message it is seen by none in 10,000.
SEGMENT_BYTES = 67_108_864
# The done-log takes 24 bytes for what mail takes thousands.
DONE_SEGMENT_BYTES = 4_194_304
# What free segments may take: half a gigabyte, so that a burst needs no writing through.
SPARE = 8
# Written and synced at once when a segment is written through.  All of it at once takes a third of the time, and a
# worker's sync that comes meanwhile waits for it: 50 ms where it is 10 now, and nobody is in a hurry for the segment.
PIECE_BYTES = 1_048_576

NAMES = {Purpose.MAIL: "mail-", Purpose.DONE: "done-"}
FREE = "free-"
# Before the name of its purpose: a segment that is being written through.
NEW = "new-"


class Segment:
    """A segment to write to.  fd is open for writing only."""

    __slots__ = ("epoch", "fd", "number", "size_bytes")

    def __init__(self, number: int, epoch: int, size_bytes: int, fd: int) -> None:
        self.number = number
        self.epoch = epoch
        self.size_bytes = size_bytes
        self.fd = fd


def number_of(name: str, prefix: str) -> int | None:
    """The number in a file's name, None when it is no such name."""
    digits = name.removeprefix(prefix)
    if not name.startswith(prefix) or len(digits) != 16:
        return None
    try:
        number = int(digits, 16)
    except ValueError:
        return None
    return number if f"{number:016x}" == digits else None


def sync_directory(system: Any, path: str) -> None:
    fd = system.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.fsync(fd)
    finally:
        system.close(fd)


def write_all(system: Any, fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = system.pwrite(fd, view, offset)
        if written <= 0:
            raise OSError(errno.EIO, "a write wrote nothing")
        offset += written
        view = view[written:]


class Space:
    """Whether there is room for more: the low-water mark of queue.free_bytes.

    directory        on the file system that is asked
    low_water_bytes  0: none
    left_bytes       as it was last seen
    """

    __slots__ = ("directory", "is_low", "left_bytes", "low_water_bytes")

    def __init__(self, directory: str, low_water_bytes: int) -> None:
        self.directory = directory
        self.low_water_bytes = low_water_bytes
        self.is_low = False
        self.left_bytes = 0

    def measure(self, system: Any) -> int:
        """Bytes that are free.  A job."""
        found = system.statvfs(self.directory)
        self.left_bytes = found.f_bavail * found.f_frsize
        return self.left_bytes

    def look(self, system: Any, wanted_bytes: int = 0) -> bool:
        """True: below the mark, or it would be with wanted_bytes more.  A job; sets is_low for those who can't wait.

        What was low is low until an eighth more than the mark is free: no flapping at the edge.
        """
        if not self.low_water_bytes:
            return False
        free_bytes = self.measure(system)
        mark = self.low_water_bytes + (self.low_water_bytes // 8 if self.is_low else 0)
        self.is_low = free_bytes < mark
        return bool(self.is_low or free_bytes - wanted_bytes < self.low_water_bytes)


class Store:
    """The segments of one purpose in one directory.

    version   of the running program, for the headers
    wall      seconds since 1970
    random    as os.urandom
    space     None: no low-water mark
    """

    def __init__(
        self,
        directory: str,
        *,
        purpose: Purpose = Purpose.MAIL,
        size_bytes: int = SEGMENT_BYTES,
        version: str,
        wall: Callable[[], float],
        random: Callable[[int], bytes],
        space: Space | None = None,
        spare: int = SPARE,
    ) -> None:
        if size_bytes % BLOCK or size_bytes < 2 * BLOCK:
            raise ValueError("a segment is whole blocks, two at least")
        self.directory = directory
        self.purpose = purpose
        self.size_bytes = size_bytes
        self.version = version
        self.space = space
        self._prefix = NAMES[purpose]
        self._wall = wall
        self._random = random
        self._spare = spare
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._next = 1

    @property
    def free(self) -> int:
        """How many segments are ready to be used again."""
        return len(self._free)

    def path(self, number: int, prefix: str = "") -> str:
        return f"{self.directory}/{prefix or self._prefix}{number:016x}"

    def open(self, system: Any) -> list[int]:
        """The numbers of the segments that are there, rising.  Removes what was being made; before anything else.

        Free segments are mail's: the done-log's are smaller, and few.
        """
        sync_directory(system, self.directory)
        numbers: list[int] = []
        free: list[int] = []
        used: list[int] = [0]
        for name in system.listdir(self.directory):
            for prefix, found in ((self._prefix, numbers), (FREE, free), (NEW + self._prefix, used)):
                number = number_of(name, prefix)
                if number is not None:
                    found.append(number)
                    if found is used:
                        system.unlink(f"{self.directory}/{name}")
        with self._lock:
            self._next = max([*numbers, *free, *used]) + 1
            self._free = sorted(free) if self.purpose is Purpose.MAIL else []
        return sorted(numbers)

    def prepare(self, system: Any, size_bytes: int = 0) -> Segment:
        """The next segment, ready to be written to: a free one, else a new one of this size (0: the usual one).

        Raises errors.StorageFull below the low-water mark, OSError.
        """
        with self._lock:
            number, self._next = self._next, self._next + 1
            old = self._free.pop(0) if self._free else None
        epoch = int.from_bytes(self._random(8), "little") or 1
        is_old = old is not None and self._has_size(system, self.path(old, FREE))
        size_bytes = self.size_bytes if is_old else min(size_bytes or self.size_bytes, self.size_bytes)
        header = FileHeader(self.purpose, epoch, number, size_bytes, int(self._wall() * 1000), self.version)
        if old is not None and is_old:
            fd = self._use_again(system, self.path(old, FREE), header)
        else:
            fd = self._make(system, header)
        return Segment(number, epoch, size_bytes, fd)

    def _has_size(self, system: Any, path: str) -> bool:
        """One of another size (made by another release, or cut off) goes."""
        try:
            if system.stat(path).st_size == self.size_bytes:
                return True
            system.unlink(path)
        except FileNotFoundError:
            pass
        return False

    def _use_again(self, system: Any, path: str, header: FileHeader) -> int:
        fd: int = system.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_all(system, fd, header.encode().ljust(BLOCK, b"\0"), 0)
            system.fsync(fd)
            system.rename(path, self.path(header.number))
            sync_directory(system, self.directory)
        except BaseException:
            system.close(fd)
            raise
        return fd

    def _make(self, system: Any, header: FileHeader) -> int:
        size_bytes = header.size_bytes
        if self.space is not None and self.space.look(system, size_bytes):
            raise errors.StorageFull(f"{self.directory}: less than {self.space.low_water_bytes} bytes free")
        path = self.path(header.number, NEW + self._prefix)
        fd: int = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Zeros, not posix_fallocate alone: blocks that were only reserved are marked as written with the
            # first sync of each, which is what writing through is to avoid.
            write_all(system, fd, header.encode().ljust(BLOCK, b"\0"), 0)
            zeros = bytes(min(PIECE_BYTES, size_bytes - BLOCK))
            for offset in range(BLOCK, size_bytes, len(zeros)):
                write_all(system, fd, zeros[: size_bytes - offset], offset)
                if offset + len(zeros) < size_bytes:
                    system.fdatasync(fd)
            system.fsync(fd)
            system.rename(path, self.path(header.number))
            sync_directory(system, self.directory)
        except BaseException:
            system.close(fd)
            # Gone already, or named already: an empty segment more, which start-up finds to be done.
            with contextlib.suppress(OSError):
                system.unlink(path)
            raise
        return fd

    def retire(self, system: Any, number: int) -> None:
        """The segment is done, and the done-log that says so is synced: it may be used again."""
        with self._lock:
            is_kept = self.purpose is Purpose.MAIL and len(self._free) < self._spare
        if not is_kept or system.stat(self.path(number)).st_size != self.size_bytes:
            system.unlink(self.path(number))
            return
        system.rename(self.path(number), self.path(number, FREE))
        sync_directory(system, self.directory)
        with self._lock:
            self._free.append(number)
