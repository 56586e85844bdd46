"""Whether a worker is alive, and what to do about one that is not.  Pure: times come in.

A worker beats through its counters twice a second.  One that is silent for
SILENT_S gets SIGABRT (it tells where it hangs, if it can), and SIGKILL when that
has not ended it within ABORT_S.  With the master's look every quarter of a
second, a stopped worker is gone in under four seconds.
"""

from __future__ import annotations

import signal
from typing import Final

LOOK_S: Final = 0.25
SILENT_S: Final = 3.0
ABORT_S: Final = 0.5
START_S: Final = 30.0
"""From the fork to the first beat, in which a worker reads lists and makes connections."""


class Pulse:
    """The life signs of one worker, which has start_s for its first one.

    `judge` says which signal it should get now, or None.  Where the master itself was held up (the
    whole machine stood still), that time is not counted against the worker.
    """

    __slots__ = ("_aborted_s", "_beat_s", "_excused_s", "_looked_s", "_start_s", "_started_s")

    def __init__(self, now_s: float, start_s: float = START_S) -> None:
        self._start_s = start_s
        self._started_s = now_s
        self._looked_s = now_s
        self._beat_s = 0.0
        self._excused_s = 0.0
        self._aborted_s: float | None = None

    def judge(self, beat_s: float, now_s: float) -> signal.Signals | None:
        """beat_s: when it last beat, 0.0 if never."""
        late_s = now_s - self._looked_s - LOOK_S
        self._looked_s = now_s
        if beat_s != self._beat_s:
            self._beat_s = beat_s
            self._excused_s = 0.0
        if late_s > LOOK_S:
            self._excused_s += late_s
        if self._aborted_s is not None:
            return signal.SIGKILL if now_s - self._aborted_s >= ABORT_S else None
        silent_s = now_s - (beat_s or self._started_s) - self._excused_s
        if silent_s < (SILENT_S if beat_s else self._start_s):
            return None
        self._aborted_s = now_s
        return signal.SIGABRT
