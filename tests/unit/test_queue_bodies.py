"""Body files: whatever stops in between, the file stays for as long as a recipient needs it."""

from __future__ import annotations

import asyncio
import os
import pathlib
import time
from typing import Any

import pytest

from fastsmtp import errors
from fastsmtp._record import KEPT
from fastsmtp.delivery import compact
from fastsmtp.delivery.owner import Owner
from fastsmtp.queue.disk import DISK_THREADS
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.model import encode
from fastsmtp.queue.recovery import read_record
from fastsmtp.queue.row import Filter
from tests.owned import LATER, YES, FakeShard, Queue, message, recipient, run, spooled, until

TEXT = b"0123456789abcde\n" * 5_000


class _Once:
    """A journal that takes one copy, and then has no room."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.copies = 0

    def append(self, pieces: Any, *, kind: int = 0) -> Any:
        if self.copies:
            raise errors.StorageFull("no room")
        self.copies += 1
        return self._journal.append(pieces, kind=kind)


def _nothing(system: Any) -> None:
    """A job."""


async def _deferred(queue: Queue, owner: Owner) -> tuple[pathlib.Path, Any]:
    """A message with a body file and another one, both deferred, in a segment that is read to its end."""
    journal = await queue.worker()
    shard = FakeShard(queue.path)
    path = await spooled(queue, journal, "A", TEXT)
    await journal.append(encode(message("B", recipient("b@example.net"))))
    first, second = await shard.job(), await shard.job(2)
    shard.say(first, LATER)
    shard.say(second, LATER)
    await until(lambda: shard.acked == 2)
    await queue.leave(journal)
    kept = owner.keeper.segments[first.place.epoch]
    await until(lambda: kept.end is not None)
    shard.line.close()
    return path, first.place


async def _delivered(queue: Queue, owner: Owner, path: pathlib.Path) -> None:
    """Both are delivered, once, and the file goes."""
    shard = FakeShard(queue.path)
    # Whatever the start wanted to remove is removed.
    await owner.log.flush()
    for _ in range(2 * DISK_THREADS):
        await owner._disk.run(_nothing)
    assert path.exists()
    await owner.index.flush(Filter(), int(time.time() * 1000))
    await shard.job(2)
    found = {}
    for job in shard.jobs:
        stored = owner.reader.read(job.place)
        found[stored.id] = b"".join(stored.blocking_pieces(os))
        shard.say(job, YES)
    assert found["A"] == TEXT
    await until(lambda: not path.exists() and queue.segments() == [])
    assert len(shard.jobs) == 2


def test_a_copy_that_does_not_count_leaves_the_body_alone(tmp_path: pathlib.Path) -> None:
    """The stop comes between the copy's sync and its rows."""

    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        path, place = await _deferred(queue, owner)
        payload = read_record(os, owner.keeper.segments[place.epoch].fd, place, "")
        # As while copies are made: the segment that they go to isn't taken for done.
        owner.keeper.is_retiring = False
        await (await owner._own_journal()).append([payload], kind=KEPT)
        await owner.close()
        owner = await queue.open()
        await _delivered(queue, owner, path)
        await owner.close()

    run(work, tmp_path)


def test_the_record_of_a_copy_leaves_the_body_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first record of a segment was copied, the second was not: the old segment is there at the next start."""
    monkeypatch.setattr(compact, "INTERVAL_S", 3_600.0)

    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        path, place = await _deferred(queue, owner)
        once = _Once(await owner._own_journal())

        async def journal() -> Any:
            return once

        owner.compactor._journal = journal
        with pytest.raises(errors.StorageFull):
            await owner.compactor.look()
        rows = (await owner.index.find(Filter())).rows
        assert {row.id: row.place.epoch == place.epoch for row in rows} == {"A": False, "B": True}
        await owner.close()
        owner = await queue.open()
        await _delivered(queue, owner, path)
        await owner.close()

    run(work, tmp_path)


def test_a_worker_whose_line_ends_keeps_the_files_that_it_has(tmp_path: pathlib.Path) -> None:
    """It lives, has called again, and writes a record that names one of them later."""

    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        assert queue.remote is not None
        file = await queue.remote.body()
        desk = owner.desk
        desk._hang_up(desk._workers[0])
        await until(lambda: 0 in desk._workers)
        for kept in owner.keeper.segments.values():
            # As when the segments from before are used up.
            kept.holder = desk._workers[0]
        desk._read_abandoned()
        await desk._sweep()
        path = await spooled(queue, journal, "A", TEXT, file)
        job = await shard.job()
        for _ in range(2 * DISK_THREADS):
            await owner._disk.run(_nothing)
        assert path.read_bytes()[-len(TEXT) :] == TEXT
        shard.say(job, YES)
        await until(lambda: not path.exists())
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


class _Never:
    """In the place of a timer: nothing is looked at."""

    def cancel(self) -> None:
        return None


def test_a_file_is_looked_for_in_segments_that_were_just_left(tmp_path: pathlib.Path) -> None:
    """The worker has gone on to its next segment, and its word of that is on its way."""

    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        assert queue.remote is not None
        file = await queue.remote.body()
        await owner.close()
        # Who comes later doesn't know whom the file was given to.
        owner = await queue.open()
        desk = owner.desk
        await until(lambda: 0 in desk._workers)
        await desk._sweep()
        assert journal.segment is not None
        owner.keeper.segments[journal.segment.epoch].holder = desk._workers[0]
        if desk._looking is not None:
            desk._looking.cancel()
        desk._looking = _Never()  # type: ignore[assignment]
        line = desk._workers[0].line
        assert line is not None
        asyncio.get_running_loop().remove_reader(line._sock.fileno())
        path = await spooled(queue, journal, "A", TEXT, file)
        journal._take(await journal._ahead)  # type: ignore[misc]
        await journal.append(encode(message("B", recipient("b@example.net"))))
        await desk._sweep()
        await owner.log.flush()
        for _ in range(2 * DISK_THREADS):
            await owner._disk.run(_nothing)
        assert path.read_bytes()[-len(TEXT) :] == TEXT
        asyncio.get_running_loop().add_reader(line._sock.fileno(), line._read)
        await queue.leave(journal)
        shard = FakeShard(queue.path)
        await shard.job(2)
        for job in shard.jobs:
            shard.say(job, YES)
        await until(lambda: queue.segments() == [] and not path.exists())
        await owner.close()

    run(work, tmp_path)
