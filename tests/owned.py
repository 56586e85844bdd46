"""The owner of the queue for tests: real files, real lines, a worker's journal and a shard of the test's, one loop."""

from __future__ import annotations

import asyncio
import os
import pathlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastsmtp import _record, reply
from fastsmtp._journal import Progress, Writer
from fastsmtp.delivery import wire
from fastsmtp.delivery.job import Damaged, Job, Result
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.delivery.owner import BODIES, DEEP_BYTES, Owner
from fastsmtp.log import ListLog
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue import frames
from fastsmtp.queue.bodies import BodyFile
from fastsmtp.queue.dsn import Reporter
from fastsmtp.queue.fileheader import SIZE_BYTES
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.line import Line, connect, listen
from fastsmtp.queue.model import BodyReference, Origins, QueuedMessage, encode
from fastsmtp.queue.remote import Remote
from fastsmtp.queue.schedule import Patience

LATER = Retry(reply.Reply(450, "4.2.0", "later"), "said so", remote="hop")
NEVER = Failed(reply.Reply(550, "5.1.1", "nobody"), "said so", remote="hop")
YES = Delivered("Ok", "hop")

OWN = 3
WORKERS = 4


class Ids:
    def __init__(self) -> None:
        self.count = 0

    def next(self) -> str:
        self.count += 1
        return f"REPORT{self.count}"


def recipient(address: str, deliver: str = "smtp://192.0.2.1:25") -> Recipient:
    return Recipient(address.encode(), address.rpartition("@")[2].encode(), deliver=deliver)


def message(id: str, *recipients: Recipient, body: Any = (b"Subject: x\r\n\r\nHello.\r\n",)) -> QueuedMessage:
    size = 70_000 if isinstance(body, BodyReference) else sum(map(len, body))
    envelope = Envelope(b"joe@example.org", b"example.org", recipients=recipients)
    return QueuedMessage(id, 1_800_000_000_000, envelope, Origins(address="192.0.2.9"), b"", body, size)


class FakeShard:
    """Collects jobs; the test says what becomes of them."""

    def __init__(
        self, path: str, held: list[tuple[int, int, int]] | None = None, *, is_ready: bool = True
    ) -> None:
        self.jobs: list[Job] = []
        self.acked = 0
        self.count = 0
        self.line = Line(connect(path), asyncio.get_running_loop(), self._heard, lambda: None)
        self.line.send(frames.hello(frames.Role.SHARD, 0, 1))
        for packet in wire.held(held or []):
            self.line.send(packet)
        if is_ready:
            self.line.send(wire.ready())

    def _heard(self, packet: bytes, descriptors: list[int]) -> None:
        if packet[0] == wire.JOBS:
            self.jobs += wire.read_jobs(packet)
        else:
            self.acked = wire.read_ack(packet)

    def say(self, job: Job, *outcomes: Outcome | Damaged) -> None:
        """One packet for those that are delivered, one for the others."""
        batch = [
            Result(job.place, one, outcome) for one, outcome in zip(job.recipients, outcomes, strict=True)
        ]
        named = [
            (job.place.epoch, job.place.offset, one.recipient)
            for one in batch
            if isinstance(one.outcome, Delivered)
        ]
        others = [one for one in batch if not isinstance(one.outcome, Delivered)]
        if named:
            self.count += 1
            self.line.send(wire.delivered(self.count, named))
        if others:
            self.count += 1
            self.line.send(wire.results(self.count, others))

    async def job(self, count: int = 1) -> Job:
        """The latest, when there are so many."""
        await until(lambda: len(self.jobs) >= count)
        return self.jobs[count - 1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


class Queue:
    """One queue on disk; owners, workers and shards come and go."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / BODIES).mkdir(parents=True)
        self.path = str(folder / "socket")
        self.sock = listen(self.path)
        self.progress = Progress(WORKERS)
        self.log = ListLog()
        self.failures: list[Exception] = []
        self.remote: Remote | None = None
        self.retry_ms = 50

    async def open(self, free_bytes: int = 0, deep_bytes: int = DEEP_BYTES) -> Owner:
        owner = Owner(
            str(self.folder),
            sock=self.sock,
            progress=self.progress,
            shards=1,
            users={frames.Role.WORKER: os.geteuid(), frames.Role.SHARD: os.geteuid()},
            free_bytes=free_bytes,
            patience=Patience(self.retry_ms, 2 * self.retry_ms, 3_600_000, 0),
            reporter=Reporter("mx.example.org", "postmaster@example.org"),
            ids=Ids(),
            place_for=lambda domain: "maildir:/srv/reports",
            version="0.1.0",
            log=self.log,
            loop=asyncio.get_running_loop(),
            failed=self.failures.append,
            deep_bytes=deep_bytes,
        )
        await owner.start()
        return owner

    async def worker(self, number: int = 0) -> Journal:
        loop = asyncio.get_running_loop()
        self.remote = Remote(self.path, number, self.progress, loop=loop)
        self.remote.connect()
        writer: Any = Writer(progress=self.progress, worker=number)
        journal = Journal(
            self.remote, loop=loop, clock=time.monotonic, writer=writer, synced=self.remote.synced
        )
        await journal.start()
        # What is asked for ahead is there too: a test's owner that closes shares its descriptors with us.
        await journal._ahead  # type: ignore[misc]
        spare = await self.remote.body()
        os.close(spare.fd)
        self.remote.give_up(spare)
        return journal

    def told(self, event: str) -> list[dict[str, Any]]:
        """The fields of all such lines."""
        return [dict(fields) for name, fields in self.log.lines if name == event]

    def segments(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith("mail-"))

    async def leave(self, journal: Journal) -> None:
        await journal.close()
        if self.remote is not None:
            self.remote.close()


def run(work: Callable[[Queue], Coroutine[Any, Any, None]], folder: pathlib.Path) -> None:
    async def body() -> None:
        queue = Queue(folder / "queue")
        try:
            await work(queue)
            assert queue.failures == []
        finally:
            queue.sock.close()

    asyncio.run(body())


async def spooled(
    queue: Queue, journal: Journal, id: str, text: bytes, file: BodyFile | None = None
) -> pathlib.Path:
    """Queue a message for a@example.net whose body is in a file (this one, or another); the file's path."""
    assert queue.remote is not None
    file = file or await queue.remote.body()
    os.pwrite(file.fd, text, SIZE_BYTES)
    body = BodyReference(file.number, file.epoch, _record.crc32c(text))
    made = message(id, recipient("a@example.net"), body=body)
    made.body_bytes = len(text)
    await journal.append(encode(made), file.fd)
    os.close(file.fd)
    return queue.folder / BODIES / f"{file.number:016x}"
