"""The client's side of the dialogue without a socket, and who the client was in three notations."""

from __future__ import annotations

import pytest

from fastsmtp import errors, reply
from fastsmtp._parser import NextHopReply, ReplyParser
from fastsmtp._stuff import command_of
from fastsmtp.address import Address
from fastsmtp.delivery.dialogue import Ask, Dialogue, Script, Started, outcome
from fastsmtp.delivery.identity import (
    UNAVAILABLE,
    Identity,
    proxy_header,
    xclient_command,
    xforward_commands,
    xtext,
)
from fastsmtp.delivery.outcome import Delivered, Failed, Retry
from fastsmtp.message import Envelope, Recipient
from fastsmtp.reply import Reply
from tests.handing import facts


def replies(data: bytes) -> list[NextHopReply]:
    return ReplyParser().feed(data.replace(b"\n", b"\r\n"))


def play(script: Script[object], *answers: bytes) -> tuple[list[bytes], object]:
    """Drive a script with these answers; what it sent, and its value."""
    sent: list[bytes] = []
    left = list(answers)
    try:
        ask: Ask = next(script)
        while True:
            sent.append(ask.data)
            answer = replies(left.pop(0))
            assert len(answer) == ask.replies
            ask = script.send(answer)
    except StopIteration as stop:
        assert not left
        return sent, stop.value


def opened(*extensions: bytes) -> Dialogue:
    dialogue = Dialogue("mx.example", is_lmtp=False)
    lines = [b"hop", *extensions]
    hello = b"".join(b"250-%b\n" % text for text in lines[:-1]) + b"250 %b\n" % lines[-1]
    play(dialogue.open(), b"220 hop\n", hello)
    return dialogue


def test_extensions_are_read_in_any_case_of_letters() -> None:
    dialogue = opened(b"Pipelining", b"size 1000", b"XCLIENT name addr")
    assert dialogue.extensions == {b"PIPELINING": b"", b"SIZE": b"1000", b"XCLIENT": b"NAME ADDR"}


ENVELOPE = Envelope(b"a@b.example", b"b.example")
TWO = [Recipient(b"joe@example.org", b"example.org"), Recipient(b"ann@example.org", b"example.org")]
GROUP = [b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<joe@example.org>\r\n", b"RCPT TO:<ann@example.org>\r\n"]
NO = Reply(550, "5.1.1", "No")


@pytest.mark.parametrize(
    ("case", "is_pipelined", "answers", "sent", "started"),
    [
        ("one group", True, [b"250 a\n250 b\n250 c\n"], [b"".join(GROUP)], Started(None, [None, None])),
        ("one by one", False, [b"250 a\n", b"250 b\n", b"550 5.1.1 No\n"], GROUP, Started(None, [None, NO])),
        ("no RCPT behind a refused MAIL", False, [b"550 5.1.1 No\n"], GROUP[:1], Started(NO, [])),
        (
            "in a group they don't count",
            True,
            [b"550 5.1.1 No\n503 a\n503 b\n"],
            [b"".join(GROUP)],
            Started(NO, []),
        ),
    ],
)
def test_a_transaction_opens(
    case: str, is_pipelined: bool, answers: list[bytes], sent: list[bytes], started: Started
) -> None:
    dialogue = opened(b"PIPELINING") if is_pipelined else opened()
    assert play(dialogue.start(ENVELOPE, TWO), *answers) == (sent, started)


@pytest.mark.parametrize("address", [b"a\r\nRSET", b"a\n", b"a\r", b"a\0"])
def test_no_address_becomes_a_command(address: bytes) -> None:
    with pytest.raises(ValueError, match="line end"):
        next(opened().start(Envelope(address, b""), TWO))
    with pytest.raises(ValueError, match="line end"):
        command_of([b"RCPT TO:<%b>" % address])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"250 2.0.0 Ok: queued\n", Delivered("Ok: queued")),
        (b"250-one\n250 two\n", Delivered("one two")),
        (b"451 4.3.0 Later\n", Retry(Reply(451, "4.3.0", "Later"), "451 4.3.0 Later")),
        (b"554 Spam\n", Failed(Reply(554, "5.0.0", "Spam"), "554 Spam")),
    ],
)
def test_what_an_answer_to_a_message_means(answer: bytes, expected: object) -> None:
    assert outcome(replies(answer)[0]) == expected


@pytest.mark.parametrize(
    ("answer", "error"), [(b"421 x\n", errors.NextHopDown), (b"354 x\n", errors.NextHopGarbled)]
)
def test_what_is_no_answer_to_a_message(answer: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        outcome(replies(answer)[0])


def test_a_refusal_keeps_its_text_within_bounds() -> None:
    passed = reply.passed_on(550, "5.7.1", [b"x" * 2000] * 50)
    assert len(passed.lines) == 10
    assert max(map(len, passed.head.split(b"\r\n"))) <= 470
    with pytest.raises(ValueError, match="not a refusal"):
        reply.passed_on(250, "", [b"Ok"])


# --- who the client was ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"mail.example", b"mail.example"),
        (b"a b", b"a+20b"),
        (b"a+=b", b"a+2B+3Db"),
        (b"\xff\r\n", b"+FF+0D+0A"),
    ],
)
def test_xtext(value: bytes, text: bytes) -> None:
    assert xtext(value) == text


def test_a_helo_that_does_not_fit_is_left_unknown() -> None:
    known = facts()
    known.helo = b"\xff" * 300
    identity = Identity(known)
    command = xclient_command(identity.attributes, [b"ADDR", b"HELO"])
    assert command == b"XCLIENT ADDR=192.0.2.1 HELO=[UNAVAILABLE]\r\n"
    assert xforward_commands(identity.attributes, [b"HELO"]) == [b"XFORWARD HELO=%b\r\n" % UNAVAILABLE]
    assert identity.helo == b""
    assert xclient_command(identity.attributes, []) == b""
    assert xforward_commands(identity.attributes, []) == []


@pytest.mark.parametrize(
    ("client", "local", "header"),
    [
        ("192.0.2.1", "198.51.100.1", b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 25\r\n"),
        ("2001:db8::1", "2001:db8::2", b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 25\r\n"),
        ("192.0.2.1", "2001:db8::2", b"PROXY TCP4 192.0.2.1 0.0.0.0 4711 25\r\n"),
        ("2001:db8::1", "192.0.2.1", b"PROXY TCP6 2001:db8::1 :: 4711 25\r\n"),
        ("192.0.2.1", "", b"PROXY TCP4 192.0.2.1 0.0.0.0 4711 25\r\n"),
        ("::ffff:192.0.2.1", "127.0.0.1", b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 25\r\n"),
    ],
)
def test_the_proxy_header_has_one_family(client: str, local: str, header: bytes) -> None:
    assert proxy_header(Address(client), 4711, local) == header
