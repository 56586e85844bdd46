"""Postfix's own SMTP client relays its queue into a real server: sizes, recipients, TLS, SMTPUTF8, DSN parameters."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.integration.daemon import Daemon
from tests.integration.postfix import Postfix, needs_postfix

pytestmark = pytest.mark.slow

CONFIG = """
[[listen]]
name = "mx"
[[accept]]
domain = "listed.example"
recipients = "{folder}/recipients"
deliver = "maildir:{folder}/mail/{domain}/{local}"
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    one = Daemon(CONFIG)
    (one.folder / "recipients").write_text("joe@listed.example\n")
    with one:
        yield one


@pytest.fixture(scope="module", params=["none", "encrypt"], ids=["in clear", "STARTTLS"])
def postfix(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Postfix]:
    """It has nowhere else to send mail than to us."""
    settings = {
        "relayhost": f"[127.0.0.1]:{daemon.port}",
        "smtp_tls_security_level": request.param,
        "smtp_tls_loglevel": "1",
        "smtp_connection_reuse_time_limit": "60s",
        "minimal_backoff_time": "1s",
        # 20 recipients a message at once, so that big lists come as several transactions.
        "default_destination_recipient_limit": "20",
    }
    # A domain of its own, so that ours is not.
    with Postfix(settings, ("joe@postfix.example",)) as one:
        yield one


def text(number: int, size_bytes: int) -> bytes:
    """A message with LF, of about this size, with dots where they hurt."""
    chosen = random.Random(number)
    lines = [b"Subject: %d" % number, b"From: a@example.net", b"Message-ID: <%d@example.net>" % number]
    lines += [b"Date: Sun, 22 Nov 2026 23:00:00 +0000", b""]
    while size_bytes > 0:
        line = chosen.choice([b"", b".", b"..", b"." * 70, b"x" * 900, b"a b c", "Grüße".encode(), b".\t"])
        lines.append(line)
        size_bytes -= len(line) + 2
    return b"\n".join(lines) + b"\n"


@needs_postfix
def test_a_queue_of_50_messages(daemon: Daemon, postfix: Postfix) -> None:
    sizes = [0, 1, 100, 1_000, 4_096, 65_536, 70_000, 300_000]
    key = "tls" if "encrypt" in (postfix.directory / "etc" / "main.cf").read_text() else "clear"
    sent: dict[str, list[bytes]] = {}
    for number in range(50):
        message = text(number, sizes[number % len(sizes)])
        recipients = [f"{key}{(number + other) % 7}@example.org" for other in range(number % 5 + 1)]
        postfix.send("a@example.net", tuple(recipients), message)
        for recipient in recipients:
            sent.setdefault(recipient, []).append(message)
    postfix.wait(lambda: "Mail queue is empty" in postfix.queue())
    for recipient, messages in sent.items():
        letters = daemon.mail(recipient)
        # Postfix puts its own Received before the message.
        found = [letter.text[letter.text.index(b"Subject: ") :] for letter in letters]
        assert sorted(found) == sorted(messages), recipient
        assert all(letter.text.startswith(b"Received: by postfix.example (Postfix") for letter in letters)
        protocol = b" with ESMTPS (TLSv1.3 " if key == "tls" else b" with ESMTP id "
        assert all(protocol in letter.trace for letter in letters)
    assert "status=bounced" not in postfix.log()
    assert "status=deferred" not in postfix.log()


@needs_postfix
def test_100_recipients(daemon: Daemon, postfix: Postfix) -> None:
    names = [f"list{number}.{postfix.port}@example.org" for number in range(100)]
    message = text(100, 5_000)
    postfix.send("a@example.net", tuple(names), message)
    postfix.wait(lambda: "Mail queue is empty" in postfix.queue())
    assert all(daemon.one(name).text.endswith(message) for name in names)


@needs_postfix
def test_smtputf8(daemon: Daemon, postfix: Postfix) -> None:
    box = f"jörg.{postfix.port}@example.org"
    header = b"From: a@example.net\nMessage-ID: <8@example.net>\nDate: Sun, 22 Nov 2026 23:00:00 +0000\n"
    message = b"Subject: " + "Grüße\n".encode() + header + "\nSchön\n".encode()
    postfix.send("jürgen@bücher.example", (box,), message)
    postfix.wait(lambda: "Mail queue is empty" in postfix.queue())
    letter = daemon.one(box)
    assert letter.text.endswith(message)
    assert letter.sender == "jürgen@bücher.example".encode()
    assert b" with UTF8SMTP" in letter.trace


@needs_postfix
def test_dsn_parameters(daemon: Daemon, postfix: Postfix) -> None:
    """`sendmail -N` and `-V` come out as NOTIFY and ENVID; we offer DSN, so Postfix leaves the report to us."""
    box = f"dsn.{postfix.port}@example.org"
    message = text(1, 100)
    options = ("-N", "success,delay,failure", "-V", "envelope+1", "-R", "hdrs")
    postfix.run("sendmail", "-i", "-f", "a@example.net", *options, box, input=message)
    postfix.wait(lambda: "Mail queue is empty" in postfix.queue())
    assert daemon.one(box).text.endswith(message)
    assert "status=sent (250 2.0.0 Ok: accepted as " in postfix.log()


@needs_postfix
def test_what_is_refused_bounces_there(daemon: Daemon, postfix: Postfix) -> None:
    """Our 5xx is Postfix's bounce, which comes back to a sender of ours; the other recipient gets the mail."""
    sender = f"sender.{postfix.port}@example.org"
    recipients = ("joe@listed.example", "nobody@listed.example")
    message = text(postfix.port, 100)
    postfix.send(sender, recipients, message)
    postfix.wait(lambda: "Mail queue is empty" in postfix.queue() and bool(daemon.mail(sender)))
    bounce = daemon.one(sender)
    assert bounce.sender == b""
    assert b"550 5.1.1 No such recipient here (id " in bounce.text.replace(b"\n    ", b" ")
    assert any(letter.text.endswith(message) for letter in daemon.mail("joe@listed.example"))
    assert daemon.mail("nobody@listed.example") == []
