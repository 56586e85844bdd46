"""Mail out of the queue to scripted next hops on loopback: what arrives, who is next, what each recipient becomes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fastsmtp import errors, reply
from fastsmtp.delivery.deliverer import Deliverer
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.log import ListLog
from fastsmtp.supervisor.worker import new_loop
from tests.delivering import PATIENCE_S, Stored, make, rcpt, route, to
from tests.fakes.zone import AAAA, MX, A, Zone
from tests.nexthop import DROP, EXTENSIONS, RESET, SILENCE, Answer, NextHop
from tests.ports import free_port

CHUNKING = (*EXTENSIONS, b"CHUNKING")
PLAIN = tuple(word for word in EXTENSIONS if word != b"PIPELINING")
BODY = b"Subject: Hello\r\n\r\n.dot\r\n..\r\nText\r\n"
STUFFED = b"Received: here\r\nSubject: Hello\r\n\r\n..dot\r\n...\r\nText\r\n"


def run(work: Awaitable[None]) -> None:
    """On the loop that the processes have: uvloop's where there is one."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await work

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(bounded())


def scenario(deliverer: Deliverer, *hops: NextHop) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run a test with these next hops open."""

    def with_all(test: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            for hop in hops:
                await hop.__aenter__()
            try:
                await test()
            finally:
                await deliverer.close()
                for hop in hops:
                    await hop.__aexit__(None, None, None)

        run(main())

    return with_all


def shown(outcomes: list[Outcome]) -> str:
    return "".join(type(outcome).__name__[0] for outcome in outcomes)


def three(port: int, hosts: int = 2) -> Zone:
    """example.org with servers at 127.0.0.2, .3 ..., in this order."""
    zone: dict[tuple[str, int], Any] = {
        ("example.org", MX): [(10 * at, f"mx{at}.example.org") for at in range(1, hosts + 1)]
    }
    zone |= {(f"mx{at}.example.org", A): [f"127.0.0.{at + 1}"] for at in range(1, hosts + 1)}
    return zone


# --- what arrives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [EXTENSIONS, CHUNKING, PLAIN, (*PLAIN, b"CHUNKING"), ()])
@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("body", [BODY, BODY * 20_000, BODY.removesuffix(b"\r\n"), b"", b".\r\n"], ids=len)
def test_the_message_arrives_as_it_is(extensions: tuple[bytes, ...], in_file: bool, body: bytes) -> None:
    hop = NextHop(extensions=extensions)
    deliverer = make()
    stored = Stored(body, in_file=in_file, piece_bytes=70_001)

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            outcomes = await deliverer.deliver(stored, to(b"joe@example.org"), hop.dest)
            assert shown(outcomes) == "D"
        if b"CHUNKING" in extensions:
            assert hop.messages == [stored.whole] * 2
        else:
            lines = stored.whole.split(b"\r\n")
            text = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)
            assert hop.messages == [text if text.endswith(b"\r\n") else text + b"\r\n"] * 2
        assert hop.connections == 1


def test_a_pipelining_next_hop_gets_the_next_command_behind_the_text() -> None:
    hop = NextHop()
    deliverer = make(remote={"connections": 1})

    @scenario(deliverer, hop)
    async def _() -> None:
        work = [deliverer.deliver(Stored(BODY), to(b"joe@example.org"), hop.dest) for _ in range(20)]
        outcomes = await asyncio.gather(*work)
        assert {shown(one) for one in outcomes} == {"D"}
        assert hop.messages == [STUFFED] * 20
        assert (hop.connections, hop.verbs.count(b"MAIL"), hop.verbs.count(b"RSET")) == (1, 20, 0)


@pytest.mark.parametrize(
    "lost",
    [
        b"DATA\r\n",
        b"MAIL FROM:<me@ho",
        b"MAIL ",
        b"\r\n",
        b"RCPT TO:<joe@exa",
        b"RCPT TO:<joe@example.org>\r\n",
    ],
    ids=["all", "half of MAIL", "one word", "all of MAIL", "half of RCPT", "all but DATA"],
)
def test_a_next_hop_that_loses_what_comes_behind_the_dot_gets_one_message_at_a_time(
    lost: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """chasquid 1.11 does; what it reads next may be half a command, and it refuses that with 5xx."""
    monkeypatch.setattr("fastsmtp.delivery.lane.AHEAD_S", 0.05)
    hop = NextHop(loses=[lost])
    log = ListLog()
    deliverer = make(remote={"connections": 1}, log=log)

    @scenario(deliverer, hop)
    async def _() -> None:
        work = [deliverer.deliver(Stored(BODY), to(b"joe@example.org"), hop.dest) for _ in range(20)]
        outcomes = await asyncio.gather(*work)
        assert {shown(one) for one in outcomes} == {"D"}
        assert hop.messages == [STUFFED] * 20
        assert hop.connections == 2
        [noted] = log.of("next_hop_out_of_step")
        assert noted["remote"] == "[127.0.0.1]"


def test_a_next_hop_that_refuses_a_sender_is_believed_when_it_was_told_of_one_alone() -> None:
    hop = NextHop(answers={b"MAIL FROM:<bad@": b"550 5.1.8 Not you"})
    deliverer = make(remote={"connections": 1})

    @scenario(deliverer, hop)
    async def _() -> None:
        senders = [b"me@home.example", b"bad@home.example"] * 3
        work = [
            deliverer.deliver(Stored(BODY, sender=one), to(b"joe@example.org"), hop.dest) for one in senders
        ]
        assert [shown(one) for one in await asyncio.gather(*work)] == ["D", "F"] * 3
        assert [text for text in hop.messages if text] == [STUFFED] * 3


def test_what_the_outcome_says_of_the_next_hop() -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)
        assert isinstance(outcome, Delivered)
        assert (outcome.said, outcome.enhanced, outcome.remote) == (
            "Ok: queued as 4711",
            "2.0.0",
            "[127.0.0.1]",
        )
        assert outcome.hop is not None
        assert (outcome.hop.address, outcome.hop.port, outcome.hop.tls) == ("127.0.0.1", hop.port, "")


def test_what_a_message_declares_is_said_where_it_is_understood() -> None:
    hop, plain = NextHop(), NextHop(extensions=())
    deliverer = make()

    @scenario(deliverer, hop, plain)
    async def _() -> None:
        message = Stored("Subject: x\r\n\r\nö\r\n".encode())
        message.envelope.body = b"8BITMIME"
        message.envelope.ret = b"HDRS"
        message.envelope.envid = b"e1"
        one = rcpt(b"joe@example.org")
        one.notify, one.orcpt = (b"FAILURE",), b"rfc822;joe@example.org"
        assert shown(await deliverer.deliver(message, [one], hop.dest)) == "D"
        size = len(message.whole)
        assert hop.lines[1:3] == [
            b"MAIL FROM:<me@home.example> SIZE=%d BODY=8BITMIME RET=HDRS ENVID=e1" % size,
            b"RCPT TO:<joe@example.org> NOTIFY=FAILURE ORCPT=rfc822;joe@example.org",
        ]
        message.envelope.body = b""
        assert shown(await deliverer.deliver(message, [one], plain.dest)) == "D"
        assert plain.lines[1:3] == [b"MAIL FROM:<me@home.example>", b"RCPT TO:<joe@example.org>"]


ASCII, EIGHT = b"Subject: x\r\n\r\nText\r\n", "Subject: x\r\n\r\nö\r\n".encode()
UTF8_HEADER = "Subject: ö\r\n\r\nText\r\n".encode()


@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize(
    ("body", "declared", "is_utf8", "addresses", "became", "enhanced"),
    [
        (EIGHT, b"8BITMIME", False, (b"joe@example.org",), "F", "5.6.3"),
        (ASCII, b"8BITMIME", False, (b"joe@example.org",), "D", ""),
        (UTF8_HEADER, b"", True, (b"joe@example.org",), "F", "5.6.7"),
        # SMTPUTF8 was declared and isn't needed: nothing is converted, so nothing stands in the way
        (ASCII, b"", True, (b"joe@example.org",), "D", ""),
        (ASCII, b"", True, ("jö@example.org".encode(), b"joe@example.org"), "FD", "5.6.7"),
        (ASCII, b"", True, ("jö@example.org".encode(),), "F", "5.6.7"),
    ],
)
def test_what_the_next_hop_cannot_carry_is_refused_and_never_converted(
    body: bytes,
    declared: bytes,
    is_utf8: bool,
    addresses: tuple[bytes, ...],
    became: str,
    enhanced: str,
    in_file: bool,
) -> None:
    hop = NextHop(extensions=(b"PIPELINING",))
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        message = Stored(body, in_file=in_file, piece_bytes=7)
        message.envelope.body = declared
        message.envelope.is_smtputf8 = is_utf8
        for _ in range(2):
            outcomes = await deliverer.deliver(message, to(*addresses), hop.dest)
            assert shown(outcomes) == became
            if enhanced:
                assert isinstance(outcomes[0], Failed)
                assert outcomes[0].reply.enhanced == enhanced
        assert hop.verbs.count(b"MAIL") == 2 * ("D" in became)
        assert not any(b"SMTPUTF8" in line or b"BODY=" in line for line in hop.lines)


def test_a_message_that_is_too_big_is_not_even_offered() -> None:
    hop = NextHop(extensions=(b"PIPELINING", b"SIZE 100"))
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(b"x" * 100 + b"\r\n"), to(b"joe@example.org"), hop.dest)
        assert isinstance(outcome, Failed)
        assert outcome.reply == reply.NEXT_HOP_TOO_SMALL
        assert shown(await deliverer.deliver(Stored(b"x\r\n"), to(b"joe@example.org"), hop.dest)) == "D"
        assert hop.verbs.count(b"MAIL") == 1


@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("body", [b"a\nb\r\n", b"a\r.\r\n", b"a\r\n.\nMAIL FROM:<x@y>\r\n", b"a\r"])
def test_a_bare_line_end_never_leaves(body: bytes, in_file: bool) -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(body, in_file=in_file), to(b"joe@example.org"), hop.dest)
        assert isinstance(outcome, Failed)
        assert outcome.reply == reply.BAD_BODY
        assert hop.messages == []


def test_a_body_that_cannot_be_read_is_never_sent_as_a_whole() -> None:
    for extensions in (EXTENSIONS, CHUNKING):
        hop = NextHop(extensions=extensions)
        deliverer = make()

        async def test(hop: NextHop = hop, deliverer: Deliverer = deliverer) -> None:
            stored = Stored(BODY * 1_000, in_file=True)
            stored.failure = errors.StorageFailed("gone")
            (outcome,) = await deliverer.deliver(stored, to(b"joe@example.org"), hop.dest)
            assert isinstance(outcome, Retry)
            assert not outcome.may_have_arrived
            assert hop.messages == []
            stored.failure = errors.QueueDamaged("torn")
            heard: list[object] = []
            deliverer.put(stored, to(b"joe@example.org"), hop.dest, heard.extend)
            while not heard:
                await asyncio.sleep(0.001)
            assert heard == [Damaged("torn")]
            assert hop.messages == []
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "D"

        scenario(deliverer, hop)(test)


# --- recipients --------------------------------------------------------------------------------------


def test_each_recipient_has_its_own_answer() -> None:
    hop = NextHop(answers={b"RCPT TO:<no@": b"550 5.1.1 Nobody", b"RCPT TO:<later@": b"450 4.2.0 Later"})
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            outcomes = await deliverer.deliver(
                Stored(), to(b"a@x.example", b"no@x.example", b"later@x.example", b"b@x.example"), hop.dest
            )
            assert shown(outcomes) == "DFRD"
        assert len(hop.messages) == 2


def test_many_recipients_share_a_transaction_up_to_the_limit() -> None:
    hop = NextHop()
    deliverer = make(remote={"recipients": 10, "connections": 1})

    @scenario(deliverer, hop)
    async def _() -> None:
        many = to(*(b"u%d@x.example" % at for at in range(25)))
        assert shown(await deliverer.deliver(Stored(), many, hop.dest)) == "D" * 25
        assert (hop.verbs.count(b"RCPT"), len(hop.messages), hop.connections) == (25, 3, 1)


def test_domains_of_one_site_share_a_transaction() -> None:
    port = free_port()
    hop = NextHop(host="127.0.0.2", port=port)
    zone: Zone = {
        ("a.example", MX): [(5, "mx.x")],
        ("b.example", MX): [(7, "mx.x")],
        ("mx.x", A): ["127.0.0.2"],
    }
    deliverer = make(zone, port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            outcomes = await deliverer.deliver(
                Stored(),
                to(b"x@a.example", b"y@b.example", b"z@a.example", b"n@nowhere.example"),
                route("mx"),
            )
            assert shown(outcomes) == "DDDF"
        assert len(hop.messages) == 2


def test_who_has_no_room_gets_the_next_transaction() -> None:
    hop = NextHop(
        answers={b"RCPT TO:<c@": [b"452 4.5.3 Too many"], b"RCPT TO:<d@": [b"452 4.5.3 Too many"] * 2}
    )
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        outcomes = await deliverer.deliver(
            Stored(), to(b"a@x.example", b"b@x.example", b"c@x.example", b"d@x.example"), hop.dest
        )
        assert shown(outcomes) == "DDDD"
        assert len(hop.messages) == 3


@pytest.mark.parametrize("at", ["tcp", "unix"])
def test_lmtp_answers_for_each_recipient(at: str, tmp_path: Path) -> None:
    hop = NextHop(
        kind="lmtp", path=tmp_path / "sock" if at == "unix" else None,
        answers={b"RCPT TO:<no@": b"550 5.1.1 Nobody", b".": [b"250 one\r\n452 4.2.2 Full", b"250 x\r\n250 y"]},
    )  # fmt: skip
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for became in ("DFR", "DFD"):
            outcomes = await deliverer.deliver(
                Stored(), to(b"a@x.example", b"no@x.example", b"b@x.example"), hop.dest
            )
            assert shown(outcomes) == became
        assert hop.lines[0] == b"LHLO mx.home.example"
        assert hop.connections == 1


# --- servers that fail -------------------------------------------------------------------------------

FAULTS: list[dict[bytes, Answer]] = [
    {b"": b"421 4.3.2 Busy"},
    {b"": b"554 5.5.1 No"},
    {b"": DROP},
    {b"": RESET},
    {b"": b"\x16\x03\x01 what"},
    {b"EHLO": b"421 4.3.2 Busy"},
    {b"EHLO": DROP},
    {b"EHLO": b"500 what", b"HELO": b"501 no"},
    {b"MAIL": b"421 4.3.2 Busy"},
    {b"MAIL": b"451 4.3.0 Later"},
    {b"MAIL": DROP},
    {b"MAIL": b"what"},
    {b"RCPT": b"421 4.3.2 Busy"},
    {b"RCPT": DROP},
    {b"RCPT": b"354 what"},
    {b"DATA": b"421 4.3.2 Busy"},
    {b"DATA": DROP},
    {b"DATA": b"250 what"},
]


@pytest.mark.parametrize("extensions", [EXTENSIONS, PLAIN], ids=["pipelining", "plain"])
@pytest.mark.parametrize("answers", FAULTS, ids=str)
def test_when_a_server_fails_the_next_one_is_tried(
    answers: dict[bytes, Answer], extensions: tuple[bytes, ...]
) -> None:
    port = free_port()
    bad = NextHop(host="127.0.0.2", port=port, answers=answers, extensions=extensions)
    good = NextHop(host="127.0.0.3", port=port)
    deliverer = make(three(port), port=port)

    @scenario(deliverer, bad, good)
    async def _() -> None:
        outcomes = await deliverer.deliver(Stored(BODY), to(b"joe@example.org"), route("mx"))
        assert shown(outcomes) == "D"
        assert good.messages == [STUFFED]
        assert bad.connections == 1


@pytest.mark.parametrize("answers", FAULTS, ids=str)
def test_a_site_without_another_server_puts_it_off(answers: dict[bytes, Answer]) -> None:
    port = free_port()
    bad = NextHop(host="127.0.0.2", port=port, answers=answers)
    deliverer = make(three(port, 1), port=port)

    @scenario(deliverer, bad)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), to(b"joe@example.org"), route("mx"))
        assert isinstance(outcome, Retry)
        assert not outcome.may_have_arrived
        assert outcome.remote == "mx1.example.org [127.0.0.2]"
        assert b"".join(bad.messages) == b""  # a lone dot is no message


def test_a_server_that_nobody_is_at_is_passed_over() -> None:
    port = free_port()
    good = NextHop(host="127.0.0.3", port=port)
    deliverer = make(three(port), port=port)

    @scenario(deliverer, good)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), route("mx"))) == "D"


@pytest.mark.parametrize("dead", ["::1", "127.0.0.2"])
def test_neither_family_is_final_alone(dead: str) -> None:
    port = free_port()
    alive = "127.0.0.2" if dead == "::1" else "::1"
    good = NextHop(host=alive, port=port)
    zone = {("example.org", A): ["127.0.0.2"], ("example.org", AAAA): ["::1"]}
    deliverer = make(zone, port=port)

    @scenario(deliverer, good)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), to(b"joe@example.org"), route("mx"))
        assert isinstance(outcome, Delivered)
        assert outcome.hop is not None
        assert outcome.hop.address == alive


@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("extensions", [EXTENSIONS, CHUNKING, PLAIN], ids=["pipelining", "chunking", "plain"])
def test_a_connection_that_dies_behind_the_dot_is_never_repeated_by_us(
    extensions: tuple[bytes, ...], in_file: bool
) -> None:
    port = free_port()
    bad = NextHop(host="127.0.0.2", port=port, answers={b".": DROP}, extensions=extensions)
    good = NextHop(host="127.0.0.3", port=port)
    deliverer = make(three(port), port=port)

    @scenario(deliverer, bad, good)
    async def _() -> None:
        stored = Stored(in_file=in_file)
        (outcome,) = await deliverer.deliver(stored, to(b"joe@example.org"), route("mx"))
        assert isinstance(outcome, Retry)
        assert outcome.may_have_arrived
        assert good.messages == []


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [(b"451 4.3.0 Later", Retry, 451), (b"554 5.7.1 Spam", Failed, 554), (b"421 4.3.2 Bye", Retry, 421)],
)
def test_the_answer_to_the_message_is_every_recipient_s(said: bytes, kind: type, code: int) -> None:
    hop = NextHop(answers={b".": [said]})
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        outcomes = await deliverer.deliver(Stored(), to(b"a@x.example", b"b@x.example"), hop.dest)
        for outcome in outcomes:
            assert isinstance(outcome, Retry | Failed)
            assert type(outcome) is kind
            assert outcome.reply.code == code
        assert shown(await deliverer.deliver(Stored(), to(b"a@x.example"), hop.dest)) == "D"


# Where it says nothing, which time is short, and whether the message may be there.
HANGS = [
    (b"", EXTENSIONS, "greeting_s", False),
    (b"EHLO", EXTENSIONS, "command_s", False),
    (b"MAIL", EXTENSIONS, "command_s", False),
    (b"RCPT", PLAIN, "command_s", False),
    (b"DATA", EXTENSIONS, "data_s", False),
    (b"DATA", PLAIN, "data_s", False),
    (b".", EXTENSIONS, "message_s", True),
    (b".", CHUNKING, "message_s", True),
    (b".", (*PLAIN, b"CHUNKING"), "message_s", True),
]


@pytest.mark.parametrize(("at", "extensions", "limit", "is_doubtful"), HANGS)
def test_a_server_that_hangs_is_given_up_in_the_time_for_that(
    at: bytes, extensions: tuple[bytes, ...], limit: str, is_doubtful: bool
) -> None:
    hop = NextHop(answers={at: SILENCE}, extensions=extensions)
    deliverer = make(remote={limit: 0.3}, tick_s=0.05)

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)
        assert isinstance(outcome, Retry)
        assert "in time" in outcome.reason
        assert outcome.may_have_arrived == is_doubtful


def test_a_server_that_stops_reading_is_given_up() -> None:
    hop = NextHop(stops_reading=True)
    deliverer = make(remote={"block_s": 0.3, "message_s": 0.3}, tick_s=0.05)

    @scenario(deliverer, hop)
    async def _() -> None:
        stored = Stored(BODY * 500_000, in_file=True, piece_bytes=100_000)
        (outcome,) = await deliverer.deliver(stored, to(b"joe@example.org"), hop.dest)
        assert isinstance(outcome, Retry)
        assert not outcome.may_have_arrived


def test_a_refusal_in_the_middle_of_the_text_is_one() -> None:
    hop = NextHop(answers={b"DATA": b"354 go on\r\n552 5.3.4 Too big"}, reads_text=False, stops_reading=True)
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        stored = Stored(BODY * 500_000, in_file=True, piece_bytes=100_000)
        (outcome,) = await deliverer.deliver(stored, to(b"joe@example.org"), hop.dest)
        assert isinstance(outcome, Failed)
        assert outcome.reply.enhanced == "5.3.4"


def test_a_refusal_in_the_middle_of_the_text_is_the_first_recipients_on_lmtp() -> None:
    """There is an answer for each of them (RFC 2033 section 4.2): one that is over quota fails by itself."""
    hop = NextHop(
        kind="lmtp", answers={b"DATA": b"354 go on\r\n552 5.2.2 Full"}, reads_text=False, stops_reading=True
    )
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        stored = Stored(BODY * 500_000, in_file=True, piece_bytes=100_000)
        found = await deliverer.deliver(stored, to(b"joe@example.org", b"ann@example.org"), hop.dest)
        assert shown(found) == "FR"


# --- kept connections --------------------------------------------------------------------------------


def test_a_kept_connection_that_is_dead_costs_nothing() -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(3):
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "D"
            hop.hang_up()
        assert hop.connections == 3


def test_a_kept_connection_that_dies_with_the_next_message_is_replaced() -> None:
    hop = NextHop(answers={b"MAIL": [b"250 ok", DROP]})
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "D"
        assert hop.connections == 2


def test_a_goodbye_on_a_kept_connection_is_heard() -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "D"
        hop.say(b"421 4.4.2 Too long idle\r\n")
        while deliverer.open_count:
            await asyncio.sleep(0.001)
        assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "D"
        assert hop.connections == 2


@pytest.mark.parametrize("extensions", [EXTENSIONS, PLAIN], ids=["pipelining", "plain"])
def test_a_server_that_has_had_enough_of_a_connection_gets_another_one(extensions: tuple[bytes, ...]) -> None:
    port = free_port()
    yes, enough = b"250 2.1.0 OK", b"421 4.7.0 Too many messages in this connection"
    hop = NextHop(
        host="127.0.0.2", port=port, answers={b"MAIL": [yes, yes, enough, yes, enough]}, extensions=extensions
    )
    deliverer = make(three(port, 1), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(4):
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), route("mx"))) == "D"
        assert hop.connections == 3


def test_a_transaction_that_is_left_open_is_reset() -> None:
    hop = NextHop(answers={b"RCPT TO:<no@": b"550 5.1.1 Nobody", b"DATA": [b"503 no", b"451 4.3.0 Later"]})
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for became, address in (("F", b"no@x.example"), ("R", b"a@x.example"), ("D", b"a@x.example")):
            assert shown(await deliverer.deliver(Stored(), to(address), hop.dest)) == became
        assert hop.verbs == [b"EHLO", *[b"MAIL", b"RCPT", b"DATA", b"RSET"] * 2, b"MAIL", b"RCPT", b"DATA"]


def test_a_connection_is_left_after_its_messages() -> None:
    hop = NextHop()
    deliverer = make(remote={"messages_per_connection": 2})

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(3):
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "D"
        assert hop.connections == 2
        await hop.seen(b"QUIT")


def test_an_idle_connection_is_left() -> None:
    hop = NextHop()
    deliverer = make(remote={"idle_s": 0.1}, tick_s=0.02)

    @scenario(deliverer, hop)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "D"
        while deliverer.open_count:
            await asyncio.sleep(0.01)
        await hop.seen(b"QUIT")


# --- limits --------------------------------------------------------------------------------------------


def test_connections_begin_few_and_grow_to_the_limit() -> None:
    hop = NextHop()
    deliverer = make(remote={"connections_at_first": 2, "connections": 6})

    @scenario(deliverer, hop)
    async def _() -> None:
        first = [
            asyncio.ensure_future(deliverer.deliver(Stored(), to(b"a@x.example"), hop.dest))
            for _ in range(60)
        ]
        while not hop.connections:
            await asyncio.sleep(0)
        assert hop.connections <= 2
        assert {shown(one) for one in await asyncio.gather(*first)} == {"D"}
        assert 1 <= hop.most <= 6


def test_the_rate_of_a_site_is_kept() -> None:
    hop = NextHop()
    deliverer = make(remote={"messages_per_s": 20.0})

    @scenario(deliverer, hop)
    async def _() -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        work = [deliverer.deliver(Stored(), to(b"a@x.example"), hop.dest) for _ in range(26)]
        assert {shown(one) for one in await asyncio.gather(*work)} == {"D"}
        assert loop.time() - began_s >= 0.25


def test_a_site_that_cannot_be_reached_pauses_and_one_connection_tries() -> None:
    port = free_port()
    log = ListLog()
    # One connection at first: no other one is still being refused when the server is there.
    remote = {"pause_s": 100.0, "pause_max_s": 100.0, "connections_at_first": 1}
    deliverer = make(three(port, 1), port=port, remote=remote, log=log)
    good = NextHop(host="127.0.0.2", port=port)
    later_s = 0.0

    @scenario(deliverer)
    async def _() -> None:
        nonlocal later_s
        loop = asyncio.get_running_loop()
        deliverer._clock = lambda: loop.time() + later_s

        async def send() -> list[Outcome]:
            return await deliverer.deliver(Stored(), to(b"joe@example.org"), route("mx"))

        assert [shown(one) for one in await asyncio.gather(*[send() for _ in range(5)])] == ["R"] * 5
        (outcome,) = await send()
        assert isinstance(outcome, Retry)
        assert "tried again in" in outcome.reason
        async with good:
            assert shown(await send()) == "R"
            assert good.connections == 0
            later_s = 101.0  # less than a command may take
            assert shown(await send()) == "D"
            assert [shown(one) for one in await asyncio.gather(*[send() for _ in range(5)])] == ["D"] * 5
            await deliverer.close()
        assert [event for event, _ in log.lines if event.startswith("site_")] == [
            "site_paused",
            "site_resumed",
        ]


def test_a_site_that_puts_everything_off_pauses() -> None:
    hop = NextHop(answers={b"MAIL": b"451 4.7.1 Slow down"})
    deliverer = make(remote={"connections_at_first": 1})

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(30):
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "R"
        assert hop.verbs.count(b"MAIL") == 10


@pytest.mark.parametrize("at", [b"RCPT", b"DATA", b"."])
def test_what_is_said_of_recipients_and_messages_is_nothing_against_the_site(at: bytes) -> None:
    """Greylisting: everybody is put off the first time, and nobody may wait because of another."""
    hop = NextHop(answers={at: [b"450 4.7.1 Greylisted"] * 30})
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        became = [
            shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) for _ in range(31)
        ]
        assert became == ["R"] * 30 + ["D"]


def test_who_waits_at_the_end_is_cancelled() -> None:
    hop = NextHop(answers={b".": SILENCE})
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        waiting = asyncio.ensure_future(deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest))
        await hop.seen(b"DATA")
        await deliverer.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting


def test_one_message_after_the_other_takes_one_connection() -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        left = 50
        ended = asyncio.get_running_loop().create_future()

        def again(outcomes: object = None) -> None:
            nonlocal left
            left -= 1
            if left:
                deliverer.put(Stored(), to(b"joe@example.org"), hop.dest, again)
            else:
                ended.set_result(None)

        again()
        await ended
        assert (hop.connections, len(hop.messages)) == (1, 49)


@pytest.mark.parametrize("where", ["dial", "targets", "body", "resolver"])
def test_an_error_of_ours_leaves_nobody_waiting(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hop = NextHop()
    log = ListLog()
    deliverer = make(log=log)

    def broken(*_: object, **__: object) -> object:
        raise KeyError("ours")

    @scenario(deliverer, hop)
    async def _() -> None:
        stored = Stored(in_file=True)
        dest = hop.dest
        if where == "body":
            monkeypatch.setattr("fastsmtp.delivery.lane.DotEncoder", broken)
        elif where == "resolver":
            monkeypatch.setattr("fastsmtp.delivery.deliverer.find_hosts", broken)
            dest = "mx"
        else:
            monkeypatch.setattr(f"fastsmtp.delivery.dial.Dialer.{where}", broken)
        (outcome,) = await deliverer.deliver(stored, to(b"joe@example.org"), route(dest))
        assert isinstance(outcome, Retry)
        assert [event for event, _ in log.lines] == ["defect"]
        monkeypatch.undo()
        assert shown(await deliverer.deliver(stored, to(b"joe@example.org"), hop.dest)) == "D"


def test_a_server_that_talks_without_end_is_given_up() -> None:
    hop = NextHop(answers={b"": b"220 hop\r\n" * 5_000})
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), hop.dest)) == "R"


def test_a_site_that_is_not_used_is_forgotten_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsmtp.delivery.deliverer.FORGET_S", 0.05)
    port = free_port()
    hop = NextHop(host="127.0.0.2", port=port)
    deliverer = make(three(port, 1), port=port, remote={"idle_s": 0.02}, tick_s=0.01)

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), route("mx"))) == "D"
            while deliverer.site_count:
                await asyncio.sleep(0.01)
        assert len(hop.messages) == 2


def test_a_message_that_one_server_puts_off_is_nothing_against_it_when_the_others_are_dead() -> None:
    port = free_port()
    slow = NextHop(host="127.0.0.2", port=port, answers={b"MAIL FROM:<slow@": b"451 4.3.0 Later"})
    log = ListLog()
    deliverer = make(three(port), port=port, log=log, remote={"connections": 1})

    @scenario(deliverer, slow)
    async def _() -> None:
        for _ in range(3):
            (outcome,) = await deliverer.deliver(
                Stored(sender=b"slow@home.example"), to(b"joe@example.org"), route("mx")
            )
            assert isinstance(outcome, Retry)
            assert shown(await deliverer.deliver(Stored(), to(b"joe@example.org"), route("mx"))) == "D"
        assert log.lines == []


def test_who_is_told_of_a_failure_may_bring_the_next_at_once() -> None:
    deliverer = make(remote={"pause_s": 1.0})
    dest = f"smtp://127.0.0.1:{free_port()}"

    @scenario(deliverer)
    async def _() -> None:
        heard: list[object] = []
        ended = asyncio.get_running_loop().create_future()

        def again(outcomes: Any) -> None:
            heard.extend(outcomes)
            if len(heard) < 20:
                deliverer.put(Stored(), to(b"joe@example.org"), dest, again)
            elif not ended.done():
                ended.set_result(None)

        for _ in range(5):
            deliverer.put(Stored(), to(b"joe@example.org"), dest, again)
        await ended
        assert all(isinstance(one, Retry) for one in heard)


# --- errors of ours ----------------------------------------------------------------------------------


def test_an_error_of_ours_in_a_look_up_is_everybodys_who_asked_for_it() -> None:
    """Nobody may wait for ever: neither the first who asks, nor the others who wait for his answer."""

    class Broken:
        async def ask(self, questions: Any, deadline: float | None = None) -> Any:
            await asyncio.sleep(0)
            raise RuntimeError("a defect")

        def close(self) -> None:
            return None

    log = ListLog()
    deliverer = make(log=log, resolver=Broken())

    async def test() -> None:
        stored = Stored(b"Subject: x\r\n\r\n")
        found = await asyncio.gather(
            *[deliverer.deliver(stored, to(b"joe@example.org"), "mx") for _ in range(3)]
        )
        for (outcome,) in found:
            assert isinstance(outcome, Retry)
            assert outcome.reply == reply.OUR_DEFECT
        assert [name for name, _ in log.lines] == ["defect"] * 3

    scenario(deliverer)(test)


@pytest.mark.parametrize("extensions", [EXTENSIONS, CHUNKING, PLAIN, (*PLAIN, b"CHUNKING")])
def test_an_answer_given_twice_is_not_the_next_messages(extensions: tuple[bytes, ...]) -> None:
    """Else its refusal would be taken for the one behind it, and what was refused for delivered."""
    hop = NextHop(
        extensions=extensions,
        answers={b".": [b"250 2.0.0 Ok\r\n250 2.0.0 Ok once more", b"554 5.6.0 No", b"554 5.6.0 No"]},
    )
    deliverer = make(remote={"connections": 1, "connections_at_first": 1})

    async def test() -> None:
        first, second = await asyncio.gather(
            *[deliverer.deliver(Stored(BODY), to(b"joe@example.org"), hop.dest) for _ in range(2)]
        )
        assert shown(first) == "D"
        # Where it is not sure what was refused it is tried again; it is not delivered.
        assert shown(second) in {"F", "R"}
        if shown(second) == "R":
            again = await deliverer.deliver(Stored(BODY), to(b"joe@example.org"), hop.dest)
            assert shown(again) == "F"

    scenario(deliverer, hop)(test)
