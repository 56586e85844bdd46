"""What a delivered message costs: CPU of the engine that the delivery processes have, Postfix's smtp-source beside it.

    python bench/bench_delivery.py [--messages 20000] [--at-once 50] [--rounds 5]

Messages of 4 kB for one recipient each, from memory, over kept connections to Postfix's smtp-sink on loopback; each
row is the median of the rounds, which take turns:

  put()           as a delivery process hands messages over: a callback, no task
  deliver()       the same with a coroutine for each message
  smtp-source     Postfix's client in C, which makes up its text once, and waits for each reply

CPU is user and system of the client; smtp-sink is another process.  Compare within one run only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import pathlib
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastsmtp.config.dest import parse_dest  # noqa: E402
from fastsmtp.config.outgoing import Remote  # noqa: E402
from fastsmtp.config.routes import Route  # noqa: E402
from fastsmtp.delivery.deliverer import Deliverer  # noqa: E402
from fastsmtp.message import Envelope, Recipient  # noqa: E402
from fastsmtp.queue.model import Origins  # noqa: E402
from fastsmtp.resolver import Resolver  # noqa: E402
from fastsmtp.supervisor.worker import new_loop  # noqa: E402

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
CONNECTIONS = 20
BODY = b"Subject: bench\r\nFrom: a@b.example\r\n\r\n" + (b"x" * 76 + b"\r\n") * 52
PREFIX = b"Received: from mail.example.org (mail.example.org [192.0.2.1])\r\n\tby mx.example.net; now\r\n"
ORIGINS = Origins(address="192.0.2.1")


class Message:
    """As a delivery process has one: its parts are there, its envelope was just decoded."""

    __slots__ = ("accepted_ms", "chunks", "envelope", "id", "origins", "prefix", "size_bytes")

    def __init__(self) -> None:
        self.id = "bench"
        self.accepted_ms = 0
        self.origins = ORIGINS
        self.prefix = PREFIX
        self.chunks: Sequence[bytes] | None = (BODY,)
        self.envelope = Envelope(b"a@b.example", b"b.example")
        self.size_bytes = len(BODY)

    async def pieces(self) -> AsyncIterator[bytes]:
        yield BODY


@contextlib.contextmanager
def sink() -> Iterator[int]:
    """smtp-sink on a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    account = ["-u", "postfix"] if os.geteuid() == 0 else []
    program = shutil.which("smtp-sink", path=SEARCH_PATH)
    if program is None:
        sys.exit("smtp-sink is not installed (Debian: postfix)")
    process = subprocess.Popen([program, *account, f"127.0.0.1:{port}", "100"])
    try:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()


async def ours(port: int, messages: int, at_once: int, *, is_put: bool) -> float:
    """Microseconds of CPU a message."""
    dest = f"smtp://127.0.0.1:{port}"
    route = Route(dest, parse_dest(dest))
    remote = Remote(connections=CONNECTIONS, messages_per_connection=1_000_000)
    resolver = Resolver(["127.0.0.1"])
    deliverer = Deliverer(remote=remote, hostname="mx.example.net", resolver=resolver)
    run = by_put if is_put else by_coroutines
    await run(deliverer, route, at_once * 10, at_once)  # connections are open
    began_s = time.process_time()
    await run(deliverer, route, messages, at_once)
    took_s = time.process_time() - began_s
    await deliverer.close()
    resolver.close()
    return 1e6 * took_s / messages


async def by_put(deliverer: Deliverer, route: Route, messages: int, at_once: int) -> None:
    ended = asyncio.get_running_loop().create_future()
    left, open_ = messages, 0

    def done(outcomes: Sequence[object]) -> None:
        nonlocal open_
        if type(outcomes[0]).__name__ != "Delivered":
            raise RuntimeError(outcomes)
        open_ -= 1
        if left:
            go()
        elif not open_:
            ended.set_result(None)

    def go() -> None:
        nonlocal left, open_
        left -= 1
        open_ += 1
        deliverer.put(Message(), [Recipient(b"x@y.example", b"y.example")], route, done)  # type: ignore[arg-type]

    for _ in range(min(at_once, messages)):
        go()
    await ended


async def by_coroutines(deliverer: Deliverer, route: Route, messages: int, at_once: int) -> None:
    async def some() -> None:
        for _ in range(messages // at_once):
            recipients = [Recipient(b"x@y.example", b"y.example")]
            (outcome,) = await deliverer.deliver(Message(), recipients, route)  # type: ignore[arg-type]
            if type(outcome).__name__ != "Delivered":
                raise RuntimeError(outcome)

    await asyncio.gather(*(some() for _ in range(at_once)))


def theirs(port: int, messages: int) -> float:
    program = shutil.which("smtp-source", path=SEARCH_PATH)
    if program is None:
        return float("nan")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [program, "-d", "-m", str(messages), "-s", str(CONNECTIONS), "-l", str(len(BODY)),
         "-f", "a@b.example", "-t", "x@y.example", f"127.0.0.1:{port}"],
        check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e6 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / messages


def on_loop(work: Callable[[], object]) -> float:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return float(runner.run(work()))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description="What a delivered message costs.")
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    gc.set_threshold(20_000, 20, 100)  # as the processes have it
    rows: dict[str, list[float]] = {"put()": [], "deliver()": [], "smtp-source": []}
    with sink() as port:
        for _ in range(given.rounds):
            rows["put()"].append(on_loop(lambda: ours(port, given.messages, given.at_once, is_put=True)))
            rows["deliver()"].append(on_loop(lambda: ours(port, given.messages, given.at_once, is_put=False)))
            rows["smtp-source"].append(theirs(port, given.messages))
    does = {"smtp-source": "   makes up its text once, reads no journal, chooses no route"}
    print(
        f"{given.messages} messages of {len(BODY)} bytes, {given.at_once} at once, {CONNECTIONS} connections"
    )
    for name, figures in rows.items():
        print(
            f"{name:12} {statistics.median(figures):6.1f} us CPU a message ({min(figures):.1f} to {max(figures):.1f})"
            f"{does.get(name, '')}"
        )


if __name__ == "__main__":
    main()
