"""Accepting: one listening socket's server in the loop, paused while descriptors are short.

uvloop accepts and closes at once when a process is out of descriptors, without
a word, and can't stop accepting but by closing its server.  So the listener
keeps the socket itself, gives the loop a duplicate, and closes that one before
descriptors run out.  Clients then wait in the kernel's queue.

Rank 8.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from fastsmtp.smtp.connection import Connection
from fastsmtp.smtp.profile import Profile

if TYPE_CHECKING:
    from fastsmtp.smtp.service import Service

# Linux caps it at net.core.somaxconn.
BACKLOG = 4096


class Accepted(Connection, asyncio.BufferedProtocol):
    """A connection as the loop wants it: asyncio's own loop looks at a protocol's class, uvloop at its methods."""

    __slots__ = ()


class Listener:
    """One listening socket.

    profile   the current settings; connections take it at accept
    at        index of its [[listen]]
    port      where it listens
    """

    __slots__ = ("_local", "_server", "_socket", "at", "is_paused", "port", "profile", "service")

    def __init__(self, service: Service, at: int, profile: Profile, sock: socket.socket) -> None:
        self.service = service
        self.at = at
        self.profile = profile
        self.is_paused = False
        self._socket = sock
        self._server: asyncio.Server | None = None
        host, self.port = sock.getsockname()[:2]
        # Asking each connection for its own address costs a system call; a wildcard socket needs it.
        self._local = "" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound

    async def open(self) -> None:
        """Start accepting, or go on after pause()."""
        duplicate = self._socket.dup()
        duplicate.setblocking(False)
        self._server = await self.service.loop.create_server(
            self._connection, sock=duplicate, backlog=BACKLOG
        )
        self.is_paused = False

    def _connection(self) -> Accepted:
        return Accepted(self)

    def pause(self) -> None:
        """Stop accepting; connections that are open go on."""
        self.is_paused = True
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Stop for good.  The socket that was handed in is closed as well: it is this process's copy."""
        self.pause()
        self._socket.close()

    def local_address(self, transport: asyncio.BaseTransport) -> str:
        if self._local:
            return self._local
        name = transport.get_extra_info("sockname")
        return name[0] if name else ""

    def opened(self, connection: Connection) -> None:
        meter = self.profile.meter
        meter.connections.inc()
        meter.open.inc()
        self.service.opened(connection)

    def closed(self, connection: Connection) -> None:
        self.profile.meter.open.dec()
        self.service.closed(connection)
