"""The owner of the queue with a worker's journal and a shard of the test's own: real files, real lines, one loop."""

from __future__ import annotations

import asyncio
import os
import pathlib
import time

import pytest

from fastsmtp import _record, errors, reply
from fastsmtp._payload import decode
from fastsmtp.delivery import compact, sites
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.outcome import Failed
from fastsmtp.delivery.owner import BODIES
from fastsmtp.queue import keeper
from fastsmtp.queue.fileheader import SIZE_BYTES
from fastsmtp.queue.model import BodyReference, encode
from fastsmtp.queue.remote import Remote
from fastsmtp.queue.row import Filter, State, row_of
from tests.owned import LATER, NEVER, YES, FakeShard, Queue, message, recipient, run, until


def test_what_is_delivered_takes_no_room(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("a@example.net"), recipient("b@example.net"))))
        await journal.append(encode(message("B", recipient("c@example.net", "discard"))))
        job = await shard.job()
        assert (job.recipients, job.deliver, job.attempt) == ((0, 1), "smtp://192.0.2.1:25", 1)
        shard.say(job, YES, YES)
        await until(lambda: shard.acked == 1)
        await queue.leave(journal)
        await until(lambda: queue.segments() == [])
        await owner.close()
        owner = await queue.open()
        assert queue.told("queue_open")[-1]["pending"] == 0
        await owner.close()

    run(work, tmp_path)


def test_a_restart_delivers_what_was_not_finished_and_nothing_else(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        for id in "ABC":
            await journal.append(encode(message(id, recipient(f"{id.lower()}@example.net"))))
        await shard.job(3)
        shard.say(shard.jobs[0], YES)
        shard.say(shard.jobs[1], LATER)
        await until(lambda: shard.acked == 2)
        shard.line.close()
        await owner.close()
        # The worker is still there, and writes on in its segment.
        await journal.append(encode(message("D", recipient("d@example.net"))))
        owner = await queue.open()
        shard = FakeShard(queue.path)
        await until(lambda: len(shard.jobs) == 3)
        found = {owner.reader.read(job.place).id: job.attempt for job in shard.jobs}
        assert found == {"B": 2, "C": 1, "D": 1}
        for job in shard.jobs:
            shard.say(job, YES)
        await queue.leave(journal)
        await until(lambda: queue.segments() == [])
        await owner.close()

    run(work, tmp_path)


def test_a_shard_that_was_there_before_keeps_what_it_has(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("a@example.net"))))
        job = await shard.job()
        await owner.close()
        owner = await queue.open()
        shard = FakeShard(queue.path, [(job.place.epoch, job.place.offset, 0)])
        await journal.append(encode(message("B", recipient("b@example.net"))))
        other = await shard.job()
        assert owner.reader.read(other.place).id == "B"
        shard.say(job, YES)
        shard.say(other, YES)
        await until(lambda: shard.acked == 2)
        await queue.leave(journal)
        await until(lambda: queue.segments() == [])
        await owner.close()

    run(work, tmp_path)


