"""The sink of a program that fastsmtp is a part of: each message goes to a function of the program's.

Rank 7.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from fastsmtp import errors, reply
from fastsmtp.log import log_defect
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy.facts import Facts
from fastsmtp.queue.disk import Disk, InlineDisk
from fastsmtp.queue.spool import Body, Budget
from fastsmtp.reply import Reply
from fastsmtp.sink import message_id, world_failed

if TYPE_CHECKING:
    from fastsmtp.log import Log


class Message:
    """A message as a function of the caller's gets it.

    id        as the client is told
    envelope  message.Envelope: sender, recipients and what the client declared
    facts     policy.facts.Facts: who the client is, TLS, HELO
    prefix    the header fields that we add, CRLF
    body      the message as received, CRLF, in memory or in a file; good until the function returns
    """

    __slots__ = ("body", "envelope", "facts", "id", "prefix")

    def __init__(self, id: str, envelope: Envelope, facts: Facts, prefix: bytes, body: Body) -> None:
        self.id = id
        self.envelope = envelope
        self.facts = facts
        self.prefix = prefix
        self.body = body

    async def pieces(self) -> AsyncIterator[bytes]:
        """Prefix and body, piece by piece: a big message need not fit in memory."""
        if self.prefix:
            yield self.prefix
        async for piece in self.body.pieces():
            yield piece

    async def content(self) -> bytes:
        """Prefix and body as one bytes object, ready for email.message_from_bytes."""
        return b"".join([piece async for piece in self.pieces()])


Handler = Callable[[Message], Reply | Awaitable[Reply | None] | None]


class CallableSink:
    """Gives each message to a function of the caller's, plain or async.

    It returns None for "accepted", or the Reply for the client.  What it raises is 451 4.3.0 and
    logged, never 250; an errors.TemporaryError is the 4xx that goes with it.
    """

    __slots__ = ("_budget", "_disk", "_spool_directory", "handler", "log")

    def __init__(
        self,
        handler: Handler,
        *,
        budget: Budget,
        disk: Disk | None = None,
        spool_directory: str | None = None,
        log: Log | None = None,
    ) -> None:
        self.handler = handler
        self.log = log
        self._disk = disk or InlineDisk()
        self._budget = budget
        self._spool_directory = spool_directory or _temporary_directory()

    def open(self, envelope: Envelope, facts: Facts) -> CallableTransaction:
        return CallableTransaction(
            self, envelope, facts, Body(self._disk, self._budget, self._spool_directory)
        )

    async def close(self) -> None:
        self._disk.close()


class CallableTransaction:
    """One message on its way to the caller's function."""

    __slots__ = ("_body", "_envelope", "_facts", "_sink")

    def __init__(self, sink: CallableSink, envelope: Envelope, facts: Facts, body: Body) -> None:
        self._sink = sink
        self._envelope = envelope
        self._facts = facts
        self._body = body

    def add(self, recipient: Recipient) -> None:
        return None

    def begin(self, facts: Facts) -> None:
        return None

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        return self._body.write(chunk)

    def cut(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._body.cut(ranges)

    async def commit(self, prefix: bytes) -> Reply:
        id = message_id(self._facts)
        try:
            answer = self._sink.handler(Message(id, self._envelope, self._facts, prefix, self._body))
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer is None:
                return reply.accepted(id)
            if not isinstance(answer, Reply) or 300 <= answer.code < 400:
                raise TypeError(f"a sink returns None or a Reply of 2xx, 4xx or 5xx, not {answer!r}")
        except errors.TemporaryError as error:
            return world_failed(self._sink.log, self._facts, "sink", error)
        except Exception as error:  # noqa: BLE001 - the caller's code: whatever it raises, the client may try again
            return _defect(self._sink.log, self._facts, error)
        else:
            return answer
        finally:
            self._body.release()

    def abort(self) -> None:
        self._body.release()


def _defect(log: Log | None, facts: Facts, error: Exception) -> Reply:
    """451 4.3.0 for what the caller's function raised; the log gets the traceback."""
    answer = reply.OUR_DEFECT
    if log is not None:
        log_defect(log, error, id=facts.session_id, what="sink", code=answer.code, enhanced=answer.enhanced)
    return answer


def _temporary_directory() -> str:
    import tempfile

    return tempfile.gettempdir()
