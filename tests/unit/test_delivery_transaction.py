"""One transaction: what is said, and what each reply makes of each recipient."""

from __future__ import annotations

import pytest

from fastsmtp import errors
from fastsmtp._parser import NextHopReply, ReplyParser
from fastsmtp._transaction import DONE, SAY, TEXT, Step, Transaction
from fastsmtp.delivery.dialogue import Dialogue
from fastsmtp.delivery.outcome import Delivered, Failed, Hop, Retry
from fastsmtp.message import Envelope, Recipient

HOP = Hop("mx.example", "192.0.2.1", 25)
A, B, C = (Recipient(name + b"@x.example", b"x.example") for name in (b"a", b"b", b"c"))
MAIL = b"MAIL FROM:<me@home.example>\r\n"


def answers(*lines: bytes) -> list[NextHopReply]:
    return ReplyParser().feed(b"".join(line + b"\r\n" for line in lines))


def dialogue(*extensions: bytes, is_lmtp: bool = False) -> Dialogue:
    one = Dialogue("me.example", is_lmtp=is_lmtp)
    one.extensions = dict.fromkeys(extensions, b"")
    return one


def transaction(
    *extensions: bytes, to: tuple[Recipient, ...] = (A, B, C), is_lmtp: bool = False
) -> Transaction:
    envelope = Envelope(b"me@home.example", b"home.example")
    return Transaction(dialogue(*extensions, is_lmtp=is_lmtp), envelope, to, size_bytes=99, hop=HOP)


def kinds(one: Transaction) -> str:
    """D delivered, R retry, F failed, - undecided; one letter a recipient."""
    return "".join("-" if outcome is None else type(outcome).__name__[0] for outcome in one.outcomes)


def take(one: Transaction, *lines: bytes) -> Step:
    step = Step.WAIT
    for answer in answers(*lines):
        step = one.take(answer)
    return step


PIPELINED = [
    # replies to MAIL, three RCPTs and DATA; the step behind them; the reply to the text; what became of each
    ((b"250 ok", b"250 ok", b"250 ok", b"250 ok", b"354 go"), TEXT, b"250 2.0.0 ok", "DDD"),
    ((b"250 ok", b"250 ok", b"550 no", b"451 later", b"354 go"), TEXT, b"250 ok", "DFR"),
    ((b"250 ok", b"251 ok", b"252 ok", b"250 ok", b"354 go"), TEXT, b"451 no", "RRR"),
    ((b"250 ok", b"250 ok", b"550 no", b"250 ok", b"354 go"), TEXT, b"554 no", "FFF"),
    ((b"550 no", b"503 no", b"503 no", b"503 no", b"503 no"), DONE, b"", "FFF"),
    ((b"451 no", b"503 no", b"503 no", b"503 no", b"503 no"), DONE, b"", "RRR"),
    ((b"250 ok", b"550 no", b"550 no", b"450 no", b"503 no"), DONE, b"", "FFR"),
    # all refused, and a text is wanted all the same: a lone dot
    ((b"250 ok", b"550 no", b"550 no", b"450 no", b"354 go"), TEXT, b"554 no", "FFR"),
    ((b"250 ok", b"250 ok", b"550 no", b"250 ok", b"452 full"), DONE, b"", "RFR"),
    ((b"250 ok", b"250 ok", b"550 no", b"250 ok", b"554 no"), DONE, b"", "FFF"),
]


@pytest.mark.parametrize(("said", "step", "last", "became"), PIPELINED)
def test_pipelined_all_leaves_together_and_each_reply_finds_its_own(
    said: tuple[bytes, ...], step: Step, last: bytes, became: str
) -> None:
    one = transaction(b"PIPELINING")
    assert (
        one.opening() == MAIL + b"".join(b"RCPT TO:<%b>\r\n" % to.address for to in (A, B, C)) + b"DATA\r\n"
    )
    assert one.replies == 5
    assert take(one, *said) is step
    if step is TEXT:
        one.sent()
        assert one.is_doubtful == (not one.is_empty)
        assert take(one, last) is DONE
    assert not one.is_doubtful
    assert kinds(one) == became
    is_open = step is DONE and said[0].startswith(b"2")
    assert one.needs_reset == is_open


