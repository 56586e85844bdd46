"""`fastsmtp serve --qmail`: a qmail home in place, with real clients; and what happens when its files change."""

from __future__ import annotations

import pathlib
import re
import shutil
import signal
import smtplib
import ssl
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cdbs import make_cdb
from tests.conftest import needs
from tests.integration.daemon import ran
from tests.integration.servers import Process, until
from tests.peers import path
from tests.pki import Authority, Pair
from tests.qmailqueue import QmailQueue


class Home:
    """A qmail home with a qmail-queue of the test's own, and a server that has it as its configuration."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.control = folder / "control"
        self.control.mkdir()
        (folder / "bin").mkdir()
        self.queue = QmailQueue(folder / "queue")
        (folder / "bin" / "qmail-queue").symlink_to(self.queue.path)
        self.rules = folder / "tcp.smtp"
        self.rules.write_text(":allow\n")
        self.write(me="mx.example.org\n", rcpthosts="example.org\n.example.net\n")
        self.toml = folder / "fastsmtp.toml"
        self.toml.write_text(
            f'workers = 1\nstate = "{folder}/state"\nuser = "nobody"\n[log]\nformat = "logfmt"\n'
        )
        self.process: Process | None = None

    def write(self, **files: str | None) -> None:
        for name, text in files.items():
            file = self.control / name.replace("__", ".")
            if text is None:
                file.unlink()
            else:
                file.write_text(text)

    def start(self) -> int:
        """The port."""
        self.process = Process(
            [
                sys.executable, "-m", "fastsmtp", "serve", "--config", str(self.toml), "--qmail", str(self.folder),
                "--tcprules", str(self.rules), "--listen", "127.0.0.1:0",
            ]
        )  # fmt: skip
        return int(self.process.wait_for(r" ready: 127\.0\.0\.1:(\d+)")[1])

    def wait_for(self, pattern: str, after: int = 0) -> None:
        assert self.process is not None
        self.process.wait_for(pattern, after=after)

    def lines(self) -> int:
        assert self.process is not None
        return len(self.process.lines)

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.popen.poll() is None:
            self.process.signal(signal.SIGTERM)
            self.process.end()
        self.process.close()


@pytest.fixture
def home() -> Iterator[Home]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fastsmtp-test-"))
    made = Home(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)


def codes(port: int, *commands: str, local: str = "127.0.0.1") -> list[int]:
    """What a session of these commands hears."""
    with smtplib.SMTP("127.0.0.1", port, "c.example", timeout=60, source_address=(local, 0)) as client:
        return [client.docmd(command)[0] for command in commands]


def test_it_stands_in_the_place_of_qmail_smtpd(home: Home) -> None:
    home.write(smtpgreeting="mx.example.org no junk\n", badmailfrom="@spam.example\n", databytes="2000\n")
    home.rules.write_text('127.0.0.2:allow,RELAYCLIENT="",FILTER="yes"\n127.0.0.3:deny\n:allow\n')
    port = home.start()
    with smtplib.SMTP(local_hostname="c.example", timeout=60) as client:
        code, greeting = client.connect("127.0.0.1", port)
        assert (code, greeting) == (220, b"mx.example.org no junk ESMTP")
        client.ehlo("c.example")
        assert client.esmtp_features["size"] == "2000"
        assert "starttls" not in client.esmtp_features
        client.sendmail(
            "a@b.example", ["joe@example.org", "ann@www.example.net"], b"Subject: x\r\n\r\nbody\r\n"
        )
    ours, spam, relayed, known = (
        ["EHLO c", "MAIL FROM:<a@b.example>", "RCPT TO:<x@other.example>"],
        ["EHLO c", "MAIL FROM:<a@spam.example>", "RCPT TO:<x@example.org>"],
        ["EHLO c", "MAIL FROM:<a@b.example>", "RCPT TO:<x@other.example>", "NONSENSE"],
        ["EHLO c", "MAIL FROM:<a@b.example>", "RCPT TO:<x@[127.0.0.1]>"],
    )
    assert codes(port, *ours) == [250, 250, 553]
    assert codes(port, *spam) == [250, 553, 503]
    assert codes(port, *relayed, local="127.0.0.2") == [250, 250, 250, 502]
    # localiphost is control/me, which is not in rcpthosts.
    assert codes(port, *known) == [250, 250, 553]
    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
        codes(port, local="127.0.0.3")
    with smtplib.SMTP("127.0.0.1", port, "c.example", timeout=60, source_address=("127.0.0.2", 0)) as client:
        client.sendmail("a@b.example", ["x@other.example"], b"Subject: y\r\n\r\nbody\r\n")
        assert client.docmd("MAIL FROM:<a@b.example>")[0] == 250
    first, second = home.queue.taken()
    assert first.envelope == b"Fa@b.example\0Tjoe@example.org\0Tann@www.example.net\0\0"
    assert "RELAYCLIENT" not in first.environment
    assert (second.environment["RELAYCLIENT"], second.environment["FILTER"]) == ("", "yes")
    assert second.environment["TCPREMOTEIP"] == "127.0.0.2"
    assert (second.environment["PROTO"], second.environment["TCPLOCALPORT"]) == ("TCP", str(port))
    home.wait_for("event=rule_denied .*client=127.0.0.3")


def test_the_tls_files_of_the_page(home: Home) -> None:
    ours = Authority("Our CA")
    joe, eve = ours.issue("joe@example.org"), ours.issue("eve@example.org")
    server = ours.issue(common="mx.example.org")
    home.write(
        servercert__pem=(server.key + server.certificate).decode(), clientca__pem=ours.pem.decode(),
        tlsclients="# may relay\nJOE@example.org\n", tlsserverciphers="ECDHE-ECDSA-AES128-GCM-SHA256:AES256-SHA\n",
        rsa512__pem="old",
    )  # fmt: skip
    (home.control / "servercert.pem").chmod(0o640)
    port = home.start()
    home.wait_for("warning: .*rsa512.pem: an export-grade RSA key")
    home.wait_for("warning: .*tlsserverciphers:1: ")

    def relays(pair: Pair | None) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if pair is not None:
            context.load_cert_chain(*pair.write(home.folder, "client"))
        with smtplib.SMTP("127.0.0.1", port, "c.example", timeout=60) as client:
            assert client.starttls(context=context)[0] == 220
            assert client.docmd("STARTTLS")[0] == 503, "the session starts over: HELO first"
            client.ehlo()
            assert client.docmd("STARTTLS")[0] == 502
            assert client.docmd("MAIL FROM:<a@b.example>")[0] == 250
            return client.docmd("RCPT TO:<x@other.example>")[0]

    assert relays(None) == 553
    assert relays(eve) == 553
    assert relays(joe) == 250
    home.write(tlsclients="eve@example.org\n")
    home.wait_for("event=lists_reloaded .*tlsclients")
    until(lambda: relays(eve) == 250, "tlsclients in force")
    assert relays(joe) == 553


@needs("swaks")
def test_a_real_client_hears_what_qmail_queue_says(home: Home) -> None:
    port = home.start()
    said = ran(
        path("swaks"), "--server", f"127.0.0.1:{port}", "--from", "a@b.example", "--to", "joe@example.org"
    )
    assert " 250 ok " in said
    assert " qp " in said
    home.queue.wants(exit=31)
    said = ran(
        path("swaks"),
        "--server",
        f"127.0.0.1:{port}",
        "--from",
        "a@b.example",
        "--to",
        "joe@example.org",
        status=None,
    )
    assert "** 554 " in said


def test_changes_are_taken_up_without_a_restart(home: Home) -> None:
    port = home.start()
    new = ["EHLO c", "MAIL FROM:<a@b.example>", "RCPT TO:<x@new.example>"]
    assert codes(port, *new) == [250, 250, 553]
    home.write(rcpthosts="example.org\nnew.example\n")
    home.wait_for("event=lists_reloaded .*rcpthosts")
    until(lambda: codes(port, *new) == [250, 250, 250], "rcpthosts in force")
    home.rules.write_text('127.0.0.2:deny\n:allow,DENYMAIL="SPAM"\n')
    home.wait_for("event=lists_reloaded .*tcp.smtp")
    until(lambda: codes(port, *new)[1] == 553, "rules in force")
    home.rules.write_text("127.0.0.2\n")
    home.wait_for("event=lists_refused .*tcp.smtp:1: has neither")
    assert codes(port, *new)[1] == 553


def test_a_cdb_that_is_put_in_place_is_taken_up(home: Home) -> None:
    def put(file: pathlib.Path, *records: tuple[bytes, bytes]) -> None:
        """As tcprules and qmail-newmrh do."""
        new = file.with_suffix(".tmp")
        new.write_bytes(make_cdb(records))
        new.rename(file)

    more = home.control / "morercpthosts.cdb"
    put(more, (b"big.example", b""))
    put(home.rules, (b"127.0.0.2", b"D\0"), (b"", b"+DATABYTES=100\0"))
    port = home.start()
    ours = ["EHLO c", "MAIL FROM:<a@b.example> SIZE=200", "MAIL FROM:<a@b.example>", "RCPT TO:<x@{}.example>"]
    big, small = ([*ours[:3], ours[3].format(name)] for name in ("big", "small"))
    assert codes(port, *big) == [250, 552, 250, 250]
    assert codes(port, *small) == [250, 552, 250, 553]
    put(more, (b"small.example", b""))
    put(home.rules, (b"", b"+DATABYTES=300\0"))
    until(lambda: codes(port, *small) == [250, 250, 250, 250], "both in force")
    assert codes(port, *big) == [250, 250, 250, 553]
    assert codes(port, "EHLO c", local="127.0.0.2") == [250]
    more.write_bytes(more.read_bytes()[:-9])
    home.wait_for("event=lists_refused .*morercpthosts.cdb: is damaged or cut")
    assert codes(port, *small) == [250, 250, 250, 250]


def test_a_control_file_that_comes_or_goes_is_taken_up(home: Home) -> None:
    port = home.start()
    ours = ["EHLO c", "MAIL FROM:<a@b.example>", "RCPT TO:<x@example.org>"]
    after = home.lines()
    home.write(badmailfrom="a@b.example\n")
    home.wait_for("event=configuration_changed .*badmailfrom", after)
    home.wait_for("event=reload ", after)
    # A worker of before may still take what its socket holds.
    until(lambda: codes(port, *ours) == [250, 553, 503], "badmailfrom in force")
    after = home.lines()
    home.write(badmailfrom="c@b.example\n")
    home.wait_for("event=lists_reloaded .*badmailfrom", after)
    until(lambda: codes(port, *ours) == [250, 250, 250], "badmailfrom in force")
    after = home.lines()
    home.write(rcpthosts=None)
    home.wait_for("event=reload ", after)
    until(lambda: codes(port, *ours) == [250, 250, 553], "rcpthosts gone")
    home.wait_for("event=notice .*control/rcpthosts: is not there", after)
    after = home.lines()
    home.write(me="no name\n")
    home.wait_for("event=reload_refused .*control/me:1: hostname", after)
    assert codes(port, *ours) == [250, 250, 553]


@pytest.mark.parametrize("broken", [True, False])
def test_check_and_config_speak_of_the_home(home: Home, broken: bool) -> None:
    home.write(databytes="7\n", smtproutes="", rsa512__pem="x", rcpthosts=None)
    if broken:
        home.write(me="no name\n")
    flags = ("--config", str(home.toml), "--qmail", str(home.folder), "--tcprules", str(home.rules))
    python: tuple[str, ...] = (sys.executable, "-m", "fastsmtp")
    said = ran(*python, "check", *flags, status=1 if broken else 0)
    if broken:
        assert f"{home.control}/me:1: hostname: 'no name' is no domain" in said
        return
    assert f"warning: {home.control}/rcpthosts: is not there" in said
    assert f"warning: {home.control}/rsa512.pem: an export-grade RSA key" in said
    said = ran(*python, "config", *flags)
    assert re.search(rf"^message_bytes = 7 +# {home.control}/databytes:1$", said, re.MULTILINE)
    assert f"# {home.control}/smtproutes: " in said


def test_no_home_is_no_start(tmp_path: pathlib.Path) -> None:
    said: Any = ran(
        sys.executable,
        "-m",
        "fastsmtp",
        "serve",
        "--qmail",
        str(tmp_path),
        "--state",
        str(tmp_path),
        status=1,
    )
    assert f"{tmp_path}/control: No such file or directory: {tmp_path} is no qmail home" in said
