"""What a start makes of journal, done-log and index, wherever the stop before it was; docs/queue.md has the table.

    reconciler = Reconciler(file, done, now_ms=..., is_new=bool(opened.quarantine))
    for place, payload in recovery.messages(os, store):
        for recipient in reconciler.record(place, recipients, decode): ...    to be tried now
    result = reconciler.finish(recovery)

The journal says what was accepted, the done-log what is finished, and only of
the rest the index says when.  Running it twice, or half of it, changes nothing.
Blocking, and before anybody else uses the index.  Rank 5.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable
from typing import NamedTuple

from fastsmtp.queue.done import Done, Outcome
from fastsmtp.queue.fileheader import Purpose
from fastsmtp.queue.index import IndexFile
from fastsmtp.queue.model import QueuedMessage
from fastsmtp.queue.place import Place
from fastsmtp.queue.recovery import Recovery
from fastsmtp.queue.row import Key, Row, row_of
from fastsmtp.queue.store import NAMES, number_of

# Of rows without a record: each is told in the log, up to so many.
TOLD = 1_000

_FINISHED = frozenset({Outcome.DELIVERED, Outcome.FAILED, Outcome.DELETED})


class Reconciled(NamedTuple):
    """waiting: rows that stay; adopted: of them, made now; finished: removed, as the done-log knows their end;
    lost: removed, as there is no record for them any more (its damage was reported by recover()), TOLD at most;
    lost_count: how many."""

    waiting: int
    adopted: int
    finished: int
    lost: list[Row]
    lost_count: int


class Reconciler:
    """One pass over all records, in the order of the journal.

    now_ms   when the adopted are due
    is_new   the index was lost: whatever isn't finished goes into it, so that not all of it is in memory at once
    """

    def __init__(self, file: IndexFile, done: Done, *, now_ms: int, is_new: bool = False) -> None:
        self._file = file
        self._done = done
        self._now_ms = now_ms
        self._is_new = is_new
        self._segment = (0, 0)
        # Of the segment that is being read: offset << 32 | recipient, of rows whose record wasn't met yet.
        self._unmet: set[int] = set()
        self._over: list[Key] = []
        # Rows of copies that the done-log doesn't speak of.
        self._copies: list[Key] = []
        self._fresh: list[Row] = []
        self._waiting = 0
        self._adopted = 0
        self._finished = 0
        self._lost: list[Row] = []
        self._lost_count = 0

    def record(
        self, place: Place, recipients: int, message: Callable[[], QueuedMessage], *, is_copy: bool = False
    ) -> list[int]:
        """The recipients (places in the envelope) of a record that are to be tried now.

        recipients  how many the envelope has
        message     decodes the record; called where the index has to be told about it
        is_copy     of a record elsewhere, which only the index and the done-log name; nobody is tried for it alone
        """
        segment = place.number, place.epoch
        if segment != self._segment:
            self._end_segment()
            self._begin_segment(segment)
        now: list[int] = []
        unmet = self._unmet
        for recipient in range(recipients):
            outcome = self._done.outcome(place, recipient)
            has_row = bool(unmet) and (place.offset << 32 | recipient) in unmet
            if has_row:
                unmet.discard(place.offset << 32 | recipient)
                if outcome in _FINISHED:
                    self._over.append(Key(place.number, place.epoch, place.offset, recipient))
                elif is_copy and outcome is None:
                    self._copies.append(Key(place.number, place.epoch, place.offset, recipient))
                else:
                    self._waiting += 1
            elif outcome is Outcome.DEFERRED or (outcome is None and self._is_new):
                self._fresh.append(row_of(place, message(), recipient, next_ms=self._now_ms))
            elif outcome is None and not is_copy:
                now.append(recipient)
        return now

    def finish(self, recovery: Recovery) -> Reconciled:
        """All records of what recover() found were told."""
        segments = {(one.header.number, one.header.epoch) for one in recovery.segments}
        # A segment that isn't there was retired, as all of it was finished, unless its header was damaged.
        unreadable = {
            number_of(os.path.basename(fault.file), NAMES[Purpose.MAIL])
            for fault in recovery.faults
            if not fault.offset
        }
        self._end_segment()
        for number, epoch in self._file.segments():
            if (number, epoch) in segments:
                continue
            if number in unreadable:
                self._begin_segment((number, epoch))
                self._end_segment()
            else:
                with self._file.transaction():
                    self._finished += self._file.remove_segment(number, epoch)
        self._settle_copies()
        return Reconciled(self._waiting, self._adopted, self._finished, self._lost, self._lost_count)

    def _settle_copies(self) -> None:
        """A copy means nothing while the rows of its record are there: the stop was before the copy began to count."""
        void = [row.key for row in self._file.get(self._copies) if self._file.has_other(row)]
        self._waiting += len(self._copies) - len(void)
        if void:
            with self._file.transaction():
                self._finished += self._file.remove(void)

    def _begin_segment(self, segment: tuple[int, int]) -> None:
        self._segment = segment
        self._unmet = {offset << 32 | recipient for offset, recipient in self._file.keys_of(*segment)}

    def _end_segment(self) -> None:
        """One transaction a segment."""
        lost = [Key(*self._segment, key >> 32, key & 0xFFFF_FFFF) for key in sorted(self._unmet)]
        if lost:
            self._lost += self._file.get(lost[: TOLD - len(self._lost)])
            self._lost_count += len(lost)
        if lost or self._over or self._fresh:
            with self._file.transaction():
                self._file.remove(lost)
                self._finished += self._file.remove(self._over)
                self._file.put(self._fresh)
        self._waiting += len(self._fresh)
        self._adopted += len(self._fresh)
        self._unmet, self._over, self._fresh = set(), [], []
