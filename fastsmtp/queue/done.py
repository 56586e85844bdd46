"""The done-log: which recipients of which records are finished, and how.

It is what delivery remembers; docs/queue.md, "The done-log", states the bound
on repeats that it gives.  Entries wait up to INTERVAL_S for a common sync.
Written by the owner of the queue alone, through a Journal of kind DONE.  Rank 5.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from fastsmtp import errors
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.place import Place, Seal
from fastsmtp.queue.recovery import Recovery
from fastsmtp.queue.store import Store

if TYPE_CHECKING:
    import asyncio

# A crash of delivery repeats at most what was finished in this time, and during the sync that follows.
INTERVAL_S = 1.0
# Or as soon as so many wait: 24 kB, one sync for all of them.
ENTRIES = 1_024
# Of one record: after a time without a disk there may be more than a segment holds.
RECORD_BYTES = 1_048_576

_ENTRY = struct.Struct("<QIIB7x")
ENTRY_BYTES = _ENTRY.size


class Outcome(IntEnum):
    """How it ended for a recipient; the numbers stand in the file.

    END is of a segment: what its seal says (end as the offset, accepted as the recipient), kept here when the
    segment that holds the seal is freed before it.
    """

    DELIVERED = 1
    FAILED = 2
    DEFERRED = 3
    DELETED = 4
    END = 5


def pack(epoch: int, offset: int, recipient: int, outcome: Outcome) -> bytes:
    """One entry, for add_entries."""
    return _ENTRY.pack(epoch, offset, recipient, outcome)


def pack_all(named: Iterable[tuple[int, int, int]], outcome: Outcome) -> bytes:
    """The same for all of these (epoch, offset, recipient), which are of one mail segment."""
    how = int(outcome)
    return b"".join([_ENTRY.pack(epoch, offset, recipient, how) for epoch, offset, recipient in named])


# By number; calling the enumeration costs five times as much.
_OUTCOMES = {int(outcome): outcome for outcome in Outcome}


def entries(payload: bytes) -> Iterator[tuple[int, int, int, Outcome]]:
    """(epoch, offset, recipient, outcome) of one record; raises ValueError for what is none."""
    for epoch, offset, recipient, outcome in _ENTRY.iter_unpack(payload):
        found = _OUTCOMES.get(outcome)
        if found is None:
            raise ValueError(f"{outcome} is no outcome")
        yield epoch, offset, recipient, found


class _Outcomes:
    """Of one mail segment: 8 bytes an entry, sorted when they are looked at.  A million of them wait at a start."""

    __slots__ = ("_entries", "_is_sorted")

    def __init__(self) -> None:
        # offset (32 bits), recipient (29), outcome (3)
        self._entries = array("Q")
        self._is_sorted = True

    def note(self, offset: int, recipient: int, outcome: int) -> None:
        if recipient >> 29:
            # No envelope has so many.
            return
        self._entries.append(offset << 32 | recipient << 3 | outcome)
        self._is_sorted = False

    def find(self, offset: int, recipient: int) -> Outcome | None:
        """Finished wins over deferred, in whichever order they came."""
        entries = self._entries
        if not self._is_sorted:
            self._entries = entries = array("Q", sorted(entries))
            self._is_sorted = True
        key = offset << 32 | recipient << 3
        at = bisect_left(entries, key)
        found = None
        while at < len(entries) and (entry := entries[at]) < key + 8:
            if found is None or found is Outcome.DEFERRED:
                found = _OUTCOMES[entry - key]
            at += 1
        return found


class Done:
    """What is finished, in memory: mail segment (epoch) -> (offset, recipient) -> outcome.

    ends   mail segment (epoch) -> (end, accepted), as its seal says; for recover()
    """

    __slots__ = ("_by_epoch", "_files", "ends")

    def __init__(self) -> None:
        self.ends: dict[int, tuple[int, int]] = {}
        self._by_epoch: dict[int, _Outcomes] = {}
        # Done segment (its number) -> the mail segments that it speaks of.
        self._files: dict[int, set[int]] = {}

    def outcome(self, place: Place, recipient: int) -> Outcome | None:
        """How it ended, None while it hasn't.  recipient counts from 0 in the envelope."""
        found = self._by_epoch.get(place.epoch)
        return None if found is None else found.find(place.offset, recipient)

    def note(self, epoch: int, offset: int, recipient: int, outcome: Outcome) -> None:
        found = self._by_epoch.get(epoch)
        if found is None:
            found = self._by_epoch[epoch] = _Outcomes()
        if outcome is Outcome.END:
            self.ends[epoch] = offset, recipient
        else:
            found.note(offset, recipient, outcome)

    def know(self, epoch: int) -> None:
        """The mail segment is there, and is spoken of."""
        if epoch not in self._by_epoch:
            self._by_epoch[epoch] = _Outcomes()

    def forget_outcomes(self) -> None:
        """Start-up is over: who delivers keeps count himself, and memory for a million outcomes is given back."""
        for epoch in self._by_epoch:
            self._by_epoch[epoch] = _Outcomes()

    def note_file(self, number: int, epochs: Iterable[int]) -> None:
        """The done segment `number` has entries of these mail segments."""
        self._files.setdefault(number, set()).update(epochs)

    def files(self) -> list[int]:
        """The done segments that there are, rising."""
        return sorted(self._files)

    def forget(self, epoch: int) -> list[int]:
        """The mail segment is retired.  Gives the done segments that speak of none that is left."""
        self._by_epoch.pop(epoch, None)
        self.ends.pop(epoch, None)
        return self.unneeded()

    def keep_only(self, epochs: set[int]) -> list[int]:
        """At start-up: these are the mail segments that there are."""
        for epoch in [epoch for epoch in self._by_epoch if epoch not in epochs]:
            del self._by_epoch[epoch]
            self.ends.pop(epoch, None)
        for named in self._files.values():
            named.intersection_update(epochs)
        return self.unneeded()

    def unneeded(self) -> list[int]:
        """Done segments whose mail segments are all retired; they may be removed, but for the one in use."""
        for epochs in self._files.values():
            epochs.intersection_update(self._by_epoch)
        return sorted(number for number, epochs in self._files.items() if not epochs)

    def forget_file(self, number: int) -> None:
        self._files.pop(number, None)


