"""A client that sends bytes and reads replies, and a server in the same loop for it: for tests of the whole server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import fastsmtp
from fastsmtp.log import ListLog

# Long enough for a machine under load; reached only when something hangs.
PATIENCE_S = 30.0


def run(main: Callable[[], Awaitable[None]], *, with_uvloop: bool | None = None) -> None:
    """Run a test's coroutine in a new loop: uvloop where there is one, as in the daemon."""
    if with_uvloop is None:
        with_uvloop = sys.platform != "win32"
    factory = None
    if with_uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_bounded(main))


async def _bounded(main: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(3 * PATIENCE_S):
        await main()


class Inbox:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, list[bytes], bytes, bytes]] = []

    async def __call__(self, message: fastsmtp.Message) -> None:
        envelope = message.envelope
        content = await message.content()
        body = content[len(message.prefix) :]
        self.messages.append(
            (envelope.sender, [r.address for r in envelope.recipients], message.prefix, body)
        )

    @property
    def bodies(self) -> list[bytes]:
        return [body for *_, body in self.messages]


class Running:
    """A server, what it has logged and what it has got."""

    def __init__(self, server: fastsmtp.Server, inbox: Inbox, log: ListLog) -> None:
        self.server = server
        self.inbox = inbox
        self.log = log

    async def connect(self, local: str = "127.0.0.1", *, greet: bool = True) -> Wire:
        wire = await connect(self.server.port, local)
        if greet:
            code, _ = await wire.reply()
            assert code == 220
        return wire


@asynccontextmanager
async def serving(sink: Any = None, **config: Any) -> AsyncIterator[Running]:
    """A server on a free port.  Clients relay by default; `relay={"networks": []}` makes them strangers."""
    inbox, log = Inbox(), ListLog()
    config.setdefault("hostname", "mx.example")
    server = fastsmtp.Server(sink or inbox, listen=("127.0.0.1", 0), log=log, **config)
    async with server:
        yield Running(server, inbox, log)


async def connect(port: int, local: str = "127.0.0.1") -> Wire:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(local, 0), limit=1 << 24)
    return Wire(reader, writer)


class Wire:
    """One connection, seen from the client's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> tuple[int, bytes]:
        """The next reply: its code and all its text, lines joined by LF."""
        lines = []
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await self.reader.readuntil(b"\r\n")
                lines.append(line[4:-2])
                if line[3:4] != b"-":
                    return int(line[:3]), b"\n".join(lines)

    async def ask(self, command: bytes) -> tuple[int, bytes]:
        await self.send(command + b"\r\n")
        return await self.reply()

    async def codes(self, data: bytes, count: int) -> list[int]:
        """Send, and read so many replies."""
        await self.send(data)
        return [(await self.reply())[0] for _ in range(count)]

    async def rest(self) -> bytes:
        """Everything up to the server's end of the connection; b"!" at its end for a reset."""
        async with asyncio.timeout(PATIENCE_S):
            got = bytearray()
            try:
                while chunk := await self.reader.read(65536):
                    got += chunk
            except ConnectionError:
                got += b"!"
            return bytes(got)

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, OSError):
            # The server was quicker.
            return

    def abort(self) -> None:
        self.writer.transport.abort()
