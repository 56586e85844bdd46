"""The owner of the queue: opens what an earlier life left, and joins keeper, dispatcher, index and desk.

    owner = Owner(place, ...)
    await owner.start()          workers are served
    await owner.known()          everything is read, shards are served too
    await owner.drain(); await owner.close()

Where little is there to be read, start() does it; else that goes on in a thread
beside the workers, which need files to write to and nothing of what is old.
What they write meanwhile is read after it.

docs/queue.md, "Start-up", has the order of it.  Rank 6.
"""

from __future__ import annotations

import asyncio
import os
import random as random_module
import socket
import time
from collections.abc import Callable

from fastsmtp import errors
from fastsmtp._journal import Progress, Writer
from fastsmtp._record import DONE
from fastsmtp.delivery.afterwards import Afterwards, Ids
from fastsmtp.delivery.compact import Compactor
from fastsmtp.delivery.desk import Desk
from fastsmtp.delivery.dispatcher import Dispatcher
from fastsmtp.delivery.hands import DispatcherHands
from fastsmtp.delivery.healer import Healer
from fastsmtp.delivery.opening import Found, Opening, Stopped
from fastsmtp.delivery.rounds import Rounds
from fastsmtp.delivery.sites import Sites
from fastsmtp.delivery.stored import Reader
from fastsmtp.delivery.together import Together
from fastsmtp.log import Log
from fastsmtp.metrics import Sheet
from fastsmtp.queue import frames
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.done import Done, DoneLog
from fastsmtp.queue.dsn import Reporter
from fastsmtp.queue.fileheader import Purpose
from fastsmtp.queue.index import NAME
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.keeper import Keeper
from fastsmtp.queue.meters import DONE as DONE_LOG
from fastsmtp.queue.meters import OWN, JournalMeter
from fastsmtp.queue.recovery import Fault
from fastsmtp.queue.schedule import Patience
from fastsmtp.queue.store import DONE_SEGMENT_BYTES, Segment, Space, Store

BODIES = "bodies"
# Of journal, done-log and index: what is read in a second or so is read before mail is taken.
DEEP_BYTES = 268_435_456
# Of those read, entered before anything else has its turn on the loop: some 10 ms.
ENTERED = 1_000


def stores(directory: str, version: str, space: Space | None = None) -> tuple[Store, Store, Bodies]:
    """(mail, done-log, bodies) of a queue."""
    wall, random = time.time, os.urandom
    mail = Store(directory, version=version, wall=wall, random=random, space=space)
    done = Store(
        directory, purpose=Purpose.DONE, size_bytes=DONE_SEGMENT_BYTES, version=version, wall=wall, random=random
    )  # fmt: skip
    bodies = Bodies(f"{directory}/{BODIES}", version=version, wall=wall, random=random, space=space)
    return mail, done, bodies


