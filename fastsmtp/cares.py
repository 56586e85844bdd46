"""A pycares channel driven by the running loop.

What pycares is for here: it reads resolv.conf, resolves the host names of the
configuration, and is the second engine behind Resolver.  It is not on the path
of a message.

The channel is made at the first use, so never before the fork.  Its sockets
are watched by the loop: without sock_state_cb c-ares starts a thread and calls
back from there (pycares 5).  May import asyncio; imports pycares where it is
used.  Rank 3.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycares import Channel

# How long c-ares may wait for a look at its clocks, in seconds; its own time-outs are two seconds.
_TICK_S = 0.5


def reason(error: int | None) -> str:
    """What c-ares says of one of its error numbers."""
    from pycares import errno

    text = errno.strerror(error) if error is not None else "no answer"
    return text.decode("ascii", "replace") if isinstance(text, bytes) else text


class LoopChannel:
    """A pycares.Channel on the running asyncio (or uvloop) loop.

    servers  "address" or "address:port" each, [] for resolv.conf
    Use it from one thread only, and close() it: c-ares closes its sockets in a
    thread of its own, after the loop has forgotten them.
    """

    def __init__(
        self, *, servers: Iterable[str] = (), flags: int | None = None, tries: int | None = None
    ) -> None:
        self._servers = tuple(servers)
        self._flags = flags
        self._tries = tries
        self._channel: Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._readers: set[int] = set()
        self._writers: set[int] = set()
        self._thread = 0
        self._is_closed = False

    def channel(self) -> Channel:
        """The channel, made now if there is none.  Raises RuntimeError after close()."""
        if self._is_closed:
            raise RuntimeError("the channel is closed")
        if self._channel is None:
            from pycares import Channel

            self._loop = asyncio.get_running_loop()
            self._thread = threading.get_ident()
            self._channel = Channel(
                sock_state_cb=self._watch, servers=self._servers or None, flags=self._flags, tries=self._tries
            )
        return self._channel

    def keep_time(self) -> None:
        """Call after a question was put: c-ares does its time-outs when it is looked at."""
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def close(self) -> None:
        """Forget the sockets and end the channel; open questions are answered with ARES_ECANCELLED."""
        self._is_closed = True
        if self._channel is None or self._loop is None:
            return
        self._channel.cancel()
        for fd in self._readers:
            self._loop.remove_reader(fd)
        for fd in self._writers:
            self._loop.remove_writer(fd)
        self._readers.clear()
        self._writers.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._channel.close()
        self._channel = None

    def _tick(self) -> None:
        self._timer = None
        if self._channel is None or self._loop is None:
            return
        from pycares import ARES_SOCKET_BAD

        self._channel.process_fd(ARES_SOCKET_BAD, ARES_SOCKET_BAD)
        wait_s: float = self._channel.timeout(_TICK_S)  # type: ignore[no-untyped-call]
        if wait_s > 0.0 or self._readers:
            self._timer = self._loop.call_later(max(wait_s, 0.01), self._tick)

    def _watch(self, fd: int, is_readable: bool, is_writable: bool) -> None:
        """c-ares says what it wants to know about a socket; neither means that it will be closed."""
        loop = self._loop
        if self._is_closed or loop is None or threading.get_ident() != self._thread:
            return
        if is_readable and fd not in self._readers:
            loop.add_reader(fd, self._read, fd)
            self._readers.add(fd)
        elif not is_readable and fd in self._readers:
            loop.remove_reader(fd)
            self._readers.discard(fd)
        if is_writable and fd not in self._writers:
            loop.add_writer(fd, self._write, fd)
            self._writers.add(fd)
        elif not is_writable and fd in self._writers:
            loop.remove_writer(fd)
            self._writers.discard(fd)

    def _read(self, fd: int) -> None:
        if self._channel is not None:
            self._channel.process_read_fd(fd)

    def _write(self, fd: int) -> None:
        if self._channel is not None:
            self._channel.process_write_fd(fd)
