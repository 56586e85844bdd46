"""A disk that doesn't give what was written: what may come back is never taken for gone, and what is gone is told."""

from __future__ import annotations

import errno
import os
import pathlib
from typing import Any

import pytest

from fastsmtp.delivery import afterwards
from fastsmtp.delivery.job import Damaged
from fastsmtp.queue import recovery
from fastsmtp.queue.model import encode
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Filter
from tests.owned import LATER, NEVER, YES, FakeShard, Queue, message, recipient, run, spooled, until


class BadBlocks:
    """In the place of os.pread: reads that touch one of the records fail while it is bad."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad: set[Place] = set()
        self._read = os.pread
        monkeypatch.setattr(os, "pread", self)

    def __call__(self, fd: int, size_bytes: int, offset: int) -> bytes:
        for place in self.bad:
            if offset < place.offset + place.size_bytes and place.offset < offset + size_bytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._read(fd, size_bytes, offset)


def test_a_record_that_cannot_be_read_now_holds_up_nobody_else(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(afterwards, "UNREAD_S", 0.05)
    blocks = BadBlocks(monkeypatch)

    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        for id in "ABC":
            await journal.append(encode(message(id, recipient("a@example.net"))))
        await shard.job(3)
        blocks.bad = {shard.jobs[0].place, shard.jobs[1].place}
        shard.say(shard.jobs[0], LATER)
        shard.say(shard.jobs[1], NEVER)
        shard.say(shard.jobs[2], LATER)
        await until(lambda: shard.acked == 3)
        assert [row.id for row in (await owner.index.find(Filter())).rows] == ["C"]
        assert recovery.UNREADABLE in str(queue.told("queue_failed")[0]["reason"])
        assert queue.told("queue_damaged") == []
        blocks.bad = set()
        report = await shard.job(4)
        assert queue.told("report")[0]["about"] == "B"
        shard.say(report, YES)
        await until(lambda: shard.acked == 4)
        assert [row.id for row in (await owner.index.find(Filter())).rows] == ["C", "A"]
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


def test_a_start_that_cannot_read_a_record_leaves_it_to_the_next(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = BadBlocks(monkeypatch)

    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        for id in "AB":
            await journal.append(encode(message(id, recipient("a@example.net"))))
        first = await shard.job()
        await shard.job(2)
        await queue.leave(journal)
        shard.line.close()
        await owner.close()
        blocks.bad = {first.place}
        owner = await queue.open()
        assert queue.told("queue_damaged")[0]["reason"] == recovery.UNREADABLE
        shard = FakeShard(queue.path)
        second = await shard.job()
        assert owner.reader.read(second.place).id == "B"
        shard.say(second, YES)
        await until(lambda: shard.acked == 1)
        await owner.log.flush()
        shard.line.close()
        await owner.close()
        blocks.bad = set()
        owner = await queue.open()
        shard = FakeShard(queue.path)
        again = await shard.job()
        assert owner.reader.read(again.place).id == "A"
        shard.say(again, YES)
        await until(lambda: queue.segments() == [])
        assert len(shard.jobs) == 1
        await owner.close()

    run(work, tmp_path)


def test_who_sent_a_message_whose_body_is_damaged_hears_of_it_and_the_body_is_kept(
    tmp_path: pathlib.Path,
) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        path = await spooled(queue, journal, "A", b"0123456789abcde\n" * 5_000)
        text = path.read_bytes()
        shard.say(await shard.job(), Damaged("its checksum is wrong"))
        report = await shard.job(2)
        stored = owner.reader.read(report.place)
        said = b"".join(stored.blocking_pieces(os))
        assert [one.address for one in stored.envelope.recipients] == [b"joe@example.org"]
        assert b"Status: 5.3.0\r\n" in said
        assert b"damaged" in said
        assert queue.told("queue_damaged")[0]["reason"] == "its checksum is wrong"
        shard.say(report, YES)
        await until(lambda: shard.acked == 2)
        await until(lambda: not path.exists())
        assert (queue.folder / recovery.QUARANTINE / f"body-{path.name}").read_bytes() == text
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


class _Os:
    """os, but nothing can be read while it is bad."""

    def __init__(self) -> None:
        self.is_bad = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _refused(self) -> None:
        if self.is_bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pread(self, fd: int, size_bytes: int, offset: int) -> bytes:
        self._refused()
        return os.pread(fd, size_bytes, offset)

    def open(self, *arguments: Any) -> int:
        self._refused()
        return os.open(*arguments)


@pytest.mark.parametrize("ending", ["none", "released", "dead"])
def test_what_cannot_be_read_behind_a_sync_is_read_later(tmp_path: pathlib.Path, ending: str) -> None:
    """The segment is in use, or its worker has left it, or has died."""

    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        system = owner.keeper._system = _Os()
        system.is_bad = True
        await journal.append(encode(message("A", recipient("a@example.net"))))
        if ending == "dead":
            owner.desk._hang_up(owner.desk._workers[0])
            assert queue.remote is not None
            queue.remote._is_closed = True
        if ending != "none":
            await queue.leave(journal)
        await until(lambda: len(queue.told("queue_failed")) > 1)
        assert shard.jobs == []
        system.is_bad = False
        job = await shard.job()
        assert owner.reader.read(job.place).id == "A"
        shard.say(job, YES)
        await until(lambda: shard.acked == 1)
        if ending == "none":
            await queue.leave(journal)
        await until(lambda: queue.segments() == [])
        assert len(shard.jobs) == 1
        await owner.close()

    run(work, tmp_path)