class Owner:
    """See the module's text.

    directory    of the queue; it and its bodies/ are there
    sock         listening
    progress     shared with the workers; its last place is ours
    shards       how many delivery processes
    users        role -> uid
    free_bytes   the low-water mark
    place_for    domain -> where a report goes
    failed       called with an error after which the process can't go on
    metrics      where journals are counted
    deep_bytes   a queue with more is read while mail is taken
    took_s       how long reading took
    """

    def __init__(
        self,
        directory: str,
        *,
        sock: socket.socket,
        progress: Progress,
        shards: int,
        users: dict[frames.Role, int],
        free_bytes: int,
        patience: Patience,
        reporter: Reporter,
        ids: Ids,
        place_for: Callable[[bytes], str],
        version: str,
        log: Log,
        loop: asyncio.AbstractEventLoop,
        failed: Callable[[Exception], object],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        metrics: Sheet | None = None,
        deep_bytes: int = DEEP_BYTES,
    ) -> None:
        self._deep_bytes = deep_bytes
        self._metrics = metrics
        self.took_s = 0.0
        self.directory = directory
        self._sock = sock
        self._progress = progress
        self._users = users
        self._patience = patience
        self._reporter = reporter
        self._ids = ids
        self._place_for = place_for
        self._version = version
        self._log = log
        self._loop = loop
        self._failed = failed
        self._wall = wall
        self._clock = clock
        self.space = Space(directory, free_bytes)
        self.store, self._done_store, self.bodies = stores(directory, version, self.space)
        self._disk = ThreadDisk()
        self._own_number = progress.workers - 1
        self._sites = Sites(shards)
        self._own: Journal | None = None
        self._opening_own = asyncio.Lock()
        self.index = DeferredIndex(f"{directory}/{NAME}", loop=loop, version=version)

        self._opening = Opening(
            store=self.store, done_store=self._done_store, bodies=self.bodies, index=self.index.file,
            progress=progress, wall=wall,
        )  # fmt: skip
        self._reading: asyncio.Task[None] | None = None
        self._make_parts()

    def _make_parts(self) -> None:
        """Nothing of them knows anything yet."""
        loop = self._loop
        self._done_journal = Journal(
            LocalSource(self._done_store, self._disk), loop=loop, clock=self._clock,
            writer=Writer(), kind=DONE, meter=self._meter(DONE_LOG),
        )  # fmt: skip
        self.log = DoneLog(
            self._done_journal, Done(), loop=loop, clock=self._clock, report=self._done_failed,
            synced=self._log_synced,
        )  # fmt: skip
        self.keeper = Keeper(
            store=self.store, done_store=self._done_store, bodies=self.bodies, disk=self._disk, log=self.log,
            current_done=self._current_done, report=self._tell, failed=self._done_failed,
        )  # fmt: skip
        self.dispatcher = Dispatcher(self.keeper, self._sites)
        self.reader = Reader(self.store, self.bodies, self._disk)
        self.desk = Desk(
            self._sock, keeper=self.keeper, dispatcher=self.dispatcher, progress=self._progress,
            space=self.space, disk=self._disk, users=self._users, own_number=self._own_number, log=self._log,
            loop=loop, ticked=self.reader.tidy,
        )  # fmt: skip
        self.afterwards = Afterwards(
            self.dispatcher, self.index, reader=Reader(self.store, self.bodies, self._disk),
            reporter=self._reporter, ids=self._ids, journal=self._own_journal, place_for=self._place_for,
            patience=self._patience, disk=self._disk, wall=self._wall,
            random=random_module.SystemRandom().random, log=self._log, loop=loop, pump=self.desk.pump_soon,
            failed=self._failed,
        )  # fmt: skip
        self.together = Together(self.afterwards, loop=loop)
        self.dispatcher.cases = self.together
        self.hands = DispatcherHands(self.dispatcher, self.afterwards, self.desk, self.reader)
        self.rounds = Rounds(
            self.dispatcher, self.index, patience=self._patience, wall=self._wall, log=self._log, loop=loop,
            failed=self._failed,
            heal=Healer(self.dispatcher, self.index).heal,
        )  # fmt: skip
        self.compactor = Compactor(
            self.keeper,
            self.index,
            self.afterwards,
            journal=self._own_journal,
            disk=self._disk,
            log=self._log,
            failed=self._failed,
        )

    async def start(self) -> None:
        """Raises errors.QueueTooNew, errors.StorageFull, errors.StorageFailed, OSError."""
        began = self._clock()
        size_bytes = await self._loop.run_in_executor(None, self._opening.look)
        if size_bytes <= self._deep_bytes:
            await self._read(began)
            return
        self._log.line("queue_reading", size=size_bytes)
        self.desk.hand_out()
        self._reading = self._loop.create_task(self._read_beside(began))

    async def known(self) -> None:
        """Until the queue has been read."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def _read_beside(self, began: float) -> None:
        try:
            await self._read(began)
        except Stopped:
            return
        except Exception as error:  # noqa: BLE001 - what was to be read waits for another start
            self._failed(error)

    async def _read(self, began: float) -> None:
        found = await self._loop.run_in_executor(None, self._opening.read)
        self.index.start()
        self._done_journal.add_seals(found.log.seals)
        await self._done_journal.start()
        self.log.done = found.done
        await self._enter(found)
        self._tell_start(found, began)
        self.afterwards.start()
        self.rounds.start()
        self.compactor.start()
        self.desk.open()

    async def drain(self) -> None:
        """Nothing new goes out; the shards have ended, or go on as they like."""
        self.desk.stop()

    async def close(self) -> None:
        """Everything that is known becomes durable, and the files are closed."""
        self.desk.stop()
        self._opening.stop()
        await self.known()
        await self.rounds.close()
        await self.compactor.close()
        self.together.close()
        await self.afterwards.close()
        try:
            await asyncio.wait_for(self.log.flush(), 5.0)
        except (errors.TemporaryError, TimeoutError) as error:
            self._done_failed(error)
        self.log.stop()
        self.desk.close()
        if self._own is not None:
            await self._own.close()
        await self._done_journal.close()
        await self.index.close()
        self.reader.close()
        self.keeper.close()
        self._disk.close()

    # --- start-up ---------------------------------------------------------------------------------

    async def _enter(self, found: Found) -> None:
        keeper, mail = self.keeper, found.mail
        # Of a segment that is entered in part nobody may think that all of it is over.
        keeper.is_retiring = False
        for scanned in mail.segments:
            kept = keeper.adopt(scanned, None if scanned.is_in_use else scanned.end)
            kept.is_unreadable = scanned.header.number in mail.unreadable
        for seal in mail.seals:
            keeper.seal(seal)
        rest = dict(found.indexed)
        for count, one in enumerate(found.messages, 1):
            place = one.place
            kept = keeper.segments[place.epoch]
            self.dispatcher.enter(
                kept, place.offset, place.size_bytes, one.body, one.destinations, one.pending, one.indexed
            )
            if one.indexed:
                rest[place.number, place.epoch] -= one.indexed
            if self._reading is not None and count % ENTERED == 0:
                await asyncio.sleep(0)
        for (_, epoch), rows in rest.items():
            keeper.segments[epoch].open += rows
        found.done.forget_outcomes()
        self._sweep(found)
        keeper.is_retiring = True
        for kept in list(keeper.segments.values()):
            if kept.end is not None:
                keeper.look_at(kept)

    def _sweep(self, found: Found) -> None:
        """Body files that no record names, and no worker has open."""
        if self._reading is not None or any(scanned.is_in_use for scanned in found.mail.segments):
            # Files may have been handed out, and records written that name them.
            self.desk.wants_sweep = True
        else:
            self._disk.forget(_remove_orphans, self.bodies, found.named)

    # --- our own journal --------------------------------------------------------------------------

    async def _own_journal(self) -> Journal:
        """Made when it is needed first: reports are rare."""
        async with self._opening_own:
            if self._own is None:
                journal: Journal = Journal(
                    _OwnSource(self.keeper, self.desk), loop=self._loop, clock=self._clock,
                    writer=Writer(progress=self._progress, worker=self._own_number),
                    synced=self.desk.look_soon, meter=self._meter(OWN),
                )  # fmt: skip
                await journal.start()
                self._own = journal
        return self._own

    def _meter(self, journal: str) -> JournalMeter | None:
        return None if self._metrics is None else JournalMeter(self._metrics, journal)

    def now_ms(self) -> int:
        return int(self._wall() * 1000)

    def _log_synced(self) -> None:
        self.keeper.log_synced()

    def _current_done(self) -> int:
        segment = self._done_journal.segment
        return 0 if segment is None else segment.number

    # --- words ------------------------------------------------------------------------------------

    def _tell(self, fault: Fault) -> None:
        self._log.line(
            "queue_damaged" if fault.is_damage else "queue_torn", file=fault.file, offset=fault.offset,
            size=fault.size_bytes, reason=fault.reason, quarantine=fault.quarantine or None,
        )  # fmt: skip

    def _done_failed(self, error: Exception) -> None:
        self._log.line("queue_failed", reason=str(error))

    def _tell_start(self, found: Found, began: float) -> None:
        for fault in (*found.mail.faults, *found.log.faults):
            self._tell(fault)
        if found.opened.quarantine:
            self._log.line(
                "queue_damaged", file=self.index.file.path, reason="the deferred index was damaged and made anew",
                quarantine=found.opened.quarantine,
            )  # fmt: skip
        for row in found.reconciled.lost:
            self._log.line(
                "queue_damaged", file=self.store.path(row.place.number), offset=row.place.offset, id=row.id,
                rcpt=row.address, reason="a deferred recipient without its message",
            )  # fmt: skip
        self.took_s = self._clock() - began
        self._log.line(
            "queue_open",
            segments=len(found.mail.segments),
            pending=sum(len(one.pending) for one in found.messages),
            deferred=sum(found.indexed.values()),
            took_ms=round(self.took_s * 1000),
        )


class _OwnSource:
    """Segments for our own journal."""

    def __init__(self, keeper: Keeper, desk: Desk) -> None:
        self._keeper = keeper
        self._desk = desk

    async def next(self) -> Segment:
        _, segment = await self._keeper.give(self)
        return segment

    def release(self, segment: Segment, end: int) -> None:
        os.close(segment.fd)
        self._desk.released(segment.number, segment.epoch, end, self)


def _remove_orphans(system: object, bodies: Bodies, named: set[int]) -> None:
    bodies.remove_orphans(system, named)
