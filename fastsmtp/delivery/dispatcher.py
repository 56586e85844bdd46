"""The dispatcher: reads what workers have made durable, hands it to the shards, and remembers what became of it.

    records of the journal --arrived()--> sites --jobs()--> shards --results()--> done-log, or Afterwards
    rows of the index that are due ------due()-----^

Nothing here waits and nothing is done a message at a time that can be done a
batch at a time.  The order of what must be durable before what is
docs/queue.md's; a recipient is always in exactly one hand: waiting or with a
shard (`open` of its segment counts it), or a row of the index (counted there
too), or finished (an entry of the done-log).

Not here: sockets (desk.py), failures and reports (afterwards.py), start-up
(opening.py).  Rank 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from fastsmtp import reply
from fastsmtp.delivery.job import Damaged, Job, Result, Told, deliver_of
from fastsmtp.delivery.outcome import Delivered, Failed, Retry
from fastsmtp.delivery.sites import Sites
from fastsmtp.delivery.wire import RECIPIENTS
from fastsmtp.queue.done import Outcome as Done
from fastsmtp.queue.done import pack, pack_all
from fastsmtp.queue.keeper import Arrived, Keeper, Kept, Message
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Key, Row, State, site_of

Named = tuple[int, int, int]
"""(epoch, offset, recipient)."""


class Deleted:
    """The operator wants this recipient to be forgotten; in the place of an outcome."""


class Case:
    """A recipient whose result is not simply "delivered": what afterwards.py works on.

    outcome   None: no room in memory, it waits in the index
    row       as it was taken from the index; None at the first attempt
    settled   called when all of it is durable
    """

    __slots__ = ("kept", "outcome", "place", "recipient", "row", "settled", "site")

    def __init__(
        self,
        kept: Kept,
        place: Place,
        recipient: int,
        site: str,
        outcome: Retry | Failed | Damaged | Told | Deleted | None,
        row: Row | None,
        settled: Callable[[], object],
    ) -> None:
        self.kept = kept
        self.place = place
        self.recipient = recipient
        self.site = site
        self.outcome = outcome
        self.row = row
        self.settled = settled


class Cases(Protocol):
    """Takes what can't be settled at once."""

    def take(self, cases: Sequence[Case]) -> None: ...
    def finished(self, keys: Sequence[Key]) -> None:
        """These rows are over, and the done-log knows."""

    @property
    def pinned(self) -> set[Key]:
        """Recipients that the operator has put into the index while we have them."""

    def give_back(self, keys: Sequence[Key]) -> None:
        """Pinned ones that are the index's now."""


class _Sent:
    """A job that a shard has; left: recipients without a result."""

    __slots__ = ("job", "left")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.left = len(job.recipients)


