"""What is left to do when a recipient was not delivered: wait in the index, be reported to the sender, or both.

In this order, and each step is synced before the next begins (docs/queue.md):

    for now     row into the index            then the done-log says "deferred"
    for good    report into our own journal   then the done-log says "failed", then the row goes

What the disk refuses is tried again, once a second, and the shards keep what
they weren't told to forget.  Rank 6.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from fastsmtp import errors, reply
from fastsmtp.delivery.dispatcher import Case, Deleted, Dispatcher
from fastsmtp.delivery.job import Damaged, Told
from fastsmtp.delivery.outcome import Failed, Retry, without_address
from fastsmtp.delivery.stored import Reader, StoredMessage
from fastsmtp.log import Log
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.done import Outcome, pack
from fastsmtp.queue.dsn import Action, Fate, Reporter, original_bytes
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.model import QueuedMessage, encode
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Key, Row, Said, row_of
from fastsmtp.queue.schedule import Patience, Wait, after_failure, put_off

T = TypeVar("T")

Found = StoredMessage | errors.QueueDamaged | errors.TemporaryError
"""A message as it was read; or damaged; or not to be had now."""

# Worked on together: one transaction of the index, one sync of the journal.
AT_ONCE = 500
# For what found no room in memory, and what is due at a time.
PUT_OFF_MS = 30_000
DUE_AT_ONCE = 500
DUE_S = 0.5
RETRY_S = 1.0
# For a record that the disk doesn't give: the others go on meanwhile.
UNREAD_S = 30.0
CLOSE_S = 5.0


class Ids(Protocol):
    """Names for reports."""

    def next(self) -> str: ...


class Afterwards:
    """Cases of a dispatcher; see the module's text.

    journal    of the dispatcher itself: reports are mail like any other
    place_for  where a report to this domain goes (a DEST); "refuse": nowhere
    pump       called when there may be something for the shards
    failed     called with an error after which the process can't go on
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        index: DeferredIndex,
        *,
        reader: Reader,
        reporter: Reporter,
        ids: Ids,
        journal: Callable[[], Awaitable[Journal]],
        place_for: Callable[[bytes], str],
        patience: Patience,
        disk: ThreadDisk,
        wall: Callable[[], float],
        random: Callable[[], float],
        log: Log,
        loop: asyncio.AbstractEventLoop,
        pump: Callable[[], object],
        failed: Callable[[Exception], object],
    ) -> None:
        self._dispatcher = dispatcher
        self._index = index
        self._reader = reader
        self._reporter = reporter
        self._ids = ids
        self._journal = journal
        self._place_for = place_for
        self._patience = patience
        self._disk = disk
        self._wall = wall
        self._random = random
        self._log = log
        self._loop = loop
        self._pump = pump
        self._failed = failed
        self._wake = asyncio.Event()
        # Held while rows are taken, and by who changes where they point to.
        self.taking = asyncio.Lock()
        self._cases: deque[Case] = deque()
        # Reports that were made, by the first fate of each.
        self.reported: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._due: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Task[None]] = set()
        self._aside: list[asyncio.TimerHandle] = []

    def start(self) -> None:
        """Begin to look for what is due."""
        self._due = self._guarded(self._watch_due())

    async def close(self) -> None:
        """Finish what was begun, as far as CLOSE_S lets us; the rest is done at the next start."""
        if self._due is not None:
            self._due.cancel()
        for timer in self._aside:
            timer.cancel()
        waiting = [task for task in (self._task, *self._removals) if task is not None]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    # --- dispatcher.Cases -------------------------------------------------------------------------

    def take(self, cases: Sequence[Case]) -> None:
        self._cases.extend(cases)
        if self._task is None or self._task.done():
            self._task = self._guarded(self._work())

    @property
    def pinned(self) -> set[Key]:
        return self._index.pinned

    def give_back(self, keys: Sequence[Key]) -> None:
        self._index.give_back(keys)

    @property
    def waiting(self) -> int:
        """Cases that nobody works on yet."""
        return len(self._cases)

    def wake(self) -> None:
        """Rows have become due."""
        self._wake.set()

    def finished(self, keys: Sequence[Key]) -> None:
        task = self._guarded(self._remove(keys))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def settled(self) -> None:
        """Until there are no cases: what the dispatcher has let go of by now is over, or deferred."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    # --- the work ---------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self._cases:
            batch = [self._cases.popleft() for _ in range(min(AT_ONCE, len(self._cases)))]
            await self._settle(batch)

    async def _settle(self, batch: list[Case]) -> None:
        stored = await self._read({case.place for case in batch if case.row is None or _is_for_good(case)})
        unread: list[Case] = []
        now_ms = int(self._wall() * 1000)
        # What failed together is tried again together.
        draws: dict[Place, float] = {}
        waiting: list[tuple[Case, Row]] = []
        over: list[Case] = []
        fates: dict[Place, list[Fate]] = {}
        for case in batch:
            message = stored.get(case.place)
            if isinstance(case.outcome, Deleted):
                over.append(case)
                continue
            if isinstance(message, errors.TemporaryError) and not isinstance(case.outcome, Told):
                unread.append(case)
                continue
            if isinstance(case.outcome, Damaged) or isinstance(message, errors.QueueDamaged):
                self._tell_damage(case, message)
                if isinstance(message, StoredMessage):
                    fates.setdefault(case.place, []).append(_damage(case, now_ms))
                over.append(case)
                continue
            if isinstance(case.outcome, Told):
                fates.setdefault(case.place, []).append(_success(case, case.outcome, now_ms))
                over.append(case)
                continue
            if isinstance(case.outcome, Failed):
                fates.setdefault(case.place, []).append(_failure(case, case.outcome, now_ms))
                over.append(case)
                continue
            row = self._row(case, message)
            if case.outcome is None:
                waiting.append((case, put_off(row, self._patience, now_ms=now_ms, wait_ms=PUT_OFF_MS)))
                continue
            said = told(case.outcome)
            draw = draws.setdefault(case.place, self._random())
            row = row._replace(site=case.site, source=case.outcome.source)
            next = after_failure(
                row, self._patience, now_ms=now_ms, random=_same(draw), said=noted(case.outcome)
            )
            if isinstance(next, Wait):
                waiting.append((case, next.row))
                if next.is_late:
                    until_ms = now_ms + self._patience.lifetime_ms - next.row.waited_ms
                    fate = Fate(case.recipient, Action.DELAYED, said, now_ms, until_ms=until_ms)
                    fates.setdefault(case.place, []).append(fate)
            else:
                fate = Fate(case.recipient, Action.FAILED, said, now_ms, status="4.4.7")
                fates.setdefault(case.place, []).append(fate)
                over.append(case)
        if waiting:
            await self._insist(lambda: self._index.defer([row for _, row in waiting]))
        missing = fates.keys() - stored.keys()
        if missing:
            stored |= await self._read(missing)
            unreadable = {place for place in missing if isinstance(stored[place], errors.TemporaryError)}
            unread += [case for case in over if case.place in unreadable]
            over = [case for case in over if case.place not in unreadable]
        self._put_aside(unread, stored)
        await self._report(fates, stored, now_ms)
        self._note(waiting, over)

    def _put_aside(self, cases: list[Case], stored: dict[Place, Found]) -> None:
        """Their records can't be read now, so there is neither row nor report: they come back, and nobody waits.

        Nothing is said to be over: after a crash they are tried once more.
        """
        if not cases:
            return
        for place in {case.place for case in cases}:
            self._log.line("queue_failed", reason=str(stored[place]))
        for case in cases:
            settled, case.settled = case.settled, _nothing
            settled()
        self._aside.append(self._loop.call_later(UNREAD_S, self._come_back, cases))

    def _come_back(self, cases: list[Case]) -> None:
        now = self._loop.time()
        self._aside = [timer for timer in self._aside if timer.when() > now]
        self.take(cases)

    def _row(self, case: Case, message: Found | None) -> Row:
        if case.row is not None:
            return case.row
        if not isinstance(message, StoredMessage):
            raise RuntimeError("a case without a message")
        return row_of(case.place, message.message, case.recipient, next_ms=0)._replace(site=case.site)

    def _note(self, waiting: list[tuple[Case, Row]], over: list[Case]) -> None:
        """All of it is durable: the done-log may say so, and the books are brought up to date."""
        dispatcher, keeper = self._dispatcher, self._dispatcher.keeper
        for case, _ in waiting:
            place = case.place
            if case.row is None:
                entry = pack(place.epoch, place.offset, case.recipient, Outcome.DEFERRED)
                keeper.log.add_entries(place.epoch, entry)
            dispatcher.settle(case, is_over=False)
            keeper.afterwards(case.settled)
        keys = []
        for case in over:
            place = case.place
            entry = pack(place.epoch, place.offset, case.recipient, _ending(case))
            keeper.log.add_entries(place.epoch, entry)
            dispatcher.settle(case, is_over=True)
            keeper.afterwards(case.settled)
            key = Key(place.number, place.epoch, place.offset, case.recipient)
            if case.row is not None or key in self._index.pinned:
                keys.append(key)
        if keys:
            keeper.afterwards(lambda: self.finished(keys))

    async def _report(
        self,
        fates: dict[Place, list[Fate]],
        stored: dict[Place, Found],
        now_ms: int,
    ) -> None:
        """The reports into our journal; all of them with one sync."""
        reports: list[list[bytes]] = []
        for place, some in fates.items():
            message = stored[place]
            if not isinstance(message, StoredMessage):
                continue
            original = await self._disk.run(_beginning, message, original_bytes(message.message, some))
            report = self._reporter.report(
                message.message, some, id=self._ids.next(), now_ms=now_ms, original=original
            )
            if report is not None and self._address(report, message):
                reports.append(encode(report))
                action = some[0].action.value
                self.reported[action] = self.reported.get(action, 0) + 1
        if reports:
            await self._insist(lambda: self._append(reports))

    def _address(self, report: QueuedMessage, about: StoredMessage) -> bool:
        """Say where it goes; False when there is no such place."""
        recipient = report.envelope.recipients[0]
        report.origins.address = report.origins.address or "127.0.0.1"
        recipient.deliver = self._place_for(recipient.domain)
        is_sent = recipient.deliver != "refuse"
        self._log.line(
            "report", id=report.id, about=about.id, rcpt=recipient.address,
            reason=None if is_sent else "nobody delivers there",
        )  # fmt: skip
        return is_sent

    async def _append(self, reports: list[list[bytes]]) -> None:
        """All of them; raises what kept one out, and leaves those in the list that are to be tried again."""
        journal = await self._journal()
        found = await asyncio.gather(*[journal.append(pieces) for pieces in reports], return_exceptions=True)
        failed = [error for error in found if isinstance(error, BaseException)]
        reports[:] = [
            pieces for pieces, one in zip(reports, found, strict=True) if isinstance(one, BaseException)
        ]
        for error in failed:
            if isinstance(error, ValueError):
                # Where room is scarce a segment may be too small for it; there is always a bigger one later.
                raise errors.StorageFull(str(error))
            raise error

    async def _remove(self, keys: Sequence[Key]) -> None:
        await self._insist(lambda: self._index.finished(keys))

    async def _read(self, places: Iterable[Place]) -> dict[Place, Found]:
        places = list(places)
        if not places:
            return {}
        return await self._insist(lambda: self._disk.run(_read_all, self._reader, places))

    async def _insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Until the disk has done it."""
        while True:
            try:
                return await attempt()
            except (errors.StorageFull, errors.StorageFailed) as error:
                self._log.line("queue_failed", reason=str(error))
                await asyncio.sleep(RETRY_S)

    def _tell_damage(self, case: Case, message: Found | None) -> None:
        outcome, keeper = case.outcome, self._dispatcher.keeper
        reason = outcome.reason if isinstance(outcome, Damaged) else str(message)
        keeper.set_aside(case.kept, case.place, reason)
        body = case.kept.messages[case.place.offset].body
        if body is not None:
            keeper.set_aside_body(body)

    # --- what is due ------------------------------------------------------------------------------

    async def _watch_due(self) -> None:
        while True:
            try:
                async with asyncio.timeout(DUE_S):
                    await self._wake.wait()
            except TimeoutError:
                pass  # nobody called: look all the same
            self._wake.clear()
            while await self._take_due():
                pass

    async def _take_due(self) -> bool:
        """Whether there may be more.

        Without room some are taken all the same: what the operator has ordered, and the mail of sites that nobody
        waits for, must not wait until slow ones are done.  The rest of these is put off.
        """
        if self._dispatcher.keeper.log.is_behind:
            return False
        room = self._dispatcher.sites.room()
        wanted = min(DUE_AT_ONCE, room) or DUE_AT_ONCE
        async with self.taking:
            rows = await self._insist(lambda: self._index.due(int(self._wall() * 1000), wanted))
            if rows:
                self._dispatcher.due(rows)
                self._pump()
        return room > 0 and len(rows) == wanted

    def _guarded(self, work: Any) -> asyncio.Task[None]:
        """A task whose failure is not silent: what it was to do would never be done."""
        task: asyncio.Task[None] = self._loop.create_task(work)
        task.add_done_callback(self._look)
        return task

    def _look(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error if isinstance(error, Exception) else RuntimeError(repr(error)))


