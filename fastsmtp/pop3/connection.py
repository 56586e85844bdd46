"""A session on two descriptors, as tcpserver and inetd give them: 0 to read, 1 to write.

Blocking with a deadline: a process serves one client.

Rank 8.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

# RFC 1939 section 3: an autologout timer is at least 10 minutes; qmail-pop3d has 20.
IDLE_S = 1_200.0

READ_BYTES = 4_096
WRITE_BYTES = 65_536


class Hung(Exception):
    """The client is gone: it hung up, or let the deadline pass."""


class Talking(Protocol):
    """A sans-IO session."""

    is_over: bool

    def greeting(self) -> bytes: ...
    def feed(self, data: bytes) -> Iterator[bytes]: ...


class Wire:
    """The two descriptors; every wait has the same deadline."""

    def __init__(self, read_end: int, write_end: int, idle_s: float = IDLE_S) -> None:
        self._read_end = read_end
        self._write_end = write_end
        self._idle_ms = int(idle_s * 1_000)

    def read(self, size: int = READ_BYTES) -> bytes:
        """What has come; raises Hung at the end of input too."""
        while True:
            self._wait(self._read_end, select.POLLIN)
            try:
                data = os.read(self._read_end, size)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Hung from error
            if not data:
                raise Hung
            return data

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._wait(self._write_end, select.POLLOUT)
            try:
                left = left[os.write(self._write_end, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Hung from error

    def _wait(self, descriptor: int, event: int) -> None:
        waiting = select.poll()
        waiting.register(descriptor, event)
        if not waiting.poll(self._idle_ms):
            raise Hung

    @contextmanager
    def not_blocking(self) -> Iterator[None]:
        """A write of much data must not wait beyond the deadline.

        The flag belongs to the connection, not to us: whoever has it after us finds it as it was.
        """
        was = os.get_blocking(self._write_end)
        os.set_blocking(self._write_end, False)
        try:
            yield
        finally:
            os.set_blocking(self._write_end, was)


def serve(session: Talking, wire: Wire) -> None:
    """Talk until the session is over.  Raises Hung, or the OSError of a message that can't be read."""
    with wire.not_blocking():
        wire.write(session.greeting())
        while not session.is_over:
            # Answers to pipelined commands leave together, a message in pieces of some size.
            waiting: list[bytes] = []
            size = 0
            for answer in session.feed(wire.read()):
                waiting.append(answer)
                size += len(answer)
                if size >= WRITE_BYTES:
                    wire.write(b"".join(waiting))
                    waiting, size = [], 0
            wire.write(b"".join(waiting))
