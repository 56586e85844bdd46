"""DNS lists that look after themselves: tested at start, hourly, and when something about one is odd.

A list that is given up does harm in two ways: it is silent, and every session waits for it; or somebody
buys its domain, it answers everything, and all mail is refused.  RFC 5782 section 5 has test points for that:
127.0.0.2 is listed and 127.0.0.1 is not (::FFFF:7F00:2 and ::FFFF:7F00:1 for IPv6), TEST and INVALID for
domains.  A random name, which no list can know, shows a wildcard.  What fails is in quarantine: not asked
by any session, tested again every minute, and taken back when it passes.

Until its first test a list is not asked either.  Rank 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from fastsmtp._dns import Answer, Question
from fastsmtp.config.zones import FOREIGN, REFUSED, Zone, oddity
from fastsmtp.dns_meters import ListMeter
from fastsmtp.log import Log
from fastsmtp.metrics import Sheet

if TYPE_CHECKING:
    from fastsmtp.resolver import Asker

_A: Final = 1

HOUR_S: Final = 3_600.0
# A list in quarantine is tested again so soon.
RETRY_S: Final = 60.0
# At the earliest so long after a test another one, when a question fails, or when the list names a client.
DOUBT_S: Final = 15.0
HIT_S: Final = 300.0

NOBODY: Final[frozenset[bytes]] = frozenset()

LISTED, UNLISTED, LISTED_IPV6, UNLISTED_IPV6, RANDOM = "listed", "unlisted", "listed6", "unlisted6", "random"


def _nibbles(text: str) -> bytes:
    return ".".join(reversed(text)).encode()


_ADDRESS_POINTS: Final = {
    LISTED: b"2.0.0.127",
    UNLISTED: b"1.0.0.127",
    LISTED_IPV6: _nibbles("00000000000000000000ffff7f000002"),
    UNLISTED_IPV6: _nibbles("00000000000000000000ffff7f000001"),
}
_DOMAIN_POINTS: Final = {LISTED: b"test", UNLISTED: b"invalid"}


def points(zone: Zone, unknown: bytes) -> dict[str, Question]:
    """What a test of this list asks; unknown is a label that no list can know."""
    labels = {RANDOM: unknown}
    if zone.is_tested:
        labels |= _DOMAIN_POINTS if zone.is_domains else _ADDRESS_POINTS
    return {point: Question(b"%b.%b" % (label, zone.name), _A) for point, label in labels.items()}


def judge(zone: Zone, answers: Mapping[str, Answer]) -> str:
    """Why this list can't be used, "" when it can; answers by point, as points() has them."""
    odd = {oddity(answer.records) for answer in answers.values()}
    if REFUSED in odd:
        return "refuses our questions: its answer is in 127.255.255.0/24"
    if FOREIGN in odd:
        return "answers with addresses outside 127.0.0.0/8"
    for point in (RANDOM, UNLISTED, UNLISTED_IPV6):
        if point in answers and answers[point].records:
            return "lists everything"
    # A list need not know of IPv6, and may fail when asked.
    failed = [
        answer
        for point, answer in answers.items()
        if answer.is_failed and point not in (LISTED_IPV6, UNLISTED_IPV6)
    ]
    if failed:
        return f"does not answer: {failed[0].reason}"
    if LISTED in answers and not answers[LISTED].records:
        return "does not list its test point (RFC 5782 section 5)"
    return ""


class Entry:
    """One list and how it does.

    hits         clients that it named;  hits_told  of them, how many the log has been told
    asked        how often it was;  failures  of these, how often it did not answer
    meter        its metrics, where there are any
    quarantines  how often it was put away
    fault        why it is in quarantine, "" when it isn't
    """

    __slots__ = (
        "asked", "due_s", "failures", "fault", "hits", "hits_told", "is_known", "is_testing", "meter",
        "quarantines", "tested_s", "zone",
    )  # fmt: skip

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.hits = 0
        self.hits_told = 0
        self.asked = 0
        self.failures = 0
        self.meter: ListMeter | None = None
        self.quarantines = 0
        self.fault = ""
        self.is_known = False
        self.is_testing = False
        self.tested_s = 0.0
        self.due_s = 0.0