class Dispatcher:
    """See the module's text."""

    def __init__(self, keeper: Keeper, sites: Sites) -> None:
        self.keeper = keeper
        self.sites = sites
        self.cases: Cases | None = None
        self.delivered = 0
        self.arrivals = 0
        # With a shard: each recipient leads to its job.
        self._sent: dict[Named, _Sent] = {}
        # Taken from the index and not finished.
        self._rows: dict[Key, Row] = {}
        # What a shard that was there before us said that it has.
        self._held: list[set[Named]] = [set() for _ in range(sites.shards)]
        # Of these, what was delivered before we handed it out.
        self._known: set[Named] = set()

    @property
    def sent(self) -> int:
        """Recipients that a shard has."""
        return len(self._sent)

    # --- what comes in ----------------------------------------------------------------------------

    def arrived(self, kept: Kept, batch: Sequence[Arrived]) -> None:
        """Messages that were read; every recipient of theirs is pending."""
        self.arrivals += len(batch)
        for offset, size_bytes, body, destinations in batch:
            self.enter(kept, offset, size_bytes, body, destinations, range(len(destinations)))

    def enter(
        self,
        kept: Kept,
        offset: int,
        size_bytes: int,
        body: int | None,
        destinations: Sequence[tuple[str, str]],
        pending: Sequence[int],
        indexed: int = 0,
    ) -> None:
        """A message with these recipients pending; `indexed` others are rows of the index."""
        if len(pending) == 1 and not indexed and destinations[pending[0]][0] != "discard":
            # Nearly all mail has one recipient.
            deliver, domain = destinations[pending[0]]
            kept.open += 1
            kept.messages[offset] = Message(size_bytes, body, 1)
            place = Place(kept.number, kept.epoch, offset, size_bytes)
            self._add(Job(place, deliver, site_of(deliver, domain), (pending[0],), 1))
            return
        entries = []
        groups: dict[str, list[int]] = {}
        for recipient in pending:
            deliver, domain = destinations[recipient]
            if deliver == "discard":
                entries.append(pack(kept.epoch, offset, recipient, Done.DELIVERED))
            else:
                groups.setdefault(site_of(deliver, domain), []).append(recipient)
        if entries:
            self.keeper.log.add_entries(kept.epoch, b"".join(entries))
        left = len(pending) - len(entries)
        if not left and not indexed:
            if body is not None:
                self._remove_body(body)
            return
        kept.open += left + indexed
        if left or body is not None:
            message = kept.messages[offset] = Message(size_bytes, body, left)
            message.indexed = indexed
        place = kept.place(offset, size_bytes)
        for site, recipients in groups.items():
            for start in range(0, len(recipients), RECIPIENTS):
                self._add(
                    Job(place, deliver_of(site), site, tuple(recipients[start : start + RECIPIENTS]), 1)
                )

    def due(self, rows: Iterable[Row]) -> None:
        """Rows whose time has come, taken from the index."""
        groups: dict[tuple[Place, str, int], list[Row]] = {}
        ordered: list[Case] = []
        for row in rows:
            kept = self.keeper.segments.get(row.place.epoch)
            if kept is None:
                # Start-up and retiring see to it that there is one.
                raise RuntimeError(f"a row of a segment that isn't there: {row.key}")
            message = kept.messages.get(row.place.offset)
            if message is None:
                message = kept.messages[row.place.offset] = Message(row.place.size_bytes, None, 0)
            elif message.indexed:
                message.indexed -= 1
            message.left += 1
            outcome = _ORDERED.get(row.state)
            if outcome is not None:
                ordered.append(Case(kept, row.place, row.recipient, row.site, outcome, row, _nothing))
                continue
            self._rows[row.key] = row
            groups.setdefault((row.place, row.site, row.attempts), []).append(row)
        for (place, site, attempts), group in groups.items():
            recipients = sorted(row.recipient for row in group)
            for start in range(0, len(recipients), RECIPIENTS):
                some = tuple(recipients[start : start + RECIPIENTS])
                self._add(Job(place, deliver_of(site), site, some, attempts + 1))
        self._pass_on(ordered)

    def _add(self, job: Job) -> None:
        if not self.sites.add(job):
            kept = self.keeper.segments[job.place.epoch]
            self._pass_on([self._case(kept, job, recipient, None, _nothing) for recipient in job.recipients])

    # --- shards -----------------------------------------------------------------------------------

    def holds(self, shard: int, named: Iterable[Named]) -> None:
        """A shard that greets us has these already; what comes of them it will say."""
        self._held[shard].update(named)

    def jobs(self, shard: int) -> list[Job]:
        """What this shard may have now."""
        held = self._held[shard]
        pinned = self._the_cases().pinned
        found = []
        for job in self.sites.take(shard):
            epoch, offset = job.place.epoch, job.place.offset
            if self._known:
                rest = self._without_known(job)
                if rest is None:
                    continue
                job = rest  # noqa: PLW2901 - the others of its recipients
            if pinned:
                rest = self._without(job, pinned)
                if rest is None:
                    continue
                job = rest  # noqa: PLW2901 - the others of its recipients
            sent = _Sent(job)
            for recipient in job.recipients:
                self._sent[epoch, offset, recipient] = sent
            if not held:
                found.append(job)
                continue
            fresh = tuple(one for one in job.recipients if (epoch, offset, one) not in held)
            held.difference_update((epoch, offset, one) for one in job.recipients)
            if fresh:
                found.append(job._replace(recipients=fresh))
        return found

    def _without_known(self, job: Job) -> Job | None:
        """The job without recipients that are delivered; None when nobody is left."""
        place = job.place
        epoch, offset = place.epoch, place.offset
        gone = [one for one in job.recipients if (epoch, offset, one) in self._known]
        if not gone:
            return job
        left = tuple(one for one in job.recipients if one not in gone)
        if not left:
            self.sites.over(job)
        kept = self.keeper.segments[epoch]
        keys = []
        for one in gone:
            self._known.discard((epoch, offset, one))
            key = Key(place.number, epoch, offset, one)
            if self._rows.pop(key, None) is not None or key in self._the_cases().pinned:
                keys.append(key)
            self.gone(kept, offset)
        if keys:
            self._finished(keys)
        return job._replace(recipients=left) if left else None

    def _finished(self, keys: Sequence[Key]) -> None:
        """Their rows go when the done-log has what was added."""
        cases = self._the_cases()
        self.keeper.afterwards(lambda: cases.finished(keys))

    def _without(self, job: Job, pinned: set[Key]) -> Job | None:
        """The job without recipients that are the operator's now; None when nobody is left."""
        place = job.place
        keys = [Key(place.number, place.epoch, place.offset, recipient) for recipient in job.recipients]
        gone = [key for key in keys if key in pinned]
        if not gone:
            return job
        self._the_cases().give_back(gone)
        kept = self.keeper.segments[place.epoch]
        for key in gone:
            if self._rows.pop(key, None) is None:
                entry = pack(place.epoch, place.offset, key.recipient, Done.DEFERRED)
                self.keeper.log.add_entries(place.epoch, entry)
            self.indexed(kept, place.offset)
        left = tuple(key.recipient for key in keys if key not in gone)
        if not left:
            self.sites.over(job)
            return None
        return job._replace(recipients=left)

    def died(self, shard: int) -> None:
        """What it had will be handed out again."""
        self._held[shard].clear()
        lost = [sent for sent in dict.fromkeys(self._sent.values()) if self._shard_of(sent.job) == shard]
        again = []
        for sent in lost:
            job = sent.job
            epoch, offset = job.place.epoch, job.place.offset
            left = tuple(one for one in job.recipients if self._sent.pop((epoch, offset, one), None))
            again.append(job._replace(recipients=left))
        self.sites.put_back(again)

    def _shard_of(self, job: Job) -> int:
        return self.sites.shard_of(job.site)

    def delivered_by(self, shard: int, named: Iterable[Named], settled: Callable[[], object]) -> None:
        """These recipients are delivered, and that is all.  settled() is called when it is durable."""
        keeper = self.keeper
        over: dict[int, list[Named]] = {}
        keys: list[Key] = []
        pinned = self._the_cases().pinned
        for one in named:
            sent = self._taken(shard, one, is_delivered=True)
            if sent is None:
                continue
            epoch, offset, recipient = one
            over.setdefault(epoch, []).append(one)
            if self._rows or pinned:
                key = Key(sent.job.place.number, epoch, offset, recipient)
                if self._rows.pop(key, None) is not None or key in pinned:
                    keys.append(key)
        for epoch, some in over.items():
            self.delivered += len(some)
            keeper.log.add_entries(epoch, pack_all(some, Done.DELIVERED))
        for epoch, some in over.items():
            kept = keeper.segments[epoch]
            for _, offset, _ in some:
                self.gone(kept, offset)
        keeper.afterwards(settled)
        if keys:
            self._finished(keys)

    def _taken(self, shard: int, named: Named, *, is_delivered: bool) -> _Sent | None:
        """The job of a recipient that is over; None for what was told twice, or is still to come."""
        sent = self._sent.pop(named, None)
        if sent is None:
            held = self._held[shard]
            if named in held:
                # Of a job that an earlier dispatcher gave: we come to it later.
                held.discard(named)
                epoch, offset, recipient = named
                if is_delivered and epoch in self.keeper.segments:
                    self._known.add(named)
                    self.keeper.log.add_entries(epoch, pack(epoch, offset, recipient, Done.DELIVERED))
            return None
        sent.left -= 1
        if not sent.left:
            self.sites.over(sent.job)
        return sent

    def results(self, shard: int, batch: Sequence[Result], settled: Callable[[], object]) -> None:
        """What else became of recipients.  settled() is called when all of it is durable, perhaps after a while.

        Raises ValueError for what is delivered: that is said by delivered_by().
        """
        if any(type(result.outcome) is Delivered for result in batch):
            raise ValueError("what is delivered is no result to work on")
        cases: list[Case] = []
        countdown = _Countdown(settled)
        for place, recipient, outcome in batch:
            sent = self._taken(
                shard, (place.epoch, place.offset, recipient), is_delivered=type(outcome) is Told
            )
            if sent is not None:
                self.delivered += type(outcome) is Told
                kept = self.keeper.segments[place.epoch]
                cases.append(self._case(kept, sent.job, recipient, outcome, countdown.add()))
        self.keeper.afterwards(countdown.add())
        self._pass_on(cases)
        countdown.start()

    def _case(
        self,
        kept: Kept,
        job: Job,
        recipient: int,
        outcome: Retry | Failed | Damaged | Delivered | Told | None,
        settled: Callable[[], object],
    ) -> Case:
        if isinstance(outcome, Delivered):
            raise TypeError("nothing is left to do for what is delivered")
        place = job.place
        row = self._rows.pop(Key(place.number, place.epoch, place.offset, recipient), None)
        return Case(kept, place, recipient, job.site, outcome, row, settled)

    def _pass_on(self, cases: list[Case]) -> None:
        if cases:
            for case in cases:
                case.kept.messages[case.place.offset].settling += 1
            self._the_cases().take(cases)

    def _the_cases(self) -> Cases:
        if self.cases is None:
            raise RuntimeError("nobody takes the cases")
        return self.cases

    # --- what an operator asks (admin.desk.Hands) ---------------------------------------------------

    def waiting(self) -> Iterator[tuple[Place, int, str, bool]]:
        """(place, recipient, site, whether a shard has it) of all that is in memory."""
        for job in self.sites.jobs():
            for recipient in job.recipients:
                yield job.place, recipient, job.site, False
        for (_, _, recipient), sent in self._sent.items():
            yield sent.job.place, recipient, sent.job.site, True

    # --- what is over -----------------------------------------------------------------------------

    def settle(self, case: Case, *, is_over: bool) -> None:
        """All of a case is durable: it is over, or a row of the index."""
        case.kept.messages[case.place.offset].settling -= 1
        if is_over:
            self.gone(case.kept, case.place.offset)
        else:
            self.indexed(case.kept, case.place.offset)

    def gone(self, kept: Kept, offset: int, recipients: int = 1) -> None:
        """So many recipients are finished, and the done-log was told."""
        message = kept.messages[offset]
        message.left -= recipients
        self._look_at(kept, offset, message)
        self.keeper.over(kept, recipients)

    def indexed(self, kept: Kept, offset: int, recipients: int = 1) -> None:
        """So many are rows of the index now; their segment is needed for them as before."""
        message = kept.messages[offset]
        message.left -= recipients
        message.indexed += recipients
        self._look_at(kept, offset, message)

    def _look_at(self, kept: Kept, offset: int, message: Message) -> None:
        """Nothing is remembered of a message in the index, but the body file that is to go with its last recipient."""
        if message.left:
            return
        if message.body is None:
            del kept.messages[offset]
        elif not message.indexed:
            del kept.messages[offset]
            self._remove_body(message.body)

    def _remove_body(self, number: int) -> None:
        keeper = self.keeper
        keeper.afterwards(lambda: keeper.remove_body(number))

    @property
    def in_hand(self) -> int:
        """Recipients with the shards."""
        return len(self._sent)


class _Countdown:
    """Calls `then` when all of its parts were called, and start()."""

    __slots__ = ("_left", "_then")

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then
        self._left = 1

    def add(self) -> Callable[[], object]:
        self._left += 1
        return self.start

    def start(self) -> None:
        self._left -= 1
        if not self._left:
            self._then()


def _nothing() -> None:
    return None


_ORDERED: dict[State, Failed | Deleted] = {
    State.BOUNCE: Failed(reply.BOUNCED_BY_OPERATOR, "by the operator's order"),
    State.DELETE: Deleted(),
}


class Acks:
    """Which results of a shard are durable, in their order: settle(n) of each; acked is called with the latest."""

    __slots__ = ("_acked", "_open")

    def __init__(self, acked: Callable[[int], object]) -> None:
        self._acked = acked
        self._open: deque[list[int]] = deque()

    def take(self, number: int) -> Callable[[], object]:
        entry = [number, 0]
        self._open.append(entry)

        def settled() -> None:
            entry[1] = 1
            last = None
            while self._open and self._open[0][1]:
                last = self._open.popleft()[0]
            if last is not None:
                self._acked(last)

        return settled
