"""Files in memory that remember what was synced, and can lose the rest: an `os` for the queue.

Every write, sync and change of a name goes into a trace.  images() replays it,
stops after each step, and gives what a disk may hold if the power failed there:
of each write that wasn't synced, any of its sectors or none; of the names
changed since their directory was synced, any or a first part.  What was synced
is there.  A sync that fails loses what it was to sync, as Linux may.
"""

from __future__ import annotations

import errno
import os
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

SECTOR = 512

# (call, how often it was called, its argument) -> errno to fail with, 0 for success
Fault = Callable[[str, int, Any], int]


class Tree:
    """Contents by file number, names by path: what a disk holds, or what a program sees."""

    def __init__(self) -> None:
        self.contents: dict[int, bytearray] = {}
        self.names: dict[str, int] = {}
        self.directories: set[str] = set()

    def copy(self) -> Tree:
        other = Tree()
        other.contents = {number: bytearray(data) for number, data in self.contents.items()}
        other.names = dict(self.names)
        other.directories = set(self.directories)
        return other

    def write(self, number: int, data: bytes, offset: int) -> None:
        content = self.contents.setdefault(number, bytearray())
        if len(content) < offset + len(data):
            content.extend(bytes(offset + len(data) - len(content)))
        content[offset : offset + len(data)] = data

    def name(self, change: tuple[str | None, str | None, int]) -> None:
        """(old name, new name, file): a link, a rename or an unlink; skipped where it makes no sense."""
        old, new, number = change
        if old is not None:
            if self.names.get(old) != number:
                return
            del self.names[old]
        if new is not None:
            self.names[new] = number
            self.contents.setdefault(number, bytearray())


