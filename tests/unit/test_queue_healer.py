"""What the watchdog finds to be nobody's is tried while the server runs; nothing else is, and nothing twice."""

from __future__ import annotations

import pathlib

from fastsmtp.delivery import wire
from fastsmtp.delivery.owner import Owner
from fastsmtp.queue.model import encode
from tests.owned import LATER, YES, FakeShard, Queue, message, recipient, run, spooled, until


def lose(owner: Owner) -> int:
    """A defect: the dispatcher forgets what waits, and the books don't know.  How many recipients that were."""
    sites = owner.dispatcher.sites
    lost = list(sites.jobs())
    for name, site in list(sites._sites.items()):
        site.waiting.clear()
        site.is_queued = False
        if not site.open:
            del sites._sites[name]
    for turns in sites._turns:
        turns.clear()
    sites.waiting = 0
    for job in lost:
        del owner.keeper.segments[job.place.epoch].messages[job.place.offset]
    return sum(len(job.recipients) for job in lost)


def test_who_was_forgotten_is_tried_and_who_is_finished_waits_or_is_in_hand_is_not(
    tmp_path: pathlib.Path,
) -> None:
    async def work(queue: Queue) -> None:
        queue.retry_ms = 600_000
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("DONE", recipient("a@example.net"))))
        await journal.append(encode(message("LATER", recipient("b@example.net"))))
        await journal.append(encode(message("HAND", recipient("c@example.net"))))
        await until(lambda: len(shard.jobs) == 3)
        shard.say(shard.jobs[0], YES)
        shard.say(shard.jobs[1], LATER)
        await until(lambda: shard.acked == 2)
        # The shard is asleep from now on: what comes waits in the dispatcher.
        shard.line.send(wire.closing())
        await until(lambda: not any(caller.is_ready for caller in owner.desk._shards if caller))
        lost = message("LOST", recipient("d@example.net"), recipient("e@other.example"))
        await journal.append(encode(lost))
        await until(lambda: owner.dispatcher.sites.waiting == 1)
        assert lose(owner) == 2
        await owner.rounds.once()
        assert queue.told("stranded") == []
        await owner.rounds.once()
        (event,) = queue.told("stranded")
        assert (event["found"], event["healed"]) == (2, 2)
        shard.line.send(wire.ready())
        owner.desk.pump_soon()
        await until(lambda: len(shard.jobs) >= 4)
        job = shard.jobs[3]
        assert (owner.reader.read(job.place).id, job.recipients, job.attempt) == ("LOST", (0, 1), 1)
        # All adds up again.
        for _ in range(2):
            await owner.rounds.once()
        assert len(queue.told("stranded")) == 1
        shard.say(job, YES, YES)
        shard.say(shard.jobs[2], YES)
        await until(lambda: shard.acked == 4)
        assert len(shard.jobs) == 4
        (kept,) = (kept for kept in owner.keeper.segments.values() if kept.epoch == job.place.epoch)
        assert kept.open == 1
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)


def test_a_body_in_a_file_goes_with_the_last_recipient_after_a_healing_too(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        path = await spooled(queue, journal, "A", b"0123456789" * 30_000)
        await until(lambda: owner.dispatcher.sites.waiting == 1)
        assert lose(owner) == 1
        for _ in range(2):
            await owner.rounds.once()
        shard = FakeShard(queue.path)
        job = await shard.job()
        assert path.exists()
        shard.say(job, YES)
        await until(lambda: not path.exists())
        await queue.leave(journal)
        await until(lambda: queue.segments() == [])
        await owner.close()

    run(work, tmp_path)


def test_a_count_that_is_wrong_alone_has_nobody_tried_again(tmp_path: pathlib.Path) -> None:
    async def work(queue: Queue) -> None:
        owner = await queue.open()
        journal = await queue.worker()
        shard = FakeShard(queue.path)
        await journal.append(encode(message("A", recipient("a@example.net"))))
        job = await shard.job()
        owner.keeper.segments[job.place.epoch].open += 1
        shard.say(job, YES)
        await until(lambda: shard.acked == 1)
        for _ in range(2):
            await owner.rounds.once()
        (event,) = queue.told("stranded")
        assert (event["found"], event["healed"]) == (1, 0)
        assert len(shard.jobs) == 1
        await queue.leave(journal)
        await owner.close()

    run(work, tmp_path)
