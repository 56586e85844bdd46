"""A real server that hands over to Postfix and to smtp-sink, and what its clients see of that."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Iterator

import pytest

from tests.conftest import needs
from tests.integration.daemon import PATIENCE_S, Daemon, ran
from tests.integration.postfix import Postfix, needs_postfix
from tests.integration.smtp_sink import SmtpSink
from tests.peers import path as program
from tests.ports import free_port

pytestmark = pytest.mark.slow

HEADER = "From: a@example.net\nMessage-ID: <1@example.net>\nDate: Sun, 22 Nov 2026 23:00:00 +0000\nSubject: Grüße\n"
STORED = f"{HEADER}\nSchön\n.\n..two\n".encode()
TEXT = STORED.replace(b"\n", b"\r\n")
SENDER = "a@example.net"

# The same Postfix under three names, so that each has its pass_client.
TELLS = {"xclient": "xclient_port", "xforward": "xclient_port", "proxy": "proxy_port", "none": "port"}

CONFIG = """
[[listen]]
name = "mx"
[[listen]]
name = "proxy"
proxy_from = ["127.0.0.1"]
"""


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    boxes = [f"joe@{tells}.example" for tells in TELLS]
    with Postfix(mailboxes=(*boxes, "sue@none.example", "utf8@none.example")) as one:
        yield one


def accept(domain: str, dest: str, pass_client: str = "none") -> str:
    return f'[[accept]]\ndomain = "{domain}"\ndeliver = "{dest}"\npass_client = "{pass_client}"\n'


@pytest.fixture(scope="module")
def to_postfix(postfix: Postfix) -> Iterator[Daemon]:
    tables = [
        accept(f"{tells}.example", f"smtp://127.0.0.1:{getattr(postfix, port)}", tells)
        for tells, port in TELLS.items()
    ]
    down = accept("down.example", f"smtp://127.0.0.1:{free_port()}")
    with Daemon(CONFIG, accept="".join([*tables, down])) as one:
        yield one


def connect(daemon: Daemon) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", daemon.ports["mx"], "client.example", PATIENCE_S)


@needs("swaks")
@needs_postfix
@pytest.mark.parametrize("tells", TELLS)
def test_postfix_sees_the_client_that_we_saw(postfix: Postfix, to_postfix: Daemon, tells: str) -> None:
    """A client that a proxy names to us, with its address and its HELO."""
    box = f"joe@{tells}.example"
    message = to_postfix.folder / "message.txt"
    message.write_bytes(STORED)
    ran(
        program("swaks"), "--server", "127.0.0.1", "--port", str(to_postfix.ports["proxy"]),
        "--helo", "client.example", "--from", SENDER, "--to", box, "--data", f"@{message}",
        "--proxy-family", "TCP4", "--proxy-source", "192.0.2.8", "--proxy-source-port", "4000",
        "--proxy-dest", "192.0.2.1", "--proxy-dest-port", "25",
    )  # fmt: skip
    (found,) = postfix.wait_for_mail(box)
    assert found.endswith(STORED + b"\n")
    ours = b"Received: from client.example ([192.0.2.8])\n\tby mx.example.org (fastsmtp) with ESMTP id "
    assert ours in found
    shown = {
        "xclient": b"Received: from client.example (unknown [192.0.2.8])\n",
        "proxy": b"Received: from mx.example.org (unknown [192.0.2.8])\n",
    }.get(tells, b"Received: from mx.example.org (unknown [127.0.0.1])\n")
    assert shown in found
    if tells != "none":
        postfix.wait_for_log("client=unknown[192.0.2.8]")


@needs_postfix
def test_postfix_answers_our_client(to_postfix: Daemon) -> None:
    """At RCPT, in its own words, with our id; and at the end with its queue id."""
    with connect(to_postfix) as client:
        client.ehlo()
        client.mail(SENDER)
        code, text = client.rcpt("nobody@none.example")
        assert code == 550
        assert re.fullmatch(rb"5\.1\.1 <nobody@none\.example>.*User unknown.* \(id \w+\)", text), text
        assert client.rcpt("sue@none.example")[0] == 250
        code, text = client.data(TEXT)
        assert code == 250
        assert re.fullmatch(rb"2\.0\.0 Ok: \w+\.1 handed over: .*queued as \w+", text), text
    (line,) = to_postfix.wait_for_logs("reject", 1, rcpt="nobody@none.example")
    assert (line["code"], line["enhanced"]) == (550, "5.1.1")


@needs_postfix
def test_recipients_of_two_next_hops(postfix: Postfix, to_postfix: Daemon) -> None:
    with connect(to_postfix) as client:
        refused = client.sendmail(SENDER, ["sue@none.example", "joe@proxy.example"], TEXT)
    assert {name: (code, text[:5]) for name, (code, text) in refused.items()} == {
        "joe@proxy.example": (452, b"4.5.3")
    }


@needs_postfix
def test_smtputf8_goes_on(postfix: Postfix, to_postfix: Daemon) -> None:
    with connect(to_postfix) as client:
        sender = "jürgen@bücher.example"
        client.sendmail(sender, ["utf8@none.example"], TEXT, mail_options=["SMTPUTF8", "BODY=8BITMIME"])
    (letter,) = postfix.wait_for_mail("utf8@none.example")
    assert b"Return-Path: <%b>\n" % sender.encode() in letter
    assert b" with UTF8SMTP id " in letter
    assert letter.endswith(STORED)


def test_a_next_hop_that_is_down(to_postfix: Daemon) -> None:
    with connect(to_postfix) as client, pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        client.sendmail(SENDER, ["joe@down.example"], TEXT)
    ((code, text),) = refused.value.recipients.values()
    assert (code, text[:5]) == (451, b"4.4.1")
    assert to_postfix.wait_for_log("sink_failed")["deliver"].startswith("smtp://127.0.0.1:")


@pytest.fixture(scope="module", params=[(), ("-L",)], ids=["SMTP", "LMTP"])
def sink(request: pytest.FixtureRequest) -> Iterator[SmtpSink]:
    one = SmtpSink(*request.param)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def to_sink(sink: SmtpSink) -> Iterator[Daemon]:
    with Daemon(CONFIG, accept=accept("example.org", sink.dest)) as one:
        yield one


@needs("smtp-sink", "smtp-source")
def test_200_sessions_into_smtp_sink(sink: SmtpSink, to_sink: Daemon) -> None:
    """Each message once, over the few connections that are kept."""
    options = ["-s", "200", "-m", "300", "-l", "3000", "-f", SENDER, "-t", "joe@example.org"]
    ran(program("smtp-source"), *options, f"127.0.0.1:{to_sink.ports['mx']}")
    texts = sink.new()
    assert len(texts) == 300
    assert len({re.search(rb"^Message-Id: (.*)", text, re.MULTILINE)[1] for text in texts}) == 300  # type: ignore[index]
    assert len({text.partition(b"\n\n")[2] for text in texts}) == 1


@needs("smtp-sink")
def test_a_second_recipient_over_lmtp_has_a_transaction_of_its_own(sink: SmtpSink, to_sink: Daemon) -> None:
    sink.new()
    recipients = ["joe@example.org", "sue@example.org"]
    with connect(to_sink) as client:
        refused = client.sendmail(SENDER, recipients, TEXT)
        if sink.kind == "lmtp":
            assert {name: code for name, (code, _) in refused.items()} == {"sue@example.org": 452}
            refused = client.sendmail(SENDER, ["sue@example.org"], TEXT)
    assert refused == {}
    texts = sink.new()
    assert len(texts) == (2 if sink.kind == "lmtp" else 1)
    assert all(text.endswith(STORED) for text in texts)