def test_a_shard_that_dies_leaves_its_jobs_to_the_next(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        for id in "AB":
            await journal.append(encode(message(id, recipient("a@example.net"))))
        first, second = await shard.job(), await shard.job(2)
        shard.say(first, YES)
        await until(lambda: shard.acked == 1)
        shard.line.close()
        shard = FakeShard(queue.path)
        assert await shard.job() == second
        shard.say(second, YES)
        await until(lambda: shard.acked == 1)
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


def test_a_worker_that_dies_is_read_to_its_end(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        assert queue.remote is not None
        await journal.append(encode(message("A", recipient("a@example.net"))))
        segment = journal.segment
        assert segment is not None
        # As the kernel does it: the line ends, and every descriptor is closed.
        ahead = await journal._ahead  # type: ignore[misc]
        unused = list(queue.remote._bodies)
        queue.remote._is_closed = True
        assert queue.remote._line is not None
        queue.remote._line.close()
        for fd in (segment.fd, ahead.fd, *(file.fd for file in unused)):
            os.close(fd)
        shard.say(await shard.job(), YES)
        await until(lambda: queue.segments() == [])
        await owner.close()
        asyncio.get_running_loop().remove_reader(journal._writer.fileno())
        journal._writer.close()

    run(work, tmp_path)


def test_bodies_in_files_are_removed_with_their_messages(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        assert queue.remote is not None
        files = [await queue.remote.body() for _ in range(2)]
        text = b"0123456789" * 7_000
        for id, file in zip("AB", files, strict=True):
            os.pwrite(file.fd, text, SIZE_BYTES)
            body = BodyReference(file.number, file.epoch, _record.crc32c(text))
            await journal.append(encode(message(id, recipient("a@example.net"), body=body)), file.fd)
            os.close(file.fd)
        paths = [queue.folder / BODIES / f"{file.number:016x}" for file in files]
        first, second = await shard.job(), await shard.job(2)
        stored = owner.reader.read(first.place)
        assert b"".join(stored.blocking_pieces(os)) == text
        assert (stored.size_bytes, stored.tail) == (70_000, b"89")
        shard.say(first, YES)
        # The second waits in the index, and its body stays; over a restart too.
        shard.say(second, LATER)
        await until(lambda: not paths[0].exists())
        await owner.close()
        owner = await queue.open()
        assert paths[1].exists()
        shard = FakeShard(queue.path)
        shard.say(await shard.job(), YES)
        await until(lambda: not paths[1].exists())
        # One that no record will name goes when the worker says so.
        unused = await queue.remote.body()
        os.close(unused.fd)
        queue.remote.give_up(unused)
        await queue.leave(journal)
        await until(lambda: list((queue.folder / BODIES).iterdir()) == [])
        await owner.close()

    run(work, tmp_path)


def test_a_failure_is_reported_before_it_is_forgotten(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("no@example.net"), recipient("yes@example.net"))))
        shard.say(await shard.job(), NEVER, YES)
        report = await shard.job(2)
        assert report.deliver == "maildir:/srv/reports"
        found = owner.reader.read(report.place)
        assert (found.id, found.envelope.sender) == ("REPORT1", b"")
        assert [one.address for one in found.envelope.recipients] == [b"joe@example.org"]
        text = b"".join(found.blocking_pieces(os))
        assert b"no@example.net" in text
        assert b"yes@example.net" not in text
        shard.say(report, YES)
        await until(lambda: shard.acked == shard.count)
        await queue.leave(journal)
        await owner.close()
        assert queue.told("report")[0]["about"] == "A"

    run(work, tmp_path)


def test_a_report_that_finds_no_segment_big_enough_waits_for_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when there is room for small segments only; and what was written in the same turn isn't written twice."""
    monkeypatch.setattr(keeper, "FIRST_BYTES", (12_288, 12_288))
    wordy = Failed(reply.Reply(550, "5.1.1", "no " * 300), "said so", remote="hop")

    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        many = [recipient(f"{number}@example.net") for number in range(20)]
        for id, some in (("MANY", many), ("ONE", many[:1])):
            await journal.append(encode(message(id, *some)))
        first, second = await shard.job(), await shard.job(2)
        shard.say(first, *[wordy] * 20)
        shard.say(second, NEVER)
        await until(lambda: shard.acked == 2)
        await shard.job(4)
        about = {line["id"]: line["about"] for line in queue.told("report")}
        found = [owner.reader.read(job.place).id for job in shard.jobs[2:]]
        assert sorted(about[id] for id in found) == ["MANY", "ONE"]
        assert "bigger than a segment" in str(queue.told("queue_failed")[0]["reason"])
        for job in shard.jobs[2:]:
            shard.say(job, YES)
        await until(lambda: shard.acked == shard.count)
        assert len(shard.jobs) == 4
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


def test_damage_is_reported_and_put_aside_and_stops_nothing(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("a@example.net"))))
        job = await shard.job()
        shard.say(job, Damaged("a flipped bit"))
        shard.say(await shard.job(2), YES)
        await until(lambda: shard.acked == 2)
        (line,) = queue.told("queue_damaged")
        assert line["reason"] == "a flipped bit"
        assert pathlib.Path(line["quarantine"]).exists()
        await queue.leave(journal)
        await until(lambda: f"mail-{job.place.number:016x}" not in queue.segments())
        await owner.close()

    run(work, tmp_path)


def test_a_segment_with_little_left_is_freed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "INTERVAL_S", 0.01)

    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("a@example.net"), recipient("b@example.net"))))
        await journal.append(encode(message("B", recipient("c@example.net"))))
        first, second = await shard.job(), await shard.job(2)
        shard.say(first, YES, LATER)
        shard.say(second, YES)
        await until(lambda: shard.acked == shard.count)
        await queue.leave(journal)
        old = f"mail-{first.place.number:016x}"
        assert old in queue.segments()
        kept = owner.keeper.segments[first.place.epoch]
        await until(lambda: kept.end is not None)
        await until(lambda: owner.compactor.copied == 1)
        await until(lambda: old not in queue.segments())
        # The row leads to the copy: now, and after a restart.
        (row,) = (await owner.index.find(Filter())).rows
        assert row.place.number != first.place.number
        shard.line.close()
        await owner.close()
        # From here on it stays where it is.
        monkeypatch.setattr(compact, "INTERVAL_S", 3_600.0)
        owner = await queue.open()
        assert queue.told("queue_open")[-1]["deferred"] == 1
        shard = FakeShard(queue.path)
        await owner.index.flush(Filter(), int(time.time() * 1000))
        again = await shard.job()
        assert (again.recipients, again.attempt) == ((1,), 2)
        assert owner.reader.read(again.place).id == "A"
        shard.say(again, YES)
        await until(lambda: shard.acked == 1)
        await until(lambda: queue.segments() == [])
        await owner.close()

    run(work, tmp_path)


