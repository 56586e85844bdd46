"""Clients that are asked for a certificate and mean harm: what they can cost is bounded, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from OpenSSL import SSL

from fastsmtp.certificate import make_certificate
from tests.pki import Authority, Pair
from tests.wire import PATIENCE_S, Running, Wire, run, serving

OURS, THEIRS = Authority("Our CA"), Authority("Their CA")
JOE = OURS.issue("joe@example.org")
HELLO = b"EHLO client.example\r\n"
ASK = b"MAIL FROM:<a@example.net>\r\nRCPT TO:<b@elsewhere.example>\r\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    certificate, key = Pair(*make_certificate(["mx.example"], days=2)).write(folder, "mx")
    (folder / "ca.pem").write_bytes(OURS.pem)
    return {"certificate": certificate, "key": key, "client_ca": str(folder / "ca.pem")}


@asynccontextmanager
async def asking(files: dict[str, str]) -> AsyncIterator[Running]:
    relay = {"networks": [], "certificates": ["joe@example.org"]}
    async with serving(
        tls=files,
        relay=relay,
        listener={"tls": "implicit"},
        accept=[{"domain": ["example.org"], "deliver": "discard"}],
        deliver={"default": "discard"},
        limits={"connections_per_client": 0},
    ) as running:
        yield running


def context_of(
    pair: Pair | None, folder: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    if pair is not None:
        context.load_cert_chain(*pair.write(folder, "client"))
    return context


async def answer(running: Running, context: ssl.SSLContext) -> str:
    """The answer to a recipient elsewhere."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port, ssl=context)
        wire = Wire(reader, writer)
        await wire.reply()
        await wire.ask(HELLO[:-2])
        await wire.send(ASK)
        await wire.reply()
        code, text = await wire.reply()
        wire.abort()
        return f"{code} {text.decode()}"


def chained(length: int) -> Pair:
    """A certificate under so many authorities of their own."""
    above = THEIRS
    chain = b""
    for number in range(length):
        above = Authority(f"Their CA {number}", above=above)
        chain = above.pem + chain
    return above.issue("joe@example.org", chain=chain)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_is_big_is_refused_or_ends_its_own_handshake(
    files: dict[str, str], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Up to 100 kB of certificates pass the handshake and grant nothing; OpenSSL takes no more."""

    async def main() -> None:
        async with asking(files) as running:
            names = [f"user{number}@example.org" for number in range(10_000)]
            for pair, reason in (
                (OURS.issue(*names[:3_000]), "550 5.7.1 Relaying denied: your certificate is too big"),
                (chained(60), "550 5.7.1 Relaying denied: your certificate is"),
            ):
                assert (await answer(running, context_of(pair, tmp_path, version))).startswith(reason)
            for pair in (OURS.issue(*names), chained(400)):
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await answer(running, context_of(pair, tmp_path, version))
            reasons = [line["reason"] for line in running.log.of("tls_failed")]
            assert reasons == ["excessive message size"] * 2
            assert (await answer(running, context_of(JOE, tmp_path, version))).startswith("250")
            assert running.log.of("defect") == []

    run(main)


def test_renegotiation_is_refused_and_nothing_changes(files: dict[str, str], tmp_path: Path) -> None:
    """TLS 1.2: the way by which the original asked for certificates, and clients could burn a server's CPU."""

    def move(client: SSL.Connection) -> bytes:
        with contextlib.suppress(SSL.WantReadError):
            return client.bio_read(65_536)
        return b""

    async def main() -> None:
        async with asking(files) as running:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            client = SSL.Connection(context)
            client.set_connect_state()
            wire = await running.connect(greet=False)

            async def until(end: bytes) -> bytes:
                got = b""
                while end not in got:
                    try:
                        got += client.recv(65_536)
                    except SSL.WantReadError:
                        await wire.send(move(client))
                        async with asyncio.timeout(PATIENCE_S):
                            data = await wire.reader.read(65_536)
                        assert data, got
                        client.bio_write(data)
                return got

            assert b"220 " in await until(b"\r\n")
            client.renegotiate()
            with pytest.raises(SSL.WantReadError):
                client.do_handshake()
            await wire.send(move(client))
            # OpenSSL's client ends the connection when it is told no; others go on.
            with contextlib.suppress(SSL.Error, AssertionError):
                client.send(HELLO)
                await until(b"HELP\r\n")
            wire.abort()
            assert len(running.log.of("tls")) == 1
            assert (await answer(running, context_of(JOE, tmp_path))).startswith("250")
            assert running.log.of("defect") == []

    run(main)


@pytest.mark.parametrize("flight", [1, 2])
def test_handshakes_that_are_given_up_leave_nothing(
    files: dict[str, str], tmp_path: Path, flight: int
) -> None:
    """flight: the client leaves after its hello, or in the middle of its certificate."""

    async def main() -> None:
        async with asking(files) as running:
            service = running.server._service
            assert service is not None
            before = len(SSL.Connection._reverse_mapping)

            async def begin(context: ssl.SSLContext) -> None:
                wire = await running.connect(greet=False)
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                client = context.wrap_bio(incoming, outgoing, server_hostname="mx.example")
                with pytest.raises(ssl.SSLWantReadError):
                    client.do_handshake()
                await wire.send(outgoing.read())
                if flight == 2:
                    while True:
                        incoming.write(await wire.reader.read(65_536))
                        with contextlib.suppress(ssl.SSLWantReadError):
                            client.do_handshake()
                            break
                    data = outgoing.read()
                    await wire.send(data[: len(data) // 2])
                wire.abort()

            context = context_of(JOE, tmp_path)
            for _ in range(15):
                await asyncio.gather(*(begin(context) for _ in range(20)))
            async with asyncio.timeout(PATIENCE_S):
                while service.connections or len(SSL.Connection._reverse_mapping) != before:
                    await asyncio.sleep(0.01)
            assert len(running.log.of("tls_failed")) == 300
            assert running.log.of("defect") == []
            assert (await answer(running, context)).startswith("250")

    run(main)


@pytest.mark.parametrize(
    "bad", [b"\x16\x03\x03\x00\x04\x0b\x00\x00\x00", b"\x16\x03\x03\x40\x01", b"\x17\x03\x03\x00\x01x"]
)
def test_one_client_s_broken_records_are_no_other_s_trouble(
    files: dict[str, str], tmp_path: Path, bad: bytes
) -> None:
    """OpenSSL's errors stand in one queue a thread: none is left behind for the next connection."""

    async def main() -> None:
        async with asking(files) as running:
            context = context_of(JOE, tmp_path)
            reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port, ssl=context)
            other = Wire(reader, writer)
            await other.reply()
            for _ in range(5):
                wire = await running.connect(greet=False)
                await wire.send(bad)
                wire.writer.write_eof()
                await wire.rest()
                await wire.close()
                assert (await other.ask(b"NOOP"))[0] == 250
                assert (await answer(running, context)).startswith("250")
            other.abort()
            assert len(running.log.of("tls_failed")) == 5

    run(main)
