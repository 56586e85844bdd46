"""What a program that starts for each connection or delivery costs:  python bench/bench_startup.py [--rounds 25]

CPU of the process alone (wait4), user and system, the median of the rounds, all of them in turn; byte code is
compiled before, as in an installation.

  python      an empty script
  smtpd       from start to greeting, in a qmail home with badmailfrom and mfcheck
  asks        EHLO, MAIL, QUIT where mfcheck asks a name server, one on loopback that stays silent; --config FILE
  message     a session with one message, which a qmail-queue that does nothing takes; its CPU is not in it
  preline     a small message to a program that does nothing; its CPU is not in it
  popup       from start to greeting
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.programs import environment, install  # noqa: E402

ASKS = b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nQUIT\r\n"
MESSAGE = (
    b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<joe@example.org>\r\nDATA\r\nSubject: x\r\n\r\nHello\r\n.\r\nQUIT\r\n"
)


def qmail_home(folder: pathlib.Path) -> pathlib.Path:
    for name, text in (
        ("me", "mx.example.org"), ("rcpthosts", "example.org"), ("badmailfrom", "a@example.net"), ("mfcheck", "1"),
    ):  # fmt: skip
        (folder / "control").mkdir(exist_ok=True)
        (folder / "control" / name).write_text(f"{text}\n")
    (folder / "bin").mkdir()
    queue = folder / "bin" / "qmail-queue"
    queue.write_text("#!/bin/sh\ncat >/dev/null\ncat <&1 >/dev/null\n")
    queue.chmod(0o755)
    return folder


def run(command: Sequence[str], given: dict[str, str], said: bytes | None) -> float:
    """CPU seconds of the process itself; said None: until it has said something, then it is killed."""
    process = subprocess.Popen(
        command, env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if said is None:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    else:
        process.stdin.write(said)
        process.stdin.close()
        process.stdout.read()
    # Of its children as well, those that it has waited for: main() takes them off.
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    process.stdout.close()
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        script = str(install(folder))
        home = qmail_home(folder)
        given = environment(
            QMAILHOME=str(home), TCPREMOTEIP="192.0.2.1", TCPLOCALIP="192.0.2.2", PROTO="TCP",
            PYTHONPYCACHEPREFIX=str(folder / "cache"),
            UFLINE="From x\n", RPLINE="Return-Path: <>\n", DTLINE="Delivered-To: x\n",
        )  # fmt: skip
        given.pop("PYTHONDONTWRITEBYTECODE", None)
        empty = folder / "empty.py"
        empty.write_text("")
        queue = str(home / "bin" / "qmail-queue")
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.1", 0))
        config = folder / "fastsmtp.toml"
        config.write_text(
            f'qmail = "{home}"\n[dns]\nservers = ["127.0.0.1:{silent.getsockname()[1]}"]\ntimeout_s = 0.1\n'
        )
        cases: dict[str, Callable[[], float]] = {
            "python": lambda: run([sys.executable, str(empty)], given, b""),
            "smtpd": lambda: run([script, "smtpd"], given, None),
            "asks": lambda: run([script, "smtpd", "--config", str(config)], given, ASKS),
            "message": lambda: run([script, "smtpd"], given, MESSAGE) - run([queue], given, b""),
            "preline": lambda: run([script, "preline", "true"], given, MESSAGE) - run(["true"], given, b""),
            "popup": lambda: run([script, "popup", "pop.example.org", "true", "true"], given, None),
        }
        found: dict[str, list[float]] = {case: [] for case in cases}
        for measure in cases.values():
            measure()
        for _ in range(rounds):
            for case, measure in cases.items():
                found[case].append(measure())
        silent.close()
    base = statistics.median(found["python"])
    goals = {"smtpd": "goal: 35 at most", "preline": "goal: 15 at most", "python": "does nothing"}
    print(f"{'':10}{'CPU ms':>8}{'least':>8}{'times python':>14}")
    for case, values in found.items():
        middle = statistics.median(values)
        figures = f"{middle * 1e3:8.1f}{min(values) * 1e3:8.1f}{middle / base:14.2f}"
        print(f"{case:10}{figures}   {goals.get(case, '')}".rstrip())


if __name__ == "__main__":
    main()
