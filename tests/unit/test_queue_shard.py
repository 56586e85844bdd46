"""A delivery process and a dispatcher that is replaced: what was delivered isn't delivered again."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fastsmtp.delivery.job import Job
from fastsmtp.delivery.owner import stores
from fastsmtp.delivery.shard import Shard
from fastsmtp.delivery.stored import Reader
from fastsmtp.log import ListLog
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.line import Line, listen
from fastsmtp.queue.model import encode
from fastsmtp.queue.row import Filter
from tests.owned import LATER, YES, FakeShard, Queue, message, recipient, run, until


class Patient:
    """A deliverer whose next hop answers when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Sequence[Any]], object]] = []

    def put(self, stored: Any, recipients: Any, dest: str, done: Callable[[Sequence[Any]], object]) -> None:
        self.waiting.append(done)

    def wake(self) -> None:
        return None

    async def close(self) -> None:
        return None


def shard_of(queue: Queue, deliverer: Patient) -> Shard:
    mail, _, bodies = stores(str(queue.folder), "0.1.0")
    reader = Reader(mail, bodies, InlineDisk())
    loop = asyncio.get_running_loop()
    return Shard(queue.path, 0, 1, reader=reader, deliverer=deliverer, log=ListLog(), loop=loop)


async def draining(queue: Queue) -> tuple[Patient, Shard, asyncio.Future[None]]:
    """A delivery process that ends with one message under way, whose dispatcher has ended before it."""
    owner = await queue.open()
    journal = await queue.worker()
    deliverer = Patient()
    shard = shard_of(queue, deliverer)
    shard.start()
    await journal.append(encode(message("A", recipient("a@example.net"))))
    await until(lambda: bool(deliverer.waiting))
    await queue.leave(journal)
    drained = asyncio.ensure_future(shard.drain())
    await owner.close()
    return deliverer, shard, drained


@pytest.mark.parametrize("is_deferred", [False, True])
def test_what_was_delivered_for_an_earlier_dispatcher_is_not_tried_again(
    tmp_path: pathlib.Path, is_deferred: bool
) -> None:
    """Its result comes before the new one has handed it out: for the first time, or out of the index."""

    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("a@example.net"), recipient("b@example.net"))))
        job = await shard.job()
        if is_deferred:
            shard.say(job, LATER, LATER)
            await until(lambda: shard.acked == 1)
            await owner.index.flush(Filter(), int(time.time() * 1000))
            job = await shard.job(2)
        await queue.leave(journal)
        await owner.close()
        owner = await queue.open()
        place = job.place
        shard = FakeShard(
            queue.path, [(place.epoch, place.offset, one) for one in job.recipients], is_ready=False
        )
        # One of them only: the other is tried again.
        shard.say(Job(*job[:3], (1,), job.attempt), YES)
        await until(lambda: shard.acked == 1)
        shard.line.close()
        shard = FakeShard(queue.path)
        again = await shard.job()
        assert (again.recipients, again.attempt) == ((0,), 1 + is_deferred)
        shard.say(again, YES)
        await until(lambda: queue.segments() == [])
        assert (await owner.index.counts()).messages == 0
        assert len(shard.jobs) == 1
        await owner.close()

    run(work, tmp_path)


def test_a_delivery_process_ends_when_what_it_did_is_known(tmp_path: pathlib.Path) -> None:
    """At a reload the dispatcher ends as well, and first: its successor hears of what was under way."""

    async def work(queue: Queue) -> None:
        deliverer, shard, drained = await draining(queue)
        deliverer.waiting[0]([YES])
        await until(lambda: not shard.jobs)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not drained.done()
        owner = await queue.open()
        await drained
        await shard.close()
        successor = FakeShard(queue.path)
        await until(lambda: queue.segments() == [])
        assert successor.jobs == []
        await owner.close()

    run(work, tmp_path)


def test_a_delivery_process_does_not_wait_when_the_master_is_gone(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        deliverer, shard, drained = await draining(queue)
        queue.sock.close()
        deliverer.waiting[0]([YES])
        await drained
        await shard.close()

    run(work, tmp_path)


def test_a_delivery_process_whose_place_is_taken_does_not_come_back_for_ever(tmp_path: pathlib.Path) -> None:
    async def work() -> None:
        sock = listen(str(tmp_path / "socket"))
        loop = asyncio.get_running_loop()
        lines: list[Line] = []

        def accept() -> None:
            lines.append(Line(sock.accept()[0], loop, lambda packet, descriptors: None, lambda: None))

        loop.add_reader(sock.fileno(), accept)
        mail, _, bodies = stores(str(tmp_path), "0.1.0")
        deliverer = Patient()
        shard = Shard(
            str(tmp_path / "socket"), 0, 1, reader=Reader(mail, bodies, InlineDisk()), deliverer=deliverer,
            log=ListLog(), loop=loop,
        )  # fmt: skip
        shard.start()
        await until(lambda: len(lines) == 1)
        shard._is_idle.clear()
        drained = asyncio.ensure_future(shard.drain())
        for count in (1, 2):
            await until(lambda count=count: len(lines) == count)  # type: ignore[misc]
            lines[-1].close()
        await until(lambda: shard._is_alone)
        shard._is_idle.set()
        await drained
        assert len(lines) == 2
        await shard.close()
        loop.remove_reader(sock.fileno())
        sock.close()

    asyncio.run(work())
