"""What asking for client certificates costs:  python bench/bench_tls.py [--rounds 7]

Both engines in memory, the server's side alone on the clock (time.process_time()), in turn; the median of the rounds.
TLS 1.3, ECDSA P-256 on both sides.

  handshake  plain; plain and resumed; asking, and the client shows nothing; shows one that relays; one of an unknown
             authority
  body       64 KiB read from the client in records of 16 KiB, with 4 KiB a read as start_tls.py has it
  idle       memory of a connection after its handshake (RSS of a process with 1,000 of them, M_MMAP_THRESHOLD as in
             a worker)
"""

from __future__ import annotations

import argparse
import gc
import pathlib
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fastsmtp.authorities import Authorities  # noqa: E402
from fastsmtp.certificate import make_certificate  # noqa: E402
from fastsmtp.supervisor.privilege import return_memory_early  # noqa: E402
from fastsmtp.tls import Credentials, ServerTls  # noqa: E402
from tests.pki import CLIENT, Authority, Pair  # noqa: E402

HANDSHAKES = 200
IDLE = 1_000
BODY = 65_536
READ = 4_096

OURS, THEIRS = Authority("Our CA"), Authority("Their CA")


def server() -> ServerTls:
    certificate, key = make_certificate(["mx.example"], days=2)
    return ServerTls(Credentials(certificate, key, "bench"), authorities=Authorities(OURS.pem, b"", "ca"))


def client(pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if pair is not None:
        with tempfile.TemporaryDirectory() as folder:
            context.load_cert_chain(*pair.write(pathlib.Path(folder), "client"))
    return context


class Link:
    """One connection in memory; spent_s is the CPU of the server's side so far."""

    def __init__(self, tls: ServerTls, engine: Any, context: ssl.SSLContext, session: Any = None) -> None:
        self.tls = tls
        self.to_server, self.from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.to_client, self.from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(
            self.to_client, self.from_client, server_hostname="mx.example", session=session
        )
        began = time.process_time()
        self.server = engine.wrap_bio(self.to_server, self.from_server, server_side=True)
        self.spent_s = time.process_time() - began

    def shake(self) -> None:
        is_over = [False, False]
        while not all(is_over):
            if not is_over[0]:
                is_over[0] = step(self.client)
            self.to_server.write(self.from_client.read())
            if not is_over[1]:
                began = time.process_time()
                is_over[1] = step(self.server)
                if is_over[1]:
                    self.tls.handshake(self.server)
                self.spent_s += time.process_time() - began
            self.to_client.write(self.from_server.read())

    def body(self) -> float:
        """CPU of reading BODY bytes, seconds."""
        left = BODY
        self.client.write(bytes(BODY)[:16_384])
        for _ in range(BODY // 16_384 - 1):
            self.client.write(bytes(16_384))
        wire = self.from_client.read()
        buffer = memoryview(bytearray(READ))
        began = time.process_time()
        for at in range(0, len(wire), READ):
            self.to_server.write(wire[at : at + READ])
            while self.to_server.pending or self.server.pending():
                try:
                    left -= self.server.read(READ, buffer)
                except ssl.SSLWantReadError:
                    break
        assert left == 0
        return time.process_time() - began


def step(one: Any) -> bool:
    try:
        one.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def in_turn(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            gc.collect()
            taken[name].append(case())
    return {name: statistics.median(values) for name, values in taken.items()}


def handshakes(tls: ServerTls, engine: Any, context: ssl.SSLContext, session: Any = None) -> float:
    spent_s = 0.0
    for _ in range(HANDSHAKES):
        link = Link(tls, engine, context, session)
        link.shake()
        spent_s += link.spent_s
    return spent_s / HANDSHAKES * 1e6


def bodies(tls: ServerTls, engine: Any, context: ssl.SSLContext) -> float:
    link = Link(tls, engine, context)
    link.shake()
    return sum(link.body() for _ in range(50)) / 50 * 1e6


def rss_kb() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def idle(kind: str) -> None:
    """Prints kB a connection."""
    return_memory_early()
    tls = server()
    engine: Any = tls.asking if kind.startswith("asking") else tls.context
    context = client(OURS.issue("joe@example.org", purposes=CLIENT) if kind == "asking, shown" else None)
    kept = []

    def more(count: int) -> None:
        for _ in range(count):
            link = Link(tls, engine, context)
            link.shake()
            # The client's side is not ours to count.
            kept.append((link.server, link.to_server, link.from_server))

    more(100)
    gc.collect()
    before = rss_kb()
    more(IDLE)
    gc.collect()
    print((rss_kb() - before) / IDLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--idle", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.idle:
        idle(given.idle)
        return
    tls = server()
    plain, joe = client(), client(OURS.issue("joe@example.org", purposes=CLIENT))
    eve = client(THEIRS.issue("joe@example.org"))
    first = Link(tls, tls.context, plain)
    first.shake()
    step_read(first.client)
    session = first.client.session
    shown = in_turn(
        {
            "plain": lambda: handshakes(tls, tls.context, plain),
            "plain, resumed": lambda: handshakes(tls, tls.context, plain, session),
            "asking, nothing shown": lambda: handshakes(tls, tls.asking, plain),
            "asking, shown": lambda: handshakes(tls, tls.asking, joe),
            "asking, unknown": lambda: handshakes(tls, tls.asking, eve),
        },
        given.rounds,
    )
    for name, taken in shown.items():
        print(f"handshake  {name:22} {taken:7.0f} us  {taken / shown['plain']:.2f}")
    read = in_turn(
        {
            "plain": lambda: bodies(tls, tls.context, plain),
            "asking": lambda: bodies(tls, tls.asking, plain),
        },
        given.rounds,
    )
    for name, taken in read.items():
        print(f"body       {name:22} {taken:7.0f} us  {taken / read['plain']:.2f}")
    for kind in ("plain", "asking, nothing shown", "asking, shown"):
        done = subprocess.run(
            [sys.executable, __file__, "--idle", kind], capture_output=True, text=True, check=True
        )
        print(f"idle       {kind:22} {float(done.stdout):7.1f} kB")


def step_read(one: ssl.SSLObject) -> None:
    """Take the ticket that comes behind the handshake."""
    try:
        one.read(1)
    except ssl.SSLWantReadError:
        return


if __name__ == "__main__":
    main()
