"""Session ids: unique across workers and restarts, short enough to be read over the phone.

Twelve letters of Crockford's base 32 (no I, L, O, U) are 60 bits: the
millisecond (42 bits, until 2109), the worker's number (8 bits) and a counter
(10 bits).  They sort by time.
"""

from __future__ import annotations

from collections.abc import Callable

_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two letters at a time: half the steps of one.
_PAIRS = tuple(a + b for a in _LETTERS for b in _LETTERS)


class SessionIds:
    """Makes ids for one worker.

    worker  0 to 255; the supervisor gives two workers that live at the same time different numbers
    wall    the wall clock in seconds; if it steps back, ids go on from the latest millisecond
    """

    __slots__ = ("_epoch", "_latest", "_start", "_wall", "_worker")

    def __init__(self, worker: int, wall: Callable[[], float]) -> None:
        self._worker = (worker & 0xFF) << 10
        self._wall = wall
        self._latest = 0
        # The first eight letters change every four milliseconds only.
        self._epoch = -1
        self._start = ""

    def next(self) -> str:
        """A new id of 12 letters."""
        stamp = int(self._wall() * 1000) << 10
        # More than 1,024 in one millisecond borrow from the next one.
        self._latest = stamp = stamp if stamp > self._latest else self._latest + 1
        epoch = stamp >> 12
        if epoch != self._epoch:
            self._epoch = epoch
            self._start = (
                _PAIRS[epoch >> 30 & 1023]
                + _PAIRS[epoch >> 20 & 1023]
                + _PAIRS[epoch >> 10 & 1023]
                + _PAIRS[epoch & 1023]
            )
        rest = (stamp >> 10 & 3) << 18 | self._worker | stamp & 1023
        return f"{self._start}{_PAIRS[rest >> 10]}{_PAIRS[rest & 1023]}"
