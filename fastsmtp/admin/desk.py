"""The queue of a running server as the operator sees it: what waits in the index, and what the dispatcher has in hand.

    desk = Desk(index, hands, wall=time.time)
    server = AdminServer(desk, directory, ...)

Whatever the operator wants is written into the index and synced before it is
answered; also of a recipient that is in the dispatcher's hands for its first
attempt, which gets a row for that (DeferredIndex.pin).  So nothing that was
answered is forgotten in a crash, and an attempt that is under way is finished
first: an operator can't unsend.  Rank 9.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from fastsmtp import errors
from fastsmtp.admin.protocol import ENTRIES, Entry, brief_entries, description, entry_of
from fastsmtp.delivery.hands import InHand
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.model import QueuedMessage
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Filter, Key, Row, State, matches, row_of

# Messages read from the journal before anything else has its turn on the loop.
READS = 50

_INDEXED = {"deferred": State.DUE, "held": State.HELD, "bouncing": State.BOUNCE, "deleting": State.DELETE}
_WANTED = {"hold": State.HELD, "bounce": State.BOUNCE, "delete": State.DELETE}


class Readable(Protocol):
    """A message of the queue: delivery.stored.StoredMessage."""

    @property
    def message(self) -> QueuedMessage: ...
    def pieces(self) -> AsyncIterator[bytes]: ...


class Hands(Protocol):
    """What the desk asks of the dispatcher; none of it waits."""

    def ready(self) -> None:
        """Raises errors.QueueUnread while it is not known what is in the queue."""

    def in_hand(self) -> Iterator[InHand]:
        """All of them, now: a snapshot, or read to its end without a wait in between."""

    async def settled(self) -> None:
        """Until whatever the dispatcher has let go of by now is delivered, reported or deferred, durably."""

    def read(self, place: Place) -> Readable:
        """Raises errors.QueueDamaged, errors.StorageFailed."""

    def wake(self, *, is_flush: bool) -> None:
        """Rows have become due; after a flush, sites that pause are tried all the same."""


class Desk:
    """admin.server.Handler.  wall: seconds since 1970."""

    def __init__(self, index: DeferredIndex, hands: Hands, *, wall: Callable[[], float]) -> None:
        self._index = index
        self._hands = hands
        self._wall = wall

    async def entries(self, filter: Filter, state: str) -> AsyncIterator[list[Entry]]:
        self._hands.ready()
        hand = {one.key: one.is_under_way for one in self._hands.in_hand()}
        if state not in _INDEXED:
            async for rows in self._fresh(filter):
                yield _named(rows, hand, state)
        if state in ("active", "waiting"):
            # Taken for another attempt: those few, not a million rows.
            async for rows in self._taken(filter):
                yield _named(rows, hand, state)
            return
        filter = filter._replace(state=_INDEXED.get(state))
        after = 0
        while True:
            page, after = await self._index.brief(filter, after, ENTRIES)
            entries = brief_entries(page, hand)
            yield [one for one in entries if one.state == state] if state else entries
            if not after:
                return

    async def act(self, action: str, filter: Filter) -> int:
        self._hands.ready()
        now_ms = int(self._wall() * 1000)
        wanted = _WANTED.get(action)
        count = 0
        if wanted is not None:
            # Whatever is in hand, also for another attempt: what waits for its turn then isn't tried.
            async for rows in self._fresh(filter):
                count += await self._pin(rows, wanted, now_ms)
            async for rows in self._taken(filter):
                count += await self._pin([row for row in rows if row.state < wanted], wanted, now_ms)
        if action == "hold":
            count += await self._index.hold(filter)
        elif action == "release":
            count += await self._index.release(filter, now_ms)
        elif action == "flush":
            count += await self._index.flush(filter, now_ms)
        elif wanted is not None:
            count += await self._index.condemn(filter, wanted, now_ms)
        if count or action == "flush":
            self._hands.wake(is_flush=action == "flush")
        return count

    async def _pin(self, rows: list[Row], state: State, now_ms: int) -> int:
        if not rows:
            return 0
        wanted = [row._replace(state=state, next_ms=now_ms) for row in rows]
        late = await self._index.pin(wanted, lambda: {one.key for one in self._hands.in_hand()})
        if not late:
            return len(rows)
        # Let go of while that was written: what was deferred has another time in its row, the others are over.
        await self._hands.settled()
        found = await self._index.get(late)
        over = [row.key for row in found if not row.attempts and row.next_ms == now_ms]
        if over:
            await self._index.finished(over)
        return len(rows) - len(over)

    async def describe(self, id: str) -> dict[str, Any] | None:
        self._hands.ready()
        place = await self._place(id)
        return None if place is None else description(self._hands.read(place).message)

    async def message(self, id: str) -> AsyncIterator[bytes]:
        self._hands.ready()
        place = await self._place(id)
        if place is None:
            return
        stored = self._hands.read(place)
        if stored.message.prefix:
            yield stored.message.prefix
        async for piece in stored.pieces():
            yield piece

    async def counts(self) -> dict[str, int]:
        self._hands.ready()
        found = await self._index.counts()
        hand = {one.key: one.is_under_way for one in self._hands.in_hand()}
        active = sum(hand.values())
        # Those in hand are in the index too, but for the ones that are tried for the first time.
        taken = sum(self._index.is_taken(key) for key in hand)
        fresh = {(key.epoch, key.offset) for key in hand if not self._index.is_taken(key)}
        return {
            "active": active,
            "waiting": len(hand) - active,
            "deferred": max(found.due - taken, 0),
            "held": found.held,
            "messages": found.messages + len(fresh),
        }

    async def _place(self, id: str) -> Place | None:
        filter = Filter(ids=(id,))
        page = await self._index.find(filter, limit=1)
        if page.rows:
            return page.rows[0].place
        async for rows in self._fresh(filter):
            if rows:
                return rows[0].place
        return None

    async def _taken(self, filter: Filter) -> AsyncIterator[list[Row]]:
        """Rows of the index that are in hand."""
        keys = [key for key in [one.key for one in self._hands.in_hand()] if self._index.is_taken(key)]
        for at in range(0, len(keys), ENTRIES):
            found = await self._index.get(keys[at : at + ENTRIES])
            yield [row for row in found if matches(filter, row)]

    async def _fresh(self, filter: Filter) -> AsyncIterator[list[Row]]:
        """Rows for what is in hand and not in the index: it is read from the journal, as memory has only its place."""
        by_place: dict[Place, list[InHand]] = {}
        for one in self._hands.in_hand():
            if not self._index.is_taken(one.key):
                by_place.setdefault(one.place, []).append(one)
        found: list[Row] = []
        for count, (place, some) in enumerate(by_place.items(), 1):
            try:
                message = self._hands.read(place).message
            except (errors.QueueDamaged, errors.StorageFailed):
                # Over meanwhile, and its segment used again; or damaged, which the dispatcher will report.
                continue
            for one in some:
                row = row_of(place, message, one.recipient, next_ms=0)._replace(site=one.site)
                if matches(filter, row):
                    found.append(row)
            if count % READS == 0:
                yield found
                found = []
                await asyncio.sleep(0)
        yield found


def _named(rows: list[Row], hand: dict[Key, bool], state: str) -> list[Entry]:
    entries = []
    for row in rows:
        name = ""
        if row.state is State.DUE and row.key in hand:
            name = "active" if hand[row.key] else "waiting"
        entry = entry_of(row, name)
        if not state or entry.state == state:
            entries.append(entry)
    return entries
