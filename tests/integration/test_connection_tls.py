"""TLS in the whole server: STARTTLS and implicit, behind PROXY, from fast and from hostile clients."""

from __future__ import annotations

import asyncio
import functools
import gc
import ssl
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.certificate import self_made
from tests.wire import PATIENCE_S, Running, Wire, run, serving

HELLO = b"EHLO client.example\r\n"
MESSAGE = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
STRANGERS: dict[str, Any] = {"relay": {"networks": []}}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory: Path = tmp_path_factory.mktemp("tls")
    credentials = self_made(directory, "mx.example")
    paths = {"certificate": str(directory / "c.pem"), "key": str(directory / "k.pem")}
    Path(paths["certificate"]).write_bytes(credentials.certificate)
    Path(paths["key"]).write_bytes(credentials.key)
    Path(paths["key"]).chmod(0o600)
    return paths


@asynccontextmanager
async def tls_serving(
    certificate: dict[str, str], mode: str = "starttls", listener: dict[str, Any] | None = None, **config: Any
) -> AsyncIterator[Running]:
    async with serving(tls=certificate, listener={"tls": mode, **(listener or {})}, **config) as running:
        yield running


@functools.cache
def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Memory:
    """A TLS client by hand: what it sends, and when, is the test's."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.into, self.out, server_hostname="mx.example")

    def hello(self) -> bytes:
        """The ClientHello."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.out.read()

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._more()
            else:
                break
        await self.flush()

    async def _more(self) -> None:
        await self.flush()
        async with asyncio.timeout(PATIENCE_S):
            data = await self.wire.reader.read(65_536)
        if not data:
            raise EOFError
        self.into.write(data)

    async def flush(self) -> None:
        await self.wire.send(self.out.read())

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self.flush()

    async def until(self, end: bytes) -> bytes:
        got = b""
        while not got.endswith(end):
            try:
                got += self.tls.read(65_536)
            except ssl.SSLWantReadError:
                await self._more()
        return got


def test_starttls_and_what_the_message_tells_of_it(certificate: dict[str, str]) -> None:
    async def main() -> None:
        async with tls_serving(certificate) as running:
            wire = await running.connect()
            _, offered = await wire.ask(HELLO[:-2])
            assert b"STARTTLS" in offered.split(b"\n")
            assert (await wire.ask(b"STARTTLS"))[0] == 220
            client = Memory(wire)
            await client.handshake()
            await client.send(b"MAIL FROM:<a@example.org>\r\n")
            assert (await client.until(b"\r\n")).startswith(b"503 5.5.1"), "the session has started over"
            await client.send(HELLO)
            assert b"STARTTLS" not in await client.until(b"HELP\r\n")
            await client.send(MESSAGE)
            await client.until(b"<CR><LF>\r\n")
            await client.send(b"text\r\n.\r\n")
            assert (await client.until(b"\r\n")).startswith(b"250 2.0.0")
            assert running.log.of("message")[0]["tls"] == "TLSv1.3"
            assert b"with ESMTPS (TLSv1.3 TLS_" in running.inbox.messages[0][2]
            await client.send(b"QUIT\r\n")
            assert (await client.until(b"\r\n")).startswith(b"221")
            await wire.close()

    run(main)


@pytest.mark.parametrize("with_uvloop", [True, False])
def test_the_client_hello_comes_the_moment_the_220_arrives(
    certificate: dict[str, str], with_uvloop: bool
) -> None:
    """Hundreds of times; the ClientHello is made before, so that nothing delays it."""
    rounds = 300 if with_uvloop else 100

    async def main() -> None:
        async with tls_serving(certificate, limits={"connections_per_client": 0}) as running:
            for _ in range(rounds):
                wire = await running.connect()
                client = Memory(wire)
                hello = client.hello()
                await wire.ask(HELLO[:-2])
                await wire.send(b"STARTTLS\r\n")
                await wire.reader.readuntil(b"\r\n")
                wire.writer.write(hello)
                await client.handshake()
                await client.send(b"NOOP\r\n")
                assert (await client.until(b"\r\n")).startswith(b"250")
                wire.abort()

    run(main, with_uvloop=with_uvloop)


def test_what_is_injected_in_clear_is_dropped(certificate: dict[str, str]) -> None:
    async def main() -> None:
        async with tls_serving(certificate) as running:
            wire = await running.connect()
            await wire.ask(HELLO[:-2])
            await wire.send(b"STARTTLS\r\nMAIL FROM:<evil@example.org>\r\nRCPT TO:<b@example.org>\r\n")
            assert (await wire.reply())[0] == 220
            client = Memory(wire)
            await client.handshake()
            await client.send(HELLO + b"DATA\r\n")
            said = await client.until(b")\r\n")
            assert b"503 5.5.1" in said
            assert b"evil" not in said
            wire.abort()

    run(main)


@pytest.mark.parametrize("with_uvloop", [True, False])
def test_implicit_tls_from_fast_clients(certificate: dict[str, str], with_uvloop: bool) -> None:
    """The ClientHello is in the socket before the server has accepted."""

    async def main() -> None:
        async with tls_serving(certificate, "implicit", limits={"connections_per_client": 0}) as running:

            async def one() -> None:
                wire = await running.connect(greet=False)
                client = Memory(wire)
                wire.writer.write(client.hello())
                await client.handshake()
                assert (await client.until(b"\r\n")).startswith(b"220 mx.example")
                await client.send(HELLO)
                await client.until(b"HELP\r\n")
                wire.abort()

            for _ in range(10):
                await asyncio.gather(*(one() for _ in range(20)))

    run(main, with_uvloop=with_uvloop)


