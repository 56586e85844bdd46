"""Segments with little left in them are freed: what waits in the index is copied, and the rows follow.

For each record: the copy (kind 5) is synced; then its rows are copied, and synced; then the done-log says that
the old one is over and the copy deferred, and with its sync the copy counts; then the old rows go.  A crash in
between leaves a copy, or rows, that start-up takes away: nothing lost, nothing twice, nothing let go.  Rank 6.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from fastsmtp import errors
from fastsmtp._glance import destinations_of
from fastsmtp._record import KEPT
from fastsmtp.delivery.afterwards import Afterwards
from fastsmtp.log import Log
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.done import Outcome, pack
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.keeper import Keeper, Kept
from fastsmtp.queue.place import Place
from fastsmtp.queue.recovery import read_record
from fastsmtp.queue.row import Key

# How often segments are looked at, and how much of one may be left at most: copying a quarter frees three.
INTERVAL_S = 60.0
SHARE = 4
RETRY_S = 1.0


class Compactor:
    """See the module's text.

    journal   our own, where copies go
    failed    called with what must not happen; nothing is looked at any more then
    copied    records so far;  still  segments at the last look of which only rows of the index are left
    """

    def __init__(
        self,
        keeper: Keeper,
        index: DeferredIndex,
        afterwards: Afterwards,
        *,
        journal: Callable[[], Awaitable[Journal]],
        disk: ThreadDisk,
        log: Log,
        failed: Callable[[Exception], object],
    ) -> None:
        self._keeper = keeper
        self._index = index
        self._afterwards = afterwards
        self._journal = journal
        self._disk = disk
        self._log = log
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self.copied = 0
        self.still = 0

    def start(self) -> None:
        """Look every interval, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._walk())

    async def close(self) -> None:
        """Where it stands: what that leaves is what a crash would."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _walk(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.look()
            except errors.TemporaryError as error:
                # No room for copies, or a disk that refuses: they stay where they are, and are looked at again.
                self._log.line("queue_failed", reason=str(error))
            except Exception as error:  # noqa: BLE001 - ours, or an index that is damaged: the owner knows what to do
                self._failed(error)
                return

    async def look(self) -> int:
        """Once; how many records were copied."""
        keeper = self._keeper
        copied = still = 0
        keeper.is_retiring = False
        try:
            for kept in list(keeper.segments.values()):
                if _is_still(kept):
                    still += 1
                    copied += await self._compact(kept)
        finally:
            keeper.is_retiring = True
            self.copied += copied
            self.still = still
            for kept in list(keeper.segments.values()):
                keeper.look_at(kept)
        return copied

    async def _compact(self, kept: Kept) -> int:
        found = await self._index.call(self._index.file.places_in, kept.number, kept.epoch)
        if not found or SHARE * sum(place.size_bytes for place, _ in found) > kept.size_bytes:
            return 0
        journal = await self._journal()
        copied = 0
        for place, recipients in found:
            try:
                payload = await self._disk.run(_payload, self._keeper, kept.fd, place)
            except (errors.QueueDamaged, errors.StorageFailed):
                # Its next attempt finds that too, and reports it.
                continue
            new = await journal.append([payload], kind=KEPT)
            copied += await self._follow(kept, place, new, recipients, len(destinations_of(payload)[1]))
        return copied

    async def _follow(self, kept: Kept, old: Place, new: Place, recipients: list[int], count: int) -> int:
        keeper, index = self._keeper, self._index
        async with self._afterwards.taking:
            if any(index.is_taken(Key(old.number, old.epoch, old.offset, one)) for one in recipients):
                # It has become due meanwhile: the copy means nothing, and the next look comes back to it.
                return 0
            waiting = set(recipients)
            over = b"".join(pack(old.epoch, old.offset, one, Outcome.DELETED) for one in recipients)
            said = b"".join(
                pack(new.epoch, new.offset, one, Outcome.DEFERRED if one in waiting else Outcome.DELETED)
                for one in range(count)
            )
            await index.copy(old, new)
            keeper.log.add_entries(new.epoch, said)
            keeper.log.add_entries(old.epoch, over)
            while True:
                try:
                    await keeper.log.flush()
                    break
                except errors.TemporaryError as error:
                    # They are kept and tried again; nothing is delivered meanwhile either.
                    self._log.line("queue_failed", reason=str(error))
                    await asyncio.sleep(RETRY_S)
            await index.remove_record(old)
            target = keeper.segments[new.epoch]
            target.open += len(recipients)
            message = kept.messages.pop(old.offset, None)
            if message is not None:
                target.messages[new.offset] = message
            keeper.over(kept, len(recipients))
        return 1


def _is_still(kept: Kept) -> bool:
    """Written and read to its end, something is left, and all of that is in the index."""
    return (
        kept.end is not None
        and kept.at >= kept.end
        and bool(kept.open)
        and not any(message.left for message in kept.messages.values())
    )


def _payload(system: Any, keeper: Keeper, fd: int, place: Place) -> bytes:
    """A job."""
    return read_record(os, fd, place, keeper.store.path(place.number))
