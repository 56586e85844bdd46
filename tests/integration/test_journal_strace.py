"""The oracle of the syncs on a process that writes to a journal as a worker does; syncs.py has the oracle.

It is itself tried on processes that leave one sync out.  test_queue_strace.py does the same with the real server.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.conftest import needs
from tests.integration.journal_process import SYNCS
from tests.integration.syncs import FILES, Acknowledged, Oracle, calls_of
from tests.peers import path

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

ACK = re.compile(r'"ack (\S+) (\d+) (\d+) (\d+) (\S+)\\n"')


def traced(tmp_path: pathlib.Path, *options: str) -> tuple[Oracle, list[Acknowledged]]:
    """Run the process under strace; what it did, and what it acknowledged."""
    directory = tmp_path / "queue"
    (directory / "bodies").mkdir(parents=True)
    trace = tmp_path / "trace"
    done = subprocess.run(
        [
            path("strace"), "-f", "-y", "-s", "80", "-o", str(trace),
            "-e", f"trace=write,{FILES}",
            sys.executable, "-m", "tests.integration.journal_process", str(directory), "--count", "25", *options,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = calls_of(trace.read_text(errors="replace"))
    acknowledged = []
    for call in calls:
        if call.name == "write" and (ack := ACK.search(call.arguments)):
            name, number, offset, size, body = ack.groups()
            acknowledged.append(
                Acknowledged(
                    call, name, int(number), int(offset), int(size), None if body == "-" else int(body)
                )
            )
    assert len(acknowledged) == done.stdout.count("ack ") == 500
    return Oracle(calls, str(directory)), acknowledged


@pytest.mark.slow
@needs("strace")
def test_nothing_is_acknowledged_before_it_is_synced(tmp_path: pathlib.Path) -> None:
    oracle, acknowledged = traced(tmp_path)
    assert oracle.missing(acknowledged) == []
    # It has seen all there is to see: several segments, and bodies.
    assert len({ack.number for ack in acknowledged}) > 1
    assert any(ack.body is not None for ack in acknowledged)


@pytest.mark.slow
@needs("strace")
@pytest.mark.parametrize("left_out", SYNCS)
def test_the_oracle_notices_a_sync_that_is_left_out(tmp_path: pathlib.Path, left_out: str) -> None:
    oracle, acknowledged = traced(tmp_path, "--without", left_out)
    missing = oracle.missing(acknowledged)
    assert missing
    assert {lack.split(": ")[1].split(" ")[0] for lack in missing} == {left_out}
