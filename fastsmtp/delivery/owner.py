"""The owner of the queue: opens what an earlier life left, and joins keeper, dispatcher, index and desk.

    owner = Owner(place, ...)
    await owner.start()          everything is read; workers and shards are served
    await owner.drain(); await owner.close()

docs/queue.md, "Start-up", has the order of it.  Rank 6.
"""

from __future__ import annotations

import asyncio
import os
import random as random_module
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from fastsmtp import errors
from fastsmtp._glance import destinations_of
from fastsmtp._journal import Progress, Writer
from fastsmtp._payload import decode
from fastsmtp._record import DONE
from fastsmtp.delivery.afterwards import Afterwards, Ids
from fastsmtp.delivery.compact import Compactor
from fastsmtp.delivery.desk import Desk
from fastsmtp.delivery.dispatcher import Dispatcher
from fastsmtp.delivery.hands import DispatcherHands
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
from fastsmtp.queue.done import Done, DoneLog, read_done
from fastsmtp.queue.dsn import Reporter
from fastsmtp.queue.fileheader import Purpose
from fastsmtp.queue.index import NAME, Opened
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.keeper import Destinations, Keeper, is_held
from fastsmtp.queue.meters import DONE as DONE_LOG
from fastsmtp.queue.meters import OWN, JournalMeter
from fastsmtp.queue.place import Place
from fastsmtp.queue.reconcile import Reconciled, Reconciler
from fastsmtp.queue.recovery import Fault, Recovery, recover
from fastsmtp.queue.schedule import Patience
from fastsmtp.queue.store import DONE_SEGMENT_BYTES, Segment, Space, Store

BODIES = "bodies"


class Found(NamedTuple):
    """A message with something left to do, found at the start."""

    place: Place
    body: int | None
    destinations: Destinations
    pending: list[int]
    indexed: int


