"""What the owner of the queue looks after once a minute: a clock that was set back, and that nothing is stranded.

docs/queue.md, "When the clock jumps" and "Every message always has a next
event".  Rank 6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastsmtp import errors
from fastsmtp.delivery.dispatcher import Dispatcher
from fastsmtp.log import Log
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.keeper import Kept
from fastsmtp.queue.schedule import Patience, latest_ms
from fastsmtp.queue.watchdog import INTERVAL_S, Balance, Segment, Watchdog

# A row is due a little later than the schedule's latest when it was made a moment ago.
SLACK_MS = 1_000


class Rounds:
    """A task that goes its rounds until close().

    heal   gives recipients of a segment a next event; it is told how many have none, and gives how many have one now
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        index: DeferredIndex,
        *,
        patience: Patience,
        wall: Callable[[], float],
        log: Log,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[Exception], object],
        heal: Callable[[Kept, int], Awaitable[int]],
    ) -> None:
        self._heal = heal
        self._dispatcher = dispatcher
        self._index = index
        self._patience = patience
        self._wall = wall
        self._log = log
        self._loop = loop
        self._failed = failed
        self._dog = Watchdog()
        self.stranded = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._walk())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _walk(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.once()
            except (errors.StorageFull, errors.StorageFailed) as error:
                self._log.line("queue_failed", reason=str(error))
            except errors.QueueDamaged as error:
                self._failed(error)
                return

    async def once(self) -> None:
        """One round."""
        now_ms = int(self._wall() * 1000)
        count = await self._index.pull_in(latest_ms(self._patience, now_ms) + SLACK_MS)
        if count:
            self._log.line("clock_set_back", found=count)
        skipped = await self._index.skipped()
        if skipped:
            self.stranded += skipped
            self._log.line("stranded", found=skipped, healed=skipped, reason="due, and nobody's")
        keeper = self._dispatcher.keeper
        for (number, epoch), stranded in self._dog.look(await self._index.segments(self._balances)).items():
            self.stranded += stranded
            kept = keeper.segments.get(epoch)
            healed = 0 if kept is None else await self._heal(kept, stranded)
            self._log.line(
                "stranded", found=stranded, healed=healed, file=keeper.store.path(number),
                reason="accepted, and nobody's",
            )  # fmt: skip

    def _balances(self, indexed: dict[Segment, int]) -> dict[Segment, Balance]:
        """On the loop, in the moment when the index was counted: what came later is in neither."""
        found: dict[Segment, Balance] = {}
        taken: dict[int, int] = {}
        for key in self._index.taken_keys():
            taken[key.epoch] = taken.get(key.epoch, 0) + 1
        for epoch, kept in self._dispatcher.keeper.segments.items():
            segment = kept.number, epoch
            in_hand = sum(message.left for message in kept.messages.values())
            # A row that is in hand counts as that; what was written a moment ago may count twice, never not at all.
            waiting = indexed.get(segment, 0) - taken.get(epoch, 0)
            stranded = kept.open - in_hand - waiting
            if stranded > 0:
                found[segment] = Balance(kept.open, in_hand, waiting)
        return found
