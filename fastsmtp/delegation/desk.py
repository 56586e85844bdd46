"""Where Postfix asks: connections of policy delegation, over TCP, UNIX sockets, or standard input and output.

A connection is kept as long as Postfix likes (it closes after 300 s without a request).  Requests are
answered in order, one after another.  Whoever sends no request, and any trouble of ours, ends the connection
without an answer: Postfix tries once more, and then has a default of its own (451 4.3.5).

Rank 8.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from fastsmtp.delegation.judge import Judge, Memory, Trouble
from fastsmtp.delegation.request import Broken, RequestParser

if TYPE_CHECKING:
    from fastsmtp.log import Log

CONNECTIONS: Final = 1_000
"""At a time; each smtpd of Postfix's has one, and Postfix has 100 of those (default_process_limit)."""

IDLE_S: Final = 600.0
"""Postfix closes after 300 s (smtpd_policy_service_max_idle)."""

PENDING: Final = 16
"""Requests that wait for their turn before nothing more is read; Postfix sends one and waits."""

UNREAD_BYTES: Final = 65_536
"""Answers that nobody takes."""

READ_BYTES: Final = 65_536
_SWEEP_S: Final = 5.0


class Office:
    """All connections of one process."""

    def __init__(self, judge: Judge, log: Log, now: Callable[[], float]) -> None:
        self.judge = judge
        self.log = log
        self.now = now
        self.desks: set[Desk] = set()
        self._timer: asyncio.TimerHandle | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(_SWEEP_S, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer, whatever the number of connections."""
        self._timer = loop.call_later(_SWEEP_S, self._sweep, loop)
        before = self.now() - IDLE_S
        for desk in [desk for desk in self.desks if desk.since_s < before and not desk.is_busy]:
            desk.abort()
        self.log.flush()

    def trouble(self, client: str, reason: str) -> None:
        """The connection ends without an answer; why is for the operator."""
        self.log.line("delegation_failed", client=client, reason=reason)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for desk in list(self.desks):
            desk.abort()


class Desk(asyncio.Protocol):
    """One connection."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._parser = RequestParser()
        self._memory = Memory()
        self._pending: deque[dict[str, str]] = deque()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._task: asyncio.Task[None] | None = None
        self._broken = ""
        self._is_eof = False
        self._client = ""
        self.since_s = office.now()

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else "local"
        if len(self._office.desks) >= CONNECTIONS:
            self._office.trouble(self._client, "too many connections")
            self._transport.abort()
            return
        self._office.desks.add(self)

    def data_received(self, data: bytes) -> None:
        self.since_s = self._office.now()
        if self._broken:
            return
        try:
            self._parser.feed(data)
        except Broken as broken:
            self._broken = str(broken)
        self._pending += self._parser.take()
        if len(self._pending) > PENDING or self._broken:
            self._transport.pause_reading()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        """Answer what is pending, in order."""
        try:
            while self._pending and not self._transport.is_closing():
                answer = await answered(self._office, self._client, self._pending.popleft(), self._memory)
                if not answer or self._transport.get_write_buffer_size() > UNREAD_BYTES:
                    self._transport.abort()
                    return
                self._transport.write(answer)
                self.since_s = self._office.now()
        finally:
            self._task = None
        if self._broken:
            self._office.trouble(self._client, self._broken)
            self._transport.close()
        elif self._is_eof:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """What came before is still answered."""
        self._is_eof = True
        return self.is_busy

    def connection_lost(self, error: Exception | None) -> None:
        self._office.desks.discard(self)
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        self._transport.abort()


async def answered(office: Office, client: str, attributes: dict[str, str], memory: Memory) -> bytes:
    """The answer on the wire, b"" where there is none."""
    try:
        action = await office.judge.answer(attributes, memory)
    except Trouble as trouble:
        office.trouble(client, str(trouble))
        return b""
    except Exception as error:  # noqa: BLE001 - whatever it is, it is our defect, and Postfix has a default for that
        office.trouble(client, f"{type(error).__name__}: {error}")
        return b""
    return b"action=%b\n\n" % action.encode()


def talk(
    office: Office, read_end: int, write_end: int, run: Callable[[Coroutine[Any, Any, bytes]], bytes]
) -> int:
    """One connection on two descriptors, as spawn(8) gives them; 0 when Postfix has ended it, 1 for trouble.

    run  runs a coroutine to its end; between requests nothing is waited for but the next one
    """
    parser, memory = RequestParser(), Memory()
    waiting = select.poll()
    waiting.register(read_end, select.POLLIN)
    broken = ""
    while not broken:
        if not waiting.poll(IDLE_S * 1000.0):
            return 0
        try:
            data = os.read(read_end, READ_BYTES)
            parser.feed(data)
        except Broken as error:
            broken = str(error)
        except OSError:
            return 0
        for attributes in parser.take():
            answer = run(answered(office, "spawn", attributes, memory))
            if not answer or not _write(write_end, answer):
                return 1
        if not data and not broken:
            if parser.is_within:
                broken = "a request without its end"
                break
            return 0
        office.log.flush()
    office.trouble("spawn", broken)
    return 1


def _write(descriptor: int, data: bytes) -> bool:
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        return False
    return True
