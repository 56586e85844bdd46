"""The owner's books: which segments there are, who writes to them, how far they are read, what of them is needed.

    kept = await keeper.give(holder)         a segment for a writer; flock() on it says that it is held
    for batch in keeper.read(kept, synced)   what has been written to it
    keeper.over(kept, 3)                     so many of its recipients are finished, or wait in the index no more
    keeper.released(number, epoch, end)      it gets no further record
    keeper.look_after()                      segments whose writer is gone without a word

A segment that is read to its end and has nothing left is retired, once the
done-log that says so is synced.  The lock on a segment's open file is held by
whoever has it open for writing, and dies with him: an owner that starts anew
learns from it who lives.

Not here: what the messages are, and where they go (delivery/dispatcher.py).
Jobs that may block for long run on the disk; reads of what was just written
come from the page cache.  Rank 5.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from fastsmtp import errors
from fastsmtp._glance import glance
from fastsmtp._record import BLOCK, HEADER_BYTES
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import ThreadDisk, storage_error
from fastsmtp.queue.done import DoneLog
from fastsmtp.queue.place import Place, Seal, decode_seal
from fastsmtp.queue.recovery import (
    QUARANTINE,
    Fault,
    Recovery,
    Scanned,
    make_quarantine,
    quarantine,
    recover_one,
)
from fastsmtp.queue.store import Segment, Store

T = TypeVar("T")

WINDOW_BYTES = 1_048_576
# A writer's first segments are small, so that a server that is hardly used begins at once and takes little room.
FIRST_BYTES = (2_097_152, 16_777_216)


Destinations = tuple[tuple[str, str], ...]
"""(deliver, domain) of each recipient, in the envelope's order."""


class Arrived(NamedTuple):
    """A message that was read, and whose recipients are not all finished with that."""

    offset: int
    size_bytes: int
    body: int | None
    destinations: Destinations


class Message:
    """One that is in work.  left: its recipients in memory; body: number of its body file.

    indexed   recipients that are rows of the index; counted where there is a body file
    settling  of those in memory, whose result is known and not durable yet
    """

    __slots__ = ("body", "indexed", "left", "settling", "size_bytes")

    def __init__(self, size_bytes: int, body: int | None, left: int) -> None:
        self.size_bytes = size_bytes
        self.body = body
        self.left = left
        self.indexed = 0
        self.settling = 0


class Kept:
    """One segment.

    fd         open for reading
    holder     who writes to it; None: nobody that we know of
    at         read up to here;  at_batch: a batch begins there
    end        where it ends; None while somebody may write to it
    open       recipients that are not finished, those in the index among them
    messages   those in work: offset -> Message
    is_unreadable   the disk didn't give all of it: it stays as it is, and the next start tries again
    """

    __slots__ = (
        "at", "at_batch", "end", "epoch", "fd", "holder", "is_retiring", "is_unreadable", "messages", "number",
        "open", "size_bytes",
    )  # fmt: skip

    def __init__(self, number: int, epoch: int, size_bytes: int, fd: int, holder: object = None) -> None:
        self.number = number
        self.epoch = epoch
        self.size_bytes = size_bytes
        self.fd = fd
        self.holder = holder
        self.at = BLOCK
        self.at_batch = True
        self.end: int | None = None
        self.open = 0
        self.messages: dict[int, Message] = {}
        self.is_retiring = False
        self.is_unreadable = False

    def place(self, offset: int, size_bytes: int) -> Place:
        return Place(self.number, self.epoch, offset, size_bytes)


