"""Starting the stand-in server (standin.py) from tests, and talking to it.

Deadlines are generous; what is waited for is a line, never a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STANDIN = pathlib.Path(__file__).with_name("standin.py")
DEADLINE_S = 60.0


class Process:
    """A started server: its lines (of stdout; of stderr too, unless they are kept apart), its signals."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        has_errors_apart: bool = False,
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.lines: list[str] = []
        self._rest = b""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors if has_errors_apart else subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})},
            pass_fds=pass_fds,
        )
        assert self.popen.stdout is not None
        self._fd = self.popen.stdout.fileno()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """The first line from number `after` on that the pattern is found in; AssertionError at the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        at = after
        while True:
            for at in range(at, len(self.lines)):  # noqa: B020
                if found := re.search(pattern, self.lines[at]):
                    return found
            at = len(self.lines)
            self._read(deadline, pattern)

    def _read(self, deadline: float, pattern: str) -> None:
        left_s = deadline - time.monotonic()
        readable = left_s > 0 and select.select([self._fd], [], [], left_s)[0]
        piece = os.read(self._fd, 65_536) if readable else b""
        assert piece, f"no line with {pattern!r} in:\n" + "\n".join(self.lines)
        *whole, self._rest = (self._rest + piece).split(b"\n")
        self.lines += [line.decode("utf-8", "replace") for line in whole]

    def errors(self) -> str:
        """What stands on stderr, when that is kept apart."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.lines)

    def end(self) -> int:
        """Wait for its end, take the rest of its lines; the exit status."""
        status = self.popen.wait(DEADLINE_S)
        assert self.popen.stdout is not None
        while select.select([self._fd], [], [], 0)[0] and (piece := os.read(self._fd, 65_536)):
            self._rest += piece
        self.lines += self._rest.decode("utf-8", "replace").splitlines()
        self._rest = b""
        return status

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """It does nothing meanwhile; the kernel takes connections for it, and nobody greets them."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(DEADLINE_S)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        self._errors.close()


class StandIn(Process):
    """The stand-in server with its configuration file."""

    def __init__(
        self, folder: pathlib.Path, *, config: Mapping[str, Any], start: bool = True, **how: Any
    ) -> None:
        self.file = folder / "config.json"
        self.config: dict[str, Any] = {
            "state": str(folder / "state"),
            "listeners": [["mx", [["127.0.0.1", 0]]]],
            "workers": 2,
        }
        self.write(**config)
        self.command = [sys.executable, str(STANDIN), str(self.file)]
        if start:
            super().__init__(self.command, has_errors_apart=True, **how)

    def write(self, **config: Any) -> None:
        """Change keys of the configuration file."""
        self.config |= config
        self.file.write_text(json.dumps(self.config))

    def reload(self, **config: Any) -> None:
        """Change the file, say so, and wait for what comes of it; and for the end of the workers that go."""
        self.write(**config)
        after = len(self.lines)
        # A child may be a check that is just ending; workers were announced.
        before = [pid for pid in workers_of(self.pid) if self.count(rf"^worker_start .*pid={pid} ")]
        self.signal(signal.SIGHUP)
        if self.wait_for("^(reload|reload_refused) ", after=after)[1] == "reload":
            for pid in before:
                self.wait_for(rf"^worker_exit worker=\d pid={pid} ")

    def ready(self) -> list[list[tuple[str, int]]]:
        """Wait until it serves; where, for each listener."""
        found = self.wait_for("^serving (.*)")
        return [[(host, port) for host, port in listener] for listener in json.loads(found[1])]

    def address(self) -> tuple[str, int]:
        return self.ready()[0][0]


class Client:
    """A connection to it; `worker` is the pid of the worker that answers."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = DEADLINE_S) -> None:
        self.sock = socket.create_connection(address, timeout_s)
        self.file = self.sock.makefile("rb")
        code, pid, number = self.file.readline().split()
        assert code == b"220"
        self.worker, self.number = int(pid), int(number)

    def say(self, line: bytes) -> bytes:
        self.sock.sendall(line + b"\r\n")
        return self.file.readline()

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def standin(
    folder: pathlib.Path, *, environment: Any = None, pass_fds: Any = (), **config: Any
) -> Iterator[StandIn]:
    """A running stand-in server, gone afterwards whatever happens."""
    server = StandIn(folder, config=config, environment=environment, pass_fds=pass_fds)
    try:
        yield server
    finally:
        server.close()


def workers_of(pid: int) -> list[int]:
    """The children of a process that live."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if is_alive(int(child))]


def is_alive(pid: int) -> bool:
    try:
        return not re.search(r"^State:\s+[ZX]", pathlib.Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again; AssertionError at the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
