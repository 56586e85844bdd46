"""A real server with one million deferred messages: its start, the memory of its processes, the operator's commands.

    python bench/bench_deferred.py [--messages 1000000] [--directory DIR]

The queue is made by writing journal, done-log and index as a server would; then `fastsmtp serve` runs over it, with
a next hop that isn't there, and nothing due.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from fastsmtp import _record
from fastsmtp._journal import Writer
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.done import Done, DoneLog, Outcome
from fastsmtp.queue.fileheader import Purpose
from fastsmtp.queue.index import NAME
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.model import Origins, QueuedMessage, encode
from fastsmtp.queue.row import Said, row_of
from fastsmtp.queue.store import DONE_SEGMENT_BYTES, Store

AT_ONCE = 1_000
CONFIG = """
hostname = "mx.example.org"
state = "{state}"
user = "nobody"
queue_user = "nobody"
workers = 1
[[listen]]
address = ["127.0.0.1:0"]
[deliver]
default = "smtp://127.0.0.1:9"
"""


def message(number: int, now_ms: int) -> QueuedMessage:
    domain = b"d%d.example" % (number * number % 997)
    to = Recipient(b"user%d@%s" % (number, domain), domain, deliver="smtp://127.0.0.1:9")
    body = b"Subject: %d\r\n\r\nHello\r\n" % number
    return QueuedMessage(
        f"1QZ{number:09d}", now_ms, Envelope(b"joe@sender.example", b"sender.example", recipients=[to]),
        Origins(address="192.0.2.1", listener="mx"), b"Received: by us; now\r\n", (body,), len(body),
    )  # fmt: skip


async def make(queue: pathlib.Path, count: int) -> None:
    (queue / "bodies").mkdir(parents=True)
    loop = asyncio.get_running_loop()
    journals = []
    common: dict[str, Any] = {"version": "0.1.0", "wall": time.time, "random": os.urandom}
    for store, kind in (
        (Store(str(queue), **common), _record.MESSAGE),
        (Store(str(queue), purpose=Purpose.DONE, size_bytes=DONE_SEGMENT_BYTES, **common), _record.DONE),
    ):
        store.open(os)
        writer: Writer[Any] = Writer()
        source = LocalSource(store, InlineDisk())
        journals.append(Journal(source, loop=loop, clock=time.monotonic, writer=writer, kind=kind))
        await journals[-1].start()
    log = DoneLog(journals[1], Done(), loop=loop, clock=time.monotonic, report=print)
    index = DeferredIndex(str(queue / NAME), loop=loop, version="0.1.0")
    await index.open()
    now_ms = int(time.time() * 1000)
    said = Said(451, "4.7.1", "come back in an hour", "mx.there.example [192.0.2.1]")
    for start in range(0, count, AT_ONCE):
        some = [message(number, now_ms) for number in range(start, min(start + AT_ONCE, count))]
        places = await asyncio.gather(*[journals[0].append(encode(one)) for one in some])
        await index.defer(
            [
                row_of(place, one, 0, next_ms=now_ms + 3_600_000)._replace(attempts=3, said=said)
                for place, one in zip(places, some, strict=True)
            ]
        )
        for place in places:
            log.add(place, 0, Outcome.DEFERRED)
    await log.flush()
    for journal in journals:
        await journal.close()
    await index.close()


def memory_mb(pid: int) -> tuple[float, float]:
    """Now, and at most."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    found = [int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM")]  # type: ignore[index]
    return found[0], found[1]


def children(pid: int) -> list[int]:
    return list(map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def command(state: pathlib.Path, *arguments: str) -> None:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "queue", *arguments, "--state", str(state)],
        capture_output=True,
        check=False,
    )
    took = time.perf_counter() - began
    last = (done.stdout or done.stderr).decode().strip().rpartition("\n")[2]
    print(f"fastsmtp queue {' '.join(arguments):42} {took:6.2f} s   {last[:60]}")


def run(count: int, directory: pathlib.Path) -> None:
    state = directory / "state"
    began = time.perf_counter()
    asyncio.run(make(state / "queue", count))
    print(f"{f'made, {count:,} messages':57} {time.perf_counter() - began:6.2f} s")
    if os.geteuid() == 0:
        for path in (directory, state):
            os.chmod(path, 0o755)
    config = directory / "fastsmtp.toml"
    config.write_text(CONFIG.format(state=state))
    began = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "fastsmtp", "serve", "--config", str(config)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "ready" in line:
                break
        print(f"{'start, until it takes mail':57} {time.perf_counter() - began:6.2f} s")
        for pid in children(server.pid):
            now, most = memory_mb(pid)
            name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
            print(f"{f'memory of {name}, now and at most':57} {now:6.0f} MB {most:6.0f} MB")
        command(state, "list", "--domain", "d16.example")
        command(state, "list", "--limit", "1000")
        command(state, "hold", "--domain", "d16.example")
        command(state, "show", "1QZ000000016")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--directory", help="on the disk that is meant; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as temporary:
        run(given.messages, pathlib.Path(temporary))
