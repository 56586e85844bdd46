"""What a durable record costs: CPU and latency of the journal, beside a file and an fsync for each message.

    python bench/bench_journal.py [--seconds 1.0] [--directory DIR] [--json FILE] [--loop asyncio]

4 kB records, 50 concurrent appenders and 1, each the median of five rounds; what is compared takes turns:

  journal         append() of a payload that is ready
  with encode     the message encoded too, as the queue's sink does
  file + fsync    one new file a message, written and synced in four threads; its directory is not even synced

CPU is time.process_time(): user and system of this process, the native thread included.  Latency is that of one
append, seen from the loop.  The segments are there before the clock runs: in a server they are used again.
The directory must be on a real disk; what a sync costs there is printed, since all the rest follows from it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastsmtp._journal import Writer  # noqa: E402
from fastsmtp.message import Envelope, Recipient  # noqa: E402
from fastsmtp.queue.disk import ThreadDisk  # noqa: E402
from fastsmtp.queue.journal import Journal, LocalSource  # noqa: E402
from fastsmtp.queue.model import Origins, QueuedMessage, encode  # noqa: E402
from fastsmtp.queue.store import Store  # noqa: E402

SIZE_BYTES = 4_096
ROUNDS = 5
PREFIX = b"Received: from mail.example.org (mail.example.org [192.0.2.1])\r\n\tby mx.example.net; now\r\n"
BODY = [b"x" * SIZE_BYTES]

Append = Callable[[], Awaitable[object]]


class Figures:
    """One round: CPU microseconds a record, records a second, latencies in milliseconds, records a sync."""

    def __init__(self, cpu_us: float, rate: float, latencies_ms: list[float], per_sync: float) -> None:
        latencies_ms.sort()
        self.cpu_us = cpu_us
        self.rate = rate
        self.p50_ms = latencies_ms[len(latencies_ms) // 2]
        self.p99_ms = latencies_ms[len(latencies_ms) * 99 // 100]
        self.per_sync = per_sync


async def measure(append: Append, concurrency: int, seconds: float, syncs: Callable[[], int]) -> Figures:
    latencies: list[float] = []

    async def appender(until: float) -> None:
        while (began := time.perf_counter()) < until:
            await append()
            latencies.append((time.perf_counter() - began) * 1e3)

    gc.collect()
    synced = syncs()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(appender(began + seconds) for _ in range(concurrency)))
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    count = len(latencies)
    return Figures(cpu / count * 1e6, count / took, latencies, count / max(syncs() - synced, 1))


def message(number: int) -> QueuedMessage:
    envelope = Envelope(
        b"joe@example.org", b"example.org", SIZE_BYTES, b"8BITMIME",
        recipients=[Recipient(b"mary@example.net", b"example.net", deliver="maildir:/srv/mail/{local}")],
    )  # fmt: skip
    origins = Origins(
        address="192.0.2.1", port=40_000, name="mail.example.org", helo=b"mail.example.org", is_extended=True,
        listener="mx", local_address="192.0.2.9",
    )  # fmt: skip
    return QueuedMessage(
        f"7F3ADQ01AAAA.{number}", 1_800_000_000_000, envelope, origins, PREFIX, BODY, SIZE_BYTES
    )


class OneFileEach:
    """What the journal replaces."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.count = 0
        self.executor = ThreadPoolExecutor(4)

    def _store(self, number: int) -> None:
        path = self.directory / f"m{number}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.writev(fd, [PREFIX, *BODY])
            os.fsync(fd)
        finally:
            os.close(fd)

    async def append(self) -> None:
        self.count += 1
        await asyncio.get_running_loop().run_in_executor(self.executor, self._store, self.count)

    def clear(self) -> None:
        """The files of one round, outside of its clock."""
        for path in self.directory.iterdir():
            path.unlink()


def sync_ms(directory: pathlib.Path) -> float:
    """One overwritten block and its fdatasync, the median."""
    fd = os.open(directory / "sync", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(1 << 20), 0)
    os.fsync(fd)
    times = []
    for number in range(50):
        began = time.perf_counter()
        os.pwrite(fd, bytes(4096), number * 4096)
        os.fdatasync(fd)
        times.append(time.perf_counter() - began)
    os.close(fd)
    (directory / "sync").unlink()
    return statistics.median(times) * 1e3


async def compare(directory: pathlib.Path, seconds: float) -> dict[str, dict[str, float]]:
    queue, files = directory / "queue", directory / "files"
    queue.mkdir()
    files.mkdir()
    disk = ThreadDisk()
    store = Store(str(queue), version="0", wall=time.time, random=os.urandom, spare=64)
    # Enough of them, written through, for all rounds.
    ready = [store.prepare(os) for _ in range(10)]
    for segment in ready:
        os.close(segment.fd)
        store.retire(os, segment.number)
    writer: Any = Writer()
    journal = Journal(
        LocalSource(store, disk), loop=asyncio.get_running_loop(), clock=time.monotonic, writer=writer
    )
    await journal.start()
    one_file = OneFileEach(files)
    payload = [piece for piece in encode(message(1)) if piece]

    async def appended() -> None:
        await journal.append(payload)

    async def encoded() -> None:
        await journal.append(encode(message(1)))

    kinds: dict[str, tuple[Append, Callable[[], int]]] = {
        "journal": (appended, lambda: writer.batches),
        "with encode": (encoded, lambda: writer.batches),
        "file + fsync": (one_file.append, lambda: one_file.count),
    }
    found: dict[str, dict[str, float]] = {}
    for concurrency in (50, 1):
        rounds: dict[str, list[Figures]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, (append, syncs) in kinds.items():
                rounds[kind].append(await measure(append, concurrency, seconds, syncs))
                one_file.clear()
        for kind, figures in rounds.items():
            found[f"{kind}, {concurrency} at a time"] = {
                name: round(statistics.median(getattr(one, name) for one in figures), 3)
                for name in ("cpu_us", "rate", "p50_ms", "p99_ms", "per_sync")
            }
    await journal.close()
    disk.close()
    one_file.executor.shutdown()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="a round")
    parser.add_argument(
        "--directory", type=pathlib.Path, help="on the disk that is meant; default: the temporary one"
    )
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as name,
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        one_sync_ms = sync_ms(pathlib.Path(name))
        print(f"one overwritten block and its sync: {one_sync_ms:.2f} ms\n")
        found = runner.run(compare(pathlib.Path(name), options.seconds))
    print(f"{'':26}{'CPU us':>9}{'a second':>10}{'p50 ms':>8}{'p99 ms':>8}{'a sync':>8}")
    for kind, figures in found.items():
        print(
            f"{kind:26}{figures['cpu_us']:9.1f}{figures['rate']:10.0f}{figures['p50_ms']:8.2f}"
            f"{figures['p99_ms']:8.2f}{figures['per_sync']:8.1f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"sync_ms": one_sync_ms, **found}, indent=1))


if __name__ == "__main__":
    main()