def test_a_proxy_header_and_the_client_hello_in_one_segment(certificate: dict[str, str]) -> None:
    async def main() -> None:
        listener = {"proxy_from": ["127.0.0.1"]}
        async with tls_serving(certificate, "implicit", listener, **STRANGERS) as running:
            for header in (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 465\r\n",
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x0f\xa0\x01\xd1",
            ):
                wire = await running.connect(greet=False)
                client = Memory(wire)
                await wire.send(header + client.hello())
                await client.handshake()
                assert (await client.until(b"\r\n")).startswith(b"220")
                await client.send(HELLO + MESSAGE)
                await client.until(b"<CR><LF>\r\n")
                await client.send(b"text\r\n.\r\n")
                await client.until(b"\r\n")
                wire.abort()
            assert [line["client"] for line in running.log.of("message")] == ["192.0.2.7"] * 2

    run(main)


@pytest.mark.parametrize("garbage", [b"EHLO not.tls\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 5_000, b"\x80"])
@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_garbage_instead_of_a_handshake(certificate: dict[str, str], mode: str, garbage: bytes) -> None:
    async def main() -> None:
        async with tls_serving(certificate, mode) as running:
            wire = await running.connect(greet=mode == "starttls")
            if mode == "starttls":
                await wire.ask(HELLO[:-2])
                assert (await wire.ask(b"STARTTLS"))[0] == 220
            await wire.send(garbage)
            wire.writer.write_eof()
            await wire.rest()
            service = running.server._service
            assert service is not None
            async with asyncio.timeout(PATIENCE_S):
                while service.connections:
                    await asyncio.sleep(0.01)
            assert len(running.log.of("tls_failed")) == 1
            assert running.log.of("defect") == []
            assert service.counters.connections() == 0
            await wire.close()

    run(main)


def test_a_flood_of_handshakes_meets_its_limit(certificate: dict[str, str]) -> None:
    async def main() -> None:
        limits = {"handshakes_per_client_per_min": 3}
        async with tls_serving(certificate, limits=limits, **STRANGERS) as running:
            codes = []
            for _ in range(5):
                wire = await running.connect()
                await wire.ask(HELLO[:-2])
                codes.append((await wire.ask(b"STARTTLS"))[0])
                wire.abort()
            assert codes == [220, 220, 220, 454, 454]

    run(main)


def test_tls_may_be_required(certificate: dict[str, str]) -> None:
    async def main() -> None:
        async with tls_serving(certificate, "required") as running:
            wire = await running.connect()
            await wire.ask(HELLO[:-2])
            assert (await wire.ask(b"MAIL FROM:<a@example.org>"))[0] == 530
            await wire.close()

    run(main)


def test_a_held_back_client_that_sends_on_under_tls_costs_little(certificate: dict[str, str]) -> None:
    """While its answer is waited for the kernel keeps what it sends, not we (and not the TLS layer)."""

    async def main() -> None:
        gate = asyncio.Event()

        async def slow(message: Any) -> None:
            await gate.wait()

        async with tls_serving(certificate, sink=slow) as running:
            wire = await running.connect()
            await wire.ask(HELLO[:-2])
            await wire.ask(b"STARTTLS")
            client = Memory(wire)
            await client.handshake()
            await client.send(HELLO + MESSAGE)
            await client.until(b"<CR><LF>\r\n")
            await client.send(b"text\r\n.\r\n")
            service = running.server._service
            assert service is not None
            connection = next(iter(service.connections))
            async with asyncio.timeout(PATIENCE_S):
                while not connection._is_busy:
                    await asyncio.sleep(0.001)
            before = connection.bytes_in
            for _ in range(400):
                client.tls.write(b"NOOP\r\n" * 1_000)
            wire.writer.write(client.out.read())
            for _ in range(100):
                await asyncio.sleep(0.002)
            assert connection.bytes_in == before, "nothing is decrypted"
            gate.set()
            assert (await client.until(b"\r\n")).startswith(b"250 2.0.0")
            wire.abort()

    run(main)


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_nothing_is_left_for_the_garbage_collector_when_tls_ends(
    certificate: dict[str, str], mode: str
) -> None:
    """A worker's collector seldom looks; with 25 kB in each connection's cycle a thousand would wait for it."""

    async def main() -> None:
        async with tls_serving(certificate, mode) as running:
            wire = await running.connect(greet=mode == "starttls")
            client = Memory(wire)
            if mode == "starttls":
                await wire.ask(HELLO[:-2])
                await wire.ask(b"STARTTLS")
            await client.handshake()
            await client.send(HELLO)
            await client.until(b"HELP\r\n")
            service = running.server._service
            assert service is not None
            ended = weakref.ref(next(iter(service.connections)))
            wire.abort()
            async with asyncio.timeout(PATIENCE_S):
                while ended() is not None:
                    await asyncio.sleep(0.001)

    gc.collect()
    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()


@pytest.mark.parametrize("with_uvloop", [True, False])
def test_the_last_words_arrive_though_the_client_has_sent_on(
    certificate: dict[str, str], with_uvloop: bool
) -> None:
    """What comes behind QUIT is dropped up to the client's close_notify: no reset eats the 221."""

    async def main() -> None:
        async with tls_serving(certificate, "implicit") as running:
            wire = await running.connect(greet=False)
            client = Memory(wire)
            await client.handshake()
            await client.send(HELLO + b"NOOP " + b"x" * 400 + b"\r\n" + b"QUIT\r\n" + b"NOOP\r\n" * 50_000)
            said = b"..."
            while not said.startswith(b"221 2.0.0"):
                said = await client.until(b"\r\n")
                said = said[:-2].rpartition(b"\r\n")[2]
            client.tls.unwrap()
            await client.flush()
            assert not (await wire.rest()).endswith(b"!")
            await wire.close()

    run(main, with_uvloop=with_uvloop)
