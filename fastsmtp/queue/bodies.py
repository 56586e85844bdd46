"""Bodies of more than 64 KiB: one file each, which a record names; docs/queue.md, "A body file".

Made a few at a time by the owner of the queue and handed out write-only.  The
writer puts the body behind the header, keeps its CRC32C, and gives the
descriptor to Journal.append, which syncs it first.  Every method that touches
a file is a job for a Disk.  Rank 5.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from fastsmtp import errors
from fastsmtp._record import crc32c
from fastsmtp.queue.fileheader import SIZE_BYTES, FileHeader, Purpose, read_header
from fastsmtp.queue.model import BodyReference
from fastsmtp.queue.store import Space, number_of, sync_directory, write_all

# One sync of the directory for so many.
AT_ONCE = 8
# What is read at once.
PIECE_BYTES = 65_536


class BodyFile:
    """A file for one body.  fd is open for writing only; the body begins at SIZE_BYTES."""

    __slots__ = ("epoch", "fd", "number")

    def __init__(self, number: int, epoch: int, fd: int) -> None:
        self.number = number
        self.epoch = epoch
        self.fd = fd


class Bodies:
    """The body files of one queue, in a directory that is there; names are random, so that no number is used twice.

    files   how many there are, as far as we made, counted and removed them
    """

    __slots__ = ("_lock", "_random", "_space", "_version", "_wall", "directory", "files")

    def __init__(
        self,
        directory: str,
        *,
        version: str,
        wall: Callable[[], float],
        random: Callable[[int], bytes],
        space: Space | None = None,
    ) -> None:
        self.directory = directory
        self._version = version
        self._wall = wall
        self._random = random
        self._space = space
        # Jobs run in several threads.
        self._lock = threading.Lock()
        self.files = 0

    def count(self, system: Any) -> None:
        """At start-up: how many there are; from then on the number is kept."""
        found = len(system.listdir(self.directory))
        with self._lock:
            self.files = found

    def _note(self, change: int) -> None:
        with self._lock:
            self.files += change

    def path(self, number: int) -> str:
        return f"{self.directory}/{number:016x}"

    def make(self, system: Any, count: int = AT_ONCE) -> list[BodyFile]:
        """So many files, their names synced.  Raises errors.StorageFull below the low-water mark, OSError."""
        if self._space is not None and self._space.look(system):
            raise errors.StorageFull(f"{self.directory}: below the low-water mark")
        made: list[BodyFile] = []
        try:
            for _ in range(count):
                made.append(self._make(system))
            sync_directory(system, self.directory)
        except BaseException:
            for file in made:
                system.close(file.fd)
            raise
        self._note(len(made))
        return made

    def _make(self, system: Any) -> BodyFile:
        drawn = self._random(16)
        number = int.from_bytes(drawn[:8], "little")
        epoch = int.from_bytes(drawn[8:], "little") or 1
        header = FileHeader(Purpose.BODY, epoch, number, 0, int(self._wall() * 1000), self._version)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd: int = system.open(self.path(number), flags, 0o600)
        try:
            write_all(system, fd, header.encode(), 0)
        except BaseException:
            system.close(fd)
            raise
        return BodyFile(number, epoch, fd)

    def pieces(self, system: Any, reference: BodyReference, size_bytes: int) -> Iterator[bytes]:
        """The body; raises errors.QueueDamaged when it isn't what the record says, at the end at the latest.

        So nothing may be acted upon before the last piece: what is wrong shows with the checksum of the whole.
        """
        name = self.path(reference.number)
        fd = self.open(system, reference.number)
        try:
            header = read_header(system.pread(fd, SIZE_BYTES, 0), name, Purpose.BODY, self._version)
            if (header.number, header.epoch) != (reference.number, reference.epoch):
                raise errors.QueueDamaged(f"{name}: it is another body's file")
            crc, offset, end = 0, SIZE_BYTES, SIZE_BYTES + size_bytes
            while offset < end:
                piece: bytes = system.pread(fd, min(PIECE_BYTES, end - offset), offset)
                if not piece:
                    raise errors.QueueDamaged(f"{name}: shorter than its record says")
                crc = crc32c(piece, crc)
                offset += len(piece)
                if offset == end and crc != reference.crc:
                    raise errors.QueueDamaged(f"{name}: its checksum is wrong")
                yield piece
        finally:
            system.close(fd)

    def refuse_later(self, system: Any, numbers: Iterable[int]) -> None:
        """Raises errors.QueueTooNew for a file of a later format; all else that is wrong shows where it is read."""
        for number in numbers:
            name = self.path(number)
            try:
                fd = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                read_header(system.pread(fd, SIZE_BYTES, 0), name, Purpose.BODY, self._version)
            except (OSError, errors.QueueDamaged):
                continue
            finally:
                system.close(fd)

    def open(self, system: Any, number: int) -> int:
        """A descriptor for reading, the caller's to close.  Raises errors.QueueDamaged, OSError."""
        name = self.path(number)
        try:
            fd: int = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise errors.QueueDamaged(f"{name}: it isn't there") from None
        return fd

    def remove(self, system: Any, number: int) -> None:
        """The message is done.  That may be lost in a crash: the file is then an orphan."""
        system.unlink(self.path(number))
        self._note(-1)

    def set_aside(self, system: Any, number: int, path: str) -> None:
        """What it holds is not what its record says: it is kept elsewhere, under this path."""
        system.rename(self.path(number), path)
        self._note(-1)

    def loose(self, system: Any, is_held: Callable[[int], bool]) -> list[int]:
        """Numbers of files that no worker has open; those that no record names either are orphans."""
        found = []
        for name in system.listdir(self.directory):
            number = number_of(name, "")
            if number is None:
                continue
            try:
                fd = system.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                if not is_held(fd):
                    found.append(number)
            finally:
                system.close(fd)
        return found

    def remove_orphans(self, system: Any, named: Collection[int]) -> int:
        """At start-up, with no worker alive: remove files that no record names; how many there were."""
        removed = 0
        for name in system.listdir(self.directory):
            number = number_of(name, "")
            if number is not None and number not in named:
                system.unlink(self.path(number))
                removed += 1
        self._note(-removed)
        return removed
