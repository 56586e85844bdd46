"""fastsmtp serve, as it is started from a shell: the trial, reloads under load, files that change."""

from __future__ import annotations

import functools
import pathlib
import shutil
import signal
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from fastsmtp.certificate import make_certificate
from tests.conftest import needs
from tests.integration.servers import Process, until, workers_of

pytestmark = pytest.mark.slow

MESSAGE = b"Subject: first\r\n\r\nHello.\r\n"


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A directory that workers may enter whoever starts the tests; pytest's own is for its owner only."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="fastsmtp-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def serve(*arguments: str) -> Process:
    return Process([sys.executable, "-m", "fastsmtp", "serve", "--user", "nobody", *arguments])


def port_of(server: Process) -> int:
    return int(server.wait_for(r"^fastsmtp \S+ ready: 127\.0\.0\.1:(\d+) ")[1])


def write_config(folder: pathlib.Path, text: str, *, workers: int = 2) -> str:
    path = folder / "fastsmtp.toml"
    path.write_text(
        f'state = "{folder}/state"\nuser = "nobody"\nworkers = {workers}\nhostname = "mx.example.org"\n'
        f'[deliver]\nqueue = false\n[[listen]]\naddress = ["127.0.0.1:0"]\n[log]\nto = "{folder}/log"\n{text}'
    )
    return str(path)


@needs("curl")
def test_a_trial_says_how_to_send_the_first_mail_and_that_works(folder: pathlib.Path) -> None:
    server = serve("--listen", "127.0.0.1:0", "--workers", "2", "--state", str(folder / "state"))
    try:
        found = server.wait_for(
            r"^fastsmtp \S+ ready: (127\.0\.0\.1:\d+) \(2 workers\); mail is kept in (\S+)$"
        )
        (folder / "message.txt").write_text("Subject: first\n\nHello.\n")
        command = server.wait_for("^the first mail: (curl .*)$")[1]
        assert found[1] in command
        sent = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, timeout=60)
        assert (sent.returncode, sent.stderr) == (0, sent.stderr)
        # Accepted is not yet delivered: the queue is between them.
        new = pathlib.Path(found[2]) / "new"
        until(lambda: new.is_dir() and any(new.iterdir()), "the letter is delivered")
        (letter,) = new.iterdir()
        assert letter.read_bytes().endswith(b"Subject: first\n\nHello.\n")
        server.signal(signal.SIGINT)
        assert server.end() == 0
    finally:
        server.close()


def test_a_wrong_configuration_ends_with_every_fault(folder: pathlib.Path) -> None:
    server = serve("--config", write_config(folder, '[limits]\nrecipients = "many"\nerrors = 0\n'))
    try:
        assert server.end() == 1
        assert server.count("limits.recipients|limits.errors") >= 2
        assert not (folder / "state").exists()
    finally:
        server.close()


class Sender(threading.Thread):
    """Sends one mail a connection, again and again; a proper 421 is no loss."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.is_over = threading.Event()
        self.ended: Counter[str] = Counter()

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", self.port, "client.example.org", timeout=60) as client:
                    # smtplib answers a 421 to its EHLO with HELO, and finds the connection closed.
                    code = client.ehlo()[0]
                    if code == 250:
                        client.sendmail("a@example.org", ["b@example.org"], MESSAGE)
                self.ended[str(code)] += 1
            except (smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused) as error:
                self.ended[str(getattr(error, "smtp_code", error))] += 1
            except (smtplib.SMTPServerDisconnected, OSError) as error:
                self.ended[repr(error)] += 1


def test_workers_change_under_load_and_every_mail_gets_its_answer(folder: pathlib.Path) -> None:
    accept = '[[accept]]\ndomain = "example.org"\ndeliver = "discard"\n'
    server = serve("--config", write_config(folder, accept, workers=3))
    try:
        senders = [Sender(port_of(server)) for _ in range(3)]
        for sender in senders:
            sender.start()
        for workers in (1, 4):
            enough = sent(senders) + 20
            until(functools.partial(has_sent, senders, enough), "mails are taken")
            old = set(workers_of(server.pid))
            write_config(folder, accept, workers=workers)
            server.signal(signal.SIGHUP)
            until(functools.partial(has_replaced, server, old, workers), "the workers are others")
        enough = sent(senders) + 20
        until(functools.partial(has_sent, senders, enough), "mails are taken")
        for sender in senders:
            sender.is_over.set()
            sender.join(60)
        ended = sum((sender.ended for sender in senders), Counter[str]())
        assert set(ended) <= {"250", "421"}, ended
        assert (folder / "log").read_text().count("event=reload ") == 2
    finally:
        server.close()


def sent(senders: list[Sender]) -> int:
    return sum(sender.ended["250"] for sender in senders)


def has_sent(senders: list[Sender], enough: int) -> bool:
    return sent(senders) >= enough


def has_replaced(server: Process, old: set[int], workers: int) -> bool:
    now = set(workers_of(server.pid))
    return len(now) == workers and not now & old


def test_certificates_and_lists_change_in_running_workers(folder: pathlib.Path) -> None:
    old, new = (make_certificate([name], days=2) for name in ("old.example.org", "new.example.org"))
    certificate, key, listed = folder / "cert.pem", folder / "key.pem", folder / "recipients"
    certificate.write_bytes(old[0])
    key.write_bytes(old[1])
    key.chmod(0o600)
    listed.write_text("joe@example.org\n")
    server = serve(
        "--config",
        write_config(
            folder,
            f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n[[accept]]\ndomain = "example.org"\n'
            f'recipients = "{listed}"\ndeliver = "discard"\n',
        ),
    )
    try:
        port = port_of(server)
        workers = set(workers_of(server.pid))
        with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=60) as stays:
            stays.ehlo()
            assert answers(port, "sue@example.org") == {550}
            assert served(port) == {old[0]}

            replace(listed, b"joe@example.org\nsue@example.org\n")
            until(lambda: answers(port, "sue@example.org") == {250}, "the new recipient is known")
            replace(certificate, new[0])
            until(lambda: "event=cert_refused" in (folder / "log").read_text(), "it does not fit its key")
            assert served(port) == {old[0]}
            replace(key, new[1])
            until(lambda: served(port) == {new[0]}, "the new certificate is served")

            replace(listed, b"no address\n")
            until(lambda: "event=lists_refused" in (folder / "log").read_text(), "the bad list is told")
            assert answers(port, "sue@example.org") == {250}
            assert stays.noop()[0] == 250, "nobody was sent away"
        until(lambda: set(workers_of(server.pid)) == workers, "they are the same workers")
    finally:
        server.close()


def answers(port: int, recipient: str) -> set[int]:
    """What several connections get for a recipient; there are two workers."""
    found = set()
    for _ in range(8):
        with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=60) as client:
            client.ehlo()
            client.mail("a@example.org")
            found.add(client.rcpt(recipient)[0])
    return found


def served(port: int) -> set[bytes]:
    """The certificates that several handshakes show."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    found = set()
    for _ in range(8):
        with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=60) as client:
            client.starttls(context=context)
            assert isinstance(client.sock, ssl.SSLSocket)
            shown = client.sock.getpeercert(binary_form=True)
            assert shown
            found.add(ssl.DER_cert_to_PEM_cert(shown).encode())
    return found


def replace(path: pathlib.Path, contents: bytes) -> None:
    """Write a file as tools do that renew certificates."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(contents)
    fresh.chmod(path.stat().st_mode & 0o777)
    fresh.replace(path)
