"""Questions over TCP: answers that are too long for UDP, and those whose echo was doubtful.

One connection a server, pipelined (RFC 7766 section 6.2.1.1), answers in any
order, up to 64 KiB each, closed when it was idle for a few seconds.  The
engine writes the queries and reads the answers.  Rank 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastsmtp._dns import Engine, Open, Server

# RFC 7766 section 6.2.3 wants seconds; unbound keeps 30 s, BIND 30 s.
IDLE_S = 5.0


class Stream(asyncio.Protocol):
    """One connection to one server.

    back(opens)  is called with questions whose answer wants a decision
    lost(opens)  with those that were open when the connection failed
    """

    def __init__(
        self,
        engine: Engine,
        server: Server,
        clock: Callable[[], float],
        back: Callable[[list[Open]], None],
        lost: Callable[[list[Open]], None],
    ) -> None:
        self._engine = engine
        self._server = server
        self._clock = clock
        self._back = back
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, Open] = {}
        self._unsent: list[bytes] = []
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.is_closed = False

    def connect(self) -> None:
        """Begin; what is asked meanwhile leaves when the connection stands."""
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(lambda: self, self._server.address, self._server.port)
        except OSError:
            self.connection_lost(None)

    def ask(self, question: Open, wait_s: float) -> None:
        """Send one question; it has wait_s seconds from now, the connection's making included."""
        number = self._engine.draw(256) << 8 | self._engine.draw(256)
        while number in self._waiting:
            number = number + 1 & 0xFFFF
        self._waiting[number] = question
        query = self._engine.encode(question, self._server, number, self._clock(), wait_s)
        if self._transport is None:
            self._unsent.append(query)
        else:
            self._transport.write(query)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def forget(self, question: Open) -> None:
        """The answer is no longer wanted from here."""
        for number, waiting in self._waiting.items():
            if waiting is question:
                del self._waiting[number]
                break
        self._rest()

    def close(self) -> None:
        """End without calling anybody back."""
        self.is_closed = True
        self._waiting.clear()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's is no subclass
        self._transport = stream
        if self.is_closed:
            stream.abort()
            return
        stream.writelines(self._unsent)
        self._unsent.clear()
        self._rest()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 2 and not self.is_closed:
            stop = 2 + int.from_bytes(buffer[:2])
            if len(buffer) < stop:
                break
            message = bytes(buffer[2:stop])
            del buffer[:stop]
            self._take(message)
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_closed:
            return
        waiting = list(self._waiting.values())
        self.close()
        self._lost(waiting)

    def _take(self, message: bytes) -> None:
        question = self._waiting.pop(int.from_bytes(message[:2]), None) if len(message) >= 12 else None
        if question is None:
            return
        verdict = self._engine.answer(question, message, self._clock())
        if verdict < 0:
            # Our id, but not our question: what else comes from here is not to be trusted.
            waiting = [question, *self._waiting.values()]
            self.close()
            self._lost(waiting)
        elif verdict:
            self._back([question])

    def _rest(self) -> None:
        if self._idle is None and not self._waiting and self._transport is not None and not self.is_closed:
            self._idle = self._loop.call_later(IDLE_S, self.close)