class Keeper:
    """See the module's text.

    report   called with each fault
    failed   called with an error that nobody waits for
    is_retiring   False while records are copied: the segment that they go to must not be taken for done
    """

    def __init__(
        self,
        *,
        store: Store,
        done_store: Store,
        bodies: Bodies,
        disk: ThreadDisk,
        log: DoneLog,
        current_done: Callable[[], int],
        report: Callable[[Fault], None],
        failed: Callable[[Exception], None],
        system: Any = os,
    ) -> None:
        self.store = store
        self.done_store = done_store
        self.bodies = bodies
        self.disk = disk
        self.log = log
        self.segments: dict[int, Kept] = {}
        self._current_done = current_done
        self._report = report
        self._failed = failed
        self._system = system
        self.is_retiring = True
        self._after: deque[tuple[int, Callable[[], object]]] = deque()
        self._given: dict[object, int] = {}

    # --- segments to write to ---------------------------------------------------------------------

    async def give(self, holder: object) -> tuple[Kept, Segment]:
        """A fresh segment for this writer; raises errors.StorageFull, errors.StorageFailed.

        The segment's descriptor is the caller's: to be handed over and closed.
        """
        turn = self._given.get(holder, 0)
        self._given[holder] = turn + 1
        # Where there is no room for the usual size, a small one may do.
        sizes = [*FIRST_BYTES, 0][turn::-1] if turn < len(FIRST_BYTES) else [0, *FIRST_BYTES[::-1]]
        segment, fd = await self.disk.run(_prepared, self.store, sizes)
        kept = Kept(segment.number, segment.epoch, segment.size_bytes, fd, holder)
        self.segments[segment.epoch] = kept
        return kept, segment

    def released(self, number: int, epoch: int, end: int) -> Kept | None:
        """Its writer is done with it.  None for one that isn't there, or was not his to release."""
        kept = self.segments.get(epoch)
        if kept is None or kept.number != number or kept.end is not None:
            return None
        kept.end = min(max(end, BLOCK), kept.size_bytes)
        kept.holder = None
        return kept

    def forget_holder(self, holder: object) -> None:
        self._given.pop(holder, None)
        for kept in self.segments.values():
            if kept.holder is holder:
                kept.holder = None

    def abandoned(self, *, whoever_had_them: bool = False) -> list[Kept]:
        """Segments that nobody holds any more, and of which nobody has said where they end.

        whoever_had_them   also those whose writers live: their word of it is on its way
        """
        return [
            kept
            for kept in self.segments.values()
            if kept.end is None and (whoever_had_them or kept.holder is None) and not is_held(kept.fd)
        ]

    def adopt(self, scanned: Scanned, end: int | None) -> Kept:
        """A segment that was there at the start.  end: None while a worker writes to it."""
        header = scanned.header
        fd = self._system.open(self.store.path(header.number), os.O_RDONLY | os.O_CLOEXEC)
        kept = Kept(header.number, header.epoch, header.size_bytes, fd)
        kept.at = max(scanned.end, BLOCK)
        kept.end = end
        self.segments[header.epoch] = kept
        return kept

    # --- reading ----------------------------------------------------------------------------------

    def read(self, kept: Kept, synced: int) -> Iterator[list[Arrived]]:
        """What stands between what was read and the synced offset; recipients of `discard` are finished with that."""
        synced = min(synced, kept.size_bytes)
        while kept.at < synced:
            window = self._system.pread(kept.fd, min(WINDOW_BYTES, synced - kept.at), kept.at)
            start, wanted = kept.at, 0
            while True:
                entries, _, messages, seals, odd, kept.at, kept.at_batch, wanted = glance(
                    window, base=start, epoch=kept.epoch, start=kept.at, at_batch=kept.at_batch
                )
                self._note(kept, entries, seals, odd)
                if messages:
                    yield [Arrived(*message) for message in messages]
                if kept.at > start or not wanted or len(window) == synced - start:
                    break
                window = self._system.pread(kept.fd, min(wanted, synced - start), start)
            if kept.at == start and kept.at < synced:
                # What was synced a moment ago must be there: the rest is read as after a crash.
                yield from self._damaged(kept, synced)
                return

    def _note(
        self, kept: Kept, entries: bytes, seals: Sequence[bytes], odd: Sequence[tuple[int, int]]
    ) -> None:
        if entries:
            self.log.add_entries(kept.epoch, entries)
        for payload in seals:
            self.seal(decode_seal(payload))
        for offset, size_bytes in odd:
            self._set_aside(kept, offset, HEADER_BYTES + size_bytes, "no message in a known layout")

    def seal(self, seal: Seal) -> None:
        """A seal was read: the done-log keeps it for as long as the segment that it speaks of is there."""
        if seal.epoch in self.segments:
            self.log.add_end(seal)

    def _set_aside(self, kept: Kept, offset: int, size_bytes: int, reason: str) -> None:
        name = self.store.path(kept.number)
        copy = quarantine(self._system, self.store, name, offset, offset + size_bytes)
        self._report(Fault(name, offset, size_bytes, True, reason, copy))

    def set_aside(self, kept: Kept, place: Place, reason: str) -> None:
        """A record that a reader can make nothing of: copied to quarantine, and reported."""
        self._set_aside(kept, place.offset, HEADER_BYTES + place.size_bytes, reason)

    def _damaged(self, kept: Kept, limit: int) -> Iterator[list[Arrived]]:
        found = recover_one(self._system, self.store, kept.number, (limit, limit))
        yield from self._rest(kept, found, limit)

    def finish(self, kept: Kept) -> Iterator[list[Arrived]]:
        """Its writer died: all that is there is read, as at a start, and its end is noted."""
        found = recover_one(self._system, self.store, kept.number, self.log.done.ends.get(kept.epoch))
        scanned = found.segments[0] if found.segments else None
        yield from self._rest(kept, found, kept.size_bytes)
        kept.end = kept.at if scanned is None else max(scanned.end, BLOCK)
        kept.at = max(kept.at, kept.end)
        for seal in found.seals:
            self.log.add_end(seal)

    def _rest(self, kept: Kept, found: Recovery, limit: int) -> Iterator[list[Arrived]]:
        """What of a recovered segment wasn't read yet."""
        for scanned in found.segments:
            for seal in scanned.seals:
                self.seal(seal)
            for place in scanned.places():
                if place.offset < kept.at or place.offset in scanned.kept:
                    continue
                end = place.offset + HEADER_BYTES + place.size_bytes
                window = self._system.pread(kept.fd, end - place.offset, place.offset)
                entries, _, messages, _, odd, *_ = glance(
                    window, base=place.offset, epoch=kept.epoch, start=place.offset, at_batch=False
                )
                self._note(kept, entries, (), odd)
                # Should the next one not be given, this one isn't read again.
                kept.at = max(kept.at, end)
                if messages:
                    yield [Arrived(*message) for message in messages]
        for fault in found.faults:
            self._report(fault)
        kept.is_unreadable = kept.is_unreadable or bool(found.unreadable)
        kept.at, kept.at_batch = limit, True

    # --- what is needed, and what isn't -----------------------------------------------------------

    def over(self, kept: Kept, recipients: int) -> None:
        """So many of its recipients need it no more."""
        kept.open -= recipients
        if not kept.open:
            self.look_at(kept)

    def look_at(self, kept: Kept) -> None:
        """Retire it if it is read to its end and nothing of it is needed; when the done-log is synced."""
        if kept.end is None or kept.at < kept.end or kept.open or kept.is_retiring or not self.is_retiring:
            return
        if kept.is_unreadable:
            return
        kept.is_retiring = True
        self.afterwards(lambda: self._retire(kept))

    def afterwards(self, action: Callable[[], object]) -> None:
        """Do it when all that the done-log was told so far is synced."""
        if self.log.written >= self.log.added:
            action()
        else:
            self._after.append((self.log.added, action))

    def log_synced(self) -> None:
        """The done-log's callback."""
        after, written = self._after, self.log.written
        while after and after[0][0] <= written:
            after.popleft()[1]()

    def set_aside_body(self, number: int) -> None:
        """A body that is not what its record says: to quarantine, for a person to look at."""
        self.disk.forget(_set_aside_body, self.bodies, self.store, number)

    def remove_body(self, number: int) -> None:
        """Its message is over, which the done-log knows."""
        self.disk.forget(_remove, self.bodies, number)

    def _retire(self, kept: Kept) -> None:
        if self.segments.pop(kept.epoch, None) is None:
            return
        os.close(kept.fd)
        current = self._current_done()
        unneeded = [number for number in self.log.done.forget(kept.epoch) if number != current]
        for number in unneeded:
            self.log.done.forget_file(number)
        self.disk.forget(self._retired, kept.number, unneeded)

    def _retired(self, system: Any, number: int, unneeded: list[int]) -> None:
        """In a thread of the disk.  What can't be freed now is found to be done at the next start."""
        for store, one in ((self.store, number), *((self.done_store, old) for old in unneeded)):
            try:
                store.retire(system, one)
            except OSError as error:
                self._failed(storage_error(error))

    def close(self) -> None:
        for kept in self.segments.values():
            os.close(kept.fd)
        self.segments.clear()


def lock(fd: int) -> None:
    """Whoever has this open file, or a copy of its descriptor, holds it; the lock goes with the last of them."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(fd: int) -> bool:
    """Whether somebody holds the file by another open file than ours."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _prepared(system: Any, store: Store, sizes: list[int]) -> tuple[Segment, int]:
    """A job: the segment, locked, and a descriptor to read it; of the first of the sizes for which there is room."""
    for size_bytes in sizes[:-1]:
        try:
            segment = store.prepare(system, size_bytes)
            break
        except (errors.StorageFull, OSError) as error:
            if isinstance(error, OSError) and not isinstance(storage_error(error), errors.StorageFull):
                raise
    else:
        segment = store.prepare(system, sizes[-1])
    try:
        lock(segment.fd)
        return segment, system.open(store.path(segment.number), os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        system.close(segment.fd)
        raise


def _set_aside_body(system: Any, bodies: Bodies, store: Store, number: int) -> None:
    make_quarantine(system, store)
    bodies.set_aside(system, number, f"{store.directory}/{QUARANTINE}/body-{number:016x}")


def _remove(system: Any, bodies: Bodies, number: int) -> None:
    with suppress(FileNotFoundError):
        bodies.remove(system, number)
