"""A start over a queue so deep that it is read while mail is taken: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fastsmtp import errors
from fastsmtp._record import BLOCK, HEADER_BYTES
from fastsmtp.admin.desk import Desk
from fastsmtp.delivery.opening import Opening
from fastsmtp.delivery.owner import BODIES
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.model import encode
from fastsmtp.queue.row import Filter
from tests.owned import LATER, YES, FakeShard, Queue, message, recipient, run, spooled, until

# Everything is deep.
DEEP = -1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is read before it is set."""
    opened = threading.Event()
    read = Opening.read

    def late(self: Opening) -> Any:
        opened.wait(60)
        return read(self)

    monkeypatch.setattr(Opening, "read", late)
    yield opened
    opened.set()


async def accept(journal: Journal, *ids: str) -> None:
    for id in ids:
        await journal.append(encode(message(id, recipient(f"{id.lower()}@example.net"))))


def test_mail_is_taken_while_the_queue_is_read_and_all_of_it_is_tried_once(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        gate.set()
        owner = await queue.open()
        journal = await queue.worker()
        await accept(journal, "A", "B")
        await queue.leave(journal)
        await owner.close()
        gate.clear()
        owner = await queue.open(deep_bytes=DEEP)
        shard = FakeShard(queue.path)
        journal = await queue.worker()
        await accept(journal, "C", "D")
        assert queue.told("queue_open")[1:] == []
        assert shard.jobs == []
        gate.set()
        await until(lambda: len(shard.jobs) >= 4)
        found = sorted(owner.reader.read(job.place).id for job in shard.jobs)
        assert found == ["A", "B", "C", "D"]
        assert queue.told("queue_open")[1]["pending"] == 2
        for job in shard.jobs:
            shard.say(job, YES)
        await until(lambda: shard.acked == 4)
        await queue.leave(journal)
        await until(lambda: queue.segments() == [])
        assert len(shard.jobs) == 4
        await owner.close()

    run(work, tmp_path)


def test_what_shards_and_workers_say_meanwhile_is_heard_when_it_can_be_understood(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        gate.set()
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await accept(journal, "A", "B")
        await until(lambda: len(shard.jobs) == 2)
        first, second = shard.jobs
        await owner.close()
        gate.clear()
        owner = await queue.open(deep_bytes=DEEP)
        # The shard outlived the dispatcher, and has delivered what it had.
        held = [(job.place.epoch, job.place.offset, 0) for job in (first, second)]
        shard = FakeShard(queue.path, held)
        shard.say(first, YES)
        shard.say(second, LATER)
        # The worker too: it goes on in its segment, and then leaves it.
        await accept(journal, "C")
        await queue.leave(journal)
        gate.set()
        await until(lambda: len(shard.jobs) == 2)
        assert sorted((owner.reader.read(job.place).id, job.attempt) for job in shard.jobs) == [
            ("B", 2),
            ("C", 1),
        ]
        for job in shard.jobs:
            shard.say(job, YES)
        await until(lambda: shard.acked == 4)
        await until(lambda: queue.segments() == [])
        await owner.close()

    run(work, tmp_path)


def test_a_worker_that_dies_meanwhile_is_read_to_its_end(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open(deep_bytes=DEEP)
        journal = await queue.worker()
        assert queue.remote is not None
        await accept(journal, "A")
        segment, ahead = journal.segment, await journal._ahead  # type: ignore[misc]
        assert segment is not None
        queue.remote._is_closed = True
        assert queue.remote._line is not None
        queue.remote._line.close()
        for fd in (segment.fd, ahead.fd, *(file.fd for file in queue.remote._bodies)):
            os.close(fd)
        gate.set()
        shard = FakeShard(queue.path)
        shard.say(await shard.job(), YES)
        await until(lambda: queue.segments() == [])
        await until(lambda: list((queue.folder / BODIES).iterdir()) == [])
        await owner.close()
        asyncio.get_running_loop().remove_reader(journal._writer.fileno())
        journal._writer.close()

    run(work, tmp_path)


def test_body_files_that_were_handed_out_meanwhile_stay(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        stray = queue.folder / BODIES / f"{7:016x}"
        stray.write_bytes(bytes(64))
        owner = await queue.open(deep_bytes=DEEP)
        journal = await queue.worker()
        path = await spooled(queue, journal, "A", b"0123456789" * 30_000)
        gate.set()
        shard = FakeShard(queue.path)
        job = await shard.job()
        await until(lambda: not stray.exists())
        stored = owner.reader.read(job.place)
        assert b"".join(stored.blocking_pieces(os)) == b"0123456789" * 30_000
        shard.say(job, YES)
        await until(lambda: not path.exists())
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


def test_a_stop_in_the_middle_leaves_all_to_the_next_start(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        gate.set()
        owner = await queue.open()
        journal = await queue.worker()
        await accept(journal, "A")
        await queue.leave(journal)
        await owner.close()
        for _ in range(2):
            gate.clear()
            owner = await queue.open(deep_bytes=DEEP)
            journal = await queue.worker()
            await accept(journal, "B")
            await queue.leave(journal)
            closing = asyncio.ensure_future(owner.close())
            await asyncio.sleep(0)
            gate.set()
            await closing
        owner = await queue.open()
        shard = FakeShard(queue.path)
        await until(lambda: len(shard.jobs) >= 3)
        assert sorted(owner.reader.read(job.place).id for job in shard.jobs) == ["A", "B", "B"]
        for job in shard.jobs:
            shard.say(job, YES)
        await until(lambda: queue.segments() == [])
        await owner.close()
        assert len(queue.told("queue_open")) == 2

    run(work, tmp_path)


def test_damage_is_found_and_reported_beside_the_mail_that_comes_in(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        gate.set()
        owner = await queue.open()
        journal = await queue.worker()
        await accept(journal, "A", "B")
        await queue.leave(journal)
        await owner.close()
        path = queue.folder / queue.segments()[0]
        data = bytearray(path.read_bytes())
        data[BLOCK + HEADER_BYTES + 20] ^= 1
        path.write_bytes(data)
        gate.clear()
        owner = await queue.open(deep_bytes=DEEP)
        journal = await queue.worker()
        await accept(journal, "C")
        gate.set()
        shard = FakeShard(queue.path)
        await until(lambda: len(shard.jobs) >= 2)
        assert sorted(owner.reader.read(job.place).id for job in shard.jobs) == ["B", "C"]
        (fault,) = queue.told("queue_damaged")
        assert (fault["file"], fault["offset"]) == (str(path), BLOCK)
        assert pathlib.Path(fault["quarantine"]).exists()
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


def test_a_full_disk_refuses_files_and_what_was_there_is_delivered(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        gate.set()
        owner = await queue.open()
        journal = await queue.worker()
        await accept(journal, "A")
        await queue.leave(journal)
        await owner.close()
        gate.clear()
        owner = await queue.open(free_bytes=1 << 60, deep_bytes=DEEP)
        with pytest.raises(errors.StorageFull):
            await queue.worker()
        await until(lambda: queue.progress.is_low)
        assert queue.remote is not None
        queue.remote.close()
        gate.set()
        shard = FakeShard(queue.path)
        shard.say(await shard.job(), YES)
        await until(lambda: queue.segments() == [])
        await owner.close()

    run(work, tmp_path)


def test_who_asks_meanwhile_is_told_that_the_queue_is_still_being_read(
    tmp_path: pathlib.Path, gate: threading.Event
) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open(deep_bytes=DEEP)
        desk = Desk(owner.index, owner.hands, wall=time.time)
        asked: list[Any] = [desk.counts(), desk.act("flush", Filter()), desk.describe("A")]
        asked += [anext(desk.entries(Filter(), "")), anext(desk.message("A"))]
        for one in asked:
            with pytest.raises(errors.QueueUnread, match="still reading its queue"):
                await one
        gate.set()
        await owner.known()
        assert (await desk.counts())["messages"] == 0
        await owner.close()

    run(work, tmp_path)


def test_a_reading_that_fails_ends_the_owner(
    tmp_path: pathlib.Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Opening) -> Any:
        raise errors.StorageFailed("the disk says no")

    async def work(queue: Queue) -> None:
        monkeypatch.setattr(Opening, "read", refused)
        owner = await queue.open(deep_bytes=DEEP)
        await owner.known()
        failures, queue.failures = queue.failures, []
        assert [str(error) for error in failures] == ["the disk says no"]
        with contextlib.suppress(errors.TemporaryError):
            await owner.close()
        with pytest.raises(errors.StorageFailed):
            await queue.open()

    run(work, tmp_path)
