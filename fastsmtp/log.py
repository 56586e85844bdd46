"""Log lines: one an event that matters, logfmt or JSON, formatted and written in batches.

The hot path only appends a tuple; logging and its locks are never touched
(8.9 us a line against 0.5).  Lines are bounded in number and dropped with a
counter when the reader stalls; a full pipe never blocks a worker.

Rank 0: imports nothing of ours.
"""

from __future__ import annotations

from typing import Protocol


class Log(Protocol):
    """What the rest of the program sees.  event is a word of docs/logs.md; values are str, bytes, int, float or bool."""

    def line(self, event: str, **fields: object) -> None: ...
    def flush(self) -> None: ...
