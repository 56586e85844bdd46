"""Upgrade on real sockets, both loops: fast clients, injected bytes, prefixes, garbage, silence, resets.

The server here is as small as a server that obeys start_tls.py's text can be:
an optional prefix of PREFIX bytes, STARTTLS or implicit TLS, then an echo.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop

from fastsmtp.authorities import Authorities
from fastsmtp.certificate import make_certificate
from fastsmtp.smtp import start_tls
from fastsmtp.smtp.start_tls import Failed, Outcome, Raised, Upgrade
from fastsmtp.tls import Credentials, ServerTls
from tests.pki import Authority

PREFIX = b"PROXY TCP4 192.0.2.1 192.0.2.2 5 25\r\n"
GREETING = b"220 mx ESMTP\r\n"
READY = b"220 go ahead\r\n"

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on each kind of loop; anything that the loop complains about fails the test."""

    def runner(coroutine: Coroutine[Any, Any, None]) -> None:
        complaints: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            await coroutine
            gc.collect()
            await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(watched())
        assert complaints == []

    return runner


@pytest.fixture(scope="module", params=["plain", "asking"])
def server_tls(request: pytest.FixtureRequest) -> ServerTls:
    """With each engine; the one that asks is used where there is one."""
    certificate, key = make_certificate(["mx.example.org"], days=2)
    authorities = Authorities(Authority("Our CA").pem, b"", "ca.pem") if request.param == "asking" else None
    return ServerTls(Credentials(certificate, key, "test"), authorities=authorities)