@pytest.mark.parametrize(
    ("said", "commands", "became", "needs_reset"),
    [
        ((b"250 ok", b"250 ok", b"550 no", b"250 ok", b"354 go", b"250 ok"), 5, "DFD", False),
        ((b"550 no",), 1, "FFF", False),
        ((b"250 ok", b"550 no", b"450 no", b"550 no"), 4, "FRF", True),
        ((b"250 ok", b"250 ok", b"450 no", b"550 no", b"451 no"), 5, "RRF", True),
    ],
)
def test_without_pipelining_each_command_waits_for_its_reply(
    said: tuple[bytes, ...], commands: int, became: str, needs_reset: bool
) -> None:
    one = transaction()
    sent = [one.opening()]
    step = Step.WAIT
    for answer in answers(*said):
        step = one.take(answer)
        if step is SAY:
            sent.append(one.next_command())
    assert step is DONE
    assert len(sent) == commands
    assert sent[0] == MAIL
    assert kinds(one) == became
    assert one.needs_reset == needs_reset


def test_with_chunking_the_text_goes_along() -> None:
    one = transaction(b"PIPELINING", b"CHUNKING", to=(A,))
    assert one.opening(b"text\r\n") == MAIL + b"RCPT TO:<a@x.example>\r\nBDAT 6 LAST\r\ntext\r\n"
    assert one.is_doubtful
    assert take(one, b"250 ok", b"250 ok", b"250 2.6.0 taken") is DONE
    assert one.outcomes == [Delivered("taken", "mx.example [192.0.2.1]", "", "2.6.0", HOP)]


def test_a_chunk_that_nobody_takes_leaves_a_transaction_to_be_reset() -> None:
    one = transaction(b"PIPELINING", b"CHUNKING", to=(A,))
    one.opening(b"text\r\n")
    assert take(one, b"250 ok", b"550 no") is Step.WAIT
    assert not one.is_doubtful
    assert take(one, b"503 no") is DONE
    assert (kinds(one), one.needs_reset) == ("F", True)


def test_a_chunk_of_a_file_follows_when_somebody_was_taken() -> None:
    one = transaction(b"PIPELINING", b"CHUNKING", to=(A, B))
    assert one.opening(in_chunks=True) == MAIL + b"RCPT TO:<a@x.example>\r\nRCPT TO:<b@x.example>\r\n"
    assert take(one, b"250 ok", b"550 no", b"250 ok") is TEXT
    one.sent()
    assert take(one, b"250 ok") is DONE
    assert kinds(one) == "FD"
    one = transaction(b"CHUNKING", to=(A,))
    one.opening(in_chunks=True)
    assert take(one, b"250 ok", b"550 no") is DONE
    assert (kinds(one), one.needs_reset) == ("F", True)


def test_lmtp_answers_for_each_recipient_that_was_taken() -> None:
    one = transaction(b"PIPELINING", is_lmtp=True)
    one.opening()
    assert take(one, b"250 ok", b"250 ok", b"550 no", b"250 ok", b"354 go") is TEXT
    one.sent()
    assert take(one, b"250 ok") is Step.WAIT
    assert one.is_doubtful
    assert kinds(one) == "DF-"
    assert take(one, b"452 full") is DONE
    assert kinds(one) == "DFR"


@pytest.mark.parametrize(
    "code", [b"452 4.5.3 too many", b"452 too many", b"552 too many", b"552 5.5.3 too many"]
)
def test_who_has_no_room_goes_into_another_transaction(code: bytes) -> None:
    one = transaction(b"PIPELINING")
    one.opening()
    assert take(one, b"250 ok", b"250 ok", code, code, b"354 go") is TEXT
    assert one.again == [1, 2]
    one.sent()
    take(one, b"250 ok")
    assert kinds(one) == "D--"


@pytest.mark.parametrize("code", [b"452 4.2.2 mailbox full", b"552 5.2.2 mailbox full", b"450 4.5.3 x"])
def test_a_full_mailbox_is_not_a_full_transaction(code: bytes) -> None:
    one = transaction(b"PIPELINING")
    one.opening()
    take(one, b"250 ok", b"250 ok", code, b"250 ok", b"354 go")
    assert one.again == []


