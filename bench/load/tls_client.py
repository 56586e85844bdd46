"""TLS clients of the benchmark: handshakes by number, and connections that are held.

Blocking sockets and Python's ssl: the client's cost isn't measured.  Each
connection comes from the next address of 127.1.0.0/16, as smtpload's do.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

ADDRESSES = 10_000
MEGABYTE = 1_000_000
TIMEOUT_S = 30.0

_next_address = itertools.count()


def _connect(port: int) -> socket.socket:
    k = next(_next_address) % ADDRESSES + 1
    source = (f"127.1.{k // 256}.{k % 256}", 0)
    connection = socket.socket()
    connection.settimeout(TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.bind(source)
    connection.connect(("127.0.0.1", port))
    return connection


def _reply(connection: socket.socket) -> bytes:
    """Read one reply, all its lines."""
    text = b""
    while True:
        part = connection.recv(4096)
        if not part:
            raise ConnectionError(f"the server closed after {text!r}")
        text += part
        last = text.rstrip(b"\r\n").rpartition(b"\n")[2]
        if text.endswith(b"\n") and last[3:4] != b"-":
            return text


def _command(connection: socket.socket, line: bytes, wanted: bytes) -> None:
    connection.sendall(line + b"\r\n")
    reply = _reply(connection)
    if not reply.startswith(wanted):
        raise ConnectionError(f"{line!r} was answered by {reply!r}")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def handshakes(port: int, count: int) -> None:
    """TLS from the first byte, then close."""
    context = _context()
    for _ in range(count):
        with context.wrap_socket(_connect(port), server_hostname="bench.example.org"):
            pass


def _starttls(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    connection = _connect(port)
    _reply(connection)
    _command(connection, b"EHLO load.example", b"250")
    _command(connection, b"STARTTLS", b"220")
    return context.wrap_socket(connection, server_hostname="bench.example.org")


def starttls_handshakes(port: int, count: int) -> None:
    """Connection, greeting, EHLO, STARTTLS, handshake, close."""
    context = _context()
    for _ in range(count):
        _starttls(context, port).close()


def plain_dialogues(port: int, count: int) -> None:
    """The same without TLS, to be taken away: connection, greeting, EHLO, NOOP, close."""
    for _ in range(count):
        with _connect(port) as connection:
            _reply(connection)
            _command(connection, b"EHLO load.example", b"250")
            _command(connection, b"NOOP", b"250")


@contextlib.contextmanager
def hold_idle(port: int, count: int) -> Iterator[None]:
    """count connections with TLS, EHLO said again, that do nothing."""
    context = _context()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(_starttls(context, port))
            _command(connection, b"EHLO load.example", b"250")
        time.sleep(0.5)
        yield


@contextlib.contextmanager
def hold_after_megabyte(port: int, count: int) -> Iterator[None]:
    """The same after each has sent a message of 1 MB."""
    context = _context()
    line = b"x" * 76 + b"\r\n"
    body = line * (MEGABYTE // len(line)) + b"."
    with contextlib.ExitStack() as stack:
        for k in range(count):
            connection = stack.enter_context(_starttls(context, port))
            _command(connection, b"EHLO load.example", b"250")
            _command(connection, b"MAIL FROM:<sender@load.example>", b"250")
            _command(connection, f"RCPT TO:<user{k}@example.org>".encode(), b"250")
            _command(connection, b"DATA", b"354")
            _command(connection, body, b"250")
        time.sleep(0.5)
        yield


@contextlib.contextmanager
def hold_waiting(port: int, count: int, *, is_tls: bool = True, is_pushing: bool = True) -> Iterator[None]:
    """Connections that wait for the answer to RCPT; is_pushing: they go on sending until nobody takes it."""
    context = _context()
    noops = b"NOOP\r\n" * 2_000
    with contextlib.ExitStack() as stack:
        waiting = []
        for k in range(count):
            if is_tls:
                connection: socket.socket = stack.enter_context(_starttls(context, port))
            else:
                connection = stack.enter_context(_connect(port))
                _reply(connection)
            _command(connection, b"EHLO load.example", b"250")
            _command(connection, b"MAIL FROM:<sender@load.example>", b"250")
            connection.sendall(f"RCPT TO:<user{k}@example.org>\r\n".encode())
            connection.setblocking(False)
            waiting.append(connection)
        taken = is_pushing
        while taken:
            taken = False
            for connection in waiting:
                with contextlib.suppress(ssl.SSLWantWriteError, BlockingIOError):
                    connection.send(noops)
                    taken = True
            time.sleep(0.05)
        time.sleep(0.5)
        yield


class _Stalled(socketserver.StreamRequestHandler):
    """A next hop that answers everything but RCPT."""

    def handle(self) -> None:
        self.wfile.write(b"220 stalled.example.org ESMTP\r\n")
        for line in self.rfile:
            if line[:4].upper() == b"RCPT":
                continue
            if line[:4].upper() == b"QUIT":
                break
            self.wfile.write(b"250 stalled.example.org\r\n")


class _StalledServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024


@contextlib.contextmanager
def stalled_next_hop() -> Iterator[int]:
    """The port of a next hop that never answers RCPT."""
    with _StalledServer(("127.0.0.1", 0), _Stalled) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Peer:
    pid: int
    port: int


@contextlib.contextmanager
def openssl_server(folder: pathlib.Path, *options: str) -> Iterator[Peer]:
    """openssl s_server with the certificate in folder, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        ["openssl", "s_server", "-quiet", "-accept", f"127.0.0.1:{port}", "-cert", folder / "cert.pem",
         "-key", folder / "key.pem", *options],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                handshakes(port, 1)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield Peer(process.pid, port)
    finally:
        process.terminate()
        process.wait()
