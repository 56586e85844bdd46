"""Every message has a next event: the proof, looked at again and again while the server runs.

A recipient that was accepted and isn't finished is in somebody's hand (waiting
for its first attempt, or under way), or in the index with a time.  So for each
segment: unfinished = in hand + indexed.  What doesn't add up twice in a row is
stranded: nobody would ever look at it again.  That is a defect of ours; it is
reported, and the segment is read again for what is missing (delivery/healer.py).

Rank 5: pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# How often the owner of the queue looks.
INTERVAL_S = 60.0

Segment = tuple[int, int]


class Balance(NamedTuple):
    """Recipients of one segment's records.

    unfinished  accepted and neither delivered, failed nor deleted: by the journal and the done-log
    in_hand     of them, held in memory and not in the index
    indexed     of them, rows of the index, taken ones too
    """

    unfinished: int
    in_hand: int
    indexed: int

    @property
    def stranded(self) -> int:
        """More than 0: recipients that nobody will look at.  Less: some that would be delivered twice."""
        return self.unfinished - self.in_hand - self.indexed


class Watchdog:
    """Give it a balance of every segment every INTERVAL_S.  One look proves nothing: things are on their way."""

    __slots__ = ("_suspects",)

    def __init__(self) -> None:
        self._suspects: dict[Segment, int] = {}

    def look(self, balances: Mapping[Segment, Balance]) -> dict[Segment, int]:
        """(number, epoch) of segments where something is stranded -> how many recipients (at least)."""
        found: dict[Segment, int] = {}
        suspects: dict[Segment, int] = {}
        for segment, balance in balances.items():
            stranded = balance.stranded
            if not stranded:
                continue
            suspects[segment] = stranded
            before = self._suspects.get(segment, 0)
            # Of the same sign both times: what was on its way at both looks went different ways.
            if before * stranded > 0:
                found[segment] = min(before, stranded, key=abs)
        self._suspects = suspects
        return found
