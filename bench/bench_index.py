"""What one million deferred messages cost: time to put them in, memory, `find`, `due`, counts, opening.

    python bench/bench_index.py [--rows 1000000] [--directory DIR]

The figures of issue 5: memory of the process under 300 MB, `find` for one domain under a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pathlib
import random
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.index import IndexFile
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Filter, Row, Said, State

NOW = 1_800_000_000_000
BATCH = 1_000
# As many messages of 4 kB as a segment of 64 MiB has.
PER_SEGMENT = 15_000


def row(number: int, dice: random.Random) -> Row:
    domain = b"d%d.example" % min(int(dice.expovariate(0.002)), 5_000)
    sender = b"sender%d.example" % (number % 50)
    segment = number // PER_SEGMENT + 1
    return Row(
        Place(segment, segment * 0x1234_5678_9ABC, 4096 * (number % PER_SEGMENT + 1), 4_200), 0,
        f"1QZ{number:09d}", b"user%d@%s" % (number % 5_000, sender), sender,
        b"recipient%d@%s" % (number, domain), domain, 4_096, NOW - number, f"mx:{domain.decode()}", "abcd"[number % 4],
        State.DUE, NOW + dice.randrange(4_000_000), dice.randrange(1, 9), NOW, 600_000, False,
        Said(451, "4.7.1", "temporarily deferred due to user complaints; see https://postmaster.example/421",
             f"mx1.{domain.decode()} [192.0.2.1]"),
    )  # fmt: skip


def memory_mb() -> float:
    """Of this process, at most so far."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


class Clock:
    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()

    def spent(self) -> str:
        return f"{time.perf_counter() - self.wall:7.2f} s, CPU {time.process_time() - self.cpu:6.2f} s"


async def timed(what: str, work: Any) -> Any:
    clock = Clock()
    found = await work
    print(f"{what:58} {clock.spent()}")
    return found


async def put(index: DeferredIndex, count: int) -> None:
    dice = random.Random(1)
    waiting: list[asyncio.Future[None]] = []
    for start in range(0, count, BATCH):
        waiting.append(index.defer([row(number, dice) for number in range(start, min(start + BATCH, count))]))
        if len(waiting) >= 8:
            await waiting.pop(0)
    await asyncio.gather(*waiting)


async def found(index: DeferredIndex, filter: Filter) -> int:
    count, after = 0, 0
    while True:
        page = await index.find(filter, after, 1_000)
        count += len(page.rows)
        after = page.after
        if not after:
            return count


async def again(index: DeferredIndex, count: int) -> int:
    """Take them as they become due, and defer them anew, as a dispatcher whose next hops are all down."""
    done = 0
    while done < count:
        rows = await index.due(NOW + 9_000_000, BATCH)
        await index.defer(
            [one._replace(next_ms=NOW + 9_000_000 + done, attempts=one.attempts + 1) for one in rows]
        )
        done += len(rows)
    return done


async def main(count: int, directory: str) -> None:
    path = os.path.join(directory, "deferred")
    base = memory_mb()
    index = DeferredIndex(path, loop=asyncio.get_running_loop(), version="0.1.0")
    await index.open()
    await timed(f"defer {count:,} rows, {BATCH} at a time", put(index, count))
    print(f"{'file':58} {os.stat(path).st_size / 1e6:7.0f} MB")
    print(f"{f'memory of the process, at most (before: {base:.0f} MB)':58} {memory_mb():7.0f} MB")
    total = await timed("find: one domain, all of its rows", found(index, Filter(domain=b"d100.example")))
    print(f"{'  rows':58} {total:7,}")
    for name, filter in (
        ("find: first page, one id", Filter(ids=("1QZ000012345",))),
        ("find: first page, one recipient", Filter(recipient=b"recipient5@d5.example")),
        ("find: first page, one sender", Filter(sender=b"user7@sender7.example")),
        ("find: first page, one source", Filter(source="a")),
        ("find: first page, held (none)", Filter(state=State.HELD)),
        ("find: first page, everything", Filter()),
    ):
        await timed(name, index.find(filter))
    if count >= 100_000:
        await timed("find: 1/50 of all, by sender's domain", found(index, Filter(sender=b"@sender3.example")))
    await timed("counts", index.counts())
    await timed("segments", index.segments())
    await timed("next_due", index.next_due())
    tried = min(count, 100_000)
    await timed(f"due and defer again, {tried:,} rows", again(index, tried))
    await timed("hold one domain", index.hold(Filter(domain=b"d100.example")))
    await timed("flush everything", index.flush(Filter(), NOW))
    await timed("close", index.close())
    print(f"{'memory of the process, at most':58} {memory_mb():7.0f} MB")
    file = IndexFile(path, version="0.1.0")
    clock = Clock()
    file.open()
    print(f"{'open':58} {clock.spent()}")
    clock = Clock()
    assert file._db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    print(f"{'quick_check, after a crash':58} {clock.spent()}")
    file.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--directory", help="on the disk that is meant; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as temporary:
        asyncio.run(main(given.rows, temporary))
