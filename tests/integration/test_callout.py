"""Call-outs to a next hop that does as told: what is asked, how often, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastsmtp import Server
from fastsmtp.delivery.callout import Callouts, Memory
from fastsmtp.delivery.pool import Limits, Pool
from fastsmtp.delivery.preflight import ask_for_nobody
from fastsmtp.policy.callout import Callout, Heard
from fastsmtp.policy.stage import Failed
from tests.nexthop import DROP, SILENCE, NextHop

QUESTION = [b"MAIL FROM:<>", b"RCPT TO:<joe@a.example>", b"RSET"]
EHLO = b"EHLO mx.example"


class Clock:
    """The loop's own time for deadlines, and so many seconds more for what is remembered."""

    def __init__(self) -> None:
        self.later_s = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.later_s


class Case:
    def __init__(self, hop: NextHop, **memory: Any) -> None:
        async def nowhere(host: str) -> tuple[str, ...]:
            raise AssertionError(host)

        self.hop = hop
        self.clock = Clock()
        self.callouts = Callouts(
            Pool(hostname="mx.example", resolve=nowhere, limits=Limits(connections=2)),
            now=self.clock,
            memory=Memory(**memory),
        )

    async def ask(self, address: bytes = b"joe@a.example", *, deadline_s: float = 30.0) -> Any:
        (answer,) = await self.ask_all([address], deadline_s=deadline_s)
        return answer

    async def ask_all(self, addresses: list[bytes], *, deadline_s: float = 30.0) -> tuple[Any, ...]:
        answered: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        questions = [Callout(self.hop.dest, address) for address in addresses]
        known = self.callouts.put(questions, self.clock() + deadline_s, answered.set_result)
        return known if known is not None else await answered

    def known(self, address: bytes = b"joe@a.example") -> Any:
        """What is known without asking; a question that is open goes on."""
        return self.callouts.put([Callout(self.hop.dest, address)], self.clock() + 30.0, lambda answers: None)


def run(
    scenario: Callable[[Case], Awaitable[None]], *, memory: dict[str, Any] | None = None, **hop: Any
) -> None:
    async def whole() -> None:
        async with NextHop(**hop) as next_hop:
            case = Case(next_hop, **(memory or {}))
            try:
                await scenario(case)
            finally:
                await case.callouts.close()

    asyncio.run(whole())


def code(answer: Any) -> int:
    assert type(answer) is Heard
    return 250 if answer.refusal is None else answer.refusal.code


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(b"250 2.1.5 Ok", 250), (b"251 Not here, but taken", 250), (b"550 5.1.1 Nobody", 550), (b"450 4.2.1 Later", 450)],
)  # fmt: skip
@pytest.mark.parametrize("extensions", [(b"PIPELINING",), ()])
def test_the_next_hop_is_asked_as_for_a_bounce(
    answer: bytes, expected: int, extensions: tuple[bytes, ...]
) -> None:
    async def scenario(case: Case) -> None:
        assert code(await case.ask()) == expected
        await case.hop.seen(b"RSET")
        assert case.hop.lines == [EHLO, *QUESTION]

    run(scenario, answers={b"RCPT": answer}, extensions=extensions)


def test_an_answer_is_remembered_and_the_connection_kept() -> None:
    async def scenario(case: Case) -> None:
        assert [code(await case.ask()) for _ in range(3)] == [250] * 3
        await case.hop.seen(b"RSET")
        await case.hop.quiet()
        assert code(await case.ask(b"no@a.example")) == 550
        assert case.hop.verbs == [b"EHLO", b"MAIL", b"RCPT", b"RSET", b"MAIL", b"RCPT"] + [b"RSET"] * (
            len(case.hop.verbs) - 6
        )
        assert case.hop.connections == 1

    run(scenario, answers={b"RCPT TO:<no@": b"550 5.1.1 Nobody"})


def test_the_same_question_is_asked_once_whoever_waits() -> None:
    async def scenario(case: Case) -> None:
        asking = [
            asyncio.ensure_future(case.ask_all([b"joe@a.example", b"ann@a.example"])) for _ in range(20)
        ]
        for answers in await asyncio.gather(*asking):
            assert [code(answer) for answer in answers] == [250, 250]
        assert sorted(line for line in case.hop.lines if line.startswith(b"RCPT")) == [
            b"RCPT TO:<ann@a.example>",
            b"RCPT TO:<joe@a.example>",
        ]

    run(scenario)


def test_an_old_yes_counts_while_it_is_asked_again() -> None:
    async def scenario(case: Case) -> None:
        assert code(await case.ask()) == 250
        case.clock.later_s = 3_601.0
        (stale,) = case.known()
        assert code(stale) == 250
        while code(case.known()[0]) == 250:
            await asyncio.sleep(0)
        assert code(case.known()[0]) == 550

    run(scenario, answers={b"RCPT": [b"250 Ok", b"550 5.1.1 Gone"]})


