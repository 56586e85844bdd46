"""A stand-in for qmail-queue: it follows the protocol of its descriptors to the byte, notes all that it got, and
ends as a test wants it.

    queue = QmailQueue(tmp_path)
    queue.wants(exit=31)                what the next ones do
    queue.path                          the program
    queue.taken()                       what was queued, in order

Its plan (wants): exit, an exit status; say, [descriptor, text]; signal; reads = "all", "message" (not the envelope),
"nothing"; hang: it never ends by itself.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any, NamedTuple

_PROGRAM = """
import json, os, select, sys, time
HERE = os.path.dirname(os.path.realpath(sys.argv[0]))
FDS = sorted(int(name) for name in os.listdir("/proc/self/fd"))
FDS = [fd for fd in FDS if os.path.exists(f"/proc/self/fd/{fd}")]
with open(HERE + "/plan.json") as file:
    PLAN = json.load(file)
NOTE = {"fds": FDS, "argv": sys.argv, "environment": dict(os.environ), "directory": os.getcwd(),
        "pid": os.getpid(), "no_new_privs": "NoNewPrivs:\\t1" in open("/proc/self/status").read()}

def note(what):
    NOTE["end"] = what
    name = f"{HERE}/{time.time_ns():020}-{os.getpid()}"
    with open(name + ".new", "w") as file:
        json.dump(NOTE, file)
    os.rename(name + ".new", name + ".json")

def end(status, what=""):
    for descriptor, text in PLAN.get("say", []):
        os.write(descriptor, text.encode())
    note(what or f"exit {status}")
    if PLAN.get("signal"):
        os.kill(os.getpid(), PLAN["signal"])
    if PLAN.get("hang"):
        if PLAN["hang"] == "child":
            os.fork()
        while True:
            time.sleep(1000)
    os._exit(status)

if PLAN.get("reads", "all") == "nothing":
    end(PLAN.get("exit", 0))
BOTH = select.poll()
BOTH.register(0, select.POLLIN)
BOTH.register(1, select.POLLIN)
message = bytearray()
early = False
while True:
    ready = dict(BOTH.poll())
    # A pipe whose writer has closed it hangs up, even while there is something left to read.
    early = early or bool(ready.get(1, 0) & select.POLLIN and not ready.get(0, 0) & select.POLLHUP)
    if 0 not in ready:
        continue
    piece = os.read(0, 65536)
    if not piece:
        break
    message += piece
NOTE["early"] = early
NOTE["message"] = message.decode("latin-1")
if PLAN.get("reads") == "message":
    end(PLAN.get("exit", 0))
envelope = bytearray()
while True:
    piece = os.read(1, 4096)
    if not piece:
        break
    envelope += piece
    if envelope.endswith(b"\\0\\0"):
        break
NOTE["envelope"] = envelope.decode("latin-1")
at = 0

def word(letter):
    global at
    if envelope[at:at + 1] != letter:
        end(91 if at < len(envelope) else 54)
    stop = envelope.find(b"\\0", at)
    if stop < 0:
        end(54)
    if stop - at - 1 > 1002:
        end(11)
    at = stop + 1

word(b"F")
while envelope[at:at + 1] != b"\\0":
    word(b"T")
end(PLAN.get("exit", 0), "queued" if not PLAN.get("exit", 0) else "")
"""


class Taken(NamedTuple):
    """What one run of it got."""

    end: str
    message: bytes
    envelope: bytes
    environment: dict[str, str]
    argv: list[str]
    fds: list[int]
    directory: str
    pid: int
    early: bool
    no_new_privs: bool


class QmailQueue:
    """The program in a folder of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "qmail-queue"
        # The system's own where there is one: ours may stand where a server's account must not enter.
        # -I -S: it starts in half the time.
        python = next((path for path in ("/usr/bin/python3",) if os.access(path, os.X_OK)), sys.executable)
        self.path.write_text(f"#!{python} -IS\n{_PROGRAM}")
        self.path.chmod(0o755)
        folder.chmod(0o777)  # whoever runs it notes what it got
        self.wants()

    def wants(self, **plan: Any) -> None:
        new = self.folder / "plan.new"
        new.write_text(json.dumps(plan))
        new.replace(self.folder / "plan.json")

    def taken(self) -> list[Taken]:
        """All runs so far, the oldest first."""
        return [_taken(json.loads(path.read_text())) for path in sorted(self.folder.glob("*-*.json"))]

    def queued(self) -> list[Taken]:
        return [one for one in self.taken() if one.end == "queued"]


def _taken(note: dict[str, Any]) -> Taken:
    return Taken(
        note["end"],
        note.get("message", "").encode("latin-1"),
        note.get("envelope", "").encode("latin-1"),
        note["environment"],
        note["argv"],
        note["fds"],
        note["directory"],
        note["pid"],
        note.get("early", False),
        note["no_new_privs"],
    )
