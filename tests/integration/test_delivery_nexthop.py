"""Live hand-over to a next hop that is scripted: its answers are the client's, and none is made up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fastsmtp import errors, reply
from fastsmtp.delivery.pool import Limits
from fastsmtp.log import ListLog
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.disk import InlineDisk, ThreadDisk
from fastsmtp.queue.spool import Budget
from fastsmtp.reply import Reply
from fastsmtp.sink import DirectSink
from tests.handing import PREFIX, deliver, facts, finished, opened, rcpt
from tests.nexthop import DROP, EXTENSIONS, RESET, SILENCE, Answer, NextHop
from tests.wire import run as in_loop
from tests.wire import serving

# Deadlines for a next hop that says nothing; the others are never reached.
SHORT = Limits(
    recipient_s=0.3, data_s=0.3, block_s=0.3, message_s=0.3, reset_s=0.3, connect_s=0.3, tick_s=0.02
)
CHUNKING = (*EXTENSIONS, b"CHUNKING")
BODY = b"Subject: x\r\n\r\n.dot\r\ntext\r\n"
TAKEN = reply.handed_over("7F3A9C2E.1", "Ok: queued as 4711")


class Case:
    """A sink, its log, and one next hop."""

    def __init__(self, sink: DirectSink, log: ListLog, hop: NextHop) -> None:
        self.sink = sink
        self.log = log
        self.hop = hop

    def rcpt(self, address: bytes, tells: str = "none") -> Recipient:
        return rcpt(address, self.hop.dest, tells)

    async def deliver(
        self, *chunks: bytes, envelope: Envelope | None = None, to: bytes = b"joe@example.org"
    ) -> Reply:
        return await deliver(self.sink, [self.rcpt(to)], *(chunks or (BODY,)), envelope=envelope)


def with_hop(
    tmp_path: Path, hop: NextHop, scenario: Callable[[Case], Awaitable[None]], limits: Limits | None = None
) -> None:
    async def run() -> None:
        log = ListLog()
        sink = DirectSink(
            disk=ThreadDisk(), budget=Budget(1 << 20), spool_directory=str(tmp_path), hostname="mx.example",
            limits=limits, log=log,
        )  # fmt: skip
        async with hop:
            await scenario(Case(sink, log, hop))
            await sink.close()
            assert sink.pool.open_count == 0

    in_loop(run)


def test_a_message_is_handed_over_and_the_answer_passed_back(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == TAKEN
        assert case.hop.lines == [
            b"EHLO mx.example", b"MAIL FROM:<from@example.net>", b"RCPT TO:<joe@example.org>", b"DATA",
        ]  # fmt: skip
        assert case.hop.messages == [PREFIX + BODY.replace(b"\n.", b"\n..")]
        assert case.log.lines == []

    with_hop(tmp_path, NextHop(), scenario)


@pytest.mark.parametrize(
    ("kind", "extensions"),
    [("smtp", EXTENSIONS), ("smtp", CHUNKING), ("smtp", ()), ("lmtp", CHUNKING), ("lmtp", ())],
)
@pytest.mark.parametrize(
    "chunks",
    [
        [BODY],
        [b""],
        [b"no final newline"],
        [b"one\r", b"\n.", b"\r\n..\r", b"\n"],
        [b"x" * 998 + b"\r\n"] * 300,
        [b".\r\n" * 8_000] * 3,
        [bytes(byte for byte in range(256) if byte not in b"\r\n\0") + b"\r\n"] * 2_000,
    ],
)
def test_any_body_arrives_byte_for_byte(
    tmp_path: Path, kind: str, extensions: tuple[bytes, ...], chunks: list[bytes]
) -> None:
    async def scenario(case: Case) -> None:
        assert (await case.deliver(*chunks)).code == 250
        [found] = case.hop.messages
        sent = PREFIX + b"".join(chunks)
        if CHUNKING[-1] in extensions:
            assert found == sent
        else:
            unstuffed = (b"\r\n" + found).replace(b"\r\n.", b"\r\n")[2:]
            assert unstuffed == (sent if sent.endswith(b"\r\n") else sent + b"\r\n")

    with_hop(tmp_path, NextHop(kind=kind, extensions=extensions), scenario)


def test_each_recipient_gets_the_next_hops_own_answer(tmp_path: Path) -> None:
    answers = {
        b"RCPT TO:<no@": b"550-5.1.1 Nobody\r\n550 5.1.1 of that name",
        b"RCPT TO:<full@": b"452 4.2.2 Mailbox full",
        b"RCPT TO:<plain@": b"553 Without an enhanced code",
        b"RCPT TO:<odd@": b"550 2.0.0 Class 2 in a 550",
        b"RCPT TO:<other@": b"251 Will forward",
        b"RCPT TO:<\xc3\xa4@": b"550 5.1.1 Kein \xc3\xa4, \xff\x1b[2J",
    }

    async def scenario(case: Case) -> None:
        names = [b"no", b"joe", b"full", b"plain", b"odd", b"other", "ä".encode()]
        recipients = [case.rcpt(name + b"@example.org") for name in names]
        transaction, got = await opened(case.sink, recipients)
        assert got == [
            Reply(550, "5.1.1", "Nobody", "of that name"),
            None,
            Reply(452, "4.2.2", "Mailbox full"),
            Reply(553, "5.0.0", "Without an enhanced code"),
            Reply(550, "5.0.0", "2.0.0 Class 2 in a 550"),
            None,
            Reply(550, "5.1.1", "Kein ä, \N{REPLACEMENT CHARACTER}?[2J"),
        ]
        assert await finished(transaction, BODY) == TAKEN

    with_hop(tmp_path, NextHop(answers=answers), scenario)


def _answers(at: bytes, answer: Answer) -> dict[bytes, Answer]:
    return {at: answer}


REFUSALS: list[tuple[str, dict[bytes, Answer], Reply]] = [
    ("MAIL is refused", {b"MAIL": b"553 5.7.1 Not you"}, Reply(553, "5.7.1", "Not you")),
    ("MAIL is put off", {b"MAIL": b"451 4.7.1 Greylisted"}, Reply(451, "4.7.1", "Greylisted")),
    ("DATA is refused", {b"DATA": b"554 5.5.1 No"}, Reply(554, "5.5.1", "No")),
    ("the message is refused", {b".": b"550 5.7.1 Spam"}, Reply(550, "5.7.1", "Spam")),
    ("the message is put off", {b".": b"452 4.3.1 Full"}, Reply(452, "4.3.1", "Full")),
    ("421 at the greeting", {b"": b"421 4.3.2 Later"}, reply.NEXT_HOP_DOWN),
    ("554 at the greeting is about us, not about the mail", {b"": b"554 5.7.1 Go away"}, reply.NEXT_HOP_DOWN),
    ("421 at EHLO", {b"EHLO": b"421 4.3.2 Later"}, reply.NEXT_HOP_DOWN),
    ("421 at MAIL", {b"MAIL": b"421 4.3.2 Later"}, reply.NEXT_HOP_DOWN),
    ("421 at RCPT", {b"RCPT": b"421 4.3.2 Later"}, reply.NEXT_HOP_DOWN),
    ("421 at DATA", {b"DATA": b"421 4.3.2 Later"}, reply.NEXT_HOP_DOWN),
    ("421 at the dot", {b".": b"421 4.3.2 Later"}, reply.NEXT_HOP_DOWN),
    ("250 at DATA", {b"DATA": b"250 2.0.0 Ok"}, reply.NEXT_HOP_GARBLED),
    ("354 at RCPT", {b"RCPT": b"354 Go on"}, reply.NEXT_HOP_GARBLED),
    ("354 at the dot", {b".": b"354 More"}, reply.NEXT_HOP_GARBLED),
    ("garbage at the greeting", {b"": b"SSH-2.0-OpenSSH_9.6"}, reply.NEXT_HOP_GARBLED),
    ("garbage at RCPT", {b"RCPT": b"\x00\xff?"}, reply.NEXT_HOP_GARBLED),
    ("garbage at the dot", {b".": b"Ok: queued"}, reply.NEXT_HOP_GARBLED),
    ("an answer too many", {b"RCPT": b"250 Ok\r\n250 Ok"}, reply.NEXT_HOP_GARBLED),
    ("yes before the message", {b"DATA": b"354 Go on\r\n250 2.0.0 Queued"}, reply.NEXT_HOP_GARBLED),
    (
        "answers in another order: the first is MAIL's",
        {b"MAIL": b"550 5.1.1 Nobody"},
        Reply(550, "5.1.1", "Nobody"),
    ),
    *[
        (f"{act.value} at {at.decode() or 'the greeting'}", _answers(at, act), reply.NEXT_HOP_DOWN)
        for act in (DROP, RESET)
        for at in (b"", b"EHLO", b"MAIL", b"RCPT", b"DATA", b".")
    ],
]


@pytest.mark.parametrize(
    ("case", "answers", "expected", "extensions"),
    [
        (*refusal, extensions)
        for refusal in REFUSALS
        for extensions in (EXTENSIONS, (), CHUNKING)
        if extensions is not CHUNKING or b"DATA" not in refusal[1]
    ],
)
def test_a_refusal_or_a_failure_is_never_250(
    tmp_path: Path, case: str, answers: dict[bytes, Answer], expected: Reply, extensions: tuple[bytes, ...]
) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == expected

    with_hop(tmp_path, NextHop(answers=answers, extensions=extensions), scenario)


@pytest.mark.parametrize("at", [b"", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"."])
def test_a_next_hop_that_says_nothing_is_451_in_time(tmp_path: Path, at: bytes) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == reply.NEXT_HOP_DOWN
        assert "did not answer in time" in str(case.log.of("sink_failed")[0]["reason"])

    with_hop(tmp_path, NextHop(answers={at: SILENCE}), scenario, SHORT)


def test_a_next_hop_that_does_not_read_is_451_in_time(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver(*[b"x" * 998 + b"\r\n"] * 12_000) == reply.NEXT_HOP_DOWN

    with_hop(tmp_path, NextHop(answers={b"DATA": [b"354 Go on"]}, stops_reading=True), scenario, SHORT)


@pytest.mark.parametrize("act", [DROP, RESET])
def test_no_answer_to_the_dot_is_never_tried_again(tmp_path: Path, act: Answer) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == TAKEN
        assert await case.deliver() == reply.NEXT_HOP_DOWN
        assert len(case.hop.messages) == 2
        [line] = case.log.of("sink_failed")
        assert "may have arrived" in str(line["reason"])

    with_hop(tmp_path, NextHop(answers={b".": [b"250 2.0.0 Ok: queued as 4711", act]}), scenario)


def test_a_refusal_within_the_text_is_passed_on(tmp_path: Path) -> None:
    hop = NextHop(answers={b"DATA": b"354 Go on\r\n552 5.3.4 Too big"}, reads_text=False)

    async def scenario(case: Case) -> None:
        assert await case.deliver(*[b"x" * 998 + b"\r\n"] * 200) == Reply(552, "5.3.4", "Too big")
        assert await case.deliver() == Reply(552, "5.3.4", "Too big")
        assert case.hop.connections == 2

    with_hop(tmp_path, hop, scenario)


def test_a_connection_is_kept_and_reused(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        for _ in range(5):
            assert await case.deliver() == TAKEN
        assert case.hop.connections == 1
        assert case.hop.verbs.count(b"EHLO") == 1
        assert b"RSET" not in case.hop.verbs

    with_hop(tmp_path, NextHop(), scenario)


@pytest.mark.parametrize("at", [b"MAIL", b"DATA", b"."])
def test_a_connection_survives_a_refusal(tmp_path: Path, at: bytes) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == Reply(451, "4.7.1", "No")
        await case.hop.quiet()
        assert await case.deliver() == TAKEN
        assert case.hop.connections == 1

    with_hop(tmp_path, NextHop(answers={at: [b"451 4.7.1 No"]}), scenario)


@pytest.mark.parametrize("said", [b"", b"421 4.4.2 Idle too long\r\n", b"250 What\r\n", b"garbage\r\n"])
def test_a_kept_connection_that_died_is_replaced(tmp_path: Path, said: bytes) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == TAKEN
        if said:
            case.hop.say(said)
            while case.sink.pool.open_count:
                await asyncio.sleep(0)
        else:
            case.hop.hang_up()
        assert await case.deliver() == TAKEN
        assert case.hop.connections == 2

    with_hop(tmp_path, NextHop(), scenario)


@pytest.mark.parametrize("answer", [DROP, RESET, b"421 4.4.2 Idle too long"])
def test_a_kept_connection_that_dies_at_mail_is_replaced(tmp_path: Path, answer: Answer) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == TAKEN
        assert await case.deliver() == TAKEN
        assert case.hop.connections == 2
        assert len(case.hop.messages) == 2

    with_hop(tmp_path, NextHop(answers={b"MAIL": [b"250 Ok", answer]}), scenario)


def test_a_new_connection_that_dies_at_mail_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == reply.NEXT_HOP_DOWN
        assert case.hop.connections == 1

    with_hop(tmp_path, NextHop(answers={b"MAIL": DROP}), scenario)


@pytest.mark.parametrize("second", [b"250 2.1.5 Ok", b"550 5.1.1 Gone"])
def test_a_next_hop_that_hangs_up_on_a_slow_client_is_asked_again(tmp_path: Path, second: bytes) -> None:
    """Before the body is on its way nothing can be doubled; what it now refuses is put off, not bounced."""

    async def scenario(case: Case) -> None:
        recipients = [case.rcpt(b"joe@example.org"), case.rcpt(b"ann@example.org")]
        transaction, answers = await opened(case.sink, recipients)
        assert answers == [None, None]
        case.hop.hang_up()
        answer = await finished(transaction, BODY)
        assert case.hop.connections == 2
        assert answer == (TAKEN if second.startswith(b"250") else Reply(450, "4.1.1", "Gone"))

    with_hop(tmp_path, NextHop(answers={b"RCPT TO:<ann@": [b"250 Ok", second]}), scenario)


def test_a_recipient_of_another_next_hop_comes_in_another_transaction(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        recipients = [
            case.rcpt(b"joe@example.org"),
            rcpt(b"ann@example.com", f"smtp://127.0.0.1:{case.hop.port + 1}"),
            rcpt(b"ann@example.com", "discard"),
            case.rcpt(b"joe@example.org", "xforward"),
            case.rcpt(b"bob@example.org"),
        ]
        transaction, answers = await opened(case.sink, recipients)
        assert answers == [None, reply.OTHER_NEXT_HOP, reply.OTHER_NEXT_HOP, reply.OTHER_NEXT_HOP, None]
        assert await finished(transaction, BODY) == TAKEN
        transaction, answers = await opened(case.sink, [recipients[2], recipients[0]])
        assert answers == [None, reply.OTHER_NEXT_HOP]
        transaction.abort()

    with_hop(tmp_path, NextHop(), scenario)


def test_a_next_hop_that_took_nobody_leaves_the_transaction_free(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        recipients = [case.rcpt(b"no@example.org"), rcpt(b"ann@example.com", "discard")]
        transaction, answers = await opened(case.sink, recipients)
        assert answers == [Reply(550, "5.1.1", "Nobody"), None]
        assert await finished(transaction, BODY) == reply.accepted("7F3A9C2E.1")

    with_hop(tmp_path, NextHop(answers={b"RCPT": b"550 5.1.1 Nobody"}), scenario)


def test_lmtp_takes_one_recipient_a_transaction(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        names = [b"no", b"joe", b"ann"]
        transaction, answers = await opened(case.sink, [case.rcpt(name + b"@example.org") for name in names])
        assert answers == [Reply(550, "5.1.1", "Nobody"), None, reply.OTHER_NEXT_HOP]
        assert await finished(transaction, BODY) == TAKEN
        assert case.hop.verbs == [b"LHLO", b"MAIL", b"RCPT", b"RCPT", b"DATA"]

    with_hop(tmp_path, NextHop(kind="lmtp", answers={b"RCPT TO:<no@": b"550 5.1.1 Nobody"}), scenario)


def test_lmtp_over_a_unix_socket(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == TAKEN
        assert case.hop.verbs[0] == b"LHLO"

    with_hop(tmp_path, NextHop(path=tmp_path / "lmtp"), scenario)


def test_lmtp_never_falls_back_to_helo(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == reply.NEXT_HOP_DOWN
        assert case.hop.verbs == [b"LHLO"]

    with_hop(tmp_path, NextHop(kind="lmtp", answers={b"LHLO": b"500 What"}), scenario)


def test_a_next_hop_without_ehlo_gets_helo_and_no_parameters(tmp_path: Path) -> None:
    envelope = Envelope(b"from@example.net", b"example.net", size_bytes=100, body=b"7BIT", ret=b"HDRS")

    async def scenario(case: Case) -> None:
        if case.hop.lines == []:
            envelope.body = b""
        assert await case.deliver(envelope=envelope) == TAKEN
        assert case.hop.lines[:3] == [b"EHLO mx.example", b"HELO mx.example", b"MAIL FROM:<from@example.net>"]

    with_hop(tmp_path, NextHop(answers={b"EHLO": b"502 5.5.1 What"}), scenario)


def test_parameters_are_passed_on_where_they_are_offered(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        envelope = Envelope(
            "jörg@example.net".encode(), b"example.net", size_bytes=1234, body=b"8BITMIME", is_smtputf8=True,
            ret=b"HDRS", envid=b"QQ+2B1",
        )  # fmt: skip
        recipient = Recipient(
            b"joe@example.org", b"example.org", (b"SUCCESS", b"DELAY"), b"rfc822;joe+40x", case.hop.dest
        )
        assert await deliver(case.sink, [recipient], BODY, envelope=envelope) == TAKEN
        assert case.hop.lines[1:3] == [
            "MAIL FROM:<jörg@example.net> SIZE=1234 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B1".encode(),
            b"RCPT TO:<joe@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;joe+40x",
        ]

    with_hop(tmp_path, NextHop(), scenario)


@pytest.mark.parametrize(
    ("envelope", "answer"),
    [
        (Envelope(b"a@b.example", b"b.example", is_smtputf8=True), reply.NEXT_HOP_NOT_UTF8),
        (Envelope(b"a@b.example", b"b.example", body=b"8BITMIME"), reply.NEXT_HOP_NOT_8BIT),
    ],
)
def test_what_the_next_hop_cannot_take_is_refused_at_rcpt(
    tmp_path: Path, envelope: Envelope, answer: Reply
) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver(envelope=envelope) == answer
        assert case.hop.verbs == [b"EHLO"]
        assert await case.deliver() == TAKEN
        assert case.hop.connections == 1

    with_hop(tmp_path, NextHop(extensions=()), scenario)


def test_pipelining_saves_a_round_trip(tmp_path: Path) -> None:
    """The next hop answers MAIL only when it has seen RCPT: without PIPELINING that would never end."""

    async def scenario(case: Case) -> None:
        assert await case.deliver() == TAKEN

    with_hop(tmp_path, NextHop(answers={b"MAIL": b"", b"RCPT": b"250 Ok\r\n250 Ok"}), scenario)


def test_abort_leaves_a_connection_that_can_be_used(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        transaction, _ = await opened(case.sink, [case.rcpt(b"joe@example.org")])
        transaction.abort()
        transaction.abort()
        await case.hop.quiet()
        assert await case.deliver() == TAKEN
        assert case.hop.connections == 1
        assert case.hop.verbs == [b"EHLO", b"MAIL", b"RCPT", b"RSET", b"MAIL", b"RCPT", b"DATA"]

    with_hop(tmp_path, NextHop(), scenario)


@pytest.mark.parametrize("at", [b"", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"."])
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_abort_while_an_answer_is_awaited_closes_the_connection(
    tmp_path: Path, at: bytes, is_cancelled: bool
) -> None:
    async def scenario(case: Case) -> None:
        transaction = case.sink.open(Envelope(b"", b""), facts())

        async def work() -> Reply | None:
            answer = transaction.add(case.rcpt(b"joe@example.org"))
            assert isinstance(answer, Awaitable)
            refusal = await answer
            return refusal or await finished(transaction, BODY)

        task = asyncio.ensure_future(work())
        await case.hop.seen(at)
        if is_cancelled:
            task.cancel()
            await asyncio.wait([task])
        transaction.abort()
        if not is_cancelled and at in {b"", b"EHLO"}:
            task.cancel()
        await asyncio.wait([task])
        assert case.sink.pool.open_count == 0
        if not task.cancelled():
            assert task.result() == reply.NEXT_HOP_DOWN

    with_hop(tmp_path, NextHop(answers={at: SILENCE}), scenario)


def test_an_unknown_next_hop_and_a_closed_port_are_451(tmp_path: Path) -> None:
    async def no_host(host: str) -> tuple[str, ...]:
        raise errors.HostUnknown(host)

    async def run() -> None:
        sink = DirectSink(
            disk=InlineDisk(),
            budget=Budget(1 << 20),
            spool_directory=str(tmp_path),
            hostname="mx",
            resolve=no_host,
        )
        async with NextHop() as hop:
            closed = hop.dest
        for dest in ("smtp://nowhere.example", closed):
            assert await deliver(sink, [rcpt(b"joe@example.org", dest)], BODY) == reply.NEXT_HOP_DOWN
        await sink.close()

    in_loop(run)


def test_addresses_are_tried_in_turn(tmp_path: Path) -> None:
    asked: list[str] = []

    async def resolve(host: str) -> tuple[str, ...]:
        asked.append(host)
        return ("::1", "127.0.0.2", "127.0.0.1")

    async def run() -> None:
        sink = DirectSink(
            disk=InlineDisk(),
            budget=Budget(1 << 20),
            spool_directory=str(tmp_path),
            hostname="mx",
            resolve=resolve,
        )
        async with NextHop() as hop:
            dest = f"smtp://mail.example:{hop.port}"
            assert await deliver(sink, [rcpt(b"joe@example.org", dest)], BODY) == TAKEN
            await sink.close()
        assert asked == ["mail.example"]

    in_loop(run)


# --- who the client was ---------------------------------------------------------------------------------

XCLIENT = (*EXTENSIONS, b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN")
XFORWARD = (*EXTENSIONS, b"XFORWARD NAME ADDR PROTO HELO SOURCE PORT")


def test_xclient_names_each_client_once(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        for client in ("192.0.2.1", "192.0.2.1", "2001:db8::1"):
            known = facts(client)
            known.helo = b"a b+c=d"
            answer = await deliver(case.sink, [case.rcpt(b"joe@example.org", "xclient")], BODY, known=known)
            assert answer == TAKEN
        told = b" PORT=4711 NAME=[UNAVAILABLE] PROTO=ESMTP HELO=a+20b+2Bc+3Dd"
        assert [line for line in case.hop.lines if line.startswith(b"XCLIENT")] == [
            b"XCLIENT ADDR=192.0.2.1" + told, b"XCLIENT ADDR=IPV6:2001:db8::1" + told,
        ]  # fmt: skip
        assert case.hop.connections == 1
        assert case.hop.verbs[:4] == [b"EHLO", b"XCLIENT", b"EHLO", b"MAIL"]
        assert case.hop.lines[2] == b"EHLO mx.example"

    with_hop(tmp_path, NextHop(extensions=XCLIENT), scenario)


def test_a_connection_behind_xclient_stays_that_clients_where_it_is_offered_once(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2", "192.0.2.3"):
            recipient = case.rcpt(b"joe@example.org", "xclient")
            assert await deliver(case.sink, [recipient], BODY, known=facts(client)) == TAKEN
        assert case.hop.connections == 3
        assert case.sink.pool.open_count == 2

    once = b"250-hop\r\n250 XCLIENT ADDR"
    hop = NextHop(extensions=(), answers={b"EHLO": [once, b"250 hop", once, b"250 hop", once]})
    with_hop(tmp_path, hop, scenario, Limits(connections=2))


def test_only_what_is_announced_is_told(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        assert await deliver(case.sink, [case.rcpt(b"joe@example.org", "xclient")], BODY) == TAKEN
        assert case.hop.lines[1:3] == [b"XCLIENT ADDR=192.0.2.1", b"EHLO client.example"]

    with_hop(tmp_path, NextHop(extensions=(b"XCLIENT ADDR", b"PIPELINING")), scenario)


@pytest.mark.parametrize("tells", ["xclient", "xforward"])
def test_a_next_hop_that_does_not_offer_it_is_noted_once(tmp_path: Path, tells: str) -> None:
    async def scenario(case: Case) -> None:
        for _ in range(2):
            assert await deliver(case.sink, [case.rcpt(b"joe@example.org", tells)], BODY) == TAKEN
        [line] = case.log.of("notice")
        assert line == {"what": case.hop.dest, "reason": f"does not offer {tells.upper()} to us"}

    with_hop(tmp_path, NextHop(), scenario)


def test_a_refused_xclient_is_451_and_never_mail_from_us(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        answer = await deliver(case.sink, [case.rcpt(b"joe@example.org", "xclient")], BODY)
        assert answer == reply.NEXT_HOP_DOWN
        assert b"MAIL" not in case.hop.verbs

    with_hop(tmp_path, NextHop(extensions=XCLIENT, answers={b"XCLIENT": b"550 5.7.0 Not you"}), scenario)


def test_xforward_goes_before_each_mail(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        for client in ("192.0.2.1", "127.0.0.1"):
            recipient = case.rcpt(b"joe@example.org", "xforward")
            assert await deliver(case.sink, [recipient], BODY, known=facts(client)) == TAKEN
        assert [line for line in case.hop.lines if line.startswith(b"XFORWARD")] == [
            b"XFORWARD NAME=[UNAVAILABLE] ADDR=192.0.2.1 PORT=4711 PROTO=ESMTP HELO=client.example SOURCE=REMOTE",
            b"XFORWARD NAME=[UNAVAILABLE] ADDR=127.0.0.1 PORT=4711 PROTO=ESMTP HELO=client.example SOURCE=LOCAL",
        ]
        assert case.hop.connections == 1

    with_hop(tmp_path, NextHop(extensions=XFORWARD), scenario)


@pytest.mark.parametrize("answer", [b"501 5.5.4 Bad", b"250 Ok"])
def test_what_is_said_to_xforward_does_not_hold_the_mail_up(tmp_path: Path, answer: bytes) -> None:
    async def scenario(case: Case) -> None:
        known = facts()
        known.helo = b"h" * 450
        recipient = case.rcpt(b"joe@example.org", "xforward")
        assert await deliver(case.sink, [recipient], BODY, known=known) == TAKEN
        sent = [line for line in case.hop.lines if line.startswith(b"XFORWARD")]
        assert len(sent) == 2
        assert max(map(len, sent)) <= 510

    with_hop(tmp_path, NextHop(extensions=XFORWARD, answers={b"XFORWARD": answer}), scenario)


def test_a_proxy_header_makes_a_connection_one_clients(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        for client in ("192.0.2.1", "2001:db8::1"):
            recipient = case.rcpt(b"joe@example.org", "proxy")
            assert await deliver(case.sink, [recipient], BODY, known=facts(client)) == TAKEN
        assert case.hop.proxies == [
            b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 25\r\n", b"PROXY TCP6 2001:db8::1 :: 4711 25\r\n",
        ]  # fmt: skip
        assert case.hop.connections == 2

    with_hop(tmp_path, NextHop(has_proxy=True), scenario)


# --- the pool ----------------------------------------------------------------------------------------------


def test_connections_are_bounded_and_handed_on(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        answers = await asyncio.gather(*[case.deliver() for _ in range(20)])
        assert answers == [TAKEN] * 20
        assert case.hop.connections <= 3

    with_hop(tmp_path, NextHop(), scenario, Limits(connections=3))


def test_no_connection_in_time_is_451_busy(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        transaction, answers = await opened(case.sink, [case.rcpt(b"joe@example.org")])
        assert answers == [None]
        assert await case.deliver() == reply.NEXT_HOP_BUSY
        assert await finished(transaction, BODY) == TAKEN
        assert await case.deliver() == TAKEN

    with_hop(tmp_path, NextHop(), scenario, Limits(connections=1, recipient_s=0.2))


def test_a_connection_that_idles_says_goodbye(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        assert await case.deliver() == TAKEN
        await case.hop.seen(b"QUIT")
        assert case.sink.pool.open_count == 0

    with_hop(tmp_path, NextHop(), scenario, Limits(idle_s=0.05, tick_s=0.02))


def test_an_old_connection_is_not_kept(tmp_path: Path) -> None:
    async def scenario(case: Case) -> None:
        for _ in range(3):
            assert await case.deliver() == TAKEN
        assert case.hop.connections == 3

    with_hop(tmp_path, NextHop(), scenario, Limits(age_s=0.0))


# --- behind the whole server ------------------------------------------------------------------------------


def test_a_client_of_the_server_hears_the_next_hop(tmp_path: Path) -> None:
    answers: dict[bytes, Any] = {
        b"RCPT TO:<no@": b"550 5.1.1 Nobody",
        b".": [b"250 2.0.0 Ok: queued as 4711", b"451 4.7.1 Later"],
    }

    async def scenario(case: Case) -> None:
        accept = [{"domain": ["example.org"], "deliver": case.hop.dest}]
        async with serving(case.sink, accept=accept) as running:
            wire = await running.connect()
            assert await wire.codes(b"EHLO a.example\r\nMAIL FROM:<a@example.net>\r\n", 2) == [250, 250]
            code, text = await wire.ask(b"RCPT TO:<no@example.org>")
            assert (code, text.split(b" (id ")[0]) == (550, b"5.1.1 Nobody")
            assert await wire.codes(b"RCPT TO:<joe@example.org>\r\nDATA\r\n", 2) == [250, 354]
            code, text = await wire.ask(b"Subject: x\r\n\r\n..dot\r\n.")
            assert code == 250
            assert text.endswith(b" handed over: Ok: queued as 4711")
            [found] = case.hop.messages
            assert found.startswith(b"Received: from a.example ")
            assert found.endswith(b"Subject: x\r\n\r\n..dot\r\n")
            start = b"MAIL FROM:<a@example.net>\r\nRCPT TO:<joe@example.org>\r\nDATA\r\n"
            assert await wire.codes(start, 3) == [250, 250, 354]
            code, text = await wire.ask(b"x\r\n.")
            assert (code, text.split(b" (id ")[0]) == (451, b"4.7.1 Later")
            # A client that goes in the middle leaves the connection to the next hop in order.
            assert await wire.codes(start, 3) == [250, 250, 354]
            await wire.send(b"half a mess")
            wire.abort()
            await case.hop.seen(b"RSET")
            assert len(case.hop.messages) == 2
            assert case.hop.connections == 1

    with_hop(tmp_path, NextHop(answers=answers), scenario)
