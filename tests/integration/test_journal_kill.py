"""A process under load is killed at random moments; every message that it had acknowledged is there, and whole."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from fastsmtp.queue.model import BodyReference
from fastsmtp.queue.recovery import recover
from tests.integration.journal_process import is_whole, queue_bodies, queue_store

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ROUNDS = 24
# No round begins later than this: a busy machine gets fewer rounds, not a longer suite.
ENOUGH_S = 8.0


def life(directory: pathlib.Path, seed: int, acknowledged: int) -> list[tuple[str, int, int]]:
    """Run it until it has said so many; kill it; everything that it said: (name, segment, offset)."""
    command = [sys.executable, "-m", "tests.integration.journal_process", str(directory), "--seed", str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = b""
        while said.count(b"\n") < acknowledged:
            piece = os.read(process.stdout.fileno(), 65_536)
            assert piece, "it ended by itself"
            said += piece
        process.kill()
        said += process.stdout.read()
        assert process.wait() == -signal.SIGKILL
    # The last line may be cut off: whoever was told by it was told nothing.
    lines = said.split(b"\n")[:-1]
    return [(words[1].decode(), int(words[2]), int(words[3])) for words in (line.split() for line in lines)]


@pytest.mark.slow
def test_what_was_acknowledged_survives_sigkill(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "queue"
    (directory / "bodies").mkdir(parents=True)
    dice = random.Random(20261122)
    ends = time.monotonic() + ENOUGH_S
    total = unasked = 0
    for seed in range(ROUNDS):
        if time.monotonic() > ends:
            break
        said = life(directory, seed, dice.choice((1, 30, 400, 2_500)))
        store, bodies = queue_store(str(directory)), queue_bodies(str(directory))
        recovery = recover(os, store)
        found: dict[str, tuple[int, int]] = {}
        named: set[int] = set()
        for place, payload in recovery.messages(os, store):
            name = payload[32:].split(b" ", 1)[0].decode()
            assert is_whole(payload, name)
            words = payload[32:].split(b" ")
            if len(words) == 6 and words[1] == b"body":
                number, epoch, crc, size = map(int, words[2:])
                named.add(number)
                assert is_whole(b"".join(bodies.pieces(os, BodyReference(number, epoch, crc), size)), name)
            assert name not in found
            found[name] = (place.number, place.offset)
        assert {name: found.get(name) for name, _, _ in said} == {
            name: (number, offset) for name, number, offset in said
        }
        assert not [fault for fault in recovery.faults if fault.is_damage]
        total += len(said)
        unasked += len(found) - len(said)
        # All delivered: their segments are used again, by number and epoch of their own.
        for segment in recovery.segments:
            store.retire(os, segment.header.number)
        bodies.remove_orphans(os, set())
    assert total > 100
    # Written but not told before the kill: at most what was under way.
    assert unasked <= ROUNDS * 20