def test_the_operator_s_word_about_what_is_in_hand(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        await journal.append(encode(message("A", recipient("a@example.net"))))
        hands = owner.hands
        await until(lambda: len(list(hands.in_hand())) == 1)
        (one,) = hands.in_hand()
        assert not one.is_under_way
        stored = owner.reader.read(one.place).message
        row = row_of(one.place, stored, 0, next_ms=int(time.time() * 1000))._replace(site=one.site)
        await owner.index.pin([row._replace(state=State.DELETE)], lambda: [row.key])
        shard = FakeShard(queue.path)
        await queue.leave(journal)
        await until(lambda: queue.segments() == [])
        assert shard.jobs == []
        await owner.close()

    run(work, tmp_path)


@pytest.mark.parametrize("state", [State.BOUNCE, State.DELETE])
def test_what_the_operator_ends_during_an_attempt_ends_with_it(tmp_path: pathlib.Path, state: State) -> None:
    """Not when its next attempt would have been due."""

    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("a@example.net"))))
        job = await shard.job()
        (one,) = owner.hands.in_hand()
        assert one.is_under_way
        stored = owner.reader.read(one.place).message
        row = row_of(one.place, stored, 0, next_ms=int(time.time() * 1000))._replace(site=one.site)
        await owner.index.pin([row._replace(state=state)], lambda: [row.key])
        shard.say(job, LATER)
        if state is State.BOUNCE:
            report = await shard.job(2)
            assert owner.reader.read(report.place).envelope.sender == b""
            shard.say(report, YES)
        while (await owner.index.counts()).messages:
            await asyncio.sleep(0.01)
        await queue.leave(journal)
        shard.line.close()
        await owner.close()

    run(work, tmp_path)


def test_slow_sites_that_fill_the_memory_hold_back_neither_others_nor_the_operator(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites, "WAITING", 3)
    monkeypatch.setattr(sites, "SITE_WINDOW", 1)

    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        other = "smtp://192.0.2.2:25"
        for id, deliver in (("OTHER", other), ("GONE", other)):
            await journal.append(encode(message(id, recipient("a@example.net", deliver))))
        for count in (1, 2):
            shard.say(await shard.job(count), LATER)
        await until(lambda: shard.acked == 2)
        for number in range(5):
            await journal.append(encode(message(f"SLOW{number}", recipient("a@example.org"))))
        await until(lambda: owner.dispatcher.sites.room() == 0 and len(shard.jobs) == 3)
        now_ms = int(time.time() * 1000)
        assert await owner.index.condemn(Filter(ids=("GONE",)), State.DELETE, now_ms) == 1
        await owner.index.flush(Filter(ids=("OTHER",)), now_ms)
        again = await shard.job(4)
        assert (owner.reader.read(again.place).id, again.attempt) == ("OTHER", 2)
        shard.say(again, YES)
        while {row.id for row in (await owner.index.find(Filter())).rows} & {"GONE", "OTHER"}:
            await asyncio.sleep(0.01)
        shard.line.close()
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


def test_below_the_low_water_mark_nothing_is_handed_out(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        await owner.close()
        owner = await queue.open(free_bytes=1 << 62)
        await until(lambda: queue.progress.is_low)
        with pytest.raises(errors.StorageFull):
            await queue.worker()
        assert queue.remote is not None
        assert queue.remote.is_low
        queue.remote.close()
        await owner.close()

    run(work, tmp_path)


def test_an_owner_that_is_not_there_is_a_clear_answer(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        queue.remote = Remote(queue.path, 0, queue.progress, loop=asyncio.get_running_loop(), patience_s=0.05)
        queue.remote.connect()
        with pytest.raises(errors.StorageFailed):
            await queue.remote.next()
        with pytest.raises(errors.StorageFailed):
            await queue.remote.body()
        queue.remote.close()

    run(work, tmp_path)


def test_a_message_keeps_its_cuts() -> None:
    one = message("A", recipient("a@example.net"), body=BodyReference(1, 2, 3))
    one.cuts = ((10, 20), (50, 5))
    assert decode(b"".join(encode(one))).cuts == ((10, 20), (50, 5))
