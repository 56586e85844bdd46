"""Load several servers side by side and say what each message cost them.

    python bench/load/run.py                            everything, the short way
    python bench/load/run.py --only load --seconds 10   one part, long runs

CPU per message is user and system time of the server's own processes, read
before and after each run; the generator's is not in it.  Repetitions are
interleaved (A B C A B C), so a slow minute of the machine hits all alike.
Ratios carry over to another machine, absolute figures don't.
See bench/README.md for what each row means.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import durable, measure, tls_client  # noqa: E402
from bench.load.harness import (  # noqa: E402
    ADDRESSES,
    OURS,
    OUTPUT,
    ROWS,
    SESSIONS,
    Bench,
    Json,
    Refused,
    generate,
    summary,
    table,
)
from bench.load.servers import (  # noqa: E402
    SMTP_SINK,
    Running,
    behind_slow_next_hop,
    free_port,
    install_npm_peers,
    with_implicit_tls,
    with_tarpit,
)

# One worker takes half of the 20,000 open files that machines commonly allow, less 64: a spooled body may need
# a descriptor beside the socket.
CONNECTIONS_MOST = 9_900


class Unkept(Bench):
    """The parts in which no mail is kept."""

    def load(self) -> None:
        """CPU per message, messages a second, latency: all servers, all rows, one worker."""
        reports: dict[tuple[str, str], list[Json]] = {}
        refused: dict[tuple[str, str], str] = {}
        with contextlib.ExitStack() as stack:
            up = [stack.enter_context(self.start(server)) for server in self.servers]
            for server in up:
                generate(self.program, server, ("--mode", "reused"), 0.3)
            for _ in range(self.options.repeat):
                for row in ROWS:
                    for server in up:
                        key = (row.title, server.server.name)
                        if key in refused:
                            continue
                        try:
                            report = generate(self.program, server, row.arguments, self.options.seconds)
                        except Refused as refusal:
                            refused[key] = str(refusal)
                            reports.pop(key, None)
                        else:
                            reports.setdefault(key, []).append(report)
        results = {key: summary(value) for key, value in reports.items()}
        self.results["load"] = [
            {"row": row, "server": server, **result} for (row, server), result in results.items()
        ] + [{"row": row, "server": server, "refused": why} for (row, server), why in refused.items()]
        for row in ROWS:
            print(f"{row.title}: {SESSIONS} sessions from {ADDRESSES:,} addresses, one worker")
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
                    ]
                    for server in self.servers
                    if (result := results.get((row.title, server.name)))
                ],
            )
            for (title, name), why in refused.items():
                if title == row.title:
                    print(f"{name}: {why}\n")

    def workers(self) -> None:
        """CPU per message with 1, 2 and 4 workers, and how connections and work spread over them."""
        checked = self.ours()[:1]
        if not checked:
            return
        lines, found = [], []
        for count in (1, 2, 4):
            with self.start(checked[0], count) as server:
                generate(self.program, server, ("--mode", "reused"), 0.3)
                reports = [
                    generate(self.program, server, ("--mode", "new", "--size", "4096"), self.options.seconds)
                    for _ in range(self.options.repeat)
                ]
                cpu = [
                    seconds
                    for pid in measure.tree(server.pid)[1:]
                    if (seconds := measure.cpu_s(pid, with_reaped=False)) > 0
                ]
                before = {pid: measure.sockets(pid) for pid in measure.tree(server.pid)[1:]}
                with self.held(server, "--idle", 2_000):
                    spread = [more for pid in before if (more := measure.sockets(pid) - before[pid]) > 0]
            result = {
                "workers": count,
                **summary(reports),
                "cpu_share": [share / sum(cpu) for share in cpu],
                "connections": spread,
            }
            found.append(result)
            lines.append(
                [
                    str(count),
                    f"{result['cpu_us']:.1f}",
                    f"{result['cpu_us'] / found[0]['cpu_us']:.2f}",
                    f"{result['messages_per_s']:,.0f}",
                    " ".join(f"{share:.0%}" for share in result["cpu_share"]),
                    " ".join(map(str, spread)),
                ]
            )
        self.results["workers"] = found
        print(f"{checked[0].name}: workers, new connection for each 4 kB message")
        table(
            ["workers", "CPU us/message", "x one", "messages/s", "CPU share", "of 2,000 connections"], lines
        )

    def memory(self) -> None:
        """Memory of the server's processes for each connection that is held."""
        lines, found = [], []

        def note(server: Running, what: str, count: int, before: int) -> None:
            each = (measure.pss_bytes(server.pid) - before) / count
            found.append(
                {"server": server.server.name, "what": what, "connections": count, "bytes_each": each}
            )
            lines.append([server.server.name, server.server.does, what, f"{count:,}", f"{each / 1000:.2f}"])

        small = int(self.options.connections / 10)
        for chosen in self.servers:
            if chosen.process_each:
                continue
            with self.start(chosen) as server:
                with self.held(server, "--idle", 100):
                    pass
                before = measure.pss_bytes(server.pid)
                count = min(self.options.connections, CONNECTIONS_MOST)
                with self.held(server, "--idle", count):
                    note(server, "idle, plain", count, before)
            if not chosen.name.startswith(OURS):
                continue
            with self.start(chosen) as server:
                before = measure.pss_bytes(server.pid)
                with self.held(server, "--half", small, "--size", "100000"):
                    note(server, "half of a 100 kB message sent", small, before)
            if chosen is not self.ours()[0]:
                continue
            for what, hold in TLS_HOLDS.items():
                with self.start(chosen) as server:
                    with hold(server.site.port, 20):
                        pass
                    before = measure.pss_bytes(server.pid)
                    with hold(server.site.port, small):
                        note(server, what, small, before)
        if self.ours():
            pushing = small // 5
            with tls_client.stalled_next_hop() as port, self.start(behind_slow_next_hop(port)) as server:
                with tls_client.hold_waiting(server.site.port, 5):
                    pass
                before = measure.pss_bytes(server.pid)
                with tls_client.hold_waiting(server.site.port, pushing):
                    note(server, "TLS, held back and still sending", pushing, before)
        self.results["memory"] = found
        print("Memory of the server's processes (PSS; the kernel's socket buffers are not counted)")
        table(["server", "does", "connections", "number", "kB each"], lines)

    def tarpit(self) -> None:
        """Memory and CPU of sessions whose RCPT is held back: silent ones, and ones that go on sending."""
        if not self.ours():
            return
        small = int(self.options.connections / 10)
        many = min(self.options.connections, CONNECTIONS_MOST)
        lines, found = [], []
        for is_tls, is_pushing, count in (
            (False, False, many), (False, True, small // 2), (True, False, small), (True, True, small // 2)
        ):  # fmt: skip
            what = f"{'TLS' if is_tls else 'plain'}, {'goes on sending' if is_pushing else 'silent'}"
            with self.start(with_tarpit()) as server:
                with tls_client.hold_waiting(server.site.port, 20, is_tls=is_tls, is_pushing=is_pushing):
                    pass
                before = measure.pss_bytes(server.pid)
                with tls_client.hold_waiting(server.site.port, count, is_tls=is_tls, is_pushing=is_pushing):
                    each = (measure.pss_bytes(server.pid) - before) / count
                    cpu_s = measure.tree_cpu_s(server.pid)
                    time.sleep(self.options.seconds)
                    share = (measure.tree_cpu_s(server.pid) - cpu_s) / self.options.seconds
            found.append({"what": what, "connections": count, "bytes_each": each, "cpu_share": share})
            lines.append([what, f"{count:,}", f"{each / 1000:.2f}", f"{share:.1%}"])
        self.results["tarpit"] = found
        print("Sessions whose RCPT is held back: memory of the server's processes (PSS), CPU while all wait")
        table(["sessions", "number", "kB each", "CPU of a core"], lines)

    def tls(self) -> None:
        """CPU of a TLS handshake: openssl s_server and ours, interleaved, the same kind of certificate."""
        checked = self.ours()[:1]
        if not checked or not shutil.which("openssl"):
            return
        # One after another and no thread beside: short runs, so that a slow second of the machine hits all alike.
        count = max(100, int(100 * self.options.seconds))
        costs: dict[str, list[float]] = {}
        with contextlib.ExitStack() as stack:
            implicit = free_port()
            ours = stack.enter_context(self.start(with_implicit_tls(implicit)))
            peer = stack.enter_context(tls_client.openssl_server(ours.site.folder))
            lean = stack.enter_context(tls_client.openssl_server(ours.site.folder, *LEAN))
            subjects: list[tuple[str, int, int, Callable[[int, int], None]]] = [
                ("openssl s_server", peer.pid, peer.port, tls_client.handshakes),
                ("openssl s_server, one ticket, no look for the issuer", lean.pid, lean.port,
                 tls_client.handshakes),
                ("fastsmtp, implicit TLS (with connection and greeting)", ours.pid, implicit,
                 tls_client.handshakes),
                ("fastsmtp, STARTTLS (with connection, greeting, EHLO)", ours.pid, ours.site.port,
                 tls_client.starttls_handshakes),
                ("fastsmtp, the same dialogue without TLS", ours.pid, ours.site.port,
                 tls_client.plain_dialogues),
            ]  # fmt: skip
            for _, _pid, port, act in subjects:
                act(port, 20)
            for _ in range(5 * self.options.repeat):
                for name, pid, port, act in subjects:
                    before = measure.settled_cpu_s(pid)
                    act(port, count)
                    costs.setdefault(name, []).append((measure.settled_cpu_s(pid) - before) * 1e6 / count)
        medians = {name: statistics.median(values) for name, values in costs.items()}
        base = medians["openssl s_server"]
        self.results["tls"] = [
            {"what": name, "cpu_us": medians[name], "cpu_us_min": min(values), "cpu_us_max": max(values)}
            for name, values in costs.items()
        ]
        print(f"TLS handshakes (TLS 1.3, ECDSA P-256, no resumption), {count} a run")
        table(
            ["server", "CPU us/handshake", "min-max", "x s_server"],
            [
                [
                    name,
                    f"{medians[name]:.0f}",
                    f"{min(values):.0f}-{max(values):.0f}",
                    f"{medians[name] / base:.2f}",
                ]
                for name, values in costs.items()
            ],
        )


# By default s_server looks for the certificate's issuer in the system's directory at each handshake (a tenth of its
# CPU), and sends two tickets.  Ours does neither.
LEAN = ("-num_tickets", "1", "-no-CAfile", "-no-CApath", "-no-CAstore")

TLS_HOLDS: dict[str, Callable[[int, int], contextlib.AbstractContextManager[None]]] = {
    "idle, TLS": tls_client.hold_idle,
    "idle, TLS, each has sent 1 MB": tls_client.hold_after_megabyte,
}

PARTS: dict[str, Callable[[Unkept], None]] = {
    "load": Unkept.load,
    "queue": durable.queue,
    "relay": durable.relay,
    "latency": durable.latency,
    "workers": Unkept.workers,
    "memory": Unkept.memory,
    "tarpit": Unkept.tarpit,
    "tls": Unkept.tls,
}


def machine() -> Json:
    """What the figures hang on."""
    cpu = next(
        (line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), "unknown",
    )  # fmt: skip
    return {
        "kernel": platform.release(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind, interleaved")
    parser.add_argument("--only", default=",".join(PARTS), help="parts: " + ", ".join(PARTS))
    parser.add_argument(
        "--servers", default="", help="only servers whose name contains one of these, by comma"
    )
    parser.add_argument(
        "--peers", choices=("default", "all"), default="default", help="all: node's servers too"
    )
    parser.add_argument("--connections", type=int, default=10_000, help="idle connections in the memory part")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if options.peers == "all":
        install_npm_peers()
    with tempfile.TemporaryDirectory(prefix="fastsmtp-bench-") as folder:
        pathlib.Path(folder).chmod(0o711)  # servers that give up root must get through
        bench = Unkept(options, pathlib.Path(folder))
        bench.results["machine"] = machine()
        print(", ".join(f"{key} {value}" for key, value in bench.results["machine"].items()))
        bench.choose_servers()
        for part in options.only.split(","):
            PARTS[part](bench)
        result = OUTPUT / time.strftime("load-%Y%m%d-%H%M%S.json")
        result.write_text(json.dumps(bench.results, indent=1))
        print(f"Written to {result.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