class Files:
    """The calls of `os` that the queue makes.  fail decides which of them fail."""

    def __init__(self, tree: Tree | None = None, fail: Fault | None = None) -> None:
        self.tree = tree or Tree()
        self.trace: list[tuple[Any, ...]] = []
        self.fail = fail
        self.calls: dict[str, int] = {}
        self.free_bytes = 1 << 40
        # What a sync of it (file number, or directory) does not sync, though it says so.
        self.forgotten: Callable[[int | str], bool] = lambda target: False
        self._open: dict[int, tuple[int | str, int]] = {}
        self._next_fd = 1_000
        self._next_file = 1 + max(self.tree.contents, default=0)

    # --- names

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """Directories are there at once and for good: they are made with the state directory."""
        if path in self.tree.directories:
            raise FileExistsError(errno.EEXIST, path)
        self.tree.directories.add(path)
        self.trace.append(("mkdir", path))

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._may_fail("open", path)
        target: int | str
        if flags & os.O_DIRECTORY:
            if path not in self.tree.directories:
                raise FileNotFoundError(errno.ENOENT, path)
            target = path
        elif path in self.tree.names:
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, path)
            target = self.tree.names[path]
        elif flags & os.O_CREAT:
            target = self._next_file
            self._next_file += 1
            self._change(None, path, target)
        else:
            raise FileNotFoundError(errno.ENOENT, path)
        self._next_fd += 1
        self._open[self._next_fd] = (target, flags & os.O_ACCMODE)
        return self._next_fd

    def close(self, fd: int) -> None:
        del self._open[fd]

    def dup(self, fd: int) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = self._open[fd]
        return self._next_fd

    @property
    def open_fds(self) -> set[int]:
        return set(self._open)

    def rename(self, old: str, new: str) -> None:
        self._may_fail("rename", old)
        self._change(old, new, self.tree.names[old])

    def unlink(self, path: str) -> None:
        if path not in self.tree.names:
            raise FileNotFoundError(errno.ENOENT, path)
        self._change(path, None, self.tree.names[path])

    def listdir(self, path: str) -> list[str]:
        return [name.rpartition("/")[2] for name in self.tree.names if name.rpartition("/")[0] == path]

    def stat(self, path: str) -> Any:
        if path not in self.tree.names:
            raise FileNotFoundError(errno.ENOENT, path)
        return types.SimpleNamespace(st_size=len(self.tree.contents[self.tree.names[path]]))

    def fstat(self, fd: int) -> Any:
        return types.SimpleNamespace(st_size=len(self.tree.contents[self._file(fd)]))

    def statvfs(self, path: str) -> Any:
        return types.SimpleNamespace(f_bavail=self.free_bytes // 4096, f_frsize=4096)

    def _change(self, old: str | None, new: str | None, number: int) -> None:
        self.tree.name((old, new, number))
        self.trace.append(("name", old, new, number))

    # --- contents

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return self.pwritev(fd, [bytes(data)], offset)

    def pwritev(self, fd: int, pieces: list[bytes], offset: int) -> int:
        data = b"".join(pieces)
        number = self._file(fd)
        if self._open[fd][1] == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        try:
            self._may_fail("pwritev", number)
        except OSError:
            # Some of it was written all the same.
            half = data[: len(data) // 2 // SECTOR * SECTOR]
            self.tree.write(number, half, offset)
            self.trace.append(("write", number, offset, half))
            raise
        self.tree.write(number, data, offset)
        self.trace.append(("write", number, offset, data))
        return len(data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if self._open[fd][1] == os.O_WRONLY:
            raise OSError(errno.EBADF, "not open for reading")
        self._may_fail("pread", offset)
        return bytes(self.tree.contents[self._file(fd)][offset : offset + size])

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def fsync(self, fd: int) -> None:
        target = self._open[fd][0]
        try:
            self._may_fail("fsync", target)
        except OSError:
            self.trace.append(("lost", target))
            raise
        if not self.forgotten(target):
            self.trace.append(("sync", target))

    def path_of(self, number: int | str) -> str:
        """The file's present name, "" when it has none."""
        return next((path for path, file in self.tree.names.items() if file == number), "")

    def mark(self, *what: Any) -> None:
        """Something of the test's own in the trace."""
        self.trace.append(("mark", *what))

    def _file(self, fd: int) -> int:
        target = self._open[fd][0]
        assert isinstance(target, int)
        return target

    def _may_fail(self, call: str, what: Any) -> None:
        self.calls[call] = count = self.calls.get(call, 0) + 1
        number = self.fail(call, count, what) if self.fail is not None else 0
        if number:
            raise OSError(number, os.strerror(number))


class Disk:
    """What is on the disk while a trace is replayed: safe, and what may or may not be there."""

    def __init__(self, base: Tree | None = None) -> None:
        self.safe = Tree() if base is None else base.copy()
        self.writes: dict[int, list[tuple[int, bytes]]] = {}
        self.changes: dict[str, list[tuple[str | None, str | None, int]]] = {}

    def apply(self, step: tuple[Any, ...], dice: random.Random) -> None:
        kind, *rest = step
        if kind == "mkdir":
            self.safe.directories.add(rest[0])
        elif kind == "name":
            old, new, number = rest
            self.safe.contents.setdefault(number, bytearray())
            directory = (new or old).rpartition("/")[0]
            self.changes.setdefault(directory, []).append((old, new, number))
        elif kind == "write":
            number, offset, data = rest
            self.writes.setdefault(number, []).append((offset, data))
        elif kind == "sync" and isinstance(rest[0], str):
            for change in self.changes.pop(rest[0], []):
                self.safe.name(change)
        elif kind == "sync":
            for offset, data in self.writes.pop(rest[0], []):
                self.safe.write(rest[0], data, offset)
        elif kind == "lost" and isinstance(rest[0], int):
            for offset, data in self.writes.pop(rest[0], []):
                self._some_sectors(self.safe, rest[0], offset, data, dice.choice((0.0, 0.5, 1.0)), dice)

    def crashed(self, dice: random.Random) -> Tree:
        """What is left when the power fails now."""
        left = self.safe.copy()
        for number, writes in self.writes.items():
            share = dice.choice((0.0, 0.3, 0.7, 1.0))
            for offset, data in writes:
                self._some_sectors(left, number, offset, data, share, dice)
        for changes in self.changes.values():
            if dice.random() < 0.5:
                kept = changes[: dice.randrange(len(changes) + 1)]
            else:
                kept = [change for change in changes if dice.random() < 0.5]
            for change in kept:
                left.name(change)
        return left

    @staticmethod
    def _some_sectors(
        tree: Tree, number: int, offset: int, data: bytes, share: float, dice: random.Random
    ) -> None:
        for at in range(0, len(data), SECTOR):
            if dice.random() < share:
                tree.write(number, data[at : at + SECTOR], offset + at)


def images(
    trace: list[tuple[Any, ...]], dice: random.Random, every: int = 1, base: Tree | None = None
) -> Iterator[tuple[int, list[tuple[Any, ...]], Tree]]:
    """(steps done, marks among them, what is on the disk) for each place where the power may fail.

    base   what was on the disk before the first step
    """
    disk = Disk(base)
    marks: list[tuple[Any, ...]] = []
    for count, step in enumerate(trace):
        if step[0] == "mark":
            marks.append(step[1:])
        else:
            disk.apply(step, dice)
        if count % every == 0 or count == len(trace) - 1:
            yield count, marks, disk.crashed(dice)
