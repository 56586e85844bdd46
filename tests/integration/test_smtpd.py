"""fastsmtp smtpd as tcpserver and inetd run it: a process a connection, qmail-queue behind it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastsmtp.certificate import make_certificate
from tests.conftest import needs
from tests.peers import path
from tests.programs import environment, install
from tests.qmailqueue import QmailQueue

pytestmark = pytest.mark.slow

CLIENT = {"TCPREMOTEIP": "192.0.2.1", "TCPREMOTEPORT": "4711", "TCPLOCALIP": "192.0.2.2", "PROTO": "TCP"}
MAIL = (
    b"EHLO client.example\r\nMAIL FROM:<from@example.net>\r\nRCPT TO:<joe@example.org>\r\nDATA\r\n"
    b"Subject: x\r\n\r\nHello\r\n.\r\n"
)


class Home:
    """A qmail home with a stand-in for qmail-queue."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.queue = QmailQueue(folder / "bin")
        (folder / "control").mkdir()
        self.control(me="mx.example.org", rcpthosts="example.org")

    def control(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / "control" / name.replace("_", ".")).write_text(f"{text}\n")


@pytest.fixture
def home(tmp_path: pathlib.Path) -> Home:
    return Home(tmp_path)


def start(
    home: Home,
    more: dict[str, str] | None = None,
    *,
    stdin: int = subprocess.PIPE,
    stdout: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    given = environment(QMAILHOME=str(home.folder), **CLIENT, **(more or {}))
    return subprocess.Popen(
        [sys.executable, "-m", "fastsmtp", "smtpd"],
        env=given,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def session(home: Home, said: bytes, **more: str) -> tuple[int, list[bytes], str]:
    """(exit status, what the client heard, what stands on standard error) over pipes."""
    process = start(home, more)
    heard, errors = process.communicate(said, timeout=60)
    return process.returncode, heard.splitlines(), errors.decode()


def codes(heard: list[bytes]) -> list[str]:
    return [line[:3].decode() for line in heard if line[3:4] == b" "]


# --- under tcpserver ---------------------------------------------------------------------------------


@contextlib.contextmanager
def tcpserver(host: str, program: str, home: Home, *flags: str) -> Iterator[int]:
    """The port of a real tcpserver that runs the program."""
    server = subprocess.Popen(
        [path("tcpserver"), "-1", "-H", "-R", "-lmx.example.org", "-c", "10", *flags, host, "0", program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(QMAILHOME=str(home.folder)),
    )  # fmt: skip
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline())
    finally:
        server.terminate()
        server.communicate(timeout=60)


@needs("tcpserver")
@pytest.mark.parametrize(("host", "protocol"), [("127.0.0.1", "TCP"), ("::1", "TCP6")])
def test_under_tcpserver_by_qmails_name(home: Home, host: str, protocol: str) -> None:
    link = home.folder / "bin" / "qmail-smtpd"
    link.symlink_to(install(home.folder))
    with (
        tcpserver(host, str(link), home) as port,
        smtplib.SMTP(host, port, local_hostname="client.example", timeout=60) as client,
    ):
        assert client.ehlo("client.example")[0] == 250
        assert client.mail("from@example.net")[0] == 250
        assert client.rcpt("joe@example.com")[0] == 553
        assert client.rcpt("joe@example.org")[0] == 250
        code, text = client.data("Subject: x\r\n\r\nHello\r\n")
        assert (code, text.startswith(b"ok ")) == (250, True)
        # The process lives until QUIT: a second message in it.
        client.sendmail("", ["ann@example.org"], "Subject: y\r\n\r\nAgain\r\n")
    first, second = home.queue.queued()
    assert text.endswith(b" qp %d" % first.pid)
    assert first.envelope == b"Ffrom@example.net\0Tjoe@example.org\0\0"
    assert first.message.endswith(b"\nSubject: x\n\nHello\n")
    assert first.message.startswith(b"Received: from client.example (")
    assert b"\n\tby mx.example.org " in first.message
    assert second.envelope == b"F\0Tann@example.org\0\0"
    assert first.environment["PROTO"] == protocol
    assert first.environment["TCPREMOTEIP" if protocol == "TCP" else "TCP6REMOTEIP"] == host
    assert first.environment["TCPREMOTEPORT"].isdigit()


@needs("tcpserver", "tcprules")
def test_rules_of_tcpserver_reach_policy_and_queue(home: Home) -> None:
    rules = home.folder / "tcp.cdb"
    text = '127.0.0.1:allow,RELAYCLIENT="",DATABYTES="1000",SIMSCAN="yes",DENYMAIL="NOBOUNCE"\n'
    subprocess.run(
        [path("tcprules"), str(rules), f"{rules}.tmp"], input=text.encode(), check=True, timeout=60
    )
    with (
        tcpserver("127.0.0.1", str(install(home.folder)), home, "-x", str(rules)) as port,
        socket.create_connection(("127.0.0.1", port)),
    ):
        pass
    script = home.folder / "run"
    script.write_text(f"#!/bin/sh\nexec {install(home.folder)} smtpd\n")
    script.chmod(0o755)
    with (
        tcpserver("127.0.0.1", str(script), home, "-x", str(rules)) as port,
        smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=60) as client,
    ):
        client.ehlo("client.example")
        assert client.esmtp_features["size"] == "1000"
        assert client.mail("")[0] == 553, "NOBOUNCE"
        client.sendmail("a@example.net", ["joe@example.com"], "Subject: x\r\n\r\nHello\r\n")
    [taken] = home.queue.queued()
    assert taken.environment["SIMSCAN"] == "yes"
    assert taken.environment["RELAYCLIENT"] == ""


# --- over pipes --------------------------------------------------------------------------------------


def test_over_pipes(home: Home) -> None:
    status, heard, _ = session(home, MAIL + b"QUIT\r\n")
    assert codes(heard) == ["220", "250", "250", "250", "354", "250", "221"]
    assert status == 0
    assert home.queue.queued()[0].environment["TCPREMOTEIP"] == "192.0.2.1"


@pytest.mark.parametrize(
    ("plan", "code"),
    [({"exit": 31}, "554"), ({"exit": 53}, "451"), ({"signal": 9}, "451"), ({"exit": 11}, "554")],
)
def test_what_qmail_queue_says_is_the_answer(home: Home, plan: dict[str, int], code: str) -> None:
    home.queue.wants(**plan)
    status, heard, errors = session(home, MAIL + b"QUIT\r\n")
    assert codes(heard)[-2:] == [code, "221"]
    assert status == 0
    assert "sink_failed" in errors


def test_qmailqueue_is_another_program(home: Home) -> None:
    other = QmailQueue(home.folder / "other")
    session(home, MAIL + b"QUIT\r\n", QMAILQUEUE=str(other.path))
    assert len(other.queued()) == 1
    assert home.queue.queued() == []


def test_relayclient_relays_and_its_value_is_appended(home: Home) -> None:
    session(home, MAIL.replace(b"example.org", b"example.com") + b"QUIT\r\n", RELAYCLIENT="@fixme")
    assert home.queue.queued()[0].envelope == b"Ffrom@example.net\0Tjoe@example.com@fixme\0\0"


def test_a_big_body_goes_through_a_file(home: Home) -> None:
    big = MAIL.replace(b"Hello\r\n", (b"x" * 98 + b"\r\n") * 3_000)
    _, heard, _ = session(home, big + b"QUIT\r\n", TMPDIR=str(home.folder))
    assert codes(heard)[-2:] == ["250", "221"]
    assert home.queue.queued()[0].message.count(b"\n") > 3_000


def test_dns_is_asked_when_a_check_asks(home: Home, tmp_path: pathlib.Path) -> None:
    """With no name server there the sender can't be looked up: 451, and the session lives on."""
    home.control(mfcheck="1")
    given = environment(QMAILHOME=str(home.folder), **CLIENT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{nobody.getsockname()[1]}"
        config = tmp_path / "f.toml"
        config.write_text(f'qmail = "{home.folder}"\n[dns]\nservers = ["{where}"]\ntimeout_s = 0.2\n')
        done = subprocess.run(
            [sys.executable, "-m", "fastsmtp", "smtpd", "--config", str(config)],
            input=MAIL + b"QUIT\r\n", env=given, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert codes(done.stdout.splitlines())[:3] == ["220", "250", "451"], done.stderr
    assert done.returncode == 0


# --- endings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "last", "status"),
    [
        (b"", "220", 1),
        (b"EHLO x\r\n", "250", 1),
        (MAIL[:-20], "354", 1),
        (b"QUIT\r\n", "221", 0),
        (b"GET / HTTP/1.1\r\n\r\n", "554", 0),
        (
            b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<joe@example.org>\r\nDATA\r\nbare\nQUIT\r\n",
            "550",
            0,
        ),
    ],
)
def test_how_it_ends(home: Home, said: bytes, last: str, status: int) -> None:
    found, heard, errors = session(home, said)
    assert (codes(heard)[-1], found) == (last, status), errors
    assert home.queue.taken() == []


def test_silence_is_451_as_qmail_smtpd_has_it(home: Home) -> None:
    home.control(timeoutsmtpd="1")
    process = start(home)
    heard, _ = process.stdout.read(), process.wait(timeout=60)  # type: ignore[union-attr]
    assert codes(heard.splitlines()) == ["220", "451"]
    assert process.returncode == 1
    process.communicate()


def test_sigterm_is_421_and_what_was_complete_is_kept(home: Home) -> None:
    process = start(home)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(MAIL)
    process.stdin.flush()
    heard = [process.stdout.readline()]
    while not heard[-1].startswith(b"250 ok"):
        heard.append(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    # Our side stays open until it is said: an end that comes together with the signal may be seen first.
    last = process.stdout.readline()
    rest, _ = process.communicate(timeout=60)
    assert codes([last, *rest.splitlines()]) == ["421"]
    assert process.returncode == 1
    assert len(home.queue.queued()) == 1


def test_a_client_that_hung_up_ends_it(home: Home) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        process = start(home, stdin=theirs.fileno(), stdout=theirs.fileno())
        theirs.close()
        assert ours.recv(1024).startswith(b"220 ")
        # Commands whose answers nobody reads, then a reset.
        ours.sendall(b"NOOP\r\n" * 10)
    process.communicate(timeout=60)
    assert process.returncode == 1


def test_the_flags_of_the_connection_are_as_before(home: Home) -> None:
    """O_NONBLOCK belongs to the open description, which others may share with us."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start(home, stdin=theirs.fileno(), stdout=theirs.fileno())
        ours.sendall(b"QUIT\r\n")
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert os.get_blocking(theirs.fileno())


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_descriptors_end_it(home: Home, closed: str) -> None:
    given = environment(QMAILHOME=str(home.folder), **CLIENT)
    command = f"exec {sys.executable} -m fastsmtp smtpd {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=given, input=b"QUIT\r\n", capture_output=True, timeout=60, check=False
    )
    assert done.returncode in (0, 1)
    assert b"Traceback" not in done.stderr


def test_a_home_that_cannot_be_used_is_421(home: Home) -> None:
    home.control(rcpthosts="not a domain\x00")
    status, heard, errors = session(home, b"EHLO x\r\n")
    assert codes(heard) == ["421"]
    assert status == 1
    assert "rcpthosts" in errors


def test_without_any_home_it_is_421(home: Home, tmp_path: pathlib.Path) -> None:
    given = environment(QMAILHOME=str(tmp_path / "nowhere"), **CLIENT)
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "smtpd"],
        env=given,
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith(b"421 4.3.0 ")
    assert b"nowhere" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("deliver", "answer"),
    [
        ("mx", b"421 4.3.0 "),
        ("maildir:{folder}/mail", b"220 "),
        ("discard", b"220 "),
        # As another account only the queue delivers.
        ('maildir:{folder}/mail"\nuser = "nobody', b"421 4.3.0 "),
    ],
)
def test_a_configuration_of_our_own(tmp_path: pathlib.Path, deliver: str, answer: bytes) -> None:
    """Mail goes to its place before the 250; the queue is `serve`'s."""
    config = tmp_path / "fastsmtp.toml"
    place = deliver.replace("{folder}", str(tmp_path))
    config.write_text(
        f'hostname = "mx.example.org"\n[deliver]\ndefault = "{place}"\n'
        f'[[accept]]\ndomain = "example.org"\n[policy.mfcheck]\nmode = "off"\n[policy.helo]\nmode = "off"\n'
        '[policy.reverse_dns]\nmode = "off"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "smtpd", "--config", str(config)],
        env=environment(**CLIENT), input=MAIL + b"QUIT\r\n", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(answer), done.stderr
    if answer.startswith(b"421"):
        assert (done.returncode, b"needs the queue" in done.stderr) == (1, True)
    else:
        assert codes(done.stdout.splitlines()) == ["220", "250", "250", "250", "354", "250", "221"]
    if deliver.endswith("/mail"):
        [letter] = (tmp_path / "mail" / "new").iterdir()
        assert letter.read_bytes().endswith(b"\nSubject: x\n\nHello\n")


def test_a_next_hop_answers_for_itself(tmp_path: pathlib.Path) -> None:
    """There is none: its recipients are put off, and the session lives on."""
    config = tmp_path / "fastsmtp.toml"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        config.write_text(
            f'hostname = "mx.example.org"\n[deliver]\ndefault = "smtp://127.0.0.1:{nobody.getsockname()[1]}"\n'
            '[[accept]]\ndomain = "example.org"\nrecipients = "any"\n[policy.mfcheck]\nmode = "off"\n'
            '[policy.helo]\nmode = "off"\n[policy.reverse_dns]\nmode = "off"\n'
        )
        done = subprocess.run(
            [sys.executable, "-m", "fastsmtp", "smtpd", "--config", str(config)],
            env=environment(**CLIENT), input=MAIL.partition(b"DATA")[0] + b"QUIT\r\n", capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
    assert codes(done.stdout.splitlines()) == ["220", "250", "250", "451", "221"], done.stderr
    assert done.returncode == 0


# --- inetd, and TLS ----------------------------------------------------------------------------------


@contextlib.contextmanager
def inetd(home: Home, *, host: str = "127.0.0.1", **more: str) -> Iterator[tuple[str, int]]:
    """A listener that starts smtpd for one connection, with the socket as its standard input and output only."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        command = [
            sys.executable,
            "-c",
            ACCEPT,
            str(listening.fileno()),
            sys.executable,
            "-m",
            "fastsmtp",
            "smtpd",
        ]
        bare = {name: value for name, value in os.environ.items() if not name.startswith("TCP")}
        server = subprocess.Popen(
            command, env={**bare, **environment(QMAILHOME=str(home.folder), **more)}, pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield listening.getsockname()[:2]
        finally:
            try:
                server.communicate(timeout=60)
            finally:
                server.kill()


ACCEPT = """
import os, socket, sys
client, _ = socket.socket(fileno=int(sys.argv[1])).accept()
os.dup2(client.fileno(), 0)
os.dup2(client.fileno(), 1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_under_inetd_the_socket_says_who_the_client_is(home: Home, host: str) -> None:
    with (
        inetd(home, host=host) as where,
        smtplib.SMTP(*where, local_hostname="client.example", timeout=60) as client,
    ):
        client.sendmail("a@example.net", ["joe@example.org"], "Subject: x\r\n\r\nHello\r\n")
    [taken] = home.queue.queued()
    assert taken.environment["TCPREMOTEIP"] == host


def certificate(home: Home) -> ssl.SSLContext:
    """Put a certificate where the home has it; a client's context."""
    chain, key = make_certificate(["mx.example.org"], days=2)
    file = home.folder / "control" / "servercert.pem"
    file.write_bytes(key + chain)
    file.chmod(0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_starttls(home: Home) -> None:
    context = certificate(home)
    with inetd(home) as where, smtplib.SMTP(*where, local_hostname="client.example", timeout=60) as client:
        assert client.starttls(context=context)[0] == 220
        client.ehlo("client.example")
        assert not client.has_extn("starttls")
        client.sendmail(
            "a@example.net", ["joe@example.org"], "Subject: x\r\n\r\n" + ("x" * 900 + "\r\n") * 300
        )
    [taken] = home.queue.queued()
    assert b" with ESMTPS (TLSv1.3 " in taken.message


def test_tls_before_the_greeting(home: Home) -> None:
    context = certificate(home)
    with (
        inetd(home, SMTPS="") as where,
        smtplib.SMTP_SSL(*where, local_hostname="client.example", timeout=60, context=context) as client,
    ):
        client.sendmail("a@example.net", ["joe@example.org"], "Subject: x\r\n\r\nHello\r\n")
    assert len(home.queue.queued()) == 1


def test_what_is_injected_before_the_handshake_is_forgotten(home: Home) -> None:
    context = certificate(home)
    with inetd(home) as where, socket.create_connection(where, timeout=60) as raw:
        raw.recv(1024)
        raw.sendall(b"EHLO x\r\n")
        raw.recv(4096)
        raw.sendall(b"STARTTLS\r\nMAIL FROM:<evil@example.net>\r\n")
        assert raw.recv(4096).startswith(b"220 ")
        with context.wrap_socket(raw) as secure:
            secure.sendall(b"EHLO x\r\nRCPT TO:<joe@example.org>\r\nQUIT\r\n")
            heard = b""
            while piece := secure.recv(4096):
                heard += piece
    assert codes(heard.splitlines()) == ["250", "503", "221"]
    assert home.queue.taken() == []


def test_a_handshake_that_fails_ends_it(home: Home) -> None:
    certificate(home)
    status, heard, errors = session(home, b"EHLO x\r\nSTARTTLS\r\nnonsense, and no ClientHello")
    assert codes(heard)[:3] == ["220", "250", "220"]
    assert status == 1
    assert "tls_failed" in errors


def test_a_certificate_that_cannot_be_used_is_no_end(home: Home) -> None:
    certificate(home)
    file = home.folder / "control" / "servercert.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\nPRIVATE KEY-----\n")
    status, heard, errors = session(home, b"EHLO x\r\nSTARTTLS\r\nMAIL FROM:<a@b.example>\r\nQUIT\r\n")
    assert codes(heard) == ["220", "250", "454", "250", "221"], errors
    assert status == 0
