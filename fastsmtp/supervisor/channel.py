"""The master's line to one worker: whole messages both ways, file contents as sealed memory files.

    worker -> master    ready | failed TEXT | leaving | refused TEXT
    master -> worker    drain SECONDS | close | files NAMES (one descriptor each, SCM_RIGHTS)

A line that ends means that the other side is dead.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Final

MOST_BYTES: Final = 65_536
MOST_FILES: Final = 250
"""SCM_MAX_FD of the kernel is 253; more files go in more than one message."""


class Channel:
    """One end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self._sock.fileno()

    def say(self, word: str, text: str = "") -> bool:
        """False if the other side doesn't listen: it is dead, or has not read for very long."""
        try:
            self._sock.send(f"{word} {text}".encode()[:MOST_BYTES])
        except OSError:
            return False
        return True

    def hear(self) -> tuple[str, str] | None:
        """The next message as (word, text), ("", "") at the end, None when there is none now."""
        message = self._receive(0)
        return None if message is None else message[0]

    def send_files(self, files: Mapping[str, int]) -> bool:
        """Name -> descriptor; the other side gets descriptors of its own."""
        names = list(files)
        for start in range(0, len(names), MOST_FILES):
            part = names[start : start + MOST_FILES]
            try:
                socket.send_fds(
                    self._sock, [b"files " + json.dumps(part).encode()], [files[name] for name in part]
                )
            except OSError:
                return False
        return True

    def hear_with_files(self) -> tuple[str, str, dict[str, bytes]] | None:
        """As hear, with the contents of the files that came along."""
        message = self._receive(MOST_FILES)
        if message is None:
            return None
        (word, text), fds = message
        files = {}
        for name, fd in zip(json.loads(text) if word == "files" else (), fds, strict=False):
            files[name] = os.pread(fd, os.fstat(fd).st_size, 0)
        for fd in fds:
            os.close(fd)
        return word, text, files

    def _receive(self, most_files: int) -> tuple[tuple[str, str], list[int]] | None:
        try:
            message, fds, _, _ = socket.recv_fds(self._sock, MOST_BYTES, most_files)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return ("", ""), []
        word, _, text = message.decode("utf-8", "replace").partition(" ")
        return (word, text), fds

    def close(self) -> None:
        self._sock.close()