class ListCare:
    """The lists of one worker.

    bad      names of those that must not be asked: a fact for policy
    entries  by name
    """

    def __init__(
        self,
        zones: Iterable[Zone],
        resolver: Asker | None,
        *,
        log: Log,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        worker: int = 0,
        timeout_s: float = 5.0,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        if resolver is not None:
            for zone in zones:
                self.entries.setdefault(zone.text, Entry(zone))
        self._resolver = resolver
        self._log = log
        self._now = now
        self._random = random
        self._worker = worker
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self.bad = NOBODY
        # By the id of a tuple of zones that is kept here meanwhile: those that were asked, and how often.
        self._asked: dict[int, list[Any]] = {}
        self._note_bad()

    # --- what sessions tell -----------------------------------------------------------------------

    def asked(self, zones: tuple[Zone, ...]) -> None:
        """All of these but the bad ones were asked; the tuple is one of the settings'."""
        found = self._asked.get(id(zones))
        if found is None:
            self._asked[id(zones)] = found = [zones, 0]
        found[1] += 1

    def hit(self, zone: str) -> None:
        """The list named a client.  One that has begun to name everybody is found out soon."""
        entry = self.entries.get(zone)
        if entry is not None:
            entry.hits += 1
            self._doubt(entry, HIT_S)

    def failed(self, zone: str) -> None:
        """The list gave no answer, or none that lists give."""
        entry = self.entries.get(zone)
        if entry is not None:
            entry.failures += 1
            self._doubt(entry, DOUBT_S)

    # --- metrics ----------------------------------------------------------------------------------

    def measure(self, sheet: Sheet) -> None:
        """From now on publish() copies all counts to this sheet."""
        for entry in self.entries.values():
            entry.meter = ListMeter(sheet, entry.zone.text)

    def publish(self) -> None:
        """Copy the counts into the metrics, where measure() was called."""
        self._note_asked()
        for entry in self.entries.values():
            if entry.meter is not None:
                entry.meter.unlisted.set(max(0, entry.asked - entry.hits - entry.failures))
                entry.meter.listed.set(entry.hits)
                entry.meter.failed.set(entry.failures)
                entry.meter.quarantines.set(entry.quarantines)
                entry.meter.quarantined.set(bool(entry.fault))

    def _doubt(self, entry: Entry, after_s: float) -> None:
        if not entry.fault and not entry.is_testing and self._now() - entry.tested_s >= after_s:
            self._begin(entry)

    # --- tests ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called now and then: begin the tests that are due."""
        for entry in self.entries.values():
            if entry.due_s <= now and not entry.is_testing:
                self._begin(entry)

    def _begin(self, entry: Entry) -> None:
        entry.is_testing = True
        task = asyncio.get_running_loop().create_task(self._test(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _test(self, entry: Entry) -> None:
        began_s = self._now()
        try:
            fault = await probe_list(entry.zone, self._resolver, self._random, began_s + self._timeout_s)  # type: ignore[arg-type]
        finally:
            entry.is_testing = False
        now = self._now()
        took_s = now - began_s
        # 5 % early or late, so that the workers, and the world, don't ask all at once.
        spread = 0.95 + self._random(1)[0] / 2_560
        entry.due_s = now + (RETRY_S if fault else HOUR_S) * spread
        was_told, is_hourly = bool(entry.fault), now - entry.tested_s >= HOUR_S / 2
        entry.tested_s = now
        entry.fault = fault
        zone = entry.zone.text
        if not fault and entry.meter is not None:
            entry.meter.tests.observe(took_s)
        took_ms = round(took_s * 1000.0)
        if fault and not was_told:
            entry.quarantines += 1
            self._log.line(
                "list_quarantined",
                what=zone,
                reason=fault,
                found=entry.hits,
                worker=self._worker,
                took_ms=took_ms,
            )
        elif was_told and not fault:
            self._log.line("list_restored", what=zone, worker=self._worker, took_ms=took_ms)
        elif not fault and is_hourly and entry.is_known:
            found = entry.hits - entry.hits_told
            entry.hits_told = entry.hits
            self._log.line("list_tested", what=zone, found=found, worker=self._worker, took_ms=took_ms)
        entry.is_known = True
        self._note_bad()

    def _note_asked(self) -> None:
        """Who was asked, before the bad ones change: a session counts once for all its lists."""
        for zones, count in self._asked.values():
            for zone in zones:
                entry = self.entries.get(zone.text)
                if entry is not None and zone.name not in self.bad:
                    entry.asked += count
        self._asked.clear()

    def _note_bad(self) -> None:
        self._note_asked()
        bad = [entry.zone.name for entry in self.entries.values() if entry.fault or not entry.is_known]
        self.bad = frozenset(bad) if bad else NOBODY

    async def settled(self) -> None:
        """Wait for the tests that are under way; for tests and `check --live`."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


async def probe_list(
    zone: Zone, resolver: Asker, random: Callable[[int], bytes], deadline: float | None = None
) -> str:
    """Ask a list's test points; why it can't be used, "" when it can.  deadline as Asker.ask has it."""
    asked = points(zone, b"x" + random(8).hex().encode())
    answers = await resolver.ask(tuple(asked.values()), deadline)
    return judge(zone, dict(zip(asked, answers, strict=True)))
