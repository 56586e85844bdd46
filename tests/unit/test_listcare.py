"""Lists that look after themselves, with a name server of the test's own words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fastsmtp._dns import Answer, Question, Status, make_answer
from fastsmtp.config.zones import Answers, Zone
from fastsmtp.listcare import DOUBT_S, HIT_S, HOUR_S, RETRY_S, ListCare, judge, points
from fastsmtp.log import ListLog
from fastsmtp.metrics import Board
from tests.fakes.zone import A, answer
from tests.fakes.zone import Zone as Answered

ZEN = Zone(b"zen.example", "zen.example", Answers(), 10)
DBL = Zone(b"dbl.example", "dbl.example", Answers(), 10, is_domains=True)
OWN = Zone(b"own.example", "own.example", Answers(), 10, is_tested=False)

LISTED6 = "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0"
UNLISTED6 = "1" + LISTED6[1:]
GOOD: Answered = {("2.0.0.127.zen.example", A): ["127.0.0.2"], ("test.dbl.example", A): ["127.0.1.2"]}
X = "xunknown"


@pytest.mark.parametrize(
    ("zone", "answered", "fault"),
    [
        (ZEN, GOOD, ""),
        (ZEN, {**GOOD, (f"{LISTED6}.zen.example", A): ["127.0.0.2"]}, ""),
        # A list without IPv6 is a list.
        (ZEN, {**GOOD, (f"{LISTED6}.zen.example", A): Status.SERVFAIL}, ""),
        (ZEN, {**GOOD, (f"{UNLISTED6}.zen.example", A): Status.SERVFAIL}, ""),
        (ZEN, {}, "does not list its test point (RFC 5782 section 5)"),
        (ZEN, {**GOOD, ("1.0.0.127.zen.example", A): ["127.0.0.2"]}, "lists everything"),
        (ZEN, {**GOOD, (f"{UNLISTED6}.zen.example", A): ["127.0.0.2"]}, "lists everything"),
        (ZEN, {**GOOD, (f"{X}.zen.example", A): ["127.0.0.2"]}, "lists everything"),
        (ZEN, {("2.0.0.127.zen.example", A): Status.TIMEOUT}, "does not answer: timeout"),
        (ZEN, {**GOOD, ("1.0.0.127.zen.example", A): Status.SERVFAIL}, "does not answer: servfail"),
        (ZEN, {("2.0.0.127.zen.example", A): ["127.255.255.254"]},
         "refuses our questions: its answer is in 127.255.255.0/24"),
        (ZEN, {**GOOD, (f"{X}.zen.example", A): ["203.0.113.7"]}, "answers with addresses outside 127.0.0.0/8"),
        (DBL, GOOD, ""),
        (DBL, {}, "does not list its test point (RFC 5782 section 5)"),
        (DBL, {**GOOD, ("invalid.dbl.example", A): ["127.0.1.2"]}, "lists everything"),
        (OWN, {}, ""),
        (OWN, {(f"{X}.own.example", A): ["127.0.0.2"]}, "lists everything"),
        (OWN, {(f"{X}.own.example", A): Status.TIMEOUT}, "does not answer: timeout"),
    ],
)  # fmt: skip
def test_the_judgement(zone: Zone, answered: Answered, fault: str) -> None:
    asked = points(zone, X.encode())
    assert judge(zone, {point: answer(answered, question) for point, question in asked.items()}) == fault


class Answering:
    """A resolver that answers from a zone which the test changes."""

    def __init__(self, zone: Answered) -> None:
        self.zone = zone
        self.asked: list[str] = []

    async def ask(self, questions: Sequence[Question], deadline: float | None = None) -> tuple[Answer, ...]:
        self.asked += [question.name.decode() for question in questions]
        await asyncio.sleep(0)
        return tuple(
            make_answer(self.zone) if isinstance(self.zone, Status) else answer(self.zone, question)
            for question in questions
        )

    def put(self, questions: Any, deadline: float, callback: Callable[..., object]) -> None:
        raise NotImplementedError

    def close(self) -> None: ...


def test_quarantine_and_back() -> None:
    async def main() -> None:
        clock = [1_000.0]
        log = ListLog()
        resolver = Answering(GOOD)
        count = iter(range(1_000_000))
        care = ListCare(
            [ZEN, DBL], resolver, log=log, now=lambda: clock[0], random=lambda n: next(count).to_bytes(n)
        )

        async def later(seconds: float) -> None:
            clock[0] += seconds
            care.tick(clock[0])
            await care.settled()

        assert care.bad == {b"zen.example", b"dbl.example"}, "asked before the first test"
        await later(0)
        assert care.bad == frozenset()
        assert log.lines == []

        # Hits and latency are told hourly.
        care.hit("zen.example")
        care.hit("zen.example")
        care.hit("unknown.example")
        await later(HOUR_S * 1.1)
        assert [(line["what"], line["found"]) for line in log.of("list_tested")] == [
            ("zen.example", 2),
            ("dbl.example", 0),
        ]

        # It goes silent: the first session that waits for it in vain has it tested.
        resolver.zone = {("test.dbl.example", A): ["127.0.1.2"], ("2.0.0.127.zen.example", A): Status.TIMEOUT}
        care.failed("zen.example")
        await care.settled()
        assert care.bad == frozenset(), "doubted too soon after a test"
        clock[0] += DOUBT_S
        care.failed("zen.example")
        await care.settled()
        assert care.bad == {b"zen.example"}
        assert log.of("list_quarantined")[0]["reason"] == "does not answer: timeout"
        assert care.entries["zen.example"].quarantines == 1

        # Tested again every minute, told once.
        asked = len(resolver.asked)
        await later(RETRY_S * 1.1)
        assert len(resolver.asked) > asked
        assert len(log.of("list_quarantined")) == 1
        resolver.zone = GOOD
        await later(RETRY_S * 1.1)
        assert care.bad == frozenset()
        assert [line["what"] for line in log.of("list_restored")] == ["zen.example"]

        # It begins to name everybody: found out by its hits.
        resolver.zone = {**GOOD, ("1.0.0.127.zen.example", A): ["127.0.0.2"]}
        clock[0] += HIT_S
        care.hit("zen.example")
        await care.settled()
        assert care.bad == {b"zen.example"}
        assert log.of("list_quarantined")[1]["reason"] == "lists everything"
        care.close()

    asyncio.run(main())


def test_what_is_counted_of_each_list() -> None:
    async def main() -> None:
        board = Board(1)
        clock = [1_000.0]
        care = ListCare([ZEN, DBL], Answering(GOOD), log=ListLog(), now=lambda: clock[0], random=bytes)
        care.measure(board.sheet(0))
        care.tick(clock[0])
        await care.settled()
        both, zen = (ZEN, DBL), (ZEN,)
        for zones in (both, both, zen, both):
            care.asked(zones)
        care.hit("zen.example")
        care.failed("dbl.example")
        care.publish()
        read = board.read()
        for name, listed, unlisted, failed in (("zen.example", 1, 3, 0), ("dbl.example", 0, 2, 1)):
            for result, count in (("listed", listed), ("unlisted", unlisted), ("failed", failed)):
                assert read[f"cfastsmtp_dns_list_lookups_total\0{name}\0{result}".encode()] == count
            assert read[f"gfastsmtp_dns_list_quarantined\0{name}".encode()] == 0
            assert read[f"hfastsmtp_dns_list_test_seconds\0{name}\x000".encode()] == 1
        # Who is in quarantine is not asked, though it stands in the settings.
        care.bad = frozenset({b"zen.example"})
        care.asked(both)
        care.publish()
        read = board.read()
        assert read[b"cfastsmtp_dns_list_lookups_total\0zen.example\0unlisted"] == 3
        assert read[b"cfastsmtp_dns_list_lookups_total\0dbl.example\0unlisted"] == 3
        care.close()

    asyncio.run(main())


def test_a_worker_that_nobody_answers_has_no_lists() -> None:
    care = ListCare([ZEN], None, log=ListLog(), now=lambda: 0.0, random=bytes)
    care.tick(0.0)
    care.hit("zen.example")
    assert care.bad == frozenset()
