"""Failures of one message are reported together: who failed first waits a little for the others.

Stands before afterwards.py and passes on what comes; only a failure of a
message that has other recipients in hand is kept back, until these have come,
or for PATIENCE_S.  What is kept back isn't settled: after a crash it is tried
once more, as any attempt that was under way.  Rank 6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastsmtp.delivery.afterwards import Afterwards
from fastsmtp.delivery.dispatcher import Case
from fastsmtp.delivery.outcome import Failed
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Key

# Long enough for a few sites that refuse at RCPT; a sender waits no longer for the first news.
PATIENCE_S = 3.0
LOOK_S = 0.1
# Cases kept back at a time: their results are kept by the shards as well, until they are settled.
MOST = 5_000


class Together:
    """See dispatcher.Cases."""

    def __init__(
        self, afterwards: Afterwards, *, loop: asyncio.AbstractEventLoop, patience_s: float = PATIENCE_S
    ) -> None:
        self._afterwards = afterwards
        self._loop = loop
        self._patience_s = patience_s
        # The oldest first, with the time until which they are kept.
        self._kept: dict[Place, tuple[float, list[Case]]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def take(self, cases: Sequence[Case]) -> None:
        ready: list[Case] = []
        for case in cases:
            if not isinstance(case.outcome, Failed) or self._count >= MOST or not _has_others(case):
                ready.append(case)
                continue
            entry = self._kept.get(case.place)
            if entry is None:
                entry = self._kept[case.place] = self._loop.time() + self._patience_s, []
            entry[1].append(case)
            self._count += 1
        for place in {case.place for case in ready} & self._kept.keys() if self._kept else ():
            if not _has_others(self._kept[place][1][0]):
                ready += self._release(place)
        if ready:
            self._afterwards.take(ready)
        if self._kept and self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _release(self, place: Place) -> list[Case]:
        cases = self._kept.pop(place)[1]
        self._count -= len(cases)
        return cases

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        ready: list[Case] = []
        for place, (until, cases) in list(self._kept.items()):
            if until <= now or not _has_others(cases[0]):
                ready += self._release(place)
        if ready:
            self._afterwards.take(ready)
        if self._kept:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """No more waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for place in list(self._kept):
            self._afterwards.take(self._release(place))

    # What needs no waiting.

    @property
    def pinned(self) -> set[Key]:
        return self._afterwards.pinned

    def give_back(self, keys: Sequence[Key]) -> None:
        self._afterwards.give_back(keys)

    def finished(self, keys: Sequence[Key]) -> None:
        self._afterwards.finished(keys)


def _has_others(case: Case) -> bool:
    """Whether other recipients of the message wait for their turn, or are with a shard."""
    message = case.kept.messages.get(case.place.offset)
    return message is not None and message.left > message.settling
