"""fastsmtp policy as Postfix asks it: TCP, UNIX sockets, spawn(8), and a Postfix in front."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.integration.postfix import Postfix, needs_postfix
from tests.integration.servers import Process
from tests.programs import environment

pytestmark = pytest.mark.slow

CONFIG = """
hostname = "mx.example.org"
user = "nobody"
[relay]
networks = []
[policy]
badmailfrom = ["spam@example.net"]
badrcptto = ["closed@example.org"]
[policy.mfcheck]
mode = "off"
[policy.helo]
mode = "off"
[policy.reverse_dns]
mode = "off"
"""
REQUEST = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nclient_address=192.0.2.1\n"
    b"client_name=unknown\nhelo_name=client.example\nsender=%b\nrecipient=joe@example.org\ninstance=%b\n\n"
)
SPAM, HAM = REQUEST % (b"spam@example.net", b"1"), REQUEST % (b"ann@example.net", b"2")
REFUSED = b"action=550 5.7.1 "


@pytest.fixture(scope="module")
def folder() -> Iterator[pathlib.Path]:
    """Postfix's account may enter it."""
    with tempfile.TemporaryDirectory(prefix="fastsmtp-policy-") as name:
        path = pathlib.Path(name)
        path.chmod(0o755)
        (path / "fastsmtp.toml").write_text(CONFIG)
        yield path


@contextlib.contextmanager
def policy(folder: pathlib.Path, *places: str) -> Iterator[tuple[Process, list[str]]]:
    """The server, and where it listens."""
    flags = [word for place in places for word in ("--listen", place)]
    server = Process(
        [sys.executable, "-m", "fastsmtp", "policy", "--config", str(folder / "fastsmtp.toml"), *flags]
    )
    try:
        yield server, server.wait_for("^fastsmtp policy ready: (.*)$")[1].split(", ")
    finally:
        server.close()


def connect(place: str) -> socket.socket:
    if place.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(place.removeprefix("unix:"))
        return sock
    host, _, port = place.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=60)


def read_answers(sock: socket.socket, count: int) -> list[bytes]:
    heard = b""
    while heard.count(b"\n\n") < count:
        piece = sock.recv(4096)
        if not piece:
            break
        heard += piece
    return heard.split(b"\n\n")[:-1]


def test_over_tcp_and_unix_sockets(folder: pathlib.Path) -> None:
    with policy(folder, "127.0.0.1:0", "[::1]:0", f"unix:{folder}/policy") as (server, places):
        assert len(places) == 3
        for place in places:
            with connect(place) as sock:
                # The connection is kept, and requests may come before their answers.
                sock.sendall(SPAM)
                assert read_answers(sock, 1)[0].startswith(REFUSED)
                sock.sendall(HAM + SPAM + HAM)
                first, second, third = read_answers(sock, 3)
                assert (first, third) == (b"action=DUNNO", b"action=DUNNO")
                assert second.startswith(REFUSED)
        server.signal(signal.SIGTERM)
        assert server.end() == 0


@pytest.mark.parametrize("said", [b"request=junk\n\n", b"EHLO x\r\n", b"\n", b"x" * 100_000])
def test_what_is_no_request_ends_the_connection_without_an_answer(folder: pathlib.Path, said: bytes) -> None:
    with policy(folder, "127.0.0.1:0") as (server, [place]):
        with connect(place) as sock:
            sock.sendall(HAM + said)
            with contextlib.suppress(ConnectionError):
                assert read_answers(sock, 2) == [b"action=DUNNO"]
                assert sock.recv(1) == b""
        server.wait_for("event=delegation_failed client=127.0.0.1")
        with connect(place) as sock:
            sock.sendall(HAM)
            assert read_answers(sock, 1) == [b"action=DUNNO"], "the others live on"


