"""How long to wait before a worker that died is replaced.  Pure: times come in."""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 0.5
MOST_S: Final = 8.0
"""A dead worker's connections wait in their queues meanwhile; RFC 5321 4.5.3.2.1 gives a client 5 minutes."""

STEADY_S: Final = 60.0
"""A life of this length is a normal one."""


class Backoff:
    """At once after a steady life or the first death, then 0.5 s, 1, 2, 4, 8, 8 ..."""

    __slots__ = ("_next_s",)

    def __init__(self) -> None:
        self._next_s = 0.0

    def after(self, lived_s: float) -> float:
        """Seconds to wait, when a worker has just died that lived for lived_s."""
        if lived_s >= STEADY_S:
            self._next_s = 0.0
        delay_s = self._next_s
        self._next_s = min(MOST_S, max(FIRST_S, delay_s * 2))
        return delay_s
