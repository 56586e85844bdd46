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
from enum import Enum
from typing import Any, NamedTuple, Protocol

from fastsmtp import errors
from fastsmtp.admin.protocol import ENTRIES, Entry, brief_entries, description, entry_of
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.model import QueuedMessage
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Filter, Key, Row, State, matches, row_of

# Messages read from the journal before anything else has its turn on the loop.
READS = 50

_INDEXED = {"deferred": State.DUE, "held": State.HELD, "bouncing": State.BOUNCE, "deleting": State.DELETE}
_WANTED = {"hold": State.HELD, "bounce": State.BOUNCE, "delete": State.DELETE}


class InHand(NamedTuple):
    """A recipient that the dispatcher has in memory.

    is_under_way   a shard has it; else it waits for its turn
    """

    place: Place
    recipient: int
    site: str
    is_under_way: bool


class Whereabouts(Enum):
    """Where a recipient is now."""

    IN_HAND = 1
    INDEXED = 2
    OVER = 3


class Readable(Protocol):
    """A message of the queue: delivery.stored.StoredMessage."""

    @property
    def message(self) -> QueuedMessage: ...
    def pieces(self) -> AsyncIterator[bytes]: ...


class Hands(Protocol):
    """What the desk asks of the dispatcher; none of it waits."""

    def in_hand(self) -> Iterator[InHand]:
        """All of them, now: a snapshot, or read to its end without a wait in between."""

    def whereabouts(self, key: Key) -> Whereabouts:
        """IN_HAND, INDEXED (the dispatcher let go of it and deferred it), OVER (delivered, failed, deleted)."""

    def read(self, place: Place) -> Readable:
        """Raises errors.QueueDamaged, errors.StorageFailed."""

    def wake(self, filter: Filter) -> None:
        """Rows have become due; after a flush, sites that are left in peace are to be tried again."""


class Desk:
    """admin.server.Handler.  wall: seconds since 1970."""

    def __init__(self, index: DeferredIndex, hands: Hands, *, wall: Callable[[], float]) -> None:
        self._index = index
        self._hands = hands
        self._wall = wall

    async def entries(self, filter: Filter, state: str) -> AsyncIterator[list[Entry]]:
        hand = {_key(one): one.is_under_way for one in self._hands.in_hand()}
        if state not in _INDEXED:
            async for rows in self._fresh(filter):
                yield _named(rows, hand, state)
        if state in ("active", "waiting"):
            # Taken for another attempt: those few, not a million rows.
            keys = [key for key in hand if self._index.is_taken(key)]
            for at in range(0, len(keys), ENTRIES):
                some = await self._index.get(keys[at : at + ENTRIES])
                yield _named([row for row in some if matches(filter, row)], hand, state)
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
        now_ms = int(self._wall() * 1000)
        wanted = _WANTED.get(action)
        count = 0
        if wanted is not None:
            async for rows in self._fresh(filter):
                count += await self._pin(rows, wanted, now_ms)
        if action == "hold":
            count += await self._index.hold(filter)
        elif action == "release":
            count += await self._index.release(filter, now_ms)
        elif action == "flush":
            count += await self._index.flush(filter, now_ms)
        elif wanted is not None:
            count += await self._index.condemn(filter, wanted, now_ms)
        if count or action == "flush":
            self._hands.wake(filter)
        return count

    async def _pin(self, rows: list[Row], state: State, now_ms: int) -> int:
        if not rows:
            return 0
        await self._index.pin([row._replace(state=state, next_ms=now_ms) for row in rows])
        # What was let go of while that was written isn't anybody's now.
        over = [row.key for row in rows if self._hands.whereabouts(row.key) is Whereabouts.OVER]
        back = [row.key for row in rows if self._hands.whereabouts(row.key) is Whereabouts.INDEXED]
        if over:
            await self._index.finished(over)
        if back:
            self._index.give_back(back)
        return len(rows) - len(over)

    async def describe(self, id: str) -> dict[str, Any] | None:
        place = await self._place(id)
        return None if place is None else description(self._hands.read(place).message)

    async def message(self, id: str) -> AsyncIterator[bytes]:
        place = await self._place(id)
        if place is None:
            return
        stored = self._hands.read(place)
        if stored.message.prefix:
            yield stored.message.prefix
        async for piece in stored.pieces():
            yield piece

    async def counts(self) -> dict[str, int]:
        found = await self._index.counts()
        hand = {_key(one): one.is_under_way for one in self._hands.in_hand()}
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

    async def _fresh(self, filter: Filter) -> AsyncIterator[list[Row]]:
        """Rows for what is in hand and not in the index: it is read from the journal, as memory has only its place."""
        by_place: dict[Place, list[InHand]] = {}
        for one in self._hands.in_hand():
            if not self._index.is_taken(_key(one)):
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


def _key(one: InHand) -> Key:
    return Key(one.place.number, one.place.epoch, one.place.offset, one.recipient)


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
