"""badmailfrom, badrcptto, DENYMAIL, a tarpit and TLS by sender in `fastsmtp serve`; lists that change while it runs."""

from __future__ import annotations

import pathlib
import smtplib
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.integration.daemon import Daemon
from tests.integration.servers import until

LINES = 100_000
CONFIG = """
[relay]
networks = []
[policy]
badmailfrom = ["{folder}/badmailfrom", "info@"]
badrcptto = "{folder}/badrcptto"
denymail = "NOBOUNCE"
[policy.tarpit]
after_recipients = 2
delay_s = 0.1
[[policy.require_tls]]
sender = "@bank.example"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    found = tmp_path_factory.mktemp("lists")
    for parent in (found, found.parent):
        parent.chmod(0o755)
    (found / "badmailfrom").write_text("bad@a.example\n@b.example # all of them\n")
    (found / "badrcptto").write_text("".join(f"closed{n}@example.org\n" for n in range(LINES)))
    return found


@pytest.fixture(scope="module")
def daemon(folder: pathlib.Path) -> Iterator[Daemon]:
    # One worker: once a changed list holds for one connection it holds for all (test_supervisor_reload has several).
    with Daemon(CONFIG.format(folder=folder), workers=1) as running:
        yield running


def connect(daemon: Daemon) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", daemon.port, local_hostname="client.example", timeout=60)
    client.ehlo()
    return client


def rcpt(daemon: Daemon, sender: str, recipient: str = "b@example.org") -> tuple[int, str]:
    with connect(daemon) as client:
        code, text = client.mail(sender)
        if code == 250:
            code, text = client.rcpt(recipient)
        return code, text.decode()


@pytest.mark.parametrize(
    ("sender", "recipient", "code", "text"),
    [
        ("good@a.example", "b@example.org", 250, ""),
        ("Bad@A.example", "b@example.org", 550, "5.7.1 Mail from this sender"),
        ("any@b.example", "b@example.org", 550, "5.7.1 Mail from this sender"),
        ("info@c.example", "b@example.org", 550, "5.7.1 Mail from this sender"),
        ("", "b@example.org", 550, "5.7.1 Bounces"),
        ("a@localhost", "b@example.org", 550, "5.1.7 "),
        ("good@a.example", "closed0@example.org", 550, "5.1.1 "),
        ("good@a.example", f"Closed{LINES - 1}@example.org", 550, "5.1.1 "),
        ("good@a.example", f"closed{LINES}@example.org", 250, ""),
        ("a@bank.example", "b@example.org", 530, "5.7.0 "),
    ],
)
def test_what_a_client_hears(daemon: Daemon, sender: str, recipient: str, code: int, text: str) -> None:
    found, words = rcpt(daemon, sender, recipient)
    assert (found, text in words) == (code, True), words


def test_a_sender_that_needs_tls_has_it(daemon: Daemon) -> None:
    with connect(daemon) as client:
        assert client.mail("a@bank.example")[0] == 530
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client.starttls(context=context)
        client.ehlo()
        assert client.mail("a@bank.example")[0] == 250
        assert client.rcpt("b@example.org")[0] == 250


def test_the_second_recipient_waits_and_the_log_tells(daemon: Daemon) -> None:
    with connect(daemon) as client:
        client.mail("slow@a.example")
        began = time.monotonic()
        assert client.rcpt("b@example.org")[0] == 250
        assert client.rcpt("c@example.org")[0] == 250
        assert time.monotonic() - began >= 0.1
    line = daemon.wait_for_log("held_back", **{"from": "slow@a.example"})
    assert (line["rcpts"], line["delay_s"]) == (1, 0.1)


def test_a_changed_list_holds_without_a_restart_and_a_bad_one_does_not(
    daemon: Daemon, folder: pathlib.Path
) -> None:
    new = folder / "new"
    new.write_text("@later.example\n")
    assert rcpt(daemon, "a@later.example")[0] == 250
    new.rename(folder / "badmailfrom")
    until(lambda: rcpt(daemon, "a@later.example")[0] == 550, "the new list is in force")
    assert rcpt(daemon, "any@b.example")[0] == 250
    new.write_text("@later.example\nnobody\n")
    new.rename(folder / "badmailfrom")
    reason = daemon.wait_for_log("lists_refused")["reason"]
    assert "badmailfrom:2: 'nobody' is none of user@host" in reason
    assert rcpt(daemon, "a@later.example")[0] == 550
