"""One TCP or Unix connection to a next hop: drives the scripts of dialogue.py over a socket.

No timer of its own: `deadline_s` says until when something must happen, and
the pool's one timer looks at it.  Nothing is decided here.

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast

from fastsmtp import errors
from fastsmtp._parser import NextHopReply, ReplyParser
from fastsmtp.delivery.dialogue import Dialogue, Script, shown

T = TypeVar("T")

NEVER_S = float("inf")
# Replies that may wait to be looked at: to a group of commands there are at most some hundred.
REPLIES_MAX = 1_100


class Link(asyncio.Protocol):
    """A connection to a next hop, and what is being waited for on it.

    dialogue     what we know of the session
    deadline_s   on the loop's clock: until then the next answer, or room to write
    error        why it is no good any more, or None
    may_speak    a reply may come that nothing has asked for: the greeting, or while a body is sent
    is_reused    it has carried a transaction before
    is_gone      its transport has ended
    has_expired  the error is that the deadline passed: trying again would only take longer
    """

    def __init__(
        self, dialogue: Dialogue, loop: asyncio.AbstractEventLoop, on_lost: Callable[[Link], None]
    ) -> None:
        self.dialogue = dialogue
        self.deadline_s = NEVER_S
        self.born_s = loop.time()
        self.error: errors.TemporaryError | None = None
        self.is_reused = False
        self.has_expired = False
        self.is_gone = False
        self.may_speak = True
        self._loop = loop
        self._on_lost = on_lost
        self._parser = ReplyParser()
        self._replies: list[NextHopReply] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._when_asked: Callable[[list[NextHopReply]], None] | None = None
        self._is_writable: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    # --- the transport calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.error is not None:
            return
        try:
            self._replies += self._parser.feed(data)
        except errors.ProtocolError as error:
            self.fail(errors.NextHopGarbled(str(error)))
            return
        if len(self._replies) > REPLIES_MAX:
            self.fail(errors.NextHopGarbled("talks without end"))
            return
        if self._waiter is not None:
            if len(self._replies) >= self._wanted:
                self._wake()
        elif self._when_asked is not None:
            self._answered()
        elif self.may_speak:
            # An answer before all was sent: whoever writes must look at it.
            self.resume_writing()
        elif self._replies:
            self._spoke_unasked()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_gone = True
        self.fail(errors.NextHopDown("the connection was lost" if error is None else str(error)))

    def pause_writing(self) -> None:
        if self._is_writable is None:
            self._is_writable = self._loop.create_future()

    def resume_writing(self) -> None:
        waiting, self._is_writable = self._is_writable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # --- for those who use it ----------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """An answer is on its way."""
        return self._waiter is not None or self._when_asked is not None

    @property
    def has_spoken_early(self) -> bool:
        """There is a reply that nothing has asked for yet."""
        return bool(self._replies)

    async def run(self, script: Script[T], deadline_s: float) -> T:
        """Drive a script to its end, and return its value; all of it before the deadline."""
        try:
            ask = next(script)
            while True:
                ask = script.send(await self.ask(ask.data, ask.replies, deadline_s))
        except StopIteration as stop:
            return cast(T, stop.value)

    async def ask(self, data: bytes, replies: int, deadline_s: float) -> list[NextHopReply]:
        """Send data and wait for so many replies.  Raises NextHopDown and NextHopGarbled.

        Answers that came whole before the connection was lost are answers.
        """
        if self.error is not None and len(self._replies) < replies:
            raise self.error
        if data:
            self._write(data)
        if len(self._replies) < replies:
            self._wanted = replies
            self.deadline_s = deadline_s
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except BaseException:
                # Its answer will come when another question is open: no use for this connection any more.
                self.fail(errors.NextHopDown("given up by us"))
                raise
            finally:
                self._waiter = None
                self._wanted = 0
                self.deadline_s = NEVER_S
            if self.error is not None and len(self._replies) < replies:
                raise self.error
        answers, self._replies = self._replies[:replies], self._replies[replies:]
        if self._replies and not self.may_speak:
            self._spoke_unasked()
        return answers

    def ask_aside(
        self, data: bytes, deadline_s: float, answered: Callable[[list[NextHopReply]], None]
    ) -> None:
        """Send data and have `answered` called with the replies that there are when the first one comes."""
        self._when_asked = answered
        self._wanted = 1
        self.deadline_s = deadline_s
        self._write(data)

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Send data, and wait until there is room again or the next hop speaks.  Raises NextHopDown."""
        if self._replies:
            return  # it has spoken: whoever writes must look at that first
        if self.error is not None:
            raise self.error
        self._write(data)
        if self._is_writable is not None:
            self.deadline_s = deadline_s
            try:
                await self._is_writable
            except BaseException:
                self.fail(errors.NextHopDown("given up by us"))
                raise
            finally:
                self.deadline_s = NEVER_S
            if self.error is not None and not self._replies:
                raise self.error

    def expire(self) -> None:
        """The deadline has passed."""
        self.has_expired = True
        self.fail(errors.NextHopDown("did not answer in time"))

    def quit(self) -> None:
        """Say goodbye and close, without waiting for an answer."""
        if self.error is None:
            self._write(b"QUIT\r\n")
            if self._transport is not None:
                self._transport.close()
            self.fail(errors.NextHopDown("closed by us"), is_polite=True)

    def abort(self) -> None:
        """End the transport now, whatever it still has to say."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: errors.TemporaryError, *, is_polite: bool = False) -> None:
        """It is no good any more: whoever waits gets the error.  Only the first call counts."""
        if self.error is not None:
            return
        self.error = error
        self.deadline_s = NEVER_S
        if self._transport is not None and not is_polite:
            # abort, not close: a half-sent message must not reach the next hop's kernel afterwards.
            self._transport.abort()
        self._wake()
        self.resume_writing()
        self._when_asked = None
        self._on_lost(self)

    def _spoke_unasked(self) -> None:
        """Mostly 421 before the next hop hangs up; else its answers and our questions don't fit any more."""
        answer = self._replies[0]
        if answer.code == 421:
            self.fail(errors.NextHopDown(f"said {shown(answer)}"))
        else:
            self.fail(errors.NextHopGarbled(f"said unasked {shown(answer)}"))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _answered(self) -> None:
        answered, self._when_asked = self._when_asked, None
        answers, self._replies = self._replies, []
        self._wanted = 0
        self.deadline_s = NEVER_S
        if answered is not None:
            answered(answers)
