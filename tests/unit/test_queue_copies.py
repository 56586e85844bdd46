"""A record is copied out of its segment: whatever is cut, its recipient waits once, and what was held stays held."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from fastsmtp.queue.done import Done, Outcome
from fastsmtp.queue.index import IndexFile
from fastsmtp.queue.place import Place
from fastsmtp.queue.reconcile import Reconciler
from fastsmtp.queue.recovery import Recovery
from fastsmtp.queue.row import Filter, State, row_of
from tests.queued import message
from tests.waiting import NOW

OLD, COPY = Place(1, 11, 4096, 700), Place(2, 22, 4096, 700)
MADE = message("ID", "ann@there.example")


class Segments:
    """What recover() found: both segments, or only the copy's."""

    def __init__(self, *places: Place) -> None:
        self.faults: list[Any] = []
        self.segments = [type("One", (), {"header": place}) for place in places]


@pytest.fixture
def index(tmp_path: pathlib.Path) -> Iterator[IndexFile]:
    file = IndexFile(str(tmp_path / "deferred.sqlite"), version="0.1.0")
    file.open()
    with file.transaction():
        held = row_of(OLD, MADE, 0, next_ms=NOW)
        file.put([held._replace(state=State.HELD, attempts=5)])
    yield file
    file.close()


# (steps of the compactor that were done, where the rows are afterwards); the copy itself is there from the first on.
CUTS = [
    ((), OLD),
    (("rows",), OLD),
    (("rows", "switch"), COPY),
    (("rows", "switch", "old rows"), COPY),
    (("rows", "switch", "old rows", "old segment"), COPY),
    # The done-log was damaged: what it said is no longer known.
    (("rows", "old rows", "old segment"), COPY),
]


@pytest.mark.parametrize(("steps", "where"), CUTS)
def test_wherever_it_stops_one_row_is_left_and_it_says_what_it_said(
    index: IndexFile, steps: tuple[str, ...], where: Place
) -> None:
    done = Done()
    done.note(OLD.epoch, OLD.offset, 0, Outcome.DEFERRED)
    with index.transaction():
        if "rows" in steps:
            assert index.copy(OLD, COPY) == 1
        if "old rows" in steps:
            assert index.remove_record(OLD) == 1
    if "switch" in steps:
        done.note(OLD.epoch, OLD.offset, 0, Outcome.DELETED)
        done.note(COPY.epoch, COPY.offset, 0, Outcome.DEFERRED)
    places = (COPY,) if "old segment" in steps else (OLD, COPY)
    for _ in range(2):
        reconciler = Reconciler(index, done, now_ms=NOW + 1)
        for place in places:
            assert reconciler.record(place, 1, lambda: MADE, is_copy=place is COPY) == []
        recovery: Recovery = Segments(*places)  # type: ignore[assignment]
        found = reconciler.finish(recovery)
        (row,) = index.find(Filter()).rows
        assert (row.place, row.state, row.attempts) == (where, State.HELD, 5)
        assert (found.waiting, found.adopted, found.lost_count) == (1, 0, 0)