def _same(draw: float) -> Callable[[], float]:
    return lambda: draw


def _is_for_good(case: Case) -> bool:
    return isinstance(case.outcome, Failed | Told | Damaged)


def _nothing() -> None:
    return None


def _failure(case: Case, outcome: Failed, now_ms: int) -> Fate:
    said = told(outcome)
    if outcome.reply is reply.BOUNCED_BY_OPERATOR:
        # Nobody has said it over SMTP; what was said last is why.
        text = said.text + returned_after(Said() if case.row is None else case.row.said)
        return Fate(case.recipient, Action.FAILED, Said(text=text), now_ms, said.enhanced)
    return Fate(case.recipient, Action.FAILED, said, now_ms)


def _damage(case: Case, now_ms: int) -> Fate:
    """The body is not what was accepted, and whoever sent it may have it still."""
    said = Said(text="the message was damaged on the disk of this system")
    return Fate(case.recipient, Action.FAILED, said, now_ms, status="5.3.0")


def _success(case: Case, outcome: Told, now_ms: int) -> Fate:
    """RFC 3461 section 5.2.2: relayed, where the next hop sends no reports."""
    delivered = outcome.delivered
    action = Action.RELAYED if outcome.is_relayed else Action.DELIVERED
    code = 250 if delivered.remote else 0
    return Fate(
        case.recipient, action, Said(code, delivered.enhanced, delivered.said, delivered.remote), now_ms
    )


