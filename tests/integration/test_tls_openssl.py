"""openssl s_client and Python's ssl against two forked workers: STARTTLS, names, tickets that resume on the other."""

from __future__ import annotations

import contextlib
import pathlib
import re
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastsmtp.certificate import make_certificate
from tests.conftest import needs
from tests.peers import path as program

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of two workers of one master."""
    folder = tmp_path_factory.mktemp("tls")
    arguments = []
    for name in ("mx.example.org", "mx2.example.org"):
        certificate, key = make_certificate([name], days=2)
        for kind, pem in (("cert", certificate), ("key", key)):
            file = folder / f"{name}.{kind}"
            file.touch(0o600)
            file.write_bytes(pem)
            arguments.append(str(file))
    arguments.insert(2, "mx2.example.org")
    master = subprocess.Popen(
        [sys.executable, str(HERE / "tls_workers.py"), *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert master.stdin is not None and master.stdout is not None
    try:
        first, second = map(int, master.stdout.readline().split())
        yield first, second
    finally:
        _, complaints = master.communicate()
    assert complaints == b""


def s_client(port: int, *options: str, name: str = "mx.example.org") -> str:
    """What s_client prints of a session with EHLO and QUIT inside TLS."""
    command = [
        program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-starttls", "smtp",
        "-servername", name, "-ign_eof", "-crlf", *options,
    ]  # fmt: skip
    done = subprocess.run(command, input=b"EHLO client\nQUIT\n", capture_output=True, timeout=60, check=False)
    return done.stdout.decode(errors="replace")


@needs("openssl")
@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
@pytest.mark.parametrize("name", ["mx.example.org", "mx2.example.org"])
def test_a_ticket_of_one_worker_resumes_on_the_other(
    ports: tuple[int, int], tmp_path: pathlib.Path, version: str, name: str
) -> None:
    ticket = str(tmp_path / "ticket")
    first = s_client(ports[0], f"-{version}", "-sess_out", ticket, name=name)
    assert f"name={name} resumed=False" in first
    assert f"subject=CN = {name}" in first or f"subject=CN={name}" in first
    second = s_client(ports[1], f"-{version}", "-sess_in", ticket, name=name)
    assert f"name={name} resumed=True" in second
    assert re.search(r"^Reused, TLSv1\.[23], Cipher is ", second, re.MULTILINE)


@needs("openssl")
def test_what_is_agreed_on_with_openssl(ports: tuple[int, int]) -> None:
    assert "TLSv1.3 TLS_" in s_client(ports[0])
    assert "TLSv1.2 ECDHE-ECDSA-" in s_client(ports[0], "-tls1_2")
    # No renegotiation: a client could make the server compute for nothing.
    assert "Secure Renegotiation IS supported" in s_client(ports[0], "-tls1_2")
    refused = s_client(ports[0], "-tls1_2", "-cipher", "AES128-SHA@SECLEVEL=0")
    assert "Cipher is (NONE)" in refused


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_pythons_client_resumes_too(ports: tuple[int, int], version: ssl.TLSVersion) -> None:
    context = client_context(version)
    session: ssl.SSLSession | None = None
    resumed = []
    for port in (*ports, *ports):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            assert sock.recv(100).startswith(b"220 ")
            sock.sendall(b"STARTTLS\r\n")
            assert sock.recv(100).startswith(b"220 ")
            with context.wrap_socket(sock, server_hostname="mx.example.org", session=session) as tls:
                tls.sendall(b"EHLO x\r\n")
                assert tls.recv(200).startswith(b"250-TLSv1.")
                resumed.append(tls.session_reused)
                session = tls.session
    assert resumed == [False, True, True, True]


def test_smtplib_raises_its_connection(ports: tuple[int, int]) -> None:
    with smtplib.SMTP("127.0.0.1", ports[0], local_hostname="client.example", timeout=60) as client:
        client.ehlo("x")
        client.starttls(context=client_context(ssl.TLSVersion.TLSv1_3))
        assert b"TLSv1.3" in client.ehlo("x")[1]


@pytest.mark.parametrize("name", [b"\xff\xfe.example", b"a" * 255, b'a b="c\n', b""], ids=repr)
def test_a_hostile_server_name_harms_nobody(ports: tuple[int, int], name: bytes) -> None:
    """Whatever comes of its own handshake, the worker serves the next client."""
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=60) as sock:
        sock.recv(100)
        sock.sendall(b"STARTTLS\r\n")
        sock.recv(100)
        sock.sendall(hello_with(name))
        with contextlib.suppress(ConnectionError):
            sock.recv(1)
    test_smtplib_raises_its_connection(ports)


def hello_with(name: bytes) -> bytes:
    """A ClientHello whose server name (RFC 6066 section 3) is these bytes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    place = b"x" * max(1, len(name))
    asked = b".".join(place[at : at + 60] for at in range(0, len(place), 61))[: len(place)]
    client = client_context(ssl.TLSVersion.TLSv1_3).wrap_bio(
        incoming, outgoing, server_hostname=asked.decode()
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert asked in hello
    return hello.replace(asked, name) if len(name) == len(asked) else hello
