"""systemd's two protocols: sockets handed over, and the datagrams that say how it goes.  No systemd is needed."""

from __future__ import annotations

import functools
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import needs
from tests.integration.servers import Client, Process, StandIn, standin, until, workers_of

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# LISTEN_PID must be the server's own; descriptors begin at 3.
HAND_OVER = """
import os, sys
for number, fd in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(fd, 100 + number)
count = number + 1
for number in range(count):
    os.dup2(100 + number, 3 + number)
    os.close(100 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.argv[3], sys.argv[3:])
"""


class Activated(StandIn):
    """The stand-in server, started as systemd starts one with a socket unit."""

    def __init__(self, folder: pathlib.Path, sockets: list[socket.socket], names: str, **config: Any) -> None:
        super().__init__(folder, config=config, start=False)
        fds = [sock.fileno() for sock in sockets]
        command = [sys.executable, "-c", HAND_OVER, ",".join(map(str, fds)), names, *self.command]
        Process.__init__(self, command, pass_fds=fds)


@pytest.fixture
def handed() -> Iterator[list[socket.socket]]:
    """Two listening sockets."""
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    yield found
    for sock in found:
        sock.close()


def test_a_handed_over_socket_is_shared_by_all_workers_and_survives_a_reload(
    tmp_path: pathlib.Path, handed: list[socket.socket]
) -> None:
    server = Activated(tmp_path, handed[:1], "whatever", workers=2)
    try:
        address = handed[0].getsockname()
        assert server.ready() == [[address]]
        for reloads in (False, True):
            if reloads:
                server.reload(workers=3)
            workers = set(workers_of(server.pid))
            seen: set[int] = set()
            until(functools.partial(_reach, address, seen, workers), "all are reached")
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        # It is systemd's: connections wait in it for the next start.
        socket.create_connection(address, 5).close()
    finally:
        server.close()


def _reach(address: tuple[str, int], seen: set[int], wanted: set[int]) -> bool:
    clients = [Client(address) for _ in range(10)]
    seen.update(client.worker for client in clients)
    for client in clients:
        client.close()
    return seen >= wanted


def test_sockets_go_to_the_listeners_of_their_names(
    tmp_path: pathlib.Path, handed: list[socket.socket]
) -> None:
    server = Activated(
        tmp_path,
        handed,
        "inside:outside",
        listeners=[
            ["outside", [["127.0.0.1", 25]]],
            ["third", [["127.0.0.1", 0]]],
            ["inside", [["127.0.0.1", 26]]],
        ],
    )
    try:
        inside, outside = (sock.getsockname() for sock in handed)
        first, third, last = server.ready()
        assert (first, last) == ([outside], [inside])
        assert third[0] not in (inside, outside), "a listener that is given nothing binds for itself"
        for address in (inside, outside, third[0]):
            with Client(address) as client:
                assert client.say(b"PING").startswith(b"250")
    finally:
        server.close()


@pytest.mark.parametrize(
    ("family", "kind", "sentence"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM, "descriptor 3 (mx) from systemd is no listening TCP socket"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "descriptor 3 (mx) from systemd is no listening TCP socket"),
    ],
)
def test_what_is_no_listening_tcp_socket_is_told(
    tmp_path: pathlib.Path, family: socket.AddressFamily, kind: socket.SocketKind, sentence: str
) -> None:
    with socket.socket(family, kind) as sock:
        server = Activated(tmp_path, [sock], "mx")
        try:
            assert server.end() == 78
            assert server.count(f"error: {sentence}".replace("(", r"\(").replace(")", r"\)")) == 1
        finally:
            server.close()


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_when_it_is_ready_reloads_and_stops(
    tmp_path: pathlib.Path, is_abstract: bool
) -> None:
    name = f"fastsmtp-test-{tmp_path.name}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"\0{name}" if is_abstract else name)
        told.settimeout(60)
        with standin(tmp_path, environment={"NOTIFY_SOCKET": f"@{name}" if is_abstract else name}) as server:
            assert told.recv(4096) == b"READY=1"
            server.signal(signal.SIGHUP)
            first, second = told.recv(4096).split(b"\n")
            assert first == b"RELOADING=1"
            assert second.startswith(b"MONOTONIC_USEC=")
            assert told.recv(4096) == b"READY=1"
            server.file.write_text("{")
            server.signal(signal.SIGHUP)
            assert told.recv(4096).startswith(b"RELOADING=1")
            assert told.recv(4096) == b"READY=1", "a refused reload is over as well"
            server.signal(signal.SIGTERM)
            assert told.recv(4096) == b"STOPPING=1"
            assert server.end() == 0


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", ["fastsmtp.service", "fastsmtp.socket"])
def test_the_units_are_what_systemd_understands(tmp_path: pathlib.Path, unit: str) -> None:
    for name in ("fastsmtp.service", "fastsmtp.socket"):
        text = (ROOT / "contrib" / name).read_text()
        # The program need not be installed where the tests run.
        (tmp_path / name).write_text(text.replace("/usr/local/bin/fastsmtp", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [line for line in verified.stderr.splitlines() if "fastsmtp" in line] == []
