"""The journal of one process: records in, (segment, offset) out once they are synced.

    place = await journal.append([envelope, prefix, *body])

Many appends share a sync (see _journal.pyi); nothing waits for a timer.  A
segment that is full, or had a failure, is followed by the next one, which is
made ready ahead and seals its predecessors (docs/queue.md).

Not here: what a payload means (model.py), the files (store.py).  Rank 5.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fastsmtp import errors
from fastsmtp._journal import Writer
from fastsmtp._record import BLOCK, MESSAGE, SEAL
from fastsmtp.queue.disk import Disk, storage_error
from fastsmtp.queue.meters import JournalMeter
from fastsmtp.queue.place import Place, Seal
from fastsmtp.queue.store import Segment, Store

if TYPE_CHECKING:
    import asyncio

# After a failure, how long until the next try: clients are told 4xx meanwhile, and a full disk is left in peace.
RETRY_S = 1.0


class Source(Protocol):
    """Hands out segments: the store of this process, or the owner of the queue over a socket."""

    def next(self) -> Awaitable[Segment]:
        """The next segment; raises errors.StorageFull or errors.StorageFailed, also when nobody answers in time."""

    def release(self, segment: Segment, end: int) -> None:
        """The segment gets no further record, and ends there: close its descriptor.  Never waits."""


class LocalSource:
    """Segments of a store in this process."""

    __slots__ = ("_disk", "_store")

    def __init__(self, store: Store, disk: Disk) -> None:
        self._store = store
        self._disk = disk

    async def next(self) -> Segment:
        done = self._disk.run(self._store.prepare)
        return done if isinstance(done, Segment) else await done

    def release(self, segment: Segment, end: int) -> None:
        self._disk.forget(_close, segment.fd)


def _close(system: Any, fd: int) -> None:
    system.close(fd)


class Receipt(Protocol):
    """Who waits for a record: asked and told as a future is, but at once, from within reap()."""

    def done(self) -> bool: ...
    def set_result(self, place: Place, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...


class _Waiting(NamedTuple):
    pieces: Sequence[bytes]
    body_fd: int
    future: Receipt
    kind: int


class Journal:
    """Appends records of one kind.  All calls from the loop's thread; start() comes first, close() last.

    clock    seconds, monotonic
    seals    of segments of an earlier life (recovery.py); written with the first batch
    synced   called after syncs, when those who waited for them have been told
    meter    counts records, syncs, and what was refused
    """

    def __init__(
        self,
        source: Source,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        writer: Writer[Receipt | Seal],
        kind: int = MESSAGE,
        seals: Sequence[Seal] = (),
        synced: Callable[[], object] | None = None,
        meter: JournalMeter | None = None,
    ) -> None:
        self._meter = meter
        if meter is not None:
            writer.timed = meter.syncs.observe
        self._synced = synced
        self._source = source
        self._loop = loop
        self._clock = clock
        self._writer = writer
        self._kind = kind
        self._seals = list(seals)
        self._segment: Segment | None = None
        self._ahead: asyncio.Task[Segment] | None = None
        self._move: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._waiting: deque[_Waiting] = deque()
        self._is_stopped = False
        self._is_closed = False
        self._is_telling = False
        self._error: errors.TemporaryError | None = None
        self._retry_at = clock()

    async def start(self) -> None:
        """Get the first segment; raises errors.StorageFull or errors.StorageFailed."""
        self._take(await self._source.next())
        self._loop.add_reader(self._writer.fileno(), self.reap)

    def add_seals(self, seals: Sequence[Seal]) -> None:
        """More of an earlier life's; before start()."""
        self._seals += seals

    @property
    def segment(self) -> Segment | None:
        """The one in use."""
        return self._segment

    def append(self, pieces: Sequence[bytes], body_fd: int = -1, *, kind: int = 0) -> asyncio.Future[Place]:
        """Write and sync one record, whose payload the pieces are together; kind 0 is the journal's own.

        body_fd is a spooled body, synced first; the caller may close it at any time.  The future's error is
        errors.StorageFull, errors.StorageFailed, or ValueError for what no segment can hold.  Cancelling it
        doesn't take the record back.
        """
        future: asyncio.Future[Place] = self._loop.create_future()
        self.append_for(future, pieces, body_fd, kind)
        return future

    def append_for(self, future: Receipt, pieces: Sequence[bytes], body_fd: int = -1, kind: int = 0) -> None:
        """The same for who is no future.  It may be told before this returns, and must not raise.

        So may those whose records are synced by now: the loop comes to the writer's bell when all that it found to
        be read has been read, and with fifty clients that is a millisecond in which they could have gone on.
        """
        if self._is_closed:
            raise RuntimeError("the journal is closed")
        if self._writer.has_news and not self._is_telling and self._move is None:
            self.reap()
        if self._move is None:
            if not self._is_stopped and self._put(pieces, body_fd, future, kind):
                return
            if self._error is not None and self._clock() < self._retry_at:
                if self._meter is not None:
                    self._meter.refused(self._error)
                future.set_exception(_copy(self._error))
                return
            self._begin_move()
        if body_fd >= 0:
            body_fd = self._writer.duplicate(body_fd)
        self._waiting.append(_Waiting(pieces, body_fd, future, kind))

    def reap(self) -> None:
        """Tell those whose records are over.  The loop calls it when the writer rings."""
        # Whoever is told may append the next one.
        self._is_telling = True
        try:
            failure = self._tell()
        finally:
            self._is_telling = False
        if failure is not None and self._writer.is_stopped and not self._is_stopped:
            self._is_stopped = True
            if self._move is None and not self._is_closed:
                if self._clock() < self._retry_at:
                    # The second one in a row: the disk, not the segment.
                    self._refuse(failure)
                else:
                    self._retry_at = self._clock() + RETRY_S
                    self._begin_move()
        if self._idle is not None and not self._idle.done() and self._writer.is_idle:
            self._idle.set_result(None)
        if self._synced is not None:
            self._synced()

    async def close(self) -> None:
        """Finish what was appended, and end the thread.  What can't be written fails."""
        self._is_closed = True
        if self._move is not None:
            await self._move
        await self._drain()
        self._loop.remove_reader(self._writer.fileno())
        self._writer.close()
        self._tell()
        if self._writer.is_stopped:
            self._refuse(self._error or errors.StorageFailed("the journal is closed"))
        if self._ahead is not None:
            try:
                self._source.release(await self._ahead, BLOCK)
            except errors.TemporaryError:
                # It was for later, and nobody asks for it any more.
                self._ahead = None
        if self._segment is not None:
            self._source.release(self._segment, self._writer.end)
            self._segment = None

    def _put(self, pieces: Sequence[bytes], body_fd: int, future: Receipt, kind: int) -> bool:
        """Hand it to the writer; False when the segment has no room for it."""
        try:
            return self._writer.append(pieces, future, kind=kind or self._kind, body_fd=body_fd)
        except ValueError as error:
            future.set_exception(error)
        except OSError as error:
            future.set_exception(storage_error(error))
        return True

    def _tell(self) -> errors.TemporaryError | None:
        """Settle the futures of what is over; the last failure, if there was one."""
        segment = self._segment
        failure = None
        records = failed = total_bytes = 0
        for cookie, error, offset, size_bytes in self._writer.reap():
            if error:
                failed += 1
                failure = storage_error(OSError(error, os.strerror(error)))
            if isinstance(cookie, Seal):
                # One that failed is written again with the next segment.
                if not error:
                    self._seals.remove(cookie)
                continue
            if not error:
                records += 1
                total_bytes += size_bytes
            if cookie.done():
                continue
            if failure is not None and error:
                cookie.set_exception(failure)
            elif segment is not None:
                cookie.set_result(Place(segment.number, segment.epoch, offset, size_bytes))
        if self._meter is not None:
            if records:
                self._meter.synced(records, total_bytes)
            if failure is not None:
                self._meter.refused(failure, failed)
        return failure

    def _begin_move(self) -> None:
        self._move = self._loop.create_task(self._to_the_next())

    async def _to_the_next(self) -> None:
        """Leave the segment, and go on in the next one until nothing waits."""
        try:
            await self._drain()
            while True:
                segment = await self._following()
                self._take(segment)
                if self._put_waiting():
                    break
                await self._drain()
        except errors.TemporaryError as error:
            self._refuse(error)
        finally:
            self._move = None

    async def _drain(self) -> None:
        """Until the writer has nothing under way."""
        while not self._writer.is_idle:
            self._idle = self._loop.create_future()
            await self._idle
            self._idle = None

    async def _following(self) -> Segment:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            try:
                return await ahead
            except errors.TemporaryError:
                # That was some time ago; there may be room now.
                pass
        return await self._source.next()

    def _take(self, segment: Segment) -> None:
        """Go on in this segment.  Its first batch has the seals of those before it, and what waits in the writer."""
        old, writer = self._segment, self._writer
        if old is not None:
            if not writer.is_stopped:
                writer.pause()
            # Before the segment changes: their places are in the old one.
            self._tell()
            self._seals.append(Seal(old.number, old.epoch, writer.end, writer.end))
            self._source.release(old, writer.end)
        for seal in self._seals:
            writer.append([seal.encode()], seal, kind=SEAL)
        writer.use(segment.fd, number=segment.number, epoch=segment.epoch, size=segment.size_bytes)
        self._segment = segment
        self._is_stopped = False
        self._error = None
        if not self._is_closed:
            self._ahead = self._loop.create_task(self._prepared())
            self._ahead.add_done_callback(_look)

    async def _prepared(self) -> Segment:
        return await self._source.next()

    def _put_waiting(self) -> bool:
        """Hand over what waited for the segment; False when the segment is full before all are in."""
        is_fresh = True
        waiting = self._waiting
        while waiting:
            pieces, body_fd, future, kind = waiting[0]
            if not future.done():
                if self._put(pieces, body_fd, future, kind):
                    is_fresh = False
                elif is_fresh:
                    future.set_exception(ValueError("the message is bigger than a segment"))
                else:
                    return False
            waiting.popleft()
            self._writer.close_duplicate(body_fd)
        return True

    def _refuse(self, error: errors.TemporaryError) -> None:
        """There is no segment to go on in: all that waits fails, and so does what comes in the next second."""
        self._error = error
        self._retry_at = self._clock() + RETRY_S
        futures = []
        if self._writer.is_stopped:
            futures += [cookie for cookie in self._writer.withdraw() if not isinstance(cookie, Seal)]
        while self._waiting:
            _, body_fd, future, _ = self._waiting.popleft()
            self._writer.close_duplicate(body_fd)
            futures.append(future)
        if self._meter is not None:
            self._meter.refused(error, len(futures))
        for future in futures:
            if not future.done():
                future.set_exception(_copy(error))


def _copy(error: errors.TemporaryError) -> errors.TemporaryError:
    """One for each who gets it: an exception that is raised twice gathers tracebacks."""
    return type(error)(*error.args)


def _look(task: asyncio.Task[Segment]) -> None:
    """Its error is told when the segment is wanted, and not as one that nobody looked at."""
    if not task.cancelled():
        task.exception()
