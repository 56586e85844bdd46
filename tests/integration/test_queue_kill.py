"""The crash test: the real server under load, all of its processes killed at random moments, again and again.

Every message that got its 250 is in its Maildir at the end, whole; what came more than once stays within the bound
that docs/queue.md states: what was finished in the last second before a kill, and what was under way.
docs/crash-test.md says what came out.  CRASH_SECONDS makes it longer, with as many rounds as that holds.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest

from fastsmtp.queue_sink import RECORD_BYTES
from tests.integration.daemon import Daemon
from tests.integration.servers import until

# No round begins later than this: a busy machine gets fewer rounds, not a longer suite.
ENOUGH_S = float(os.environ.get("CRASH_SECONDS", "12"))
ROUNDS = max(12, int(ENOUGH_S))
LIVES_S = (0.05, 0.2, 0.5, 1.2, *((2.5, 5.0) if ENOUGH_S > 12.0 else ()))
SENDERS = 8
# The last life is longer than the bound on repeats, so that a done-log which nobody writes would be seen.
LONG_S = 5.0
# docs/queue.md: a kill repeats what was finished in the last second, and while a sync was under way; a busy disk's
# syncs take long, and a Maildir's time is that of writing, not of finishing.
BOUND_S = 3.0

ACCEPT = """
[[accept]]
domain = ["example.org"]
deliver = "maildir:{folder}/mail/all"
[deliver]
queue = true
[queue]
free_bytes = 0
"""


def letter(name: str, size: int) -> bytes:
    """Says its own length at its end, so that a torn one is known."""
    filling = (b"x" * 70 + b"\r\n") * (size // 72)
    text = b"Subject: %b\r\n\r\n%b" % (name.encode(), filling)
    return text + b"end of %b after %d\r\n" % (name.encode(), len(text))


class Sender(threading.Thread):
    """Sends one message after the other on one connection, and remembers which ones were accepted."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.prefix = name
        self.accepted: list[str] = []
        self.count = 0

    def run(self) -> None:
        # The server is killed under our feet: that is the end of this life's sending.
        with (
            suppress(OSError, EOFError),
            socket.create_connection(("127.0.0.1", self.port), 30) as sock,
            sock.makefile("rb") as file,
        ):
            self.sock, self.file = sock, file
            self.expect(b"220")
            self.say(b"EHLO client.example.org\r\n", b"250")
            while True:
                self.send_one()

    def send_one(self) -> None:
        name = f"{self.prefix}.{self.count}"
        self.count += 1
        self.say(b"MAIL FROM:<a@example.net>\r\n", b"250")
        self.say(b"RCPT TO:<b@example.org>\r\n", b"250")
        self.say(b"DATA\r\n", b"354")
        self.sock.sendall(letter(name, RECORD_BYTES + 50_000 if self.count % 20 == 0 else 1_500) + b".\r\n")
        self.expect(b"250")
        self.accepted.append(name)

    def say(self, line: bytes, wanted: bytes) -> None:
        self.sock.sendall(line)
        self.expect(wanted)

    def expect(self, wanted: bytes) -> None:
        while True:
            line = self.file.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            if line[3:4] == b" ":
                if not line.startswith(wanted):
                    raise EOFError(line)
                return


def stopped(pid: int) -> list[int]:
    """The process and all below it, each stopped before its children are looked for: none sees another die."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            os.kill(one, signal.SIGSTOP)
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as children:
                    found += map(int, children.read().split())
    return found


def kill_all(daemon: Daemon) -> None:
    pids = stopped(daemon.process.pid)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    daemon.process.popen.wait()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "all of them are dead")


class Arrived:
    """What is in the Maildir, by file; each message must be whole, and is read once."""

    def __init__(self, daemon: Daemon) -> None:
        self._new = daemon.mailboxes / "all" / "new"
        self._names: dict[str, str] = {}

    def times(self) -> dict[str, list[float]]:
        """When each copy of a message was written, in order, by the wall clock."""
        found: dict[str, list[float]] = {}
        for file, name in self._names.items():
            found.setdefault(name, []).append((self._new / file).stat().st_mtime)
        return {name: sorted(times) for name, times in found.items()}

    def names(self) -> Counter[str]:
        """How often each message is there."""
        for file in os.listdir(self._new) if self._new.is_dir() else ():
            if file not in self._names:
                self._names[file] = name_of(self._new / file)
        return Counter(self._names.values())


def name_of(path: pathlib.Path) -> str:
    content = path.read_bytes()
    found = re.search(rb"^Subject: (\S+)\n", content, re.MULTILINE)
    assert found is not None
    text = content[found.start() :]
    *_, last = text.rstrip(b"\n").rpartition(b"\n")
    body = text[: len(text) - len(last) - 1].replace(b"\n", b"\r\n")
    assert last == b"end of %b after %d" % (found[1], len(body)), path
    return found[1].decode()


@pytest.mark.slow
def test_every_250_is_delivered_whatever_is_killed_when() -> None:
    dice = random.Random(20261123)
    accepted: list[str] = []
    kills: list[float] = []
    ends = time.monotonic() + ENOUGH_S
    with Daemon(accept=ACCEPT, workers=2) as daemon:
        rounds = 0
        lives = [dice.choice(LIVES_S) for _ in range(ROUNDS)]
        while rounds < 2 or (rounds < ROUNDS and time.monotonic() < ends):
            senders = [Sender(daemon.port, f"m{rounds}.{number}") for number in range(SENDERS)]
            for sender in senders:
                sender.start()
            threading.Event().wait(LONG_S if rounds == 1 else lives[rounds])
            kills.append(time.time())
            kill_all(daemon)
            for sender in senders:
                sender.join(30)
                accepted += sender.accepted
            rounds += 1
            daemon.process.close()
            daemon.start()
        wanted = set(accepted)
        arrived = Arrived(daemon)
        until(lambda: wanted <= arrived.names().keys(), "all that was accepted is delivered")
        # And nothing is left: segments are free or removed, body files gone.
        queue = daemon.folder / "state" / "queue"

        def is_empty() -> bool:
            held = {int(path.name[5:], 16) for path in queue.iterdir() if path.name.startswith("mail-")}
            return len(held) <= 2 * 2 and len(list((queue / "bodies").iterdir())) <= 2 * 8

        until(is_empty, "what is delivered takes no room")
        names = arrived.names()
        assert rounds >= 2
        assert len(accepted) > 50
        assert daemon.log("queue_damaged") == []
        assert daemon.log("defect") == []
        more = sum(count - 1 for count in names.values())
        unasked = len(names.keys() - wanted)
        # Between two copies lies a kill, and the first of them is not older than the bound when it comes.
        oldest_s = 0.0
        for name, times in arrived.times().items():
            for first, second in itertools.pairwise(times):
                lies = [kill for kill in kills if first <= kill + 0.5 and kill <= second]
                assert lies, (name, first, second, kills)
                assert first >= lies[0] - BOUND_S, (name, lies[0] - first)
                oldest_s = max(oldest_s, lies[0] - first)
        print(
            f"{rounds} kills, {len(accepted)} accepted, none lost, {more} more than once (the oldest {oldest_s:.2f} s "
            f"before its kill), {unasked} not acknowledged"
        )
        # Written but not told: one a sender and kill.
        assert unasked <= rounds * SENDERS
