"""`fastsmtp` on a disk that breaks where and while a test wants it, and with a clock that a test sets.

python -m tests.integration.failing DIRECTORY ARGUMENTS

DIRECTORY/pwritev, DIRECTORY/fdatasync   while it is there, that call fails with EIO, for files whose path has the
                                         file's text in it
DIRECTORY/clock                          seconds by which the wall clock is wrong
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

from fastsmtp import _journal


class Failing:
    """os as the native threads see it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwritev(self, fd: int, pieces: list[bytes], offset: int) -> int:
        self._fail("pwritev", fd)
        return os.pwritev(fd, pieces, offset)

    def fdatasync(self, fd: int) -> None:
        self._fail("fdatasync", fd)
        os.fdatasync(fd)

    def _fail(self, call: str, fd: int) -> None:
        text = read(self._directory / call)
        if text and text in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def set_up(directory: Path) -> None:
    """Before anything of the server is imported; its processes are forks of this one."""
    writer: Any = functools.partial(_journal.Writer, system=Failing(directory))
    _journal.Writer = writer  # type: ignore[misc]
    true_time = time.time
    time.time = lambda: true_time() + float(read(directory / "clock") or 0)


if __name__ == "__main__":
    set_up(Path(sys.argv[1]))
    from fastsmtp.cli import main

    sys.exit(main(sys.argv[2:]))
