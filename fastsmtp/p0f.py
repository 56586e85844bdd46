"""p0f is asked over its socket: one connection a worker, kept, any number of questions on their way.

It answers in the order of the questions.  One that is not answered in time ends the connection, since what comes
after it can't be told apart: all that wait have failed, and for a while, each time twice as long, nobody waits for
p0f at all.  Whatever goes wrong, nothing is known, and that is all: no mail depends on p0f.

p0f takes 20 connections unless it was started with -S.

Rank 3: the loop, and the socket.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from fastsmtp.fingerprint import ANSWER_BYTES, Fingerprint, P0fQuestion, decode_answer, encode_query
from fastsmtp.log import Log

Answer = Fingerprint | None
Answers = tuple[Any, ...]

# Between attempts, doubled each time.
PAUSE_S = 1.0
PAUSE_MOST_S = 60.0
# p0f reads packets a little later than the system takes the connection: who is not known yet is asked for again.
AGAIN_S = 0.1
# Questions on their way; with more, something is wrong.
WAITING_MOST = 1_000


class NotKnown:
    """Why there is no answer; a value, as a failed DNS question is one."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"NotKnown({self.reason!r})"


DOWN = NotKnown("p0f does not answer")
BUSY = NotKnown("p0f is asked too much")


class P0f:
    """Everything that one worker asks p0f; a connection for each socket that the configuration names."""

    __slots__ = ("_links", "_log", "_now")

    def __init__(self, *, now: Callable[[], float], log: Log) -> None:
        self._now = now
        self._log = log
        self._links: dict[str, _Link] = {}

    def put(
        self, questions: tuple[P0fQuestion, ...], deadline: float, answered: Callable[[Answers], object]
    ) -> Answers | None:
        """Ask; the answers when they are known now, else None and answered() is called with them later.

        Each is a Fingerprint, None where p0f knows nothing of the host, or NotKnown.
        """
        answers: list[Any] = [None] * len(questions)
        # One more, so that nobody is told before all are asked.
        missing = 1 + len(questions)

        def take(at: int, answer: Answer | NotKnown) -> None:
            nonlocal missing
            answers[at] = answer
            missing -= 1
            if not missing:
                answered(tuple(answers))

        for at, question in enumerate(questions):
            link = self._links.get(question.socket)
            if link is None:
                link = self._links[question.socket] = _Link(question.socket, self._now, self._log)
            deadline_s = min(deadline, self._now() + question.timeout_s)
            refusal = link.ask(question, deadline_s, partial(take, at))
            if refusal is not None:
                answers[at] = refusal
                missing -= 1
        missing -= 1
        return None if missing else tuple(answers)

    async def close(self) -> None:
        """What is open stays unanswered."""
        for link in self._links.values():
            link.close()
        self._links.clear()


class _Asked:
    """One question on its way."""

    __slots__ = ("answered", "deadline_s", "is_again", "question")

    def __init__(
        self, question: P0fQuestion, deadline_s: float, answered: Callable[[Answer | NotKnown], None]
    ) -> None:
        self.question = question
        self.deadline_s = deadline_s
        self.answered = answered
        self.is_again = False


class _Link(asyncio.Protocol):
    """The connection to one socket."""

    __slots__ = (
        "_again", "_asked", "_has_told", "_input", "_is_closed", "_log", "_now", "_path", "_pause_s",
        "_retry_s", "_task", "_timer", "_transport",
    )  # fmt: skip

    def __init__(self, path: str, now: Callable[[], float], log: Log) -> None:
        self._path = path
        self._now = now
        self._log = log
        self._transport: asyncio.WriteTransport | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked: deque[_Asked] = deque()
        self._again: set[_Asked] = set()
        self._input = b""
        self._pause_s = PAUSE_S
        self._retry_s = 0.0
        self._has_told = False
        self._is_closed = False

    def ask(
        self, question: P0fQuestion, deadline_s: float, answered: Callable[[Answer | NotKnown], None]
    ) -> NotKnown | None:
        """None: answered() will be called.  Else there will be no answer, and that is known now."""
        if self._is_closed:
            return DOWN
        if len(self._asked) + len(self._again) >= WAITING_MOST:
            return BUSY
        if self._transport is None and self._task is None:
            if self._now() < self._retry_s:
                return DOWN
            self._task = asyncio.get_running_loop().create_task(self._connect())
        self._send(_Asked(question, deadline_s, answered))
        return None

    def close(self) -> None:
        """Nobody is told anything any more."""
        self._is_closed = True
        self._asked.clear()
        self._again.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # --- the connection --------------------------------------------------------------------------

    async def _connect(self) -> None:
        """The deadline of the first question bounds this too: see _tick()."""
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, self._path)
        except OSError as error:
            self._task = None
            self._fall(error.strerror or str(error))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._task = None
        if self._is_closed:
            transport.abort()  # type: ignore[attr-defined]
            return
        self._transport = transport  # type: ignore[assignment]
        self._input = b""
        if self._asked:
            self._transport.write(b"".join(encode_query(one.question.address) for one in self._asked))  # type: ignore[union-attr]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._fall("closed" if exc is None else str(exc))

    def _fall(self, reason: str) -> None:
        """It is gone, silent or talks nonsense: whoever waits goes on without, and for a while nobody asks."""
        transport, self._transport = self._transport, None
        task, self._task = self._task, None
        if transport is not None:
            transport.abort()
        if task is not None:
            task.cancel()
        if self._is_closed:
            return
        self._retry_s = self._now() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MOST_S)
        if not self._has_told:
            self._has_told = True
            self._log.line("fingerprints_down", what=self._path, reason=reason)
        waiting = [*self._asked, *self._again]
        self._asked.clear()
        self._again.clear()
        for one in waiting:
            one.answered(DOWN)

    # --- questions and answers -------------------------------------------------------------------

    def _send(self, one: _Asked) -> None:
        self._asked.append(one)
        if self._transport is not None:
            self._transport.write(encode_query(one.question.address))
        if self._timer is None:
            self._set_timer()

    def data_received(self, data: bytes) -> None:
        data = self._input + data if self._input else data
        at = 0
        while len(data) - at >= ANSWER_BYTES and self._transport is not None:
            try:
                answer = decode_answer(data[at : at + ANSWER_BYTES])
            except ValueError as error:
                self._fall(str(error))
                return
            at += ANSWER_BYTES
            if not self._asked:
                self._fall("answers that nobody asked for")
                return
            self._take(self._asked.popleft(), answer)
        self._input = data[at:]

    def _take(self, one: _Asked, answer: Answer) -> None:
        self._pause_s = PAUSE_S
        if self._has_told:
            self._has_told = False
            self._log.line("fingerprints_up", what=self._path)
        if answer is None and not one.is_again and self._now() + AGAIN_S < one.deadline_s:
            one.is_again = True
            self._again.add(one)
            asyncio.get_running_loop().call_later(AGAIN_S, self._ask_again, one)
            return
        one.answered(answer)

    def _ask_again(self, one: _Asked) -> None:
        if one in self._again:
            self._again.discard(one)
            self._send(one)

    def _set_timer(self) -> None:
        left_s = max(0.0, self._asked[0].deadline_s - self._now())
        self._timer = asyncio.get_running_loop().call_later(left_s, self._tick)

    def _tick(self) -> None:
        """One timer for all: it looks at the question that waits longest."""
        self._timer = None
        if not self._asked:
            return
        if self._asked[0].deadline_s > self._now():
            self._set_timer()
            return
        self._fall("no answer in time")
