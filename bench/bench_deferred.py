"""A real server over a full queue: its start, the memory of its processes, the operator's commands.

    python bench/bench_deferred.py [--pending 100000] [--messages 1000000] [--directory DIR]

Two queues, one after the other, made by writing journal, done-log and index as a server would; then `fastsmtp serve`
runs over each, with a next hop that isn't there.  A count of 0 leaves that one out.

  pending    messages of 4 kB in the journal that were never tried: from exec to the line that says all of them are
             known, and to the one that says mail is taken
  messages   deferred ones, nothing of them due: the same, memory of each process, `fastsmtp queue` with its own start

Behind a figure that has a goal stands the goal, for an idle machine; on a busy one CPU, of all processes, says more
than the clock.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import measure  # noqa: E402
from fastsmtp import _record  # noqa: E402
from fastsmtp._journal import Writer  # noqa: E402
from fastsmtp.message import Envelope, Recipient  # noqa: E402
from fastsmtp.queue.deferred import DeferredIndex  # noqa: E402
from fastsmtp.queue.disk import InlineDisk  # noqa: E402
from fastsmtp.queue.done import Done, DoneLog, Outcome  # noqa: E402
from fastsmtp.queue.fileheader import Purpose  # noqa: E402
from fastsmtp.queue.index import NAME  # noqa: E402
from fastsmtp.queue.journal import Journal, LocalSource  # noqa: E402
from fastsmtp.queue.model import Origins, QueuedMessage, encode  # noqa: E402
from fastsmtp.queue.row import Said, row_of  # noqa: E402
from fastsmtp.queue.store import DONE_SEGMENT_BYTES, Store  # noqa: E402

AT_ONCE = 1_000
START_S = 600
PENDING_BYTES = 4096
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
[log]
to = "{state}/log"
"""


def message(number: int, now_ms: int, size_bytes: int) -> QueuedMessage:
    domain = b"d%d.example" % (number * number % 997)
    to = Recipient(b"user%d@%s" % (number, domain), domain, deliver="smtp://127.0.0.1:9")
    body = (b"Subject: %d\r\n\r\nHello\r\n" % number).ljust(size_bytes, b"x")
    return QueuedMessage(
        f"1QZ{number:09d}", now_ms, Envelope(b"joe@sender.example", b"sender.example", recipients=[to]),
        Origins(address="192.0.2.1", listener="mx"), b"Received: by us; now\r\n", (body,), len(body),
    )  # fmt: skip


async def make(queue: pathlib.Path, count: int, *, is_deferred: bool) -> None:
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
        some = [
            message(number, now_ms, 0 if is_deferred else PENDING_BYTES)
            for number in range(start, min(start + AT_ONCE, count))
        ]
        places = await asyncio.gather(*[journals[0].append(encode(one)) for one in some])
        if not is_deferred:
            continue
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


def event(line: str) -> dict[str, str]:
    """The fields of a log line; values with spaces, which nothing here needs, come in parts."""
    return dict(field.split("=", 1) for field in line.split() if "=" in field)


class Server:
    """`serve` over a state directory, with what its log says while it starts.

    said     event -> seconds since exec, and CPU seconds of all its processes
    """

    def __init__(self, directory: pathlib.Path, state: pathlib.Path) -> None:
        if os.geteuid() == 0:
            for path in (directory, state):
                os.chmod(path, 0o755)
        config = directory / "fastsmtp.toml"
        config.write_text(CONFIG.format(state=state))
        self.said: dict[str, tuple[float, float]] = {}
        self.queue: dict[str, str] = {}
        self.pids: dict[str, int] = {}
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastsmtp", "serve", "--config", str(config)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        log = state / "log"
        at = 0
        while not {"ready", "queue_open"} <= self.said.keys():
            now = time.perf_counter() - began
            if self.process.poll() is not None or now > START_S:
                self.close()
                raise RuntimeError("the server does not start")
            text = log.read_bytes()[at:] if log.exists() else b""
            at += len(whole := text[: text.rfind(b"\n") + 1])
            for line in whole.decode().splitlines():
                fields = event(line)
                if fields["event"] not in self.said:
                    self.said[fields["event"]] = (now, measure.tree_cpu_s(self.process.pid))
                if fields["event"] == "queue_open":
                    self.queue = fields
                elif fields["event"] in ("aside_ready", "worker_ready"):
                    self.pids[fields.get("what") or f"worker {fields['worker']}"] = int(fields["pid"])
            time.sleep(0.005)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def command(state: pathlib.Path, *arguments: str, goal: str = "") -> None:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "queue", *arguments, "--state", str(state)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    took = time.perf_counter() - began
    last = (done.stdout or done.stderr).decode().strip().rpartition("\n")[2]
    show(f"fastsmtp queue {' '.join(arguments)}", f"{took:6.2f} s", goal, last[:60])


def show(what: str, figure: str, goal: str = "", more: str = "") -> None:
    print(f"{what:57} {figure}{f'   goal: {goal}' if goal else ''}{f'   {more}' if more else ''}", flush=True)


def run(count: int, directory: pathlib.Path, *, is_deferred: bool) -> None:
    kind = "deferred" if is_deferred else "pending"
    state = directory / "state"
    began = time.perf_counter()
    asyncio.run(make(state / "queue", count, is_deferred=is_deferred))
    show(f"made, {count:,} {kind} messages", f"{time.perf_counter() - began:6.2f} s")
    server = Server(directory, state)
    try:
        found = int(server.queue[kind])
        if found != count:
            raise RuntimeError(f"{count} {kind} messages were made, the server knows of {found}")
        goal = "" if is_deferred else "under 5 s for 100,000"
        for name, what in (("ready", "it takes mail"), ("queue_open", f"all {kind} are known")):
            took_s, cpu_s = server.said[name]
            show(f"from exec until {what}", f"{took_s:6.2f} s, CPU {cpu_s:5.2f} s", goal)
        for name, pid in server.pids.items():
            now, most = memory_mb(pid)
            goal = "under 300 MB for 1,000,000" if is_deferred and not name.startswith("worker") else ""
            show(f"memory of {name}, now and at most", f"{now:6.0f} MB {most:6.0f} MB", goal)
        if is_deferred:
            command(state, "list", "--domain", "d16.example", goal="under 1 s")
            command(state, "list", "--limit", "1000")
            command(state, "hold", "--domain", "d16.example")
            command(state, "show", "1QZ000000016")
    finally:
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--directory", help="on the disk that is meant; default: a temporary one")
    given = parser.parse_args()
    for number, of_deferred in ((given.pending, False), (given.messages, True)):
        if number:
            with tempfile.TemporaryDirectory(dir=given.directory) as temporary:
                run(number, pathlib.Path(temporary), is_deferred=of_deferred)
