"""A server for the tests of the supervisor: the real master and workers, with a tiny service instead of SMTP.

    python standin.py CONFIG.json

The file: state, listeners [[name, [[host, port], ...]], ...], workers, user, watched, and what is to go wrong:
fail (a sentence: the workers can't start), crash (they die at once), deaf_s (they serve but don't beat); asides, a
list of {name, order, user, text, fail, crash, hang, stays}: processes beside them, see Beside.
A client is greeted with "220 PID WORKER"; PING gets "250 PID TEXT" (the text of the first watched file), a drain
ends idle clients with 421.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastsmtp.errors import ConfigError
from fastsmtp.supervisor import master
from fastsmtp.supervisor.generation import StartFailed
from fastsmtp.supervisor.master import Master
from fastsmtp.supervisor.shapes import Listener, Seat


class Lines:
    """A log of plain lines on stdout."""

    def line(self, event: str, **fields: object) -> None:
        line = " ".join([event, *(f"{name}={value}" for name, value in fields.items())])
        os.write(1, line.encode() + b"\n")

    def flush(self) -> None:
        """Lines leave at once."""

    def close(self) -> None:
        """It is stdout."""


@dataclass
class Beside:
    """A process beside the workers.  It says "NAME up PID TEXT", "NAME file CONTENTS", "NAME down PID".

    text    another one makes another aside of it
    fail    a sentence: it can't start
    unable  a sentence: the master can't do its part;  bare  nor its process, before it becomes its account
    crash   it dies as soon as it runs, until the file `state`/NAME is there
    hang    SIGUSR1 makes it block its loop
    stays   its drain lasts until it is told to close
    """

    name: str
    order: int = 0
    user: str = "fastsmtp"
    text: str = ""
    fail: str = ""
    unable: str = ""
    bare: str = ""
    crash: bool = False
    stays: bool = False
    path: str = ""
    fd: int = -1

    @property
    def descriptors(self) -> Sequence[int]:
        return [self.fd]

    def _say(self, *words: object) -> None:
        """One write a line: others write to the same pipe."""
        os.write(1, " ".join(map(str, [self.name, *words])).encode() + b"\n")

    def is_same(self, other: Any) -> bool:
        return (self.text, self.order, self.user) == (other.text, other.order, other.user)

    def own(self, account: tuple[int, int] | None) -> None:
        if self.unable:
            raise ConfigError(self.unable)
        if self.fd < 0:
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._say("owned", account)

    def prepare(self) -> None:
        if self.bare:
            raise ConfigError(self.bare)

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._say("released", self.text)

    async def start(self, seat: Seat) -> Beside:
        assert (seat.number, list(seat.sockets)) == (0, [])
        if self.fail:
            raise ConfigError(self.fail)
        if self.crash and not os.path.exists(f"{self.path}.mended"):
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite(self.fd, b"up", 0)
        signal.signal(signal.SIGUSR1, lambda number, frame: time.sleep(600))
        self._say("up", os.getpid(), self.text)
        return self

    async def replace(self, files: Mapping[str, bytes]) -> None:
        self._say("file", *(contents.decode() for contents in files.values()))

    async def drain(self, timeout_s: float) -> None:
        self._say("draining", os.getpid())
        if self.stays:
            await asyncio.sleep(600)

    async def close(self) -> None:
        self._say("down", os.getpid())


@dataclass
class StandIn:
    """The plan."""

    state: str
    listeners: Sequence[Listener]
    workers: int
    user: str
    watched: Sequence[str]
    fail: str
    crash: bool
    contents: dict[str, bytes]
    asides: Sequence[Beside]
    coming: Sequence[str] = ()
    warnings: Sequence[str] = ()
    descriptors: Sequence[int] = ()
    log: Lines = field(default_factory=Lines)

    def kind(self, path: str) -> str:
        return "cert" if path.endswith(".pem") else "lists"

    def own(self, account: tuple[int, int] | None) -> None:
        """Nothing is written."""

    def check(self, files: Mapping[str, bytes]) -> None:
        for path, contents in files.items():
            if contents.startswith(b"bad"):
                raise ConfigError(f"{path}: is bad")
            if contents.startswith(b"die"):
                os.kill(os.getpid(), signal.SIGKILL)
        pairs = {(self.contents | dict(files))[path] for path in self.watched if path.endswith(".pem")}
        if len(pairs) > 1:
            raise ConfigError("the key doesn't fit the certificate")

    def replace(self, files: Mapping[str, bytes]) -> bool:
        self.contents |= files
        return not any(contents.startswith(b"roll") for contents in files.values())

    def renew(self) -> StandIn:
        return self

    async def start(self, seat: Seat) -> Service:
        if self.fail:
            raise ConfigError(self.fail)
        if self.crash:
            os.kill(os.getpid(), signal.SIGKILL)
        service = Service(self, seat)
        for listener, sock in seat.sockets:
            await service.listen(listener, sock)
        return service


class Service:
    """The tiny service."""

    def __init__(self, plan: StandIn, seat: Seat) -> None:
        self._plan = plan
        self._seat = seat
        self._servers: list[asyncio.Server] = []
        self._clients: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            self._seat.region.beat(time.monotonic())
            await asyncio.sleep(0.5)

    async def listen(self, listener: int, sock: Any) -> None:
        server = await asyncio.start_server(self._client, sock=sock, backlog=4096)
        self._servers.append(server)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        self._seat.region.connect_uncounted()
        draining = asyncio.create_task(self._draining.wait())
        try:
            writer.write(f"220 {os.getpid()} {self._seat.number}\r\n".encode())
            while True:
                reading = asyncio.create_task(reader.readline())
                await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    await asyncio.wait({reading})
                    # What the client has under way must not reset the reply: give it time to hang up.
                    writer.write(b"421 4.3.2 going\r\n")
                    writer.write_eof()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(-1), 1.0)
                    return
                line = reading.result().strip()
                if not line:
                    return
                if line == b"HANG":
                    time.sleep(600)
                if line == b"DIE":
                    os.kill(os.getpid(), signal.SIGSEGV)
                text = b" ".join(self._plan.contents[path].strip() for path in self._plan.watched)
                writer.write(b"250 %d %s\r\n" % (os.getpid(), text))
        except ConnectionError:
            return
        finally:
            draining.cancel()
            self._clients.discard(task)
            self._seat.region.disconnect_uncounted()
            writer.close()

    async def replace(self, files: Mapping[str, bytes]) -> None:
        self._plan.replace(files)

    async def drain(self, timeout_s: float) -> None:
        for server in self._servers:
            server.close()
        self._draining.set()
        for _ in range(3):
            # Who was accepted in this turn of the loop has no task of its own yet, and must hear 421 as well.
            await asyncio.sleep(0)
        while self._clients:
            _, waiting = await asyncio.wait(set(self._clients), timeout=timeout_s)
            if waiting:
                return

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        self._beating.cancel()


def load(path: str) -> StandIn:
    try:
        raw = json.loads(pathlib.Path(path).read_text())
        return StandIn(
            state=raw["state"],
            listeners=[
                Listener(name, tuple((host, port) for host, port in addresses))
                for name, addresses in raw["listeners"]
            ],
            workers=raw["workers"],
            user=raw.get("user", "fastsmtp"),
            watched=raw.get("watched", []),
            fail=raw.get("fail", ""),
            crash=raw.get("crash", False),
            asides=[
                Beside(**one, path=os.path.join(raw["state"], one["name"])) for one in raw.get("asides", [])
            ],
            contents={name: pathlib.Path(name).read_bytes() for name in raw.get("watched", [])},
        )
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from None


def ready(plan: object, addresses: list[list[tuple[str, int]]]) -> None:
    print("serving", json.dumps(addresses), flush=True)


def main(path: str) -> int:
    # How old a generation may get; 23 hours are too long for a test.
    master.RENEW_S = json.loads(pathlib.Path(path).read_text()).get("renew_s", master.RENEW_S)  # type: ignore[misc]
    try:
        return Master(load(path), lambda: load(path), on_ready=ready).run()
    except (ConfigError, StartFailed) as error:
        print(f"error: {error}", flush=True)
        return 78


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