def test_a_change_is_taken_up_with_sighup(folder: pathlib.Path) -> None:
    config = folder / "fastsmtp.toml"
    with policy(folder, "127.0.0.1:0") as (server, [place]), connect(place) as sock:
        sock.sendall(HAM)
        assert read_answers(sock, 1) == [b"action=DUNNO"]
        config.write_text(CONFIG.replace("spam@", "ann@"))
        try:
            server.signal(signal.SIGHUP)
            answer = b"action=DUNNO"
            while answer == b"action=DUNNO":
                sock.sendall(HAM.replace(b"instance=2\n", b""))
                [answer] = read_answers(sock, 1)
            assert answer.startswith(REFUSED)
        finally:
            config.write_text(CONFIG)


def spawned(folder: pathlib.Path, said: bytes) -> tuple[int, bytes, bytes]:
    command = [sys.executable, "-m", "fastsmtp", "policy", "--config", str(folder / "fastsmtp.toml")]
    done = subprocess.run(
        command, input=said, capture_output=True, env=environment(), timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_on_standard_input_and_output(folder: pathlib.Path) -> None:
    status, heard, _ = spawned(folder, SPAM + HAM)
    first, second, rest = heard.split(b"\n\n")
    assert (status, second, rest) == (0, b"action=DUNNO", b"")
    assert first.startswith(REFUSED)


@pytest.mark.parametrize("said", [b"nonsense\n", HAM[:-1]])
def test_trouble_on_standard_input_is_status_1(folder: pathlib.Path, said: bytes) -> None:
    status, heard, errors = spawned(folder, HAM + said)
    assert (status, heard) == (1, b"action=DUNNO\n\n")
    assert b"delegation_failed" in errors


@pytest.mark.parametrize(
    ("place", "status", "said"),
    [
        ("nonsense", 1, b"fastsmtp: --listen: 'nonsense' has no port, as in nonsense:25, and no unix:PATH\n"),
        (
            "192.0.2.1:10031",
            71,
            b"fastsmtp policy: cannot listen on 192.0.2.1:10031: Cannot assign requested address\n",
        ),
        (
            "unix:/not/there/policy",
            71,
            b"fastsmtp policy: cannot listen on unix:/not/there/policy: No such file or directory\n",
        ),
    ],
)
def test_a_place_that_is_none(folder: pathlib.Path, place: str, status: int, said: bytes) -> None:
    command = [
        sys.executable,
        "-m",
        "fastsmtp",
        "policy",
        "--config",
        str(folder / "fastsmtp.toml"),
        "--listen",
        place,
    ]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, said)


@needs_postfix
@pytest.mark.parametrize("way", ["inet", "unix"])
def test_postfix_asks_it(folder: pathlib.Path, way: str) -> None:
    place = "127.0.0.1:0" if way == "inet" else f"unix:{folder}/policy"
    with policy(folder, place) as (_, [where]):
        service = f"inet:{where}" if way == "inet" else where
        settings = {
            "smtpd_recipient_restrictions": f"check_policy_service {service}",
            "smtpd_end_of_data_restrictions": f"check_policy_service {service}",
        }
        with Postfix(settings, ("joe@example.org", "closed@example.org")) as postfix:
            with smtplib.SMTP(
                "127.0.0.1", postfix.port, local_hostname="client.example", timeout=60
            ) as client:
                client.ehlo("client.example")
                assert client.mail("spam@example.net")[0] == 250
                code, text = client.rcpt("joe@example.org")
                assert (code, b"5.7.1" in text) == (550, True), text
                client.rset()
                client.mail("ann@example.net")
                assert client.rcpt("closed@example.org")[0] in (550, 553)
                assert client.rcpt("joe@example.org")[0] == 250
                assert client.data("Subject: x\r\n\r\nHello\r\n")[0] == 250
            [letter] = postfix.wait_for_mail("joe@example.org")
            assert letter.endswith(b"\nSubject: x\n\nHello\n")
            assert "problem talking to server" not in postfix.log()