def read_done(system: Any, store: Store, recovery: Recovery) -> Done:
    """Everything that the recovered done-log says.  What is no entry is added to the faults: it costs a repeat."""
    done = Done()
    for place, payload in recovery.messages(system, store):
        try:
            found = list(entries(payload))
        except (struct.error, ValueError) as error:
            recovery.fault(store, place, str(error))
            continue
        for epoch, offset, recipient, outcome in found:
            done.note(epoch, offset, recipient, outcome)
        done.note_file(place.number, {entry[0] for entry in found})
    for segment in recovery.segments:
        done.note_file(segment.header.number, ())
    return done


class DoneLog:
    """Writes entries.  start and close are the Journal's, which is the caller's; flush() before closing that.

    done     what was read at start-up; ends, and which file speaks of what, are kept up to date here
    report   called with the error when a sync failed; the entries are kept and tried again
    synced   called after each sync; `written` has risen
    added, written   how many entries were given, and how many of them are synced, in their order
    """

    def __init__(
        self,
        journal: Journal,
        done: Done,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        report: Callable[[Exception], None],
        synced: Callable[[], object] | None = None,
    ) -> None:
        self._synced = synced
        self.added = 0
        self.written = 0
        self.done = done
        self._journal = journal
        self._loop = loop
        self._clock = clock
        self._report = report
        self._fresh: list[bytes] = []
        self._count = 0
        self._epochs: set[int] = set()
        self._since: float | None = None
        self._is_stopped = False
        self._writing: asyncio.Task[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, place: Place, recipient: int, outcome: Outcome) -> None:
        """The recipient is finished.  Never waits; synced within INTERVAL_S and one sync."""
        self.done.note(place.epoch, place.offset, recipient, outcome)
        self.add_entries(place.epoch, pack(place.epoch, place.offset, recipient, outcome))

    def add_end(self, seal: Seal) -> None:
        """What a seal says; synced before the segment that holds the seal is freed, if that comes first."""
        if self.done.ends.get(seal.epoch) != (seal.end, seal.accepted):
            self.done.note(seal.epoch, seal.end, seal.accepted, Outcome.END)
            self.add_entries(seal.epoch, pack(seal.epoch, seal.end, seal.accepted, Outcome.END))

    def add_entries(self, epoch: int, entries: bytes) -> None:
        """Entries as pack() makes them, all of one mail segment.  Never waits; synced as with add()."""
        count = len(entries) // ENTRY_BYTES
        self.done.know(epoch)
        self._fresh.append(entries)
        self._count += count
        self.added += count
        self._epochs.add(epoch)
        if self._since is None:
            self._since = self._clock()
        if self._writing is not None:
            return
        if self._count >= ENTRIES:
            self._begin()
        elif self._timer is None:
            self._timer = self._loop.call_later(INTERVAL_S, self._begin)

    @property
    def is_behind(self) -> bool:
        """Entries have waited for twice the interval: delivery must start nothing new, or the bound doesn't hold."""
        return self._since is not None and self._clock() - self._since > 2 * INTERVAL_S

    async def flush(self) -> None:
        """Until all that was added is synced; raises errors.StorageFull or errors.StorageFailed when it can't be."""
        while self._fresh or self._writing is not None:
            if self._writing is None:
                self._begin()
            if self._writing is None or not await self._writing:
                raise errors.StorageFailed("the done-log can't be written")

    def hurry(self) -> None:
        """Somebody waits for what was added: it is written now."""
        self._begin()

    def stop(self) -> None:
        """The journal is about to be closed: what comes now is lost, and repeated."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is None and self._fresh and not self._is_stopped:
            self._writing = self._loop.create_task(self._write())

    def _take(self) -> tuple[list[bytes], set[int], int]:
        """What goes into the next record: entries, the segments that they (or the rest) speak of, how many."""
        fresh, epochs = self._fresh, self._epochs
        size, at = 0, 0
        while at < len(fresh) and (not at or size + len(fresh[at]) <= RECORD_BYTES):
            size += len(fresh[at])
            at += 1
        self._fresh = fresh[at:]
        self._epochs = set(epochs) if self._fresh else set()
        count = size // ENTRY_BYTES
        self._count -= count
        return fresh[:at], epochs, count

    async def _write(self) -> bool:
        """Whether it went well."""
        fresh, epochs, count = self._take()
        began = self._clock()
        # Else what is left is as old as what goes out.
        is_all = not self._fresh
        failed = False
        try:
            place = await self._journal.append([b"".join(fresh)])
        except (errors.TemporaryError, ValueError) as error:
            # Kept, in front of what came meanwhile: the bound is told by is_behind, and nothing is forgotten.
            failed = True
            self._fresh = fresh + self._fresh
            self._count += count
            self._epochs |= epochs
            self._report(error)
        else:
            self.done.note_file(place.number, epochs)
            if not self._fresh:
                self._since = None
            elif is_all:
                self._since = began
            self.written += count
        finally:
            self._writing = None
        if not failed and self._synced is not None:
            self._synced()
        if not failed and (self._count >= ENTRIES or not is_all) and self._writing is None:
            self._begin()
        elif self._fresh and self._timer is None and self._writing is None:
            self._timer = self._loop.call_later(INTERVAL_S, self._begin)
        return not failed
