"""The power fails anywhere: no accepted message is lost, none is torn, none comes from nowhere.

Seeded runs over tests/fakes/files.py, with failing writes and syncs in half of
them, body files, deliveries, and segments that are used again.  Each run is cut
at every step, and each cut loses and tears what was not synced.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastsmtp import _journal, _record, errors
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.done import Done, DoneLog, Outcome, read_done
from fastsmtp.queue.fileheader import SIZE_BYTES, Purpose
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.model import BodyReference
from fastsmtp.queue.place import Place, Seal
from fastsmtp.queue.recovery import Recovery, recover
from fastsmtp.queue.store import Store
from tests.fakes.files import Files, Tree, images

QUEUE = "/queue"
BODIES = "/queue/bodies"
# make crash asks for many more.
SEEDS = range(int(os.environ.get("CRASH_SEEDS", "40")))


def stores(dice: random.Random) -> tuple[Store, Store, Bodies]:
    common: dict[str, Any] = {"version": "0.1.0", "wall": lambda: 1_800_000_000.0, "random": dice.randbytes}
    mail = Store(QUEUE, size_bytes=32_768, spare=2, **common)
    done = Store(QUEUE, purpose=Purpose.DONE, size_bytes=16_384, **common)
    return mail, done, Bodies(BODIES, **common)


def content(name: str, size: int) -> bytes:
    """A record that says its own name and checksum."""
    text = f"{name} ".encode() + random.Random(name).randbytes(size)
    return hashlib.sha256(text).digest() + text


def name_of(payload: bytes) -> str:
    """The name in a record; fails for one that is torn or was never written."""
    assert hashlib.sha256(payload[32:]).digest() == payload[:32]
    return payload[32:].split(b" ", 1)[0].decode()


class Run:
    """One life of a queue, seeded.  What it was told goes into the trace as marks.

    tree    what an earlier life left on the disk; names of messages begin with the number of the life
    """

    def __init__(
        self,
        seed: int,
        forgotten: Callable[[str], bool] | None = None,
        tree: Tree | None = None,
        life: int = 0,
    ) -> None:
        self.dice = random.Random(f"{seed} {life}")
        self.life = life
        self.files = Files(tree, fail=self._fail if (seed + life) % 2 else None)
        if forgotten is not None:
            self.files.forgotten = lambda target: forgotten(
                target if isinstance(target, str) else self.files.path_of(target)
            )
        if tree is None:
            self.files.mkdir(QUEUE)
            self.files.mkdir(BODIES)
        self.is_failing = False
        self.mail, self.done_store, self.bodies = stores(self.dice)
        self.clock = 0.0
        self.alive: dict[str, Place] = {}
        self.finished: dict[str, Place] = {}

    def _fail(self, call: str, count: int, what: Any) -> int:
        if not self.is_failing or call not in {"pwritev", "fsync"} or self.dice.random() > 0.15:
            return 0
        return self.dice.choice((errno.EIO, errno.ENOSPC))

    async def live(self, steps: int) -> list[tuple[Any, ...]]:
        loop = asyncio.get_running_loop()
        disk = InlineDisk(self.files)
        done_found = recover(self.files, self.done_store)
        done = read_done(self.files, self.done_store, done_found)
        mail_found = recover(self.files, self.mail, ends=done.ends)
        for place, payload in mail_found.messages(self.files, self.mail):
            if done.outcome(place, 0) is None:
                self.alive[name_of(payload)] = place
        writers: list[Any] = [_journal.Writer(system=self.files, is_threaded=False) for _ in range(2)]
        journals = [
            Journal(
                LocalSource(store, disk), loop=loop, clock=lambda: self.clock, writer=writer, kind=kind,
                seals=found.seals,
            )
            for store, writer, kind, found in (
                (self.mail, writers[0], _record.MESSAGE, mail_found),
                (self.done_store, writers[1], _record.DONE, done_found),
            )
        ]  # fmt: skip
        for journal in journals:
            await journal.start()
        log = DoneLog(journals[1], done, loop=loop, clock=lambda: self.clock, report=lambda error: None)
        spare_bodies = self.bodies.make(self.files)
        self.is_failing = True
        told: list[asyncio.Task[None]] = []
        for step in range(steps):
            action = self.dice.random()
            if action < 0.5:
                body = spare_bodies.pop() if spare_bodies and self.dice.random() < 0.2 else None
                told.append(loop.create_task(self._send(journals[0], f"{self.life}.{step}", body)))
            elif action < 0.75 and self.alive:
                self._deliver(log)
            else:
                self.clock += 0.4
            await asyncio.sleep(0)
            if self.dice.random() < 0.5:
                await self._step(writers, journals)
            if self.dice.random() < 0.05:
                await self._flush_and_retire(log, writers, journals)
        self.is_failing = False
        self.clock += 5.0
        for _ in range(6):
            await self._step(writers, journals)
        # One more, so that there is a batch after the last failure.
        told.append(loop.create_task(self._send(journals[0], f"{self.life}.last", None)))
        for _ in range(6):
            await self._step(writers, journals)
        await asyncio.gather(*told)
        self.files.mark("end")
        await self._close(log, writers, journals)
        return self.files.trace

    async def _step(self, writers: list[Any], journals: list[Journal]) -> None:
        for writer, journal in zip(writers, journals, strict=True):
            writer.step()
            journal.reap()
        for _ in range(4):
            await asyncio.sleep(0)

    async def _send(self, journal: Journal, name: str, body: Any) -> None:
        size = self.dice.choice((10, 700, 4_096, 9_000))
        try:
            if body is None:
                place = await journal.append([content(name, size)])
            else:
                place = await self._send_spooled(journal, name, size, body)
        except errors.TemporaryError:
            self.files.mark("refused", name)
        else:
            self.files.mark("accepted", name)
            self.alive[name] = place

    async def _send_spooled(self, journal: Journal, name: str, size: int, body: Any) -> Place:
        text = content(name + "-body", size)
        try:
            self.files.pwrite(body.fd, text, SIZE_BYTES)
        except OSError as error:
            raise errors.StorageFailed from error
        reference = f"{name} spooled {body.number} {body.epoch} {_record.crc32c(text)} {len(text)} ".encode()
        future = journal.append([hashlib.sha256(reference).digest(), reference], body.fd)
        # The journal has its own descriptor.
        self.files.close(body.fd)
        return await future

    def _deliver(self, log: DoneLog) -> None:
        name = self.dice.choice(list(self.alive))
        place = self.alive.pop(name)
        self.files.mark("delivered", name)
        log.add(place, 0, Outcome.DELIVERED)
        self.finished[name] = place

    async def _flush_and_retire(self, log: DoneLog, writers: list[Any], journals: list[Journal]) -> None:
        """A segment before the one in use, all of it done, is used again; the log that says so is synced first."""
        for segment in recover(Files(self.files.tree), stores(self.dice)[0]).segments:
            for seal in segment.seals:
                log.add_end(seal)
        flushed = asyncio.get_running_loop().create_task(log.flush())
        while not flushed.done():
            await self._step(writers, journals)
        try:
            flushed.result()
        except errors.TemporaryError:
            return
        for name in self.finished:
            self.files.mark("remembered", name)
        current = journals[0].segment
        assert current is not None
        busy = {place.number for place in self.alive.values()} | {current.number}
        known = {place.number: place.epoch for place in self.finished.values()}
        was_failing, self.is_failing = self.is_failing, False
        for number in sorted(known.keys() - busy):
            # Others in it may wait for their answers; those are in the newest, which is not touched.
            if number < current.number:
                self.mail.retire(self.files, number)
                log.done.forget(known[number])
                self.finished = {k: p for k, p in self.finished.items() if p.number != number}
        self.is_failing = was_failing

    async def _close(self, log: DoneLog, writers: list[Any], journals: list[Journal]) -> None:
        closing = asyncio.get_running_loop().create_task(log.flush())
        while not closing.done():
            await self._step(writers, journals)
        for journal in journals:
            closing = asyncio.get_running_loop().create_task(journal.close())
            while not closing.done():
                await self._step(writers, journals)
        assert not self.files.open_fds - {file for file in self.files.open_fds if self._is_spare(file)}

    def _is_spare(self, fd: int) -> bool:
        """Of a body file that no message took."""
        number = self.files._open[fd][0]
        return self.files.path_of(number).startswith(BODIES)


def found_in(tree: Tree, dice: random.Random) -> tuple[dict[str, Place], Recovery, Done]:
    """What a start finds on a disk; fails for anything torn."""
    files = Files(tree)
    mail, done_store, bodies = stores(dice)
    done = read_done(files, done_store, recover(files, done_store))
    recovery = recover(files, mail, ends=done.ends)
    names: dict[str, Place] = {}
    for place, payload in recovery.messages(files, mail):
        name = name_of(payload)
        words = payload[32:].split(b" ")
        if words[1] == b"spooled":
            number, epoch, crc, size = map(int, words[2:6])
            body = b"".join(bodies.pieces(files, BodyReference(number, epoch, crc), size))
            assert name_of(body) == f"{name}-body"
        if done.outcome(place, 0) is None:
            assert name not in names
            names[name] = place
    assert not files.open_fds
    return names, recovery, done


def expected(marks: list[tuple[Any, ...]]) -> tuple[set[str], set[str]]:
    """Names that must be there, and names that may be."""
    accepted = {mark[1] for mark in marks if mark[0] == "accepted"}
    delivered = {mark[1] for mark in marks if mark[0] == "delivered"}
    return accepted - delivered, delivered


def cuts(seed: int, steps: int = 60) -> Iterator[tuple[int, list[tuple[Any, ...]], Tree]]:
    trace = asyncio.run(Run(seed).live(steps))
    yield from images(trace, random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_accepted_is_there_wherever_the_power_fails(seed: int) -> None:
    dice = random.Random(seed)
    for count, marks, tree in cuts(seed):
        names, recovery, _ = found_in(tree, dice)
        must, _ = expected(marks)
        assert must <= names.keys(), f"lost at step {count}: {must - names.keys()}"
        remembered = {mark[1] for mark in marks if mark[0] == "remembered"}
        assert not remembered & names.keys(), (
            f"delivered twice at step {count}, though the done-log was synced"
        )
        damage = [fault for fault in recovery.faults if fault.is_damage]
        assert not damage, f"a crash is no damage, at step {count}: {damage}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_lives_that_begin_where_the_power_failed_lose_nothing_either(seed: int) -> None:
    """Six lives of one queue: each is cut somewhere, and the next one goes on with what is left."""
    dice = random.Random(seed)
    tree: Tree | None = None
    must: set[str] = set()
    remembered: set[str] = set()
    for life in range(6):
        trace = asyncio.run(Run(seed, tree=tree and tree.copy(), life=life).live(40))
        # Not before the directories are there.
        stop = dice.randrange(2, len(trace)) if life % 3 != 2 else len(trace) - 1
        for count, marks, after in images(trace, dice, base=tree):  # noqa: B007 - the last is wanted
            if count >= stop:
                break
        accepted, delivered = expected(marks)
        must = (must | accepted) - delivered
        remembered |= {mark[1] for mark in marks if mark[0] == "remembered"}
        tree = after
        names, recovery, _ = found_in(tree.copy(), dice)
        assert must <= names.keys(), f"lost in life {life}: {must - names.keys()}"
        assert not remembered & names.keys()
        assert not [fault for fault in recovery.faults if fault.is_damage]


SYNCS: dict[str, Callable[[str], bool]] = {
    "of a batch, and of a segment used again": lambda path: path.startswith(f"{QUEUE}/mail-"),
    "of a new segment": lambda path: path.startswith(f"{QUEUE}/new-"),
    "of the segments' directory": lambda path: path == QUEUE,
    "of a spooled body": lambda path: path.startswith(f"{BODIES}/"),
    "of the bodies' directory": lambda path: path == BODIES,
    "of the done-log": lambda path: path.startswith(f"{QUEUE}/done-"),
}


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", SYNCS.values(), ids=SYNCS)
def test_a_sync_that_is_left_out_is_found_out(forgotten: Callable[[str], bool]) -> None:
    """Every sync is needed: without it some cut loses a message, or brings a finished one back after it was freed."""
    for seed in range(0, 40, 2):
        trace = asyncio.run(Run(seed, forgotten).live(60))
        for _, marks, tree in images(trace, random.Random(seed)):
            try:
                names, recovery, _ = found_in(tree, random.Random(seed))
            except (AssertionError, errors.QueueDamaged):
                return
            must, _ = expected(marks)
            synced = {mark[1] for mark in marks if mark[0] == "remembered"}
            if not must <= names.keys() or synced & names.keys() or any(f.is_damage for f in recovery.faults):
                return
    pytest.fail("nothing was lost: the sync does nothing, or the test sees nothing")


@pytest.mark.parametrize("seed", [1, 3, 5, 7, 9, 11])
def test_what_was_refused_does_not_come_back_once_the_next_segment_was_synced(seed: int) -> None:
    *_, (_, marks, tree) = cuts(seed)
    names, recovery, _ = found_in(tree, random.Random(seed))
    refused = {mark[1] for mark in marks if mark[0] == "refused"}
    assert refused, "nothing failed: the test says nothing"
    assert not refused & names.keys()
    assert not recovery.faults or all(not fault.is_damage for fault in recovery.faults)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_second_start_finds_the_same(seed: int) -> None:
    for _, _, tree in images(asyncio.run(Run(seed).live(30)), random.Random(seed), every=9):
        first, recovery, _ = found_in(tree, random.Random(1))
        # The next life begins, writes its first batch, with the seals in it, and stops.
        files = Files(tree)
        mail, _, _ = stores(random.Random(2))
        again = recover(files, mail)
        assert [fault[:5] for fault in again.faults] == [fault[:5] for fault in recovery.faults]
        segment = mail.prepare(files)
        writer: _journal.Writer[Seal] = _journal.Writer(system=files, is_threaded=False)
        for seal in again.seals:
            writer.append([seal.encode()], seal, kind=_record.SEAL)
        writer.use(segment.fd, number=segment.number, epoch=segment.epoch, size=segment.size_bytes)
        writer.step()
        files.close(segment.fd)
        second, after, _ = found_in(tree, random.Random(3))
        assert second == first
        assert all(scanned.is_sealed for scanned in after.segments[:-1])
