"""Recipients that the watchdog found to be nobody's get a next event while the server runs.

What a start does with all segments is done with one: its records are read, the
done-log says who is finished, the index who waits, and of the rest whoever isn't
in hand is tried.  A message of which anything is in hand is left alone; the next
round comes back to it.

The order of the looks is what makes it safe: what is in hand, then the index,
then the done-log.  Who comes out of the index after the first look still had his
row at the second, or is finished, which the third tells.  Rank 6.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastsmtp._glance import destinations_of
from fastsmtp.delivery.dispatcher import Dispatcher
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.done import Outcome, entries
from fastsmtp.queue.keeper import Destinations, Keeper, Kept
from fastsmtp.queue.recovery import read_now


class Stranded(NamedTuple):
    """A message with recipients that nobody will look at; indexed: how many others are rows of the index."""

    offset: int
    size_bytes: int
    body: int | None
    destinations: Destinations
    pending: list[int]
    indexed: int


class Healer:
    """See the module's text."""

    def __init__(self, dispatcher: Dispatcher, index: DeferredIndex) -> None:
        self._dispatcher = dispatcher
        self._index = index

    async def heal(self, kept: Kept, stranded: int) -> int:
        """How many recipients of the segment have a next event again; stranded: how many haven't, by the books.

        Raises errors.StorageFull, errors.StorageFailed, errors.QueueDamaged.
        """
        keeper, file = self._dispatcher.keeper, self._index.file
        limit, in_hand = kept.at, set(kept.messages)
        # Whoever was let go of by now, the files know.
        await keeper.log.flush()
        rows = await self._index.call(lambda: list(file.keys_of(kept.number, kept.epoch)))
        files = keeper.log.done.files()
        found = await keeper.disk.run(_unfinished, keeper, kept, limit, in_hand, rows, files)
        if keeper.segments.get(kept.epoch) is not kept:
            return 0
        healed = 0
        counted = kept.open
        for one in found:
            if one.offset not in kept.messages:
                self._dispatcher.enter(kept, *one)
                healed += len(one.pending)
        # They are in the books already. Where there are more than that, the segment rather stays too long.
        kept.open = counted + max(healed - stranded, 0)
        return healed


def _unfinished(
    system: Any,
    keeper: Keeper,
    kept: Kept,
    limit: int,
    in_hand: set[int],
    rows: list[tuple[int, int]],
    files: list[int],
) -> list[Stranded]:
    """A job: messages before `limit` that aren't in hand, with recipients that are neither finished nor in rows."""
    outcomes: dict[tuple[int, int], Outcome] = {}
    for number in files:
        log = read_now(system, keeper.done_store, number)
        for _, payload in log.messages(system, keeper.done_store):
            for epoch, offset, recipient, outcome in entries(payload):
                if epoch == kept.epoch and outcomes.get((offset, recipient)) in (None, Outcome.DEFERRED):
                    outcomes[offset, recipient] = outcome
    waiting = set(rows)
    found: list[Stranded] = []
    mail = read_now(system, keeper.store, kept.number, limit)
    copies = mail.segments[0].kept
    for place, payload in mail.messages(system, keeper.store):
        offset = place.offset
        if offset in in_hand:
            continue
        try:
            body, destinations = destinations_of(payload)
        except ValueError:
            # Reported when it was read first.
            continue
        # Of a copy only those count of whom the done-log says so.
        open_ones = (Outcome.DEFERRED,) if offset in copies else (None, Outcome.DEFERRED)
        left = [one for one in range(len(destinations)) if outcomes.get((offset, one)) in open_ones]
        pending = [one for one in left if (offset, one) not in waiting]
        if pending:
            found.append(
                Stranded(offset, place.size_bytes, body, destinations, pending, len(left) - len(pending))
            )
    return found
