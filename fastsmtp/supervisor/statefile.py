"""One server a state directory: the pid file, and the lock on it.

The lock (flock) is the truth and dies with its holder; the number in the file
is for people and scripts.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
from typing import Final

from fastsmtp.errors import ConfigError

NAME: Final = "fastsmtp.pid"


class PidFile:
    """STATE/fastsmtp.pid, held locked until `remove`."""

    def __init__(self, state: str) -> None:
        """Make the state directory if need be, and take the lock.

        ConfigError if a live server has it, or the directory can't be written to.
        """
        self.path = pathlib.Path(state) / NAME
        try:
            pathlib.Path(state).mkdir(mode=0o755, parents=True, exist_ok=True)
            self.fd = self._locked(state)
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise ConfigError(f"cannot use the state directory {state}: {error.strerror}") from None

    def _locked(self, state: str) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(fd)
                raise ConfigError(f"another fastsmtp (pid {pid}) uses the state directory {state}") from None
            # The server before us may have removed the name between our open and our lock.
            try:
                if os.path.samestat(os.fstat(fd), self.path.stat()):
                    return fd
            except FileNotFoundError:
                pass
            os.close(fd)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.fd)
