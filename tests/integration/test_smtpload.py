"""bench/load/smtpload.c against smtp-sink: the load is what it says it is."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.load.servers import counting_sink
from tests.peers import needs, path

SOURCE = pathlib.Path(__file__).resolve().parent.parent.parent / "bench" / "load" / "smtpload.c"
COMPILER = os.environ.get("CC", "cc").split()

pytestmark = [
    needs("smtp-sink"),
    pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="epoll: Linux only"),
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C compiler"),
]


@pytest.fixture(scope="module")
def smtpload(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    program = tmp_path_factory.mktemp("smtpload") / "smtpload"
    subprocess.run([*COMPILER, "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


@contextlib.contextmanager
def smtp_sink(*options: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    user = ["-u", "nobody"] if os.getuid() == 0 else []
    process = subprocess.Popen([path("smtp-sink"), *user, *options, "-m", "500", f"127.0.0.1:{port}", "100"])
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline and process.poll() is None
        yield port
    finally:
        process.terminate()
        process.wait()


def load(smtpload: pathlib.Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = subprocess.run([smtpload, *arguments], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == status, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("mode", ["reused", "new", "pipelined"])
def test_each_mode_delivers_without_an_error(mode: str, smtpload: pathlib.Path) -> None:
    with smtp_sink() as port:
        report = load(smtpload, "--port", str(port), "--mode", mode, "--sessions", "10", "--seconds", "0.2")
    assert report["errors"] == 0
    assert report["messages"] >= 10
    assert report["connections"] == (report["messages"] if mode == "new" else 10)
    assert report["size_bytes"] == 4096
    assert 0 < report["p50_us"] <= report["p99_us"] <= report["max_us"]
    assert 0 < report["dot_p50_us"] <= report["dot_p99_us"] <= report["dot_max_us"] <= report["max_us"]


def test_the_sink_behind_a_relay_counts_what_was_acknowledged(
    smtpload: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with counting_sink(tmp_path / "sink") as (port, taken):
        before = taken()
        assert before == 0
        for mode in ("reused", "new"):
            report = load(
                smtpload, "--port", str(port), "--mode", mode, "--sessions", "5", "--seconds", "0.1"
            )
            assert report["errors"] == 0
            assert taken() - before == report["messages"] > 0
            before = taken()


def test_a_refusal_is_counted_and_named(smtpload: pathlib.Path) -> None:
    with smtp_sink("-r", "RCPT") as port:
        report = load(smtpload, "--port", str(port), "--sessions", "2", "--seconds", "0.1", status=1)
    assert report["messages"] == 0
    assert report["errors"] > 0
    assert report["first_error"] == "450 at RCPT"


@pytest.mark.parametrize("kind", ["--idle", "--half"])
def test_connections_are_held_until_stdin_ends(kind: str, smtpload: pathlib.Path) -> None:
    with smtp_sink() as port:
        process = subprocess.Popen(
            [smtpload, "--port", str(port), kind, "300"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] == 300 and ready["errors"] == 0
        assert process.poll() is None
        process.communicate(timeout=60)
        assert process.returncode == 0