class Echo(asyncio.BufferedProtocol):
    """One connection of the experimental server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.upgrade: Upgrade | None = None
        self.prefix = b""
        self.is_tls = False
        self.is_over = False
        self.buffer = bytearray(4096)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport to isinstance.
        self.raw = self.transport = cast(asyncio.Transport, transport)
        self.server.open.add(self)
        if self.server.has_prefix:
            return
        self.begin()

    def begin(self) -> None:
        if self.server.is_implicit:
            self.start()
        else:
            self.raw.write(GREETING)

    def start(self) -> None:
        self.upgrade = Upgrade(
            asyncio.get_running_loop(),
            self.raw,
            self,
            self.server.tls.asking or self.server.tls.context,
            timeout_s=self.server.timeout_s,
            done=self.tls_done,
        )

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.server.has_prefix and len(self.prefix) < len(PREFIX):
            return memoryview(self.buffer)[: len(PREFIX) - len(self.prefix)]
        return memoryview(self.buffer)

    def buffer_updated(self, size: int) -> None:
        data = bytes(self.buffer[:size])
        if self.server.has_prefix and len(self.prefix) < len(PREFIX):
            self.prefix += data
            if len(self.prefix) == len(PREFIX):
                self.begin()
            return
        if self.is_tls:
            self.server.heard.append(data)
            self.transport.write(data)
        elif data.startswith(b"STARTTLS\r\n"):
            self.server.dropped.append(data[10:])
            self.raw.pause_reading()
            self.raw.write(READY)
            self.start()

    def holds_back(self) -> bool:
        return False

    def eof_received(self) -> bool:
        return False

    def tls_done(self, outcome: Outcome) -> None:
        self.server.outcomes.append(outcome)
        if isinstance(outcome, Failed):
            assert self.raw.is_closing()
            self.end()
        else:
            self.upgrade = None
            self.is_tls = True
            self.transport = outcome.transport
        self.server.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()

    def end(self) -> None:
        self.is_over = True
        self.server.open.discard(self)
        self.server.changed.set()


class Server:
    """What the connections share, and what they saw."""

    def __init__(
        self, tls: ServerTls, *, is_implicit: bool = False, has_prefix: bool = False, timeout_s: float = 60.0
    ) -> None:
        self.tls = tls
        self.is_implicit = is_implicit
        self.has_prefix = has_prefix
        self.timeout_s = timeout_s
        self.open: set[Echo] = set()
        self.outcomes: list[Outcome] = []
        self.heard: list[bytes] = []
        self.dropped: list[bytes] = []
        self.changed = asyncio.Event()
        self.port = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Server]:
        listener = await asyncio.get_running_loop().create_server(
            lambda: Echo(self), "127.0.0.1", 0, backlog=1024
        )
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            await self.until(lambda: not self.open)
            await listener.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def failures(self) -> list[str]:
        return [outcome.reason for outcome in self.outcomes if isinstance(outcome, Failed)]


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(server: Server) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def receive(sock: socket.socket | ssl.SSLSocket, size: int) -> bytes:
    got = b""
    while len(got) < size and (block := sock.recv(size - len(got))):
        got += block
    return got


class Hello:
    """A TLS client in memory, so that a test decides which bytes leave together."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.incoming, self.outgoing, server_hostname="mx.example.org")
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.first = self.outgoing.read()

    def finish(self, words: bytes) -> bytes:
        """Complete the handshake, the words in one segment with its last message; their echo."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._receive()
        self.tls.write(words)
        self.sock.sendall(self.outgoing.read())
        echo = b""
        while len(echo) < len(words):
            try:
                echo += self.tls.read(4096)
            except ssl.SSLWantReadError:
                self._receive()
        return echo

    def _receive(self) -> None:
        block = self.sock.recv(65536)
        if not block:
            raise ConnectionError("closed in the handshake")
        self.incoming.write(block)


async def in_threads(count: int, client: Callable[[int], None], *, parallel: int = 8) -> None:
    """Run client(number) count times, some at once, in threads: as fast as clients can be."""

    def some(start: int) -> None:
        for number in range(start, count, parallel):
            client(number)

    await asyncio.gather(*(asyncio.to_thread(some, start) for start in range(parallel)))


Run = Callable[[Awaitable[None]], None]


async def starttls_many(server: Server, count: int) -> None:
    def client(number: int) -> None:
        with connect(server) as sock:
            assert receive(sock, len(GREETING)) == GREETING
            hello = Hello(sock)
            sock.sendall(b"STARTTLS\r\n")
            assert receive(sock, len(READY)) == READY
            sock.sendall(hello.first)
            assert hello.finish(b"EHLO %d\r\n" % number) == b"EHLO %d\r\n" % number

    async with server.listening():
        await in_threads(count, client)
    assert len(server.outcomes) == count
    assert server.failures() == []
    assert sorted(server.heard) == sorted(b"EHLO %d\r\n" % number for number in range(count))


def test_starttls_with_the_hello_sent_the_moment_the_220_arrives(run: Run, server_tls: ServerTls) -> None:
    run(starttls_many(Server(server_tls), 200))


@pytest.mark.slow
@pytest.mark.parametrize("server_tls", ["plain"], indirect=True)
def test_starttls_many_times(run: Run, server_tls: ServerTls) -> None:
    run(starttls_many(Server(server_tls), 500))


@pytest.mark.slow
@pytest.mark.parametrize("server_tls", ["plain"], indirect=True)
def test_implicit_tls_from_fast_clients(run: Run, server_tls: ServerTls) -> None:
    async def main() -> None:
        def client(number: int) -> None:
            with connect(server) as sock:
                hello = Hello(sock)
                sock.sendall(hello.first)
                assert hello.finish(b"EHLO %d\r\n" % number) == b"EHLO %d\r\n" % number

        server = Server(server_tls, is_implicit=True)
        async with server.listening():
            await in_threads(200, client)
        assert len(server.outcomes) == 200
        assert server.failures() == []

    run(main())


@pytest.mark.parametrize("is_implicit", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_prefix_and_what_follows_in_one_segment(
    run: Run, server_tls: ServerTls, is_implicit: bool, cut: int
) -> None:
    """cut: so many bytes of the prefix come alone."""

    async def main() -> None:
        def client(number: int) -> None:
            with connect(server) as sock:
                hello = Hello(sock)
                sock.sendall(PREFIX[:cut])
                if is_implicit:
                    sock.sendall(PREFIX[cut:] + hello.first)
                else:
                    sock.sendall(PREFIX[cut:] + b"STARTTLS\r\n")
                    assert receive(sock, len(GREETING + READY)) == GREETING + READY
                    sock.sendall(hello.first)
                assert hello.finish(b"NOOP\r\n") == b"NOOP\r\n"

        server = Server(server_tls, is_implicit=is_implicit, has_prefix=True)
        async with server.listening():
            await in_threads(40, client)
        assert server.failures() == []
        assert len(server.outcomes) == 40

    run(main())


def test_what_was_injected_behind_starttls_is_never_heard_inside_tls(run: Run, server_tls: ServerTls) -> None:
    async def main() -> None:
        def client(number: int) -> None:
            with connect(server) as sock:
                receive(sock, len(GREETING))
                sock.sendall(b"STARTTLS\r\nMAIL FROM:<injected@example.org>\r\n")
                assert receive(sock, len(READY)) == READY
                hello = Hello(sock)
                sock.sendall(hello.first)
                assert hello.finish(b"NOOP\r\n") == b"NOOP\r\n"

        server = Server(server_tls)
        async with server.listening():
            await in_threads(20, client, parallel=4)
        assert server.dropped == [b"MAIL FROM:<injected@example.org>\r\n"] * 20
        assert server.heard == [b"NOOP\r\n"] * 20

    run(main())


async def bad_client(server: Server, client: Callable[[socket.socket], None]) -> str:
    """The reason of the failure that this client gets."""

    def talk() -> None:
        with connect(server) as sock:
            if not server.is_implicit:
                receive(sock, len(GREETING))
                sock.sendall(b"STARTTLS\r\n")
                receive(sock, len(READY))
            client(sock)

    async with server.listening():
        await asyncio.to_thread(talk)
        await server.until(lambda: bool(server.outcomes))
    (reason,) = server.failures()
    assert server.heard == []
    assert len(server.outcomes) == 1
    return reason


def read_to_the_end(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while sock.recv(4096):
            pass


def garbage(sock: socket.socket) -> None:
    sock.sendall(b"MAIL FROM:<joe@example.org>\r\n" * 3)
    read_to_the_end(sock)


def half_a_hello(sock: socket.socket) -> None:
    sock.sendall(Hello(sock).first[:40])
    sock.shutdown(socket.SHUT_WR)
    read_to_the_end(sock)


def nothing_but_an_end(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    read_to_the_end(sock)


def reset(sock: socket.socket) -> None:
    sock.sendall(Hello(sock).first[:40])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset_after_the_hello(sock: socket.socket) -> None:
    sock.sendall(Hello(sock).first)
    assert sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def old_version(sock: socket.socket) -> None:
    context = client_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock)


BAD = [
    (garbage, {"wrong version number", "packet length too long"}),
    (half_a_hello, {"connection lost"}),
    (nothing_but_an_end, {"connection lost"}),
    (reset, {"connection lost"}),
    (reset_after_the_hello, {"connection lost"}),
    (old_version, {"unsupported protocol"}),
]


@pytest.mark.parametrize(("client", "reasons"), BAD, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_handshake_that_fails_is_a_value_with_a_reason(
    run: Run,
    server_tls: ServerTls,
    client: Callable[[socket.socket], None],
    reasons: set[str],
    is_implicit: bool,
) -> None:
    async def main() -> None:
        assert await bad_client(Server(server_tls, is_implicit=is_implicit), client) in reasons

    run(main())


@pytest.mark.parametrize("is_implicit", [True, False])
def test_a_client_that_never_starts_is_timed_out(run: Run, server_tls: ServerTls, is_implicit: bool) -> None:
    async def main() -> None:
        server = Server(server_tls, is_implicit=is_implicit, timeout_s=0.05)
        assert await bad_client(server, read_to_the_end) == "timeout"

    run(main())


def test_a_connection_that_we_abort_ourselves_ends_the_upgrade(run: Run, server_tls: ServerTls) -> None:
    class Aborting(Echo):
        def start(self) -> None:
            super().start()
            self.raw.abort()

    async def main() -> None:
        server = Server(server_tls, is_implicit=True)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: Aborting(server), "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        with connect(server) as sock:
            await server.until(lambda: bool(server.outcomes))
            await asyncio.to_thread(read_to_the_end, sock)
        await server.until(lambda: not server.open)
        listener.close()
        await listener.wait_closed()
        assert server.failures() == ["connection lost"]

    run(main())


def test_a_client_is_held_back_by_the_raw_transport(run: Run, server_tls: ServerTls) -> None:
    async def main() -> None:
        def client() -> None:
            with connect(server) as sock, client_context().wrap_socket(sock) as tls:
                tls.sendall(b"first")
                assert receive(tls, 5) == b"first"
                held.wait()
                tls.sendall(b"second")
                assert receive(tls, 6) == b"second"

        server = Server(server_tls, is_implicit=True)
        held = threading.Event()
        async with server.listening():
            talking = asyncio.create_task(asyncio.to_thread(client))
            await server.until(lambda: any(isinstance(outcome, Raised) for outcome in server.outcomes))
            (echo,) = server.open
            while not server.heard:
                await asyncio.sleep(0)
            echo.raw.pause_reading()
            echo.transport.pause_reading()
            del echo
            held.set()
            for turn in range(50):
                if turn % 20 == 0:
                    gc.collect()  # a tenth of a second among all modules of the suite
                await asyncio.sleep(0)
            assert server.heard == [b"first"]
            (echo,) = server.open
            assert not echo.is_over
            echo.raw.resume_reading()
            echo.transport.resume_reading()
            await talking
        assert server.heard == [b"first", b"second"]

    run(main())


class Flooding(Echo):
    """Answers the first words with more than any buffer holds, and heeds when it is told to pause."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.pauses: list[str] = []

    def buffer_updated(self, size: int) -> None:
        if self.is_tls and not self.pauses:
            for _ in range(FLOOD // 65_536):
                self.transport.write(bytes(65_536))
            self.server.changed.set()

    def pause_writing(self) -> None:
        self.pauses.append("paused")
        self.server.changed.set()

    def resume_writing(self) -> None:
        self.pauses.append("resumed")
        self.server.changed.set()


FLOOD = 4 * 1_048_576


def test_a_client_that_takes_nothing_is_told_of_and_gets_all_of_it_later(
    run: Run, server_tls: ServerTls
) -> None:
    """The raw transport's high-water mark is 64 KiB; what is behind it is told through the layer."""

    async def main() -> None:
        server = Server(server_tls, is_implicit=True)
        loop = asyncio.get_running_loop()
        made: list[Flooding] = []

        def make() -> Flooding:
            made.append(Flooding(server))
            return made[-1]

        taking = threading.Event()

        def client() -> int:
            with connect(server) as sock, client_context().wrap_socket(sock) as tls:
                tls.sendall(b"all of it")
                taking.wait()
                return len(receive(tls, FLOOD))

        listener = await loop.create_server(make, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        reading = asyncio.create_task(asyncio.to_thread(client))
        try:
            await server.until(lambda: bool(made) and made[0].pauses == ["paused"])
            assert made[0].raw.get_write_buffer_size() > 65_536
        finally:
            taking.set()
        assert await reading == FLOOD
        await server.until(lambda: made[0].pauses[-1] == "resumed" and made[0].is_over)
        listener.close()
        await listener.wait_closed()

    run(main())


class Closing(Echo):
    """Closes when it has heard something."""

    def buffer_updated(self, size: int) -> None:
        if self.is_tls:
            self.transport.close()


@pytest.mark.parametrize("sends_on", [False, True])
def test_a_client_that_never_says_close_notify_is_cut_off(
    run: Run, server_tls: ServerTls, monkeypatch: pytest.MonkeyPatch, sends_on: bool
) -> None:
    """SHUTDOWN_TIMEOUT_S after ours; what it sends meanwhile is dropped, and holds nothing up."""
    monkeypatch.setattr(start_tls, "SHUTDOWN_TIMEOUT_S", 0.2)

    async def main() -> None:
        server = Server(server_tls, is_implicit=True)
        loop = asyncio.get_running_loop()
        made: list[Closing] = []

        def make() -> Closing:
            made.append(Closing(server))
            return made[-1]

        def client() -> bytes:
            with connect(server) as sock:
                hello = Hello(sock)
                sock.sendall(hello.first)
                while True:
                    try:
                        hello.tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        hello._receive()
                hello.tls.write(b"go away")
                sock.sendall(hello.outgoing.read())
                wire = b""
                with contextlib.suppress(ConnectionError):
                    while block := sock.recv(65_536):
                        wire += block
                    # The server's side is shut; ours stays open, and says nothing of TLS.
                    while sends_on:
                        hello.tls.write(b"and on and on")
                        sock.sendall(hello.outgoing.read())
                if not sends_on:
                    ended.wait()
                return wire

        ended = threading.Event()
        listener = await loop.create_server(make, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        talking = asyncio.create_task(asyncio.to_thread(client))
        try:
            await server.until(lambda: bool(made) and made[0].is_over)
        finally:
            ended.set()
        assert await talking, "close_notify came"
        assert made[0].raw.is_closing()
        listener.close()
        await listener.wait_closed()

    run(main())
