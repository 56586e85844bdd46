"""A service in the test's loop whose clock stands still until the test moves it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastsmtp._counters import Counters
from fastsmtp.callable_sink import CallableSink
from fastsmtp.config.load import load
from fastsmtp.log import ListLog
from fastsmtp.policy.own import load_stages
from fastsmtp.queue.spool import Budget
from fastsmtp.smtp.service import Service
from tests.wire import PATIENCE_S, Inbox, Wire, connect

BEGIN_S = 1_000.0


class Clocked:
    """A service whose clock stands still until the test moves it."""

    def __init__(self, service: Service, port: int, inbox: Inbox, log: ListLog, clock: list[float]) -> None:
        self.service = service
        self.port = port
        self.inbox = inbox
        self.log = log
        self._clock = clock

    def later(self, seconds: float) -> None:
        """So many seconds pass, and the tick comes."""
        self._clock[0] += seconds
        self.service.tick()

    async def connect(self, local: str = "127.0.0.1") -> Wire:
        wire = await connect(self.port, local)
        assert (await wire.reply())[0] == 220
        return wire


@asynccontextmanager
async def clocked(sink: Any = None, tls: Any = None, **config: Any) -> AsyncIterator[Clocked]:
    values = {"hostname": "mx.example", "accept": [{"domain": ["*"], "deliver": "discard"}], **config}
    settings = load(values=values).settings
    clock = [BEGIN_S]
    inbox, log = Inbox(), ListLog()
    service = Service(
        settings=settings,
        log=log,
        counters=Counters(1, 1_024).region(0),
        sink=sink or CallableSink(inbox, budget=Budget(1 << 20)),
        tls=[tls],
        now=lambda: clock[0],
        own_stages=load_stages(one.policy for one in settings),
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    await service.listen(0, sock)
    try:
        yield Clocked(service, port, inbox, log, clock)
    finally:
        await service.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)
