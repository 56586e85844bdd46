"""What a DNS query costs: CPU of our process, kernel included, against a responder in C on loopback.

    python bench/bench_dns.py [--seconds 1.0] [--json FILE] [--loop asyncio]

Each figure is the median of five rounds, pycares beside ours in the same run on
the same names (it has a cache of its own, but no name comes twice; EDNS on as
ours), and the floor: the same system calls in C and nothing else.

  in flight   batches of 8, 200 questions in flight: CPU per query, uncached
  one batch   one batch of 8 at a time
  cache hit   the same batch again, per question, through put()
  memory      resident memory of 100,000 cached names, half of them negative

CPU is time.process_time(): user and system of this process alone.  The time
that the kernel takes to carry a packet to the other socket counts for the one
who sends it, so the responder's half is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastsmtp.resolver import A, Answers, Question, Resolver  # noqa: E402

BATCH = 8
IN_FLIGHT = 25  # batches: 200 questions
ROUNDS = 5


@contextlib.contextmanager
def compiled(name: str) -> Iterator[pathlib.Path]:
    """A program of bench/load, compiled."""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / name
        source = ROOT / "bench" / "load" / f"{name}.c"
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
        yield program


@contextlib.contextmanager
def responder(*arguments: str) -> Iterator[str]:
    """Compile and run load/dnsresponder.c; gives "127.0.0.1:port"."""
    with (
        compiled("dnsresponder") as program,
        subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.stdin.close()
            process.wait()


class Names:
    """Batches as eight lists would be asked about one client each: reversed address and zone, never the same twice."""

    def __init__(self) -> None:
        self.serial = 0

    def batch(self) -> tuple[Question, ...]:
        self.serial += 1
        n = self.serial
        client = f"{n & 255}.{n >> 8 & 255}.{n >> 16 & 255}"
        return tuple(
            Question(f"{'n' if zone % 2 else 'a'}.{client}.zone{zone}.example.org".encode(), A)
            for zone in range(BATCH)
        )


async def ours(where: str, prepared: list[tuple[Question, ...]], concurrency: int) -> float:
    """CPU seconds for all batches, so many at a time."""
    resolver = Resolver([where], cache_bytes=16_777_216)
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    remaining = len(prepared)
    feed = iter(prepared)

    def answered(answers: Answers) -> None:
        nonlocal remaining
        if any(answer.is_failed for answer in answers):
            raise RuntimeError(f"a measurement with failures: {answers}")
        remaining -= 1
        if not remaining:
            done.set_result(None)
            return
        batch = next(feed, None)
        if batch is not None:
            resolver.put(batch, time.monotonic() + 5.0, answered)

    await resolver.ask((Question(b"warm.example.org", A),))
    gc.collect()
    start = time.process_time()
    for batch in [next(feed) for _ in range(concurrency)]:
        resolver.put(batch, time.monotonic() + 5.0, answered)
    await done
    took = time.process_time() - start
    resolver.close()
    return took


async def ours_awaited(where: str, prepared: list[tuple[Question, ...]], concurrency: int) -> float:
    """The same through the coroutine, each batch in a task that awaits ask()."""
    resolver = Resolver([where], cache_bytes=16_777_216)
    feed = iter(prepared)

    async def asker() -> None:
        for batch in feed:
            await resolver.ask(batch)

    await resolver.ask((Question(b"warm.example.org", A),))
    gc.collect()
    start = time.process_time()
    await asyncio.gather(*(asker() for _ in range(concurrency)))
    took = time.process_time() - start
    resolver.close()
    return took


async def cares(where: str, prepared: list[tuple[Question, ...]], concurrency: int) -> float:
    """pycares on the same loop through sock_state_cb, no wrapper of ours between."""
    import pycares

    loop = asyncio.get_running_loop()
    done = loop.create_future()
    watched: set[int] = set()

    def watch(fd: int, is_readable: bool, is_writable: bool) -> None:
        if is_readable and fd not in watched:
            loop.add_reader(fd, channel.process_read_fd, fd)
            watched.add(fd)
        elif not is_readable and fd in watched:
            loop.remove_reader(fd)
            watched.discard(fd)

    channel = pycares.Channel(sock_state_cb=watch, servers=[where], flags=pycares.ARES_FLAG_EDNS)
    feed = iter(prepared)
    remaining = len(prepared)

    def put(batch: tuple[Question, ...]) -> None:
        missing = len(batch)

        def answered(result: object, error: int | None) -> None:
            nonlocal missing, remaining
            missing -= 1
            if missing:
                return
            remaining -= 1
            if not remaining:
                done.set_result(None)
                return
            following = next(feed, None)
            if following is not None:
                loop.call_soon(put, following)

        for question in batch:
            channel.query(question.name.decode(), question.type, callback=answered)

    gc.collect()
    start = time.process_time()
    for batch in [next(feed) for _ in range(concurrency)]:
        put(batch)
    await done
    took = time.process_time() - start
    for fd in list(watched):
        loop.remove_reader(fd)
    channel.close()
    return took


def floor(where: str, batches: int, concurrency: int) -> float:
    """CPU microseconds a query of load/dnsfloor.c."""
    with compiled("dnsfloor") as program:
        port, queries = where.rpartition(":")[2], str(batches * BATCH)
        command = [str(program), port, str(concurrency), queries]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def hit(where: str, seconds: float) -> float:
    """CPU seconds of one cached question: batches of 8, half of them negative."""
    resolver = Resolver([where])
    batch = Names().batch()
    await resolver.ask(batch)
    put, deadline = resolver.put, time.monotonic() + 1e6

    def answered(answers: Answers) -> None:
        raise RuntimeError("not cached")

    rounds = max(1_000, int(seconds * 200_000))
    start = time.process_time()
    for _ in range(rounds):
        put(batch, deadline, answered)
    took = time.process_time() - start
    resolver.close()
    return took / rounds / BATCH


async def memory(where: str, names: int) -> tuple[int, int, int]:
    """Bytes that the cache says, bytes that the process grew by, and entries."""
    resolver = Resolver([where], cache_bytes=67_108_864)
    source = Names()
    await resolver.ask(source.batch())
    gc.collect()
    before = resident()
    while resolver.engine.cache.entries < names:
        await resolver.ask(source.batch())
    gc.collect()
    result = resolver.engine.cache.used_bytes, resident() - before, resolver.engine.cache.entries
    resolver.close()
    return result


def resident() -> int:
    """Resident bytes now, where the system tells; else the peak."""
    with contextlib.suppress(OSError):
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU seconds a round, about")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    figures: dict[str, float] = {}
    with responder() as where, asyncio.Runner(loop_factory=factory) as runner:
        for label, concurrency, guess_us in (("in flight", IN_FLIGHT, 3.0), ("one batch", 1, 6.0)):
            for engine, function, factor in (
                ("fastsmtp", ours, 1.0),
                ("fastsmtp, awaited", ours_awaited, 1.0),
                ("pycares", cares, 10.0),
            ):
                batches = max(200, int(options.seconds * 1e6 / guess_us / factor / BATCH))
                rounds = []
                for _ in range(ROUNDS):
                    names = Names()
                    prepared = [names.batch() for _ in range(batches)]
                    rounds.append(runner.run(function(where, prepared, concurrency)) / batches / BATCH * 1e6)
                figures[f"{label}, {engine}, us"] = statistics.median(rounds)
            figures[f"{label}, floor in C, us"] = statistics.median(
                floor(where, int(options.seconds * 1e6 / guess_us / BATCH), concurrency)
                for _ in range(ROUNDS)
            )
            figures[f"{label}, times cheaper"] = (
                figures[f"{label}, pycares, us"] / figures[f"{label}, fastsmtp, us"]
            )
        figures["cache hit, us"] = statistics.median(
            runner.run(hit(where, options.seconds)) * 1e6 for _ in range(ROUNDS)
        )
        used, grown, entries = runner.run(memory(where, 100_000))
        figures["cache, bytes a name"] = used / entries
        figures["100,000 names, MB resident"] = grown / 1e6
    for label, value in figures.items():
        print(f"{label:32} {value:10.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
