"""A token bucket: so many a second, one second's worth at once.

Rank 6: pure; the clock's time is passed in.
"""

from __future__ import annotations


class Rate:
    """per_s 0.0: no limit.  now: seconds, monotonic."""

    __slots__ = ("_at_s", "_left", "_most", "per_s")

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s)
        self._left = self._most
        self._at_s = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until there is one to take; 0.0: now."""
        if not self.per_s:
            return 0.0
        self._left = min(self._most, self._left + (now - self._at_s) * self.per_s)
        self._at_s = now
        # Not quite 1.0: a timer may fire a little early.
        return 0.0 if self._left >= 0.999 else (1.0 - self._left) / self.per_s

    def take(self) -> None:
        """Behind a wait_s() of 0.0."""
        if self.per_s:
            self._left -= 1.0
