"""The queue's sink: a message is encoded into one record, and its 250 leaves when that is synced.

A body of more than RECORD_BYTES, or one for which the worker's budget has no room,
goes into a file of its own, which the journal syncs before the record that
names it.  What the session knew of the client goes with the message.

Here too: EitherSink, for a configuration where some recipients are queued and
others are handed over before the 250.

Rank 7: may import queue/ and delivery/.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastsmtp import errors, reply
from fastsmtp._record import crc32c
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy.facts import Facts
from fastsmtp.promise import Promise
from fastsmtp.queue.bodies import BodyFile
from fastsmtp.queue.disk import Disk
from fastsmtp.queue.fileheader import SIZE_BYTES
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.meters import JournalMeter
from fastsmtp.queue.model import BodyReference, QueuedMessage, encode, origins_of
from fastsmtp.queue.place import Place
from fastsmtp.queue.remote import Remote
from fastsmtp.queue.spool import Budget, Cutter
from fastsmtp.queue.store import write_all
from fastsmtp.reply import Reply
from fastsmtp.sink import Sink, Transaction, message_id

# Bodies up to here are part of their record (docs/decisions/0041): they share a sync, and a file of one's own costs
# ten times as much.  Whatever the number of clients, limits.body_memory_bytes is the bound.
RECORD_BYTES = 262_144


class QueueSink:
    """Makes messages durable; see the module's text.

    remote    gives body files and knows whether the disk has room
    journal   started; closed by close(), and remote after it
    disk      where bodies are written to their files
    budget    memory for bodies, of the worker
    wall      seconds since 1970
    meter     the journal's
    """

    def __init__(
        self,
        *,
        remote: Remote,
        journal: Journal,
        disk: Disk,
        budget: Budget,
        wall: Callable[[], float],
        meter: JournalMeter | None = None,
    ) -> None:
        self.meter = meter
        self.remote = remote
        self.journal = journal
        self.disk = disk
        self.budget = budget
        self.wall = wall
        self._is_closed = False

    def open(self, envelope: Envelope, facts: Facts) -> QueueTransaction:
        return QueueTransaction(self, envelope, facts)

    def refusal(self) -> Reply | None:
        """452 below the low-water mark: better before the body than after it."""
        if not self.remote.is_low:
            return None
        if self.meter is not None:
            self.meter.full()
        return reply.STORAGE_FULL

    async def close(self) -> None:
        """More than once does no harm."""
        if self._is_closed:
            return
        self._is_closed = True
        await self.journal.close()
        self.remote.close()
        self.disk.close()


class QueueTransaction:
    """One message on its way into the queue."""

    __slots__ = (
        "_chunks", "_cuts", "_envelope", "_facts", "_id", "_is_over", "_memory_bytes", "_promise", "_sink",
        "_size_bytes", "_spooled",
    )  # fmt: skip

    def __init__(self, sink: QueueSink, envelope: Envelope, facts: Facts) -> None:
        self._sink = sink
        self._envelope = envelope
        self._facts = facts
        self._chunks: list[bytes] = []
        self._memory_bytes = 0
        self._size_bytes = 0
        self._spooled: SpooledBody | None = None
        self._cuts: Sequence[tuple[int, int]] = ()
        self._is_over = False

    def add(self, recipient: Recipient) -> None:
        return None

    def begin(self, facts: Facts) -> None:
        return None

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        size = len(chunk)
        self._size_bytes += size
        spooled = self._spooled
        if spooled is None:
            memory = self._memory_bytes + size
            if memory <= RECORD_BYTES and self._sink.budget.take(size):
                self._memory_bytes = memory
                self._chunks.append(chunk)
                return None
            return self._spool(chunk)
        return self._sink.disk.run(spooled.append, [chunk])

    def cut(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._cuts = ranges

    def commit(self, prefix: bytes) -> Promise:
        sink = self._sink
        spooled, chunks, cuts, size_bytes = self._spooled, self._chunks, self._cuts, self._size_bytes
        body: Sequence[bytes] | BodyReference = chunks
        if spooled is not None:
            body = spooled.reference()
        elif cuts:
            cutter = Cutter(tuple(cuts))
            body = [left for left in map(cutter.take, chunks) if left]
            size_bytes -= sum(length for _, length in cuts)
            cuts = ()
        id = message_id(self._facts)
        message = QueuedMessage(
            id, int(sink.wall() * 1000.0), self._envelope, origins_of(self._facts), prefix, body, size_bytes, cuts
        )  # fmt: skip
        self._id = id
        self._promise = promise = Promise()
        sink.journal.append_for(self, encode(message), -1 if spooled is None else spooled.file.fd)
        return promise

    def abort(self) -> None:
        self._is_over = True
        self._release(is_named=False)

    # --- the journal's receipt --------------------------------------------------------------------

    def done(self) -> bool:
        return self._promise.value is not None

    def set_result(self, place: Place) -> None:
        self._release(is_named=True)
        self._promise.keep(reply.accepted(self._id))

    def set_exception(self, error: Exception) -> None:
        self._release(is_named=False)
        self._promise.keep(error)

    async def _spool(self, chunk: bytes) -> None:
        """The body is bigger than what is kept in memory: all of it goes into a file."""
        sink = self._sink
        file = await sink.remote.body()
        spooled = SpooledBody(file)
        if self._is_over:
            sink.disk.forget(spooled.close)
            sink.remote.give_up(file)
            raise errors.StorageFailed("the body was given up")
        self._spooled = spooled
        done = sink.disk.run(spooled.append, [*self._chunks, chunk])
        if done is not None:
            await done
        self._forget_memory()

    def _forget_memory(self) -> None:
        self._sink.budget.give(self._memory_bytes)
        self._memory_bytes = 0
        self._chunks = []

    def _release(self, *, is_named: bool) -> None:
        """Give back memory and file; more than once does no harm."""
        self._forget_memory()
        spooled, self._spooled = self._spooled, None
        if spooled is not None:
            self._sink.disk.forget(spooled.close)
            if not is_named:
                self._sink.remote.give_up(spooled.file)


class SpooledBody:
    """A body in a file of its own.  append and close are jobs of a Disk.

    The lock orders them: an abort may come while a write is under way in another thread, and closing
    under it would let that write go into a stranger's file.
    """

    __slots__ = ("_crc", "_is_closed", "_lock", "_size_bytes", "file")

    def __init__(self, file: BodyFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._is_closed = False
        self._size_bytes = 0
        self._crc = 0

    def append(self, system: Any, pieces: list[bytes]) -> None:
        with self._lock:
            if self._is_closed:
                raise errors.StorageFailed("the body was given up")
            for piece in pieces:
                write_all(system, self.file.fd, piece, SIZE_BYTES + self._size_bytes)
                self._size_bytes += len(piece)
                self._crc = crc32c(piece, self._crc)

    def reference(self) -> BodyReference:
        return BodyReference(self.file.number, self.file.epoch, self._crc)

    def close(self, system: Any) -> None:
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self.file.fd)


class EitherSink:
    """The queue for recipients that are queued, the other one for those that are not; never both for one message."""

    def __init__(self, queue: QueueSink, direct: Sink) -> None:
        self.queue = queue
        self.direct = direct

    def open(self, envelope: Envelope, facts: Facts) -> EitherTransaction:
        return EitherTransaction(self, envelope, facts)

    async def close(self) -> None:
        await self.queue.close()
        await self.direct.close()


class EitherTransaction:
    """Becomes a transaction of the sink that its first recipient asks for."""

    __slots__ = ("_chosen", "_envelope", "_facts", "_is_queued", "_sink")

    def __init__(self, sink: EitherSink, envelope: Envelope, facts: Facts) -> None:
        self._sink = sink
        self._envelope = envelope
        self._facts = facts
        self._chosen: Transaction | None = None
        self._is_queued = True

    def add(self, recipient: Recipient) -> Reply | Awaitable[Reply | None] | None:
        if self._chosen is None or (self._is_queued != recipient.is_queued and not self._envelope.recipients):
            # Nobody was taken so far: it is free for the other kind.
            if self._chosen is not None:
                self._chosen.abort()
            refusal = self._sink.queue.refusal() if recipient.is_queued else None
            if refusal is not None:
                return refusal
            sink = self._sink.queue if recipient.is_queued else self._sink.direct
            self._chosen = sink.open(self._envelope, self._facts)
            self._is_queued = recipient.is_queued
        elif self._is_queued != recipient.is_queued:
            return reply.OTHER_NEXT_HOP
        return self._chosen.add(recipient)

    def begin(self, facts: Facts) -> Reply | Awaitable[Reply | None] | None:
        return self._the_chosen().begin(facts)

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        return self._the_chosen().write(chunk)

    def cut(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._the_chosen().cut(ranges)

    def commit(self, prefix: bytes) -> Reply | Awaitable[Reply]:
        return self._the_chosen().commit(prefix)

    def abort(self) -> None:
        if self._chosen is not None:
            self._chosen.abort()

    def _the_chosen(self) -> Transaction:
        if self._chosen is None:
            raise RuntimeError("a message without a recipient")
        return self._chosen