def test_the_first_recipient_that_has_no_room_waits() -> None:
    one = transaction(b"PIPELINING", to=(A,))
    one.opening()
    assert take(one, b"250 ok", b"452 4.5.3 too many", b"503 no") is DONE
    assert kinds(one) == "R"


@pytest.mark.parametrize(
    ("said", "kind", "became", "is_doubtful"),
    [
        ((b"421 bye",), errors.NextHopDown, "---", False),
        ((b"250 ok", b"250 ok", b"421 bye"), errors.NextHopDown, "---", False),
        ((b"250 ok", b"550 no", b"421 bye"), errors.NextHopDown, "F--", False),
        ((b"250 ok", b"250 ok", b"250 ok", b"250 ok", b"421 bye"), errors.NextHopDown, "---", False),
        ((b"354 what",), errors.NextHopGarbled, "---", False),
        ((b"250 ok", b"354 what"), errors.NextHopGarbled, "---", False),
        ((b"250 ok", b"250 ok", b"250 ok", b"250 ok", b"250 what"), errors.NextHopGarbled, "---", False),
        # behind the text 421 is an answer: the message was not taken
        (
            (b"250 ok", b"250 ok", b"250 ok", b"250 ok", b"354 go", b"421 bye"),
            errors.NextHopDown,
            "RRR",
            False,
        ),
        (
            (b"250 ok", b"250 ok", b"250 ok", b"250 ok", b"354 go", b"354 go"),
            errors.NextHopGarbled,
            "---",
            True,
        ),
    ],
)
def test_a_session_that_is_no_good_any_more_says_who_is_undecided(
    said: tuple[bytes, ...], kind: type[Exception], became: str, is_doubtful: bool
) -> None:
    one = transaction(b"PIPELINING")
    one.opening()
    *before, last = answers(*said)
    for answer in before:
        if one.take(answer) is TEXT:
            one.sent()
    with pytest.raises(kind):
        one.take(last)
    assert kinds(one) == became
    assert one.is_doubtful == is_doubtful


def test_a_chunk_without_its_answer_may_have_arrived() -> None:
    one = transaction(b"PIPELINING", b"CHUNKING")
    one.opening(b"text\r\n")
    take(one, b"250 ok", b"250 ok")
    assert one.is_doubtful
    with pytest.raises(errors.NextHopDown):
        take(one, b"421 bye")
    assert not one.is_doubtful


def test_a_refusal_carries_the_reply_and_where_it_was_said() -> None:
    one = transaction(b"PIPELINING", to=(A, B))
    one.opening()
    take(one, b"250 ok", b"550-5.1.1 Nobody", b"550 5.1.1 here", b"450 4.2.1 Later", b"503 no")
    first, second = one.outcomes
    assert isinstance(first, Failed)
    assert isinstance(second, Retry)
    assert (first.reply.code, first.reply.enhanced, first.reply.lines) == (550, "5.1.1", ("Nobody", "here"))
    assert (first.hop, first.remote) == (HOP, "mx.example [192.0.2.1]")
    assert second.reason == "450 4.2.1 Later"
    assert not second.may_have_arrived


def test_reset_and_xforward_come_first_and_their_answers_are_nobody_s() -> None:
    envelope = Envelope(b"me@home.example", b"home.example")
    one = Transaction(
        dialogue(b"PIPELINING"), envelope, (A,), size_bytes=9, hop=HOP, forwarded=[b"XFORWARD NAME=x\r\n"], resets=True
    )  # fmt: skip
    assert one.opening().startswith(b"RSET\r\nXFORWARD NAME=x\r\nMAIL ")
    assert one.replies == 5
    assert take(one, b"250 ok", b"501 no", b"250 ok", b"250 ok", b"354 go") is TEXT


def test_an_address_with_a_line_end_never_becomes_a_command() -> None:
    with pytest.raises(ValueError, match="line end"):
        transaction(to=(Recipient(b"a@x.example>\r\nDATA", b"x.example"),))