class Opening(NamedTuple):
    """What the files say."""

    mail: Recovery
    log: Recovery
    done: Done
    opened: Opened
    reconciled: Reconciled
    found: list[Found]
    indexed: dict[tuple[int, int], int]
    named: set[int]


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
    took_s       how long the start took
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
    ) -> None:
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

    async def start(self) -> None:
        """Raises errors.QueueTooNew, errors.StorageFull, errors.StorageFailed, OSError."""
        began = self._clock()
        loop = self._loop
        opening = await loop.run_in_executor(None, self._read_all)
        self.index.start()
        self._done_journal = Journal(
            LocalSource(self._done_store, self._disk), loop=loop, clock=self._clock,
            writer=Writer(), kind=DONE, seals=opening.log.seals, meter=self._meter(DONE_LOG),
        )  # fmt: skip
        await self._done_journal.start()
        self.log = DoneLog(
            self._done_journal, opening.done, loop=loop, clock=self._clock, report=self._done_failed,
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
        self._enter(opening)
        self._tell_start(opening, began)
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

    def _read_all(self) -> Opening:
        """Blocking: the log of what is done, the journal, the index, and what they make together."""
        self.bodies.count(os)
        log = recover(os, self._done_store)
        done = read_done(os, self._done_store, log)
        in_use = dict(self._progress.read(number)[1:] for number in range(self._progress.workers))
        mail = recover(os, self.store, in_use=in_use, ends=done.ends, held=is_held)
        epochs = {segment.header.epoch for segment in mail.segments}
        for number in done.keep_only(epochs):
            done.forget_file(number)
            self._done_store.retire(os, number)
        opened = self.index.file.open()
        now_ms = int(self._wall() * 1000)
        reconciler = Reconciler(self.index.file, done, now_ms=now_ms, is_new=bool(opened.quarantine))
        found: list[Found] = []
        named: set[int] = set()
        spooled: dict[Place, Found] = {}
        kept = {segment.header.epoch: segment.kept for segment in mail.segments}
        for place, payload in mail.messages(os, self.store):
            try:
                body, destinations = destinations_of(payload)
            except ValueError as error:
                # A later layout stops the start, by name; anything else is damage.
                self._undecodable(mail, place, payload, error)
                continue
            pending = reconciler.record(
                place, len(destinations), lambda payload=payload: decode(payload),  # type: ignore[misc]
                is_copy=place.offset in kept[place.epoch],
            )  # fmt: skip
            if place.offset in kept[place.epoch]:
                pending = []
            if body is not None:
                named.add(body)
            if pending or body is not None:
                one = Found(place, body, destinations, pending, 0)
                found.append(one)
                if body is not None:
                    spooled[place] = one
        self.bodies.refuse_later(os, named)
        reconciled = reconciler.finish(mail)
        indexed = self.index.file.segments()
        if spooled:
            found = self._with_indexed(found, spooled)
        return Opening(mail, log, done, opened, reconciled, found, indexed, named)

    def _undecodable(self, mail: Recovery, place: Place, payload: bytes, error: ValueError) -> None:
        try:
            decode(payload)
        except errors.QueueDamaged as damage:
            mail.fault(self.store, place, str(damage))
        else:
            mail.fault(self.store, place, str(error))

    def _with_indexed(self, found: list[Found], spooled: dict[Place, Found]) -> list[Found]:
        """Messages with a body file, and how many of their recipients are in the index: it goes with the last."""
        counts: dict[tuple[int, int], int] = {}
        for number, epoch in {(place.number, place.epoch) for place in spooled}:
            for offset, _ in self.index.file.keys_of(number, epoch):
                counts[epoch, offset] = counts.get((epoch, offset), 0) + 1
        found = [
            one._replace(indexed=counts.get((one.place.epoch, one.place.offset), 0))
            if one.body is not None
            else one
            for one in found
        ]
        # A record and its copy name the same file: it goes with the one of them that has something left.
        needed = {one.body for one in found if one.pending or one.indexed}
        return [one for one in found if one.pending or one.indexed or one.body not in needed]

    def _enter(self, opening: Opening) -> None:
        keeper, mail = self.keeper, opening.mail
        for scanned in mail.segments:
            kept = keeper.adopt(scanned, None if scanned.is_in_use else scanned.end)
            kept.is_unreadable = scanned.header.number in mail.unreadable
        for seal in mail.seals:
            keeper.seal(seal)
        rest = dict(opening.indexed)
        for one in opening.found:
            place = one.place
            kept = keeper.segments[place.epoch]
            self.dispatcher.enter(
                kept, place.offset, place.size_bytes, one.body, one.destinations, one.pending, one.indexed
            )
            if one.indexed:
                rest[place.number, place.epoch] -= one.indexed
        for (_, epoch), rows in rest.items():
            keeper.segments[epoch].open += rows
        opening.done.forget_outcomes()
        self._sweep(opening)
        for kept in list(keeper.segments.values()):
            if kept.end is not None:
                keeper.look_at(kept)

    def _sweep(self, opening: Opening) -> None:
        """Body files that no record names, and no worker has open."""
        if any(scanned.is_in_use for scanned in opening.mail.segments):
            self.desk.wants_sweep = True
        else:
            self._disk.forget(_remove_orphans, self.bodies, opening.named)

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

    def _tell_start(self, opening: Opening, began: float) -> None:
        for fault in (*opening.mail.faults, *opening.log.faults):
            self._tell(fault)
        if opening.opened.quarantine:
            self._log.line(
                "queue_damaged", file=self.index.file.path, reason="the deferred index was damaged and made anew",
                quarantine=opening.opened.quarantine,
            )  # fmt: skip
        for row in opening.reconciled.lost:
            self._log.line(
                "queue_damaged", file=self.store.path(row.place.number), offset=row.place.offset, id=row.id,
                rcpt=row.address, reason="a deferred recipient without its message",
            )  # fmt: skip
        self.took_s = self._clock() - began
        self._log.line(
            "queue_open",
            segments=len(opening.mail.segments),
            pending=sum(len(one.pending) for one in opening.found),
            deferred=sum(opening.indexed.values()),
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