def test_a_no_is_forgotten_soon() -> None:
    async def scenario(case: Case) -> None:
        assert code(await case.ask()) == 550
        case.clock.later_s = 599.0
        assert code(case.known()[0]) == 550
        case.clock.later_s = 601.0
        assert code(await case.ask()) == 250

    run(scenario, answers={b"RCPT": [b"550 5.1.1 Nobody", b"250 Ok"]})


@pytest.mark.parametrize(
    "answers",
    [{b"": DROP}, {b"": b"554 Not you"}, {b"EHLO": b"421 Full"}, {b"MAIL": b"550 5.7.1 No bounces"},
     {b"RCPT": DROP}, {b"RCPT": b"421 4.3.2 Going"}, {b"RCPT": b"nonsense"}],
)  # fmt: skip
def test_who_can_t_be_asked_is_left_alone_for_a_moment(answers: dict[bytes, Any]) -> None:
    async def scenario(case: Case) -> None:
        assert type(await case.ask()) is Failed
        lines = len(case.hop.lines)
        (again,) = case.known(b"ann@a.example")
        assert type(again) is Failed
        assert len(case.hop.lines) == lines
        case.clock.later_s = 11.0
        assert case.known(b"ann@a.example") is None

    run(scenario, answers=answers)


def test_a_yes_outlives_a_next_hop_that_is_down() -> None:
    async def scenario(case: Case) -> None:
        assert code(await case.ask()) == 250
        assert type(await case.ask(b"ann@a.example")) is Failed
        case.clock.later_s = 7_200.0
        assert code(await case.ask()) == 250

    run(scenario, answers={b"RCPT TO:<ann@": DROP})


def test_silence_is_failed_at_the_deadline_and_the_answer_comes_to_the_next_one() -> None:
    async def scenario(case: Case) -> None:
        late = await case.ask(deadline_s=0.05)
        assert type(late) is Failed
        assert late.reason == "deadline"

    run(scenario, answers={b"RCPT": SILENCE})


def test_no_more_answers_are_kept_than_allowed() -> None:
    async def scenario(case: Case) -> None:
        for name in range(5):
            await case.ask(b"%d@a.example" % name)
        assert [case.known(b"%d@a.example" % name) is not None for name in range(5)] == [
            False,
            False,
            True,
            True,
            True,
        ]

    run(scenario, memory={"answers": 3})


def test_a_connection_that_died_unused_is_replaced() -> None:
    async def scenario(case: Case) -> None:
        assert code(await case.ask()) == 250
        await case.hop.seen(b"RSET")
        await case.hop.quiet()
        case.hop.hang_up()
        assert code(await case.ask(b"ann@a.example")) == 250
        assert case.hop.connections == 2

    run(scenario)


def test_an_address_in_utf_8_needs_a_next_hop_that_takes_it() -> None:
    async def scenario(case: Case) -> None:
        assert code(await case.ask("jürgen@a.example".encode())) == 553

    run(scenario, extensions=(b"PIPELINING",))


def test_the_client_hears_the_next_hop_s_no_at_rcpt() -> None:
    async def whole() -> None:
        answers = {
            b"RCPT TO:<no@": b"550 5.1.1 Nobody by that name",
            b"RCPT TO:<later@": b"450 4.2.0 Greylisted",
        }
        async with NextHop(answers=answers) as hop:
            accept = [{"domain": ["a.example"], "deliver": hop.dest, "recipients": "ask", "queue": True}]
            async with Server(
                lambda message: None, listen=("127.0.0.1", 0), accept=accept, hostname="mx.example"
            ) as server:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                heard = []
                addresses = ("joe@a.example", "no@a.example", "later@a.example", "joe@c.example")
                rcpt = [f"RCPT TO:<{address}>" for address in addresses]
                for line in ("EHLO c.example", "MAIL FROM:<>", *rcpt):
                    writer.write(line.encode() + b"\r\n")
                writer.write(b"QUIT\r\n")
                async for text in reader:
                    heard.append(text.decode().rstrip())
                writer.close()
            codes = [
                line[:9].strip() for line in heard if line.startswith(("250 2.1.5", "450", "550", "451"))
            ]
            assert codes == ["250 2.1.5", "550 5.1.1", "450 4.2.0", "550 5.7.1"]
            assert any("Nobody by that name" in line for line in heard)
            assert b"RCPT TO:<joe@c.example>" not in hop.lines

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"550 5.1.1 Nobody", ""),
        (b"250 Ok", "any is taken, a random name too: mail for nobody would come back as a bounce"),
        (b"450 4.2.0 Greylisted", "a random name gets 450 Greylisted: mail for nobody would wait for ever"),
        (DROP, "can't be asked about: the connection was lost; mail for them waits with their senders"),
    ],
)
def test_a_next_hop_that_takes_everything_is_found_out(answer: Any, fault: str) -> None:
    async def scenario(case: Case) -> None:
        question = Callout(case.hop.dest, b"0123456789@a.example")
        (finding,) = await ask_for_nobody([question, question], case.callouts)
        assert finding.fault == fault

    run(scenario, answers={b"RCPT": answer})
