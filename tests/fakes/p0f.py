"""p0f 3's socket for tests, byte for byte, and all that can go wrong with it.

    async with p0f({"192.0.2.1": known("Windows", "XP")}) as fake:
        fake.path, fake.asked, fake.clients

It writes its packets by its own few lines, none of ours.
"""

from __future__ import annotations

import asyncio
import pathlib
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager


def known(
    name: str,
    flavor: str = "",
    link: str = "",
    *,
    distance: int = 3,
    uptime_min: int = 0,
    connections: int = 1,
    last_nat: int = 0,
    quality: int = 0,
) -> bytes:
    """The answer about a host that p0f has seen."""
    packed = struct.pack("=II", 0x50304602, 0x10)
    packed += struct.pack("=IIIIIII", 1, 2, connections, uptime_min, 49, last_nat, 0)
    packed += struct.pack("=hBB", distance, 0, quality)
    for text in (name, flavor, "", "", link, ""):
        packed += text.encode("latin-1").ljust(32, b"\0")
    return packed


UNKNOWN = struct.pack("=II", 0x50304602, 0x20).ljust(232, b"\0")
BAD_QUERY = struct.pack("=II", 0x50304602, 0x00).ljust(232, b"\0")

# What the server does with a question: the octets that it writes; None: nothing, for ever.
Answer = Callable[[str], bytes | None]


class FakeP0f:
    """path of its socket; asked: the addresses, in order; clients: open connections; made: all there ever were."""

    def __init__(self, path: str, hosts: Mapping[str, bytes]) -> None:
        self.path = path
        self.answer: Answer = lambda address: hosts.get(address, UNKNOWN)
        self.asked: list[str] = []
        self.clients = 0
        self.made = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """The process ends: its socket is gone, and so are its connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.close()
        pathlib.Path(self.path).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        self.made += 1
        self._writers.add(writer)
        try:
            while True:
                query = await reader.readexactly(21)
                magic, version, packed = struct.unpack("=IB16s", query)
                assert magic == 0x50304601
                if version == 4:
                    assert packed[4:] == b"\0" * 12
                    address = socket.inet_ntop(socket.AF_INET, packed[:4])
                else:
                    assert version == 6
                    address = socket.inet_ntop(socket.AF_INET6, packed)
                self.asked.append(address)
                said = self.answer(address)
                if said == b"":
                    break
                if said is not None:
                    writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.clients -= 1
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def p0f(hosts: Mapping[str, bytes] | None = None, *, is_running: bool = True) -> AsyncIterator[FakeP0f]:
    with tempfile.TemporaryDirectory(prefix="p0f-") as folder:
        fake = FakeP0f(f"{folder}/sock", hosts or {})
        if is_running:
            await fake.start()
        try:
            yield fake
        finally:
            await fake.stop()
