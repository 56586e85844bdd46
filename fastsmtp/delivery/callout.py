"""Asks next hops whether a recipient exists: MAIL FROM:<>, RCPT, RSET on a kept connection; and remembers the answer.

An answer that is known costs a look-up.  A "yes" that has become old still
counts while it is asked again in the background, so that a next hop that is
down for an hour costs only mail to recipients that nobody has written to for
a day.  The same question is asked once, whoever waits for it.  A next hop that
could not be asked is left alone for a moment.

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastsmtp import errors
from fastsmtp.config.dest import parse_dest
from fastsmtp.delivery.pool import Limits, NextHop, Pool
from fastsmtp.log import Log
from fastsmtp.message import Envelope, Recipient
from fastsmtp.metrics import Cell, Counter, Sheet
from fastsmtp.policy.callout import Callout, Heard
from fastsmtp.policy.stage import Failed

if TYPE_CHECKING:
    from fastsmtp.hosts import Hosts

CONNECTIONS: Final = 10
"""Open ones to one next hop, a worker: for the pool that is given to Callouts."""

CALLOUTS = Counter(
    "fastsmtp_callouts_total",
    "Questions whether a recipient exists: known (the answer was), or what a next hop said when it was asked: "
    "accepted, refused, deferred; unanswered when it could not be asked",
    "outcome",
)
OUTCOMES: Final = ("known", "accepted", "refused", "deferred", "unanswered")


@dataclass(frozen=True, slots=True)
class Memory:
    """How long answers count, in seconds, and how many there are.

    fresh_s   a "yes" is given without asking again
    good_s    and counts at all
    no_s      a "no"; a new mailbox gets its mail so much later at most
    later_s   a 4xx, and that a next hop could not be asked
    answers   a worker; some 300 bytes each
    """

    fresh_s: float = 3_600.0
    good_s: float = 86_400.0
    no_s: float = 600.0
    later_s: float = 10.0
    answers: int = 50_000


class _Known:
    """One answer, until when it need not be asked again, and until when it counts."""

    __slots__ = ("answer", "fresh_s", "good_s")

    def __init__(self, answer: Heard | Failed, fresh_s: float, good_s: float) -> None:
        self.answer = answer
        self.fresh_s = fresh_s
        self.good_s = good_s


Answered = Callable[[tuple[Any, ...]], object]


class Callouts:
    """All call-outs of one worker.

    pool       connections to next hops, for this alone
    ask_s      for one question, with connecting
    now        seconds, monotonic
    hosts      what the pool resolves names with; closed with us
    """

    def __init__(
        self,
        pool: Pool,
        *,
        now: Callable[[], float],
        ask_s: float = 60.0,
        memory: Memory | None = None,
        log: Log | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self.memory = memory or Memory()
        self._pool = pool
        self._now = now
        self._ask_s = ask_s
        self._log = log
        self._hosts = hosts
        self._known: dict[Callout, _Known] = {}
        self._down: dict[str, _Known] = {}
        self._hops: dict[str, NextHop] = {}
        self._asking: dict[Callout, asyncio.Task[None]] = {}
        self._counts = dict.fromkeys(OUTCOMES, 0)
        self._cells: list[tuple[Cell, str]] = []
        self._waiting: dict[Callout, list[_Batch]] = {}

    def put(
        self, questions: Sequence[Callout], deadline: float, answered: Answered
    ) -> tuple[Any, ...] | None:
        """The answers when all are known; else None, and answered(answers) is called once, later.

        Each answer is a Heard, or Failed at the deadline and where the next hop could not be asked.
        """
        now = self._now()
        answers = [self._find(question, now) for question in questions]
        for answer in answers:
            if type(answer) is Heard:
                self._counts["known"] += 1
            elif answer is not None:
                self._counts["unanswered"] += 1
        if None not in answers:
            return tuple(answers)
        batch = _Batch(list(questions), answers, answered)
        loop = asyncio.get_running_loop()
        batch.timer = loop.call_later(max(deadline - now, 0.0), batch.expire)
        for question, answer in zip(questions, answers, strict=True):
            if answer is None:
                self._waiting.setdefault(question, []).append(batch)
                self._ask(question)
        return None

    def measure(self, sheet: Sheet) -> None:
        """From now on publish() copies all counts to this sheet."""
        self._cells = [(CALLOUTS.of(sheet, outcome), outcome) for outcome in OUTCOMES]

    def publish(self) -> None:
        """Copy the counts into the metrics, where measure() was called."""
        for cell, outcome in self._cells:
            cell.set(self._counts[outcome])

    async def close(self) -> None:
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()
        if self._hosts is not None:
            self._hosts.close()

    def _find(self, question: Callout, now: float) -> Heard | Failed | None:
        """What is known; an old "yes" is asked again behind it."""
        known = self._known.get(question)
        if known is not None and now < known.good_s:
            if now >= known.fresh_s and not self._is_down(question.deliver, now):
                known.fresh_s = now + self.memory.later_s
                self._ask(question)
            return known.answer
        down = self._down.get(question.deliver)
        return down.answer if down is not None and now < down.good_s else None

    def _is_down(self, deliver: str, now: float) -> bool:
        down = self._down.get(deliver)
        return down is not None and now < down.good_s

    def _ask(self, question: Callout) -> None:
        if question not in self._asking:
            task = asyncio.get_running_loop().create_task(self._run(question))
            self._asking[question] = task

    async def _run(self, question: Callout) -> None:
        answer: Heard | Failed = Failed("given up")
        try:
            answer = await self._ask_hop(question)
        except errors.TemporaryError as error:
            answer = Failed(str(error))
            self._note_down(question.deliver, answer)
        except Exception as error:  # noqa: BLE001 - ours: who waits is told to come again, and the log has it
            answer = Failed(f"{type(error).__name__}: {error}")
            self._note_down(question.deliver, answer)
        finally:
            del self._asking[question]
            self._remember(question, answer)
            self._count(answer)
            for batch in self._waiting.pop(question, ()):
                batch.take(question, answer)

    def _count(self, answer: Heard | Failed) -> None:
        """What a next hop said to one question that it was asked."""
        if type(answer) is not Heard:
            self._counts["unanswered"] += 1
        elif answer.refusal is None:
            self._counts["accepted"] += 1
        else:
            self._counts["refused" if answer.refusal.is_permanent else "deferred"] += 1

    async def _ask_hop(self, question: Callout) -> Heard:
        """One transaction that never gets to DATA.  Raises errors.TemporaryError."""
        hop = self._hop(question.deliver)
        domain = question.address.rpartition(b"@")[2].lower()
        recipient = Recipient(question.address, domain)
        envelope = Envelope(b"", b"", is_smtputf8=not question.address.isascii(), recipients=[recipient])
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._ask_s
        fresh = False
        while True:
            link = await self._pool.take(hop, None, deadline_s, fresh=fresh)
            try:
                started = await link.run(link.dialogue.start(envelope, [recipient]), deadline_s)
            except errors.NextHopDown:
                self._pool.drop(link)
                if fresh or not link.is_reused or link.has_expired:
                    raise
                fresh = True
                continue
            except BaseException:
                self._pool.drop(link)
                raise
            if started.mail is None:
                self._pool.reset(link)
                return Heard(started.recipients[0])
            self._pool.give_back(link)
            if not question.address.isascii() and started.mail.is_permanent:
                return Heard(started.mail)  # it takes no UTF-8 addresses: then not this one either
            raise errors.NextHopDown(
                f"answers MAIL FROM:<> with {started.mail.code} {started.mail.lines[-1]}"
            )

    def _hop(self, deliver: str) -> NextHop:
        hop = self._hops.get(deliver)
        if hop is None:
            dest = parse_dest(deliver)
            hop = self._hops[deliver] = NextHop(dest.kind, dest.host, dest.port, dest.path)
        return hop

    def _note_down(self, deliver: str, answer: Failed) -> None:
        now = self._now()
        if self._log is not None and not self._is_down(deliver, now):
            self._log.line("sink_failed", what="call-out", deliver=deliver, reason=answer.reason)
        self._down[deliver] = _Known(answer, 0.0, now + self.memory.later_s)

    def _remember(self, question: Callout, answer: Heard | Failed) -> None:
        """What was heard; that nobody answered changes nothing of what is known."""
        if type(answer) is not Heard:
            return
        now = self._now()
        memory = self.memory
        self._known.pop(question, None)
        self._down.pop(question.deliver, None)
        if answer.refusal is None:
            known = _Known(answer, now + memory.fresh_s, now + memory.good_s)
        else:
            good_s = now + (memory.no_s if answer.refusal.is_permanent else memory.later_s)
            known = _Known(answer, good_s, good_s)
        while len(self._known) >= memory.answers:
            # The oldest one: what is asked for often is asked again, and so is never that for long.
            del self._known[next(iter(self._known))]
        self._known[question] = known


def make_callouts(hostname: str, *, now: Callable[[], float], log: Log | None = None) -> Callouts:
    """Call-outs with connections of their own, and next hops' names from the hosts file and the DNS."""
    from fastsmtp.hosts import Hosts

    hosts = Hosts()
    pool = Pool(hostname=hostname, resolve=hosts.addresses, limits=Limits(connections=CONNECTIONS, kept=2))
    return Callouts(pool, now=now, log=log, hosts=hosts)


class _Batch:
    """Questions that somebody waits for together."""

    __slots__ = ("_answered", "_answers", "_questions", "timer")

    def __init__(
        self, questions: list[Callout], answers: list[Heard | Failed | None], answered: Answered
    ) -> None:
        self._questions = questions
        self._answers = answers
        self._answered: Answered | None = answered
        self.timer: asyncio.TimerHandle | None = None

    def take(self, question: Callout, answer: Heard | Failed) -> None:
        for at, asked in enumerate(self._questions):
            if asked == question:
                self._answers[at] = answer
        if None not in self._answers:
            self._end()

    def expire(self) -> None:
        late = Failed("deadline")
        self._answers = [late if answer is None else answer for answer in self._answers]
        self._end()

    def _end(self) -> None:
        answered, self._answered = self._answered, None
        if self.timer is not None:
            self.timer.cancel()
        if answered is not None:
            answered(tuple(self._answers))