def _ending(case: Case) -> Outcome:
    """What the done-log says of a case that is over."""
    if isinstance(case.outcome, Told):
        return Outcome.DELIVERED
    return Outcome.DELETED if isinstance(case.outcome, Deleted) else Outcome.FAILED


def told(outcome: Retry | Failed) -> Said:
    """For the sender's report: what a server has answered, or what kept us from asking one."""
    answer = outcome.reply
    if answer in reply.OF_THE_WAY and outcome.reason:
        return Said(0, answer.enhanced, without_address(outcome), outcome.remote)
    return Said(answer.code, answer.enhanced, "\n".join(answer.lines), outcome.remote)


def noted(outcome: Retry) -> Said:
    """For the index, and so for the operator: also what is the matter with this machine."""
    if outcome.reply in reply.OF_THIS_MACHINE and outcome.reason:
        return Said(0, outcome.reply.enhanced, outcome.reason)
    return told(outcome)


def returned_after(last: Said) -> str:
    """What a report of the operator's says of the last attempt; nothing of this machine (noted)."""
    if last.code:
        words = " ".join(filter(None, (str(last.code), last.enhanced, last.text)))
        return f"; the last answer was: {f'{last.host} said: ' if last.host else ''}{words}"
    return f"; the last attempt ended with: {last.host}: {last.text}" if last.host else ""


def _read_all(system: Any, reader: Reader, places: list[Place]) -> dict[Place, Found]:
    """A job."""
    found: dict[Place, Found] = {}
    for place in places:
        try:
            found[place] = reader.read(place)
        except (errors.QueueDamaged, errors.TemporaryError) as error:
            found[place] = error
    reader.close()
    return found


def _beginning(system: Any, message: StoredMessage, size_bytes: int) -> bytes:
    """A job: the first bytes of the body, or what of them can be read."""
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in message.blocking_pieces(system):
            pieces.append(piece)
            size += len(piece)
            if size >= size_bytes:
                break
    except (errors.QueueDamaged, OSError):
        # A report without the original is better than none.
        pass
    return b"".join(pieces)[:size_bytes]
