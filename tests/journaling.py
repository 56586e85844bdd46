"""What the tests of the queue share: a journal on files in memory that goes step by step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from fastsmtp import _record
from fastsmtp._journal import Writer
from fastsmtp._record import BLOCK
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.place import Place, Seal
from fastsmtp.queue.recovery import Recovery, recover
from fastsmtp.queue.store import Store
from tests.fakes.files import Files

QUEUE = "/queue"
EPOCH = 0x1234_5678_9ABC_DEF0


def store_in(directory: str, size_bytes: int = 65_536, **options: Any) -> Store:
    options.setdefault("random", random.Random(1).randbytes)
    return Store(directory, size_bytes=size_bytes, version="0.1.0", wall=lambda: 1_800_000_000.0, **options)


def simulated(fail: Callable[[str, int, Any], int] | None = None) -> Files:
    files = Files(fail=fail)
    files.mkdir(QUEUE)
    return files


def failing(call: str, at: int, number: int) -> Callable[[str, int, Any], int]:
    """Call number `at` of one kind fails."""
    return lambda name, count, what: number if name == call and count == at else 0


class Desk:
    """A journal on files in memory, whose writer takes a step when it is told."""

    def __init__(
        self, files: Files, size_bytes: int = 65_536, seals: tuple[Seal, ...] = (), **options: Any
    ) -> None:
        self.files = files
        self.store = store_in(QUEUE, size_bytes, **options)
        self.now = 100.0
        self.writer: Any = Writer(system=files, is_threaded=False)
        self.journal = Journal(
            LocalSource(self.store, InlineDisk(files)),
            loop=asyncio.get_running_loop(),
            clock=lambda: self.now,
            writer=self.writer,
            seals=seals,
        )

    async def start(self) -> Desk:
        self.store.open(self.files)
        await self.journal.start()
        return self

    async def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.writer.step()
            self.journal.reap()
            for _ in range(5):
                await asyncio.sleep(0)

    async def close(self) -> None:
        closing = asyncio.get_running_loop().create_task(self.journal.close())
        while not closing.done():
            await self.step()
        await closing

    def recovered(self) -> tuple[dict[Place, bytes], Recovery]:
        store = store_in(QUEUE)
        recovery = recover(self.files, store)
        return dict(recovery.messages(self.files, store)), recovery


def run(body: Any) -> Any:
    return asyncio.run(body)


def filled(batches: int = 6, each: int = 2) -> tuple[Files, list[Place]]:
    """A queue with so many batches in one segment, and where the records are."""

    async def body() -> tuple[Files, list[Place]]:
        desk = await Desk(simulated(), size_bytes=BLOCK * 64).start()
        futures = []
        for batch in range(batches):
            futures += [desk.journal.append([b"%d-%d " % (batch, n), bytes(3000)]) for n in range(each)]
            await desk.step()
        await desk.close()
        return desk.files, [future.result() for future in futures]

    found: tuple[Files, list[Place]] = run(body())
    return found


def content_of(files: Files, number: int) -> bytearray:
    return files.tree.contents[files.tree.names[f"{QUEUE}/mail-{number:016x}"]]


def with_format(data: bytes, version: int) -> bytes:
    changed = data[:8] + version.to_bytes(2, "little") + data[10:60]
    return changed + _record.crc32c(changed).to_bytes(4, "little")
