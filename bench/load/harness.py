"""What every part of bench/load needs: the generator, the servers that can run, tables, the results."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from bench.load import measure
from bench.load.servers import ROOT, SERVERS, Running, Server, running

OUTPUT = ROOT / "build" / "bench"
RECIPIENTS = 100_000
SESSIONS = 50
ADDRESSES = 10_000
OURS = "fastsmtp"
OURS_CHECKED = "fastsmtp, all checks"

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One kind of load."""

    title: str
    arguments: tuple[str, ...]


ROWS = [
    Row("4 kB, reused connection", ("--mode", "reused", "--size", "4096")),
    Row("4 kB, new connection for each", ("--mode", "new", "--size", "4096")),
    Row("4 kB, pipelined", ("--mode", "pipelined", "--size", "4096")),
    Row("100 kB, reused connection", ("--mode", "reused", "--size", "100000")),
]


class Refused(Exception):
    """A server does not bear this kind of load."""


def build_generator() -> pathlib.Path:
    """Compile smtpload.c unless it is newer than its source."""
    source = pathlib.Path(__file__).resolve().parent / "smtpload.c"
    program = OUTPUT / "smtpload"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        compiler = os.environ.get("CC", "cc").split()
        subprocess.run([*compiler, "-O2", "-g", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


def generate(program: pathlib.Path, server: Running, arguments: tuple[str, ...], seconds: float) -> Json:
    """One run of the generator against a server: its report, and the server's CPU per message."""
    before = measure.settled_cpu_s(server.pid)
    done = subprocess.run(
        [
            program, "--port", str(server.site.port), "--sessions", str(SESSIONS),
            "--addresses", str(ADDRESSES), "--seconds", str(seconds),
            "--recipients", str(server.site.recipients), *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 120,
    )  # fmt: skip
    after = measure.settled_cpu_s(server.pid)
    if not done.stdout:
        raise RuntimeError(f"{server.server.name}: {done.stderr}")
    report: Json = json.loads(done.stdout)
    if report["errors"]:
        raise Refused(f"{report['errors']} errors, the first: {report['first_error']}")
    report["cpu_us"] = (after - before) * 1e6 / max(report["messages"], 1)
    return report


def summary(reports: list[Json]) -> Json:
    """Medians over the repetitions, and the least and the most CPU."""
    cpu = [report["cpu_us"] for report in reports]
    return {
        "cpu_us": statistics.median(cpu),
        "cpu_us_min": min(cpu),
        "cpu_us_max": max(cpu),
        **{
            key: statistics.median(report[key] for report in reports)
            for key in ("messages_per_s", "p50_us", "p99_us")
        },
        "messages": sum(report["messages"] for report in reports),
    }


def table(heads: list[str], lines: list[list[str]]) -> None:
    """Print in columns, as Markdown, so that it can be pasted."""
    widths = [max(len(line[at]) for line in [heads, *lines]) for at in range(len(heads))]
    for line in [heads, ["-" * width for width in widths], *lines]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    print(flush=True)


class Bench:
    """What every part needs: the servers that can run, the generator, a folder, the results."""

    def __init__(self, options: argparse.Namespace, folder: pathlib.Path) -> None:
        self.options = options
        self.folder = folder
        self.program = build_generator()
        self.recipients = folder / "recipients.txt"
        self.recipients.write_text("".join(f"user{k}@example.org\n" for k in range(RECIPIENTS)))
        self.started = 0
        self.servers: list[Server] = []
        self.results: Json = {}

    def start(self, server: Server, workers: int = 1) -> contextlib.AbstractContextManager[Running]:
        self.started += 1
        return running(server, self.folder / f"server{self.started}", self.recipients, workers)

    def choose_servers(self) -> None:
        """Those that are asked for and can run; says why another one can't."""
        print("Servers:")
        for server in SERVERS:
            if server.peer_group == "all" and self.options.peers != "all":
                continue
            if self.options.servers and not any(
                part in server.name for part in self.options.servers.split(",")
            ):
                continue
            reason = server.absent()
            if reason:
                print(f"  {server.name}: left out, {reason}")
                continue
            version = server.version()
            print(
                f"  {server.name}: {version}\n"
                f"      rules: {server.rules}\n"
                f"      durability: {server.durability}"
            )
            self.servers.append(server)
            self.results.setdefault("servers", {})[server.name] = {
                "version": version,
                "rules": server.rules,
                "durability": server.durability,
            }
        print(flush=True)

    def ours(self) -> list[Server]:
        return [server for server in self.servers if server.name.startswith(OURS)]

    @contextlib.contextmanager
    def held(self, server: Running, kind: str, count: int, *arguments: str) -> Any:
        """Hold count connections in the generator for the length of the block."""
        process = subprocess.Popen(
            [self.program, "--port", str(server.site.port), kind, str(count),
             "--recipients", str(self.recipients), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            report = json.loads(process.stdout.readline() or "{}")
            if report.get("ready") != count:
                raise RuntimeError(f"{server.server.name} {kind} {count}: {report}")
            time.sleep(0.5)  # the server may still be putting its memory in order
            yield
        finally:
            process.communicate()
