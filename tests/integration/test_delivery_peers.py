"""Hand-over to servers that others wrote: smtp-sink over SMTP and LMTP, and Postfix."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fastsmtp.message import Envelope
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.spool import Budget
from fastsmtp.reply import Reply
from fastsmtp.sink import DirectSink
from tests.conftest import needs
from tests.handing import PREFIX, deliver, facts, opened, rcpt
from tests.integration.postfix import Postfix, needs_postfix
from tests.integration.smtp_sink import SmtpSink
from tests.mails import MAILS
from tests.wire import run as in_loop


def with_sink(tmp_path: Path, scenario: Callable[[DirectSink], Awaitable[None]]) -> None:
    async def run() -> None:
        sink = DirectSink(
            disk=ThreadDisk(), budget=Budget(1 << 20), spool_directory=str(tmp_path), hostname="mx.example"
        )
        await scenario(sink)
        await sink.close()

    in_loop(run)


def chunks(mail: bytes) -> list[bytes]:
    """As the connection cuts it."""
    return [mail[at : at + 65_536] for at in range(0, len(mail), 65_536)]


# --- smtp-sink ----------------------------------------------------------------------------------------


@pytest.fixture
def smtp_sink(request: pytest.FixtureRequest) -> Iterator[SmtpSink]:
    sink = SmtpSink(*getattr(request, "param", ()))
    yield sink
    sink.stop()


@needs("smtp-sink")
@pytest.mark.parametrize(
    "smtp_sink",
    [(), ("-L",), ("-8",), ("-p",), ("-e",), ("-p", "-E", "-N", "-C", "-F"), ("-L", "-p")],
    ids=" ".join,
    indirect=True,
)
def test_mail_reaches_smtp_sink_as_it_was_sent(tmp_path: Path, smtp_sink: SmtpSink) -> None:
    async def scenario(sink: DirectSink) -> None:
        for name, mail in MAILS.items():
            answer = await deliver(sink, [rcpt(b"joe@example.org", smtp_sink.dest)], *chunks(mail))
            assert answer.code == 250, name
            assert smtp_sink.new() == [(PREFIX + mail).replace(b"\r\n", b"\n")], name
        assert sink.pool.open_count == 1

    with_sink(tmp_path, scenario)


@needs("smtp-sink")
@pytest.mark.parametrize("kind", [(), ("-L",)])
@pytest.mark.parametrize("verb", ["CONNECT", "MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize(
    ("option", "classes"),
    [("-f", {5}), ("-r", {4}), ("-q", {4}), ("-Q", {4})],
    ids=["5xx", "4xx", "drop", "421"],
)
def test_what_smtp_sink_refuses_is_refused(
    tmp_path: Path, kind: tuple[str, ...], verb: str, option: str, classes: set[int]
) -> None:
    async def scenario(sink: DirectSink) -> None:
        for _ in range(2):
            answer = await deliver(sink, [rcpt(b"joe@example.org", peer.dest)], MAILS["a line"])
            # A greeting of 5xx is about us, and puts the client's mail off.
            assert answer.code // 100 in ({4} if verb == "CONNECT" else classes)

    peer = SmtpSink(*kind, option, verb)
    try:
        with_sink(tmp_path, scenario)
    finally:
        peer.stop()


@needs("smtp-sink")
@pytest.mark.parametrize("smtp_sink", [(), ("-L",)], indirect=True)
def test_many_at_once_share_few_connections(tmp_path: Path, smtp_sink: SmtpSink) -> None:
    async def scenario(sink: DirectSink) -> None:
        mail = MAILS["MIME, 100 kB"]
        places = [rcpt(b"joe@example.org", smtp_sink.dest)]
        answers = await asyncio.gather(*[deliver(sink, places, *chunks(mail)) for _ in range(40)])
        assert {answer.code for answer in answers} == {250}
        assert sink.pool.open_count <= sink.pool.limits.kept
        assert set(smtp_sink.new()) == {(PREFIX + mail).replace(b"\r\n", b"\n")}

    with_sink(tmp_path, scenario)


# --- Postfix --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postfix() -> Iterator[Postfix]:
    boxes = tuple(f"{name}@example.org" for name in ("joe", "plain", "xclient", "xforward", "proxy", "many"))
    with Postfix(mailboxes=boxes) as running:
        yield running


@needs_postfix
def test_mail_reaches_postfix_as_it_was_sent(tmp_path: Path, postfix: Postfix) -> None:
    mails = [*MAILS.values(), b"Subject: no end\r\n\r\nlast line"]

    async def scenario(sink: DirectSink) -> None:
        place = rcpt(b"plain@example.org", f"smtp://127.0.0.1:{postfix.port}")
        for count, mail in enumerate(mails, 1):
            answer = await deliver(sink, [place], *chunks(mail))
            assert answer.code == 250
            assert answer.lines[0].startswith("Ok: 7F3A9C2E.1 handed over: Ok: ")
            found = postfix.wait_for_mail("plain@example.org", count)
            # A file ends in a line end; else all is there, behind Postfix's own fields.
            expected = (PREFIX + mail).replace(b"\r\n", b"\n")
            expected = expected if expected.endswith(b"\n") else expected + b"\n"
            assert any(text.endswith(expected) for text in found)

    with_sink(tmp_path, scenario)


@needs_postfix
def test_postfix_answers_for_each_recipient(tmp_path: Path, postfix: Postfix) -> None:
    dest = f"smtp://127.0.0.1:{postfix.port}"

    async def scenario(sink: DirectSink) -> None:
        names = [b"nobody@example.org", b"joe@example.org", b"joe@elsewhere.example"]
        transaction, answers = await opened(sink, [rcpt(name, dest) for name in names])
        unknown, accepted, relayed = answers
        assert unknown is not None
        assert (unknown.code, unknown.enhanced) == (550, "5.1.1")
        assert "User unknown" in unknown.lines[0]
        assert accepted is None
        assert isinstance(relayed, Reply)
        assert (relayed.code, relayed.enhanced) == (454, "4.7.1") or relayed.code == 554
        transaction.abort()

    with_sink(tmp_path, scenario)


@needs_postfix
def test_postfix_gets_many_messages_on_one_connection(tmp_path: Path, postfix: Postfix) -> None:
    async def scenario(sink: DirectSink) -> None:
        place = rcpt(b"many@example.org", f"smtp://127.0.0.1:{postfix.port}")
        for _ in range(10):
            assert (await deliver(sink, [place], MAILS["a line"])).code == 250

    with_sink(tmp_path, scenario)
    postfix.wait_for_log("mail=10 rcpt=10 bdat=10 quit=1")
    assert len(postfix.wait_for_mail("many@example.org", 10)) == 10


@needs_postfix
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("tells", ["xclient", "xforward", "proxy"])
def test_postfix_learns_who_the_client_was(tmp_path: Path, postfix: Postfix, tells: str, client: str) -> None:
    port = postfix.proxy_port if tells == "proxy" else postfix.xclient_port
    box = f"{tells}@example.org"
    before = len(postfix.mail(box))

    async def scenario(sink: DirectSink) -> None:
        place = rcpt(box.encode(), f"smtp://127.0.0.1:{port}", tells)
        for _ in range(2):
            known = facts(client)
            answer = await deliver(sink, [place], MAILS["a line"], known=known)
            assert answer.code == 250
        # The connection stood for one client, and now stands for another.
        other = await deliver(sink, [place], MAILS["a line"], known=facts("198.51.100.7"))
        assert other.code == 250

    with_sink(tmp_path, scenario)
    found = b"".join(postfix.wait_for_mail(box, before + 3))
    shown = f"[IPv6:{client}]" if ":" in client else f"[{client}]"
    helo = "client.example" if tells == "xclient" else "mx.example"
    if tells != "xforward":
        # XFORWARD is for the log only.
        for name in (shown, "[198.51.100.7]"):
            assert f"Received: from {helo} (unknown {name})".encode() in found
    postfix.wait_for_log(f"client=unknown[{client}]")
    postfix.wait_for_log("client=unknown[198.51.100.7]")


@needs_postfix
def test_postfix_keeps_smtputf8(tmp_path: Path, postfix: Postfix) -> None:
    async def scenario(sink: DirectSink) -> None:
        envelope = Envelope("jörg@example.net".encode(), b"example.net", body=b"8BITMIME", is_smtputf8=True)
        place = rcpt(b"joe@example.org", f"smtp://127.0.0.1:{postfix.port}")
        mail = "Subject: Grüße\r\n\r\nÄ\r\n".encode()
        assert (await deliver(sink, [place], mail, envelope=envelope)).code == 250
        [found] = postfix.wait_for_mail("joe@example.org")
        assert "Return-Path: <jörg@example.net>".encode() in found
        assert found.endswith(mail.replace(b"\r\n", b"\n"))

    with_sink(tmp_path, scenario)
