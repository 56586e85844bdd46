"""The deferred index as the dispatcher uses it: in a thread of its own, many changes in one transaction.

    index = DeferredIndex(path, loop=loop, version=version)
    opened = await index.open()
    await index.defer(rows)                   synced when this comes back; then the done-log may say "deferred"
    for row in await index.due(now_ms, 500):  not handed out again until defer(), finished() or give_back()
        ...
    await index.finished(keys)                after the done-log was told

Whatever is asked for while one transaction is synced goes into the next one.
Nothing is kept in memory but the keys that are handed out.

Not here: when the next attempt is (schedule.py), the file (index.py), what a
start makes of journal, done-log and index (reconcile.py).  Rank 5.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

from fastsmtp import errors
from fastsmtp.queue.index import CHUNK, IndexFile, Opened
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Counts, Filter, Key, Page, Row, State

T = TypeVar("T")

# Jobs that share a transaction; a defer() of a whole delivery round is one job.
BATCH = 256

_BEGINNING = (-1, 0)


class _Job:
    """work runs in the thread; then(value) on the loop, in the order of the jobs, and only if it was committed."""

    __slots__ = ("error", "future", "then", "value", "work")

    def __init__(
        self, work: Callable[[], Any], future: asyncio.Future[Any], then: Callable[[Any], Any] | None
    ) -> None:
        self.work = work
        self.future = future
        self.then = then
        self.value: Any = None
        self.error: BaseException | None = None


class DeferredIndex:
    """All calls from the loop's thread; open() first, close() last.

    Whatever is awaited raises errors.StorageFull, errors.StorageFailed (nothing of that call has happened; try
    again), or errors.QueueDamaged: the file is not to be trusted any more.  Then the owner of the queue ends,
    and its next start makes the index anew.

    pinned      recipients in the dispatcher's hands that the operator has put into the index meanwhile, see pin()
    file        in tests, one of another release
    """

    def __init__(
        self,
        path: str,
        *,
        loop: asyncio.AbstractEventLoop,
        version: str,
        file: IndexFile | None = None,
    ) -> None:
        self.file = file or IndexFile(path, version=version)
        self._loop = loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._taken: set[Key] = set()
        self.pinned: set[Key] = set()
        # Everything up to here, by time and row number, was handed out or is no longer there.
        self._cursor = _BEGINNING

    async def open(self) -> Opened:
        """Raises errors.QueueTooNew for a file of a later release, errors.StorageFull, errors.StorageFailed.

        A damaged file was moved to quarantine/ and replaced: Opened says so, for the log.
        """
        opened = await self._loop.run_in_executor(None, self.file.open)
        self.start()
        return opened

    def start(self) -> None:
        """For who has opened the file himself."""
        self._thread = threading.Thread(target=self._run, name="fastsmtp-index", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Finish what was asked for; give the file and the thread back."""
        thread, self._thread = self._thread, None
        if thread is not None:
            ended = self._loop.create_future()
            self._jobs.put(_Job(self.file.close, ended, None))
            self._jobs.put(None)
            await ended
            thread.join()

    # What the dispatcher does.

    def defer(self, rows: Sequence[Row]) -> asyncio.Future[None]:
        """These wait, until row.next_ms or a release; new ones, or ones that were handed out by due().

        A hold that came while they were handed out stays.  Done when it is synced.
        """
        rows = list(rows)

        def then(_: None) -> None:
            keys = [row.key for row in rows]
            if not self.pinned.isdisjoint(keys):
                # What the operator said of them may be due.
                self._all_again(None)
            self._untake(keys)
            self._wind_back(min((row.next_ms for row in rows), default=self._cursor[0] + 1))

        return self._submit(self.file.put, rows, then=then)

    def finished(self, keys: Iterable[Key]) -> asyncio.Future[int]:
        """These are delivered, failed or deleted, and the done-log knows; gives how many were there."""
        keys = list(keys)

        def then(count: int) -> int:
            self._untake(keys)
            return count

        return self._submit(self.file.remove, keys, then=then)

    async def due(self, now_ms: int, limit: int) -> list[Row]:
        """Up to `limit` rows whose time has come, the longest due first; from now on they are taken.

        Look at row.state: BOUNCE and DELETE are not to be tried but ended.  One that isn't tried goes back with
        give_back().  Rows of one message that were deferred together come together.
        """
        rows: list[Row] = []
        while len(rows) < limit:
            began = self._cursor
            wanted = limit - len(rows)

            # Not when the caller wakes up: by then a later job may have said that one of these is over.
            def take(found: list[tuple[Row, int]], began: tuple[int, int] = began) -> tuple[list[Row], int]:
                fresh = [row for row, _ in found if row.key not in self._taken]
                self._taken.update(row.key for row in fresh)
                if found and self._cursor == began:
                    self._cursor = found[-1][0].next_ms, found[-1][1]
                return fresh, len(found)

            fresh, count = await self._submit(self.file.due, now_ms, began, wanted, then=take)
            rows += fresh
            if count < wanted and self._cursor >= began:
                break
        return rows

    async def next_due(self) -> int | None:
        """When the first row that is not taken is due, milliseconds since 1970; None: nothing waits for a time."""
        found: int | None = await self._submit(self.file.next_due, self._cursor)
        return found

    def give_back(self, keys: Iterable[Key]) -> None:
        """Taken or pinned, and not tried: due as before, or held."""
        self._untake(keys)
        self._cursor = _BEGINNING

    @property
    def taken(self) -> int:
        """How many rows are handed out."""
        return len(self._taken)

    def taken_keys(self) -> Iterator[Key]:
        return iter(self._taken)

    def is_taken(self, key: Key) -> bool:
        return key in self._taken

    # What the operator does.

    async def find(self, filter: Filter, after: int = 0, limit: int = 1_000) -> Page:
        """A page of rows, taken ones too, in the order in which they were deferred first; go on with page.after."""
        page: Page = await self._submit(self.file.find, filter, after, limit)
        return page

    def pin(self, rows: Sequence[Row], in_hand: Callable[[], Collection[Key]]) -> asyncio.Future[list[Key]]:
        """Rows with a state of the operator's, of recipients that the dispatcher has in its hands.

        in_hand   those that it has when the rows are synced: they count as taken, and as pinned
        Of a pinned key the dispatcher, before it begins an attempt, says give_back() and lets go of it; after one
        that was under way it says defer() or finished(), as for any that is taken.
        Gives the keys that were in no row before and are no longer in hand: they may be over.
        """
        rows = list(rows)

        def then(fresh: list[Key]) -> list[Key]:
            mine = in_hand()
            keys = [row.key for row in rows if row.key in mine]
            self._taken.update(keys)
            self.pinned.update(keys)
            return [key for key in fresh if key not in mine]

        return self._submit(self.file.pin, rows, then=then)

    async def condemn(self, filter: Filter, state: State, now_ms: int) -> int:
        """State.BOUNCE or State.DELETE: due() gives them out for that.  How many rows."""
        return await self._change(self.file.condemn, filter, state, now_ms)

    async def brief(self, filter: Filter, after: int, limit: int) -> tuple[list[tuple[Any, ...]], int]:
        """The same for lists: index.BRIEF of each row as it stands in the file, and where to go on."""
        found: tuple[list[tuple[Any, ...]], int] = await self._submit(self.file.brief, filter, after, limit)
        return found

    async def hold(self, filter: Filter) -> int:
        """No attempt until a release; one that is under way is finished first.  How many rows."""
        return await self._change(self.file.hold, filter)

    async def release(self, filter: Filter, now_ms: int) -> int:
        """Held ones are due now.  How many rows."""
        return await self._change(self.file.release, filter, now_ms)

    async def flush(self, filter: Filter, now_ms: int) -> int:
        """Those that are not held are due now.  How many rows."""
        return await self._change(self.file.flush, filter, now_ms)

    async def pull_in(self, latest_ms: int) -> int:
        """No attempt is later than this (schedule.latest): the wall clock was set back.  How many were."""
        total = 0

        def then(count: int) -> int:
            return self._all_again(count) if count else count

        while True:
            count: int = await self._submit(self.file.pull_in, latest_ms, then=then)
            total += count
            if count < CHUNK:
                return total

    async def skipped(self) -> int:
        """For the watchdog: rows whose time came and that nobody has; from now on they are due again.  0, always."""
        began = self._cursor

        def then(found: list[Key]) -> int:
            if self._cursor != began:
                # Something has become due meanwhile; the next look tells.
                return 0
            missed = sum(key not in self._taken for key in found)
            if missed:
                self._cursor = _BEGINNING
            return missed

        missed: int = await self._submit(self.file.due_before, began, len(self._taken) + 1_000, then=then)
        return missed

    def counts(self) -> asyncio.Future[Counts]:
        return self._submit(self.file.counts)

    # What the owner of the segments does.

    def get(self, keys: Iterable[Key]) -> asyncio.Future[list[Row]]:
        return self._submit(self.file.get, list(keys))

    def segments(
        self, then: Callable[[dict[tuple[int, int], int]], Any] | None = None
    ) -> asyncio.Future[Any]:
        """(number, epoch) of the segments that rows are in -> how many; or what `then` makes of it.

        then() is called on the loop before anything hears of a later change.
        """
        return self._submit(self.file.segments, then=then)

    def copy(self, old: Place, new: Place) -> asyncio.Future[int]:
        """A record was copied to another segment, and is synced there: its rows twice.  None of them may be taken.

        They count from the moment when the done-log says that the copy is deferred and the old record is over;
        then remove_record(old).  Nothing may become due in between.
        """
        return self._submit(self.file.copy, old, new, then=self._all_again)

    def remove_record(self, place: Place) -> asyncio.Future[int]:
        return self._submit(self.file.remove_record, place)

    def call(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Anything else that uses the file, in its thread and in a transaction: reconcile.py, the watchdog."""
        return self._submit(work, *arguments)

    async def _change(self, change: Callable[..., tuple[int, int]], *arguments: Any) -> int:
        """In pieces, so that nothing else waits for long."""
        total, after = 0, 0
        while True:
            count, after = await self._submit(change, *arguments, after, then=self._all_again)
            total += int(count)
            if not after:
                return total

    def _all_again(self, value: T) -> T:
        """What is due is looked at from the beginning."""
        self._cursor = _BEGINNING
        return value

    def _untake(self, keys: Iterable[Key]) -> None:
        keys = list(keys)
        self._taken.difference_update(keys)
        if self.pinned:
            self.pinned.difference_update(keys)

    def _wind_back(self, next_ms: int) -> None:
        if next_ms <= self._cursor[0]:
            self._cursor = next_ms - 1, 0

    def _submit(
        self, work: Callable[..., Any], *arguments: Any, then: Callable[[Any], Any] | None = None
    ) -> asyncio.Future[Any]:
        if self._thread is None:
            raise RuntimeError("the index is not open")
        future = self._loop.create_future()
        self._jobs.put(_Job(lambda: work(*arguments), future, then))
        return future

    def _settle(self, jobs: list[_Job]) -> None:
        for job in jobs:
            value, error = job.value, job.error
            if error is None and job.then is not None:
                value = job.then(value)
            if job.future.done():
                # Cancelled; what was asked for has happened all the same.
                continue
            if error is None:
                job.future.set_result(value)
            else:
                job.future.set_exception(error)

    # In the thread.

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            jobs = [job]
            is_last = False
            while len(jobs) < BATCH and not self._jobs.empty():
                job = self._jobs.get()
                if job is None:
                    is_last = True
                    break
                jobs.append(job)
            self._work(jobs)
            try:
                self._loop.call_soon_threadsafe(self._settle, jobs)
            except RuntimeError:
                # The loop was closed: nobody waits any more.
                return
            if is_last:
                return

    def _work(self, jobs: list[_Job]) -> None:
        closing = jobs.pop() if jobs[-1].work == self.file.close else None
        if jobs and not self._together(jobs):
            # One of them, or the disk: each by itself tells.
            for job in jobs:
                job.error = None
                self._together([job])
        if closing is not None:
            self.file.close()
            jobs.append(closing)

    def _together(self, jobs: list[_Job]) -> bool:
        try:
            with self.file.transaction():
                for job in jobs:
                    job.value = job.work()
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            if isinstance(error, errors.QueueDamaged):
                self.file.mark_damaged()
            for job in jobs:
                job.error = error
            return False
        return True
