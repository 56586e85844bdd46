"""The parts in which mail is kept: durable accept, relay end to end, how long a client waits for its 250.

Beside each of ours stand those that do less, and Postfix, which does the same; the tables name the difference.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import statistics
import time

from bench.load import measure
from bench.load.harness import (
    OURS_CHECKED,
    ROWS,
    SESSIONS,
    Bench,
    Json,
    generate,
    summary,
    table,
)
from bench.load.servers import (
    POSTFIX,
    QUEUE,
    SMTP_SINK,
    Server,
    counting_sink,
    relaying,
)

# How long what was accepted may take to arrive, once no more comes in.
ARRIVE_S = 180.0
SYNCS = 200
# What a batch with one message of 4 kB is: two blocks.
BATCH_BYTES = 8192
SYNCED_FILE_BYTES = 8 << 20


def keeping(bench: Bench, *others: str) -> list[Server]:
    """Ours with the queue, and those of the chosen servers that have one of these names."""
    ours = [QUEUE] if QUEUE.absent() is None and bench.ours() else []
    return ours + [one for one in bench.servers if one.name in others]


def queue(bench: Bench) -> None:
    """CPU per message of durable accept, with the bytes that reached the disk; beside those that keep nothing."""
    servers = keeping(bench, OURS_CHECKED, SMTP_SINK, POSTFIX)
    rows = [row for row in ROWS if "pipelined" not in row.title]
    reports: dict[tuple[str, str], list[Json]] = {}
    with contextlib.ExitStack() as stack:
        up = [stack.enter_context(bench.start(server)) for server in servers]
        for server in up:
            # Long enough for segments to be there and to have gone round.
            generate(bench.program, server, ("--mode", "reused", "--size", "4096"), 1.0)
        for _ in range(bench.options.repeat):
            for row in rows:
                for server in up:
                    before = measure.written_bytes(server.pid)
                    report = generate(bench.program, server, row.arguments, bench.options.seconds)
                    written = measure.written_bytes(server.pid) - before
                    report["disk_bytes"] = written / max(report["messages"], 1)
                    if server.server is QUEUE and report["disk_bytes"] < int(row.arguments[-1]):
                        raise RuntimeError(
                            f"{row.title}: {report['disk_bytes']:.0f} bytes a message on the disk"
                        )
                    reports.setdefault((row.title, server.server.name), []).append(report)
    results = {
        key: summary(value) | {"disk_bytes": statistics.median(one["disk_bytes"] for one in value)}
        for key, value in reports.items()
    }
    bench.results["queue"] = [
        {"row": row, "server": server, **result} for (row, server), result in results.items()
    ]
    for row in rows:
        print(
            f"{row.title}, durable: {SESSIONS} sessions, one worker, all processes of each server."
            "  Goal: at most 1.6 times smtp-sink's, which checks and keeps nothing"
        )
        sink = results.get((row.title, SMTP_SINK))
        table(
            [
                "server",
                "does",
                "CPU us/message",
                "min-max",
                "x smtp-sink",
                "messages/s",
                "p50 ms",
                "p99 ms",
                "bytes on disk",
            ],
            [
                [
                    server.name,
                    server.does,
                    f"{result['cpu_us']:.1f}",
                    f"{result['cpu_us_min']:.1f}-{result['cpu_us_max']:.1f}",
                    f"{result['cpu_us'] / sink['cpu_us']:.2f}" if sink else "",
                    f"{result['messages_per_s']:,.0f}",
                    f"{result['p50_us'] / 1000:.2f}",
                    f"{result['p99_us'] / 1000:.2f}",
                    f"{result['disk_bytes']:,.0f}",
                ]
                for server in servers
                if (result := results.get((row.title, server.name)))
            ],
        )


def relay(bench: Bench) -> None:
    """CPU per message from the client to the next hop: in by SMTP, durable, out by SMTP to an smtp-sink of its own."""
    sink = next((one for one in bench.servers if one.name == SMTP_SINK), None)
    servers = keeping(bench, POSTFIX)
    if sink is None or not servers:
        print("relay: left out, it wants smtp-sink to send to, and fastsmtp or Postfix\n")
        return
    rows = [row for row in ROWS if row.title.startswith("4 kB") and "pipelined" not in row.title]
    reports: dict[tuple[str, str], list[Json]] = {}
    with contextlib.ExitStack() as stack:
        up = []
        for server in servers:
            bench.started += 1
            port, taken = stack.enter_context(counting_sink(bench.folder / f"sink{bench.started}"))
            up.append((stack.enter_context(bench.start(relaying(server, port))), taken))
        for running, _taken in up:
            generate(bench.program, running, rows[0].arguments, 1.0)
        for _ in range(bench.options.repeat):
            for row in rows:
                for running, taken in up:
                    measure.settled_cpu_s(running.pid)
                    before, cpu_s, began = taken(), measure.tree_cpu_s(running.pid), time.monotonic()
                    report = generate(bench.program, running, row.arguments, bench.options.seconds)
                    acknowledged = report["messages"]
                    while (arrived := taken() - before) < acknowledged:
                        if time.monotonic() > began + bench.options.seconds + ARRIVE_S:
                            break
                        time.sleep(0.05)
                    report["arrived_per_s"] = arrived / (time.monotonic() - began)
                    report["cpu_us"] = (measure.settled_cpu_s(running.pid) - cpu_s) * 1e6 / acknowledged
                    report["arrived"] = taken() - before
                    if report["arrived"] != acknowledged:
                        raise RuntimeError(
                            f"{running.server.name}: {acknowledged} acknowledged, {report['arrived']} arrived"
                        )
                    reports.setdefault((row.title, running.server.name), []).append(report)
    results = {
        key: summary(value)
        | {
            "arrived": sum(one["arrived"] for one in value),
            "arrived_per_s": statistics.median(one["arrived_per_s"] for one in value),
        }
        for key, value in reports.items()
    }
    bench.results["relay"] = [
        {"row": row, "server": server, **result} for (row, server), result in results.items()
    ]
    for row in rows:
        print(
            f"{row.title}, relayed: in by SMTP, durable, out by SMTP to smtp-sink; {SESSIONS} sessions, all processes"
            " of each server, none of smtp-sink's.  Goal: Postfix's is 12 times ours or more"
        )
        postfix = results.get((row.title, "Postfix, relay"))
        table(
            [
                "server", "does", "CPU us/message", "min-max", "Postfix's is x", "messages/s arrived", "acknowledged",
                "arrived",
            ],
            [
                [
                    running.server.name,
                    running.server.does,
                    f"{result['cpu_us']:.1f}",
                    f"{result['cpu_us_min']:.1f}-{result['cpu_us_max']:.1f}",
                    f"{postfix['cpu_us'] / result['cpu_us']:.1f}" if postfix else "",
                    f"{result['arrived_per_s']:,.0f}",
                    f"{result['messages']:,}",
                    f"{result['arrived']:,}",
                ]
                for running, _taken in up
                if (result := results.get((row.title, running.server.name)))
            ],
        )  # fmt: skip


def syncs_us(folder: pathlib.Path) -> list[float]:
    """What a write of one batch and its fdatasync take here, again and again, in a file that has its blocks."""
    path = folder / "synced"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    took = []
    try:
        if os.fstat(descriptor).st_size == 0:
            os.write(descriptor, bytes(SYNCED_FILE_BYTES))
            os.fsync(descriptor)
        batch = b"x" * BATCH_BYTES
        for number in range(SYNCS):
            began = time.perf_counter()
            os.pwrite(descriptor, batch, number * BATCH_BYTES % SYNCED_FILE_BYTES)
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(descriptor)
    return took


def latency(bench: Bench) -> None:
    """How long the reply to the dot takes, at one session and at 50, with the queue and without, beside one sync."""
    servers = keeping(bench, OURS_CHECKED, POSTFIX)
    reports: dict[tuple[int, str], list[Json]] = {}
    syncs: list[float] = []
    counts = (1, SESSIONS)
    with contextlib.ExitStack() as stack:
        up = [stack.enter_context(bench.start(server)) for server in servers]
        for running in up:
            generate(bench.program, running, ROWS[0].arguments, 1.0)
        for _ in range(bench.options.repeat):
            for count in counts:
                for running in up:
                    measure.settled_cpu_s(running.pid)
                    syncs += syncs_us(bench.folder)
                    report = generate(
                        bench.program,
                        running,
                        (*ROWS[0].arguments, "--sessions", str(count)),
                        bench.options.seconds,
                    )
                    reports.setdefault((count, running.server.name), []).append(report)
    keys = ("dot_p50_us", "dot_p99_us", "p50_us", "p99_us", "messages_per_s")
    results = {
        key: {one: statistics.median(report[one] for report in value) for one in keys}
        for key, value in reports.items()
    }
    syncs.sort()
    p50, p99 = syncs[len(syncs) // 2], syncs[len(syncs) * 99 // 100]
    bench.results["latency"] = {
        "sync_p50_us": p50,
        "sync_p99_us": p99,
        "rows": [{"sessions": count, "server": name, **result} for (count, name), result in results.items()],
    }
    print(
        f"From the dot to its reply, 4 kB, reused connections.  A write and one sync here: p50 {p50 / 1000:.2f},"
        f" p99 {p99 / 1000:.2f} ms.  Goals: at one session at most one sync more than without the queue; p99 at"
        f" {SESSIONS} under 3 ms more"
    )
    table(
        [
            "sessions",
            "server",
            "does",
            "p50 ms",
            "p99 ms",
            "p50 more than without queue",
            "p99 more",
            "messages/s",
        ],
        [
            [
                str(count),
                running.server.name,
                running.server.does,
                f"{result['dot_p50_us'] / 1000:.2f}",
                f"{result['dot_p99_us'] / 1000:.2f}",
                f"{(result['dot_p50_us'] - without['dot_p50_us']) / 1000:+.2f}" if without else "",
                f"{(result['dot_p99_us'] - without['dot_p99_us']) / 1000:+.2f}" if without else "",
                f"{result['messages_per_s']:,.0f}",
            ]
            for count in counts
            for running in up
            if (result := results.get((count, running.server.name)))
            for without in [results.get((count, OURS_CHECKED))]
        ],
    )
