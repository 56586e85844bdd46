"""Log lines: one an event that matters, formatted and written in batches.

The hot path only appends a tuple; logging and its locks are never touched
(8.9 us a line against 0.3 here, and 1 when it is formatted).  Who owns
a LogWriter calls flush() on its wheel tick, some five times a second; a burst
flushes itself every FLUSH_AT lines.  What the reader does not take is kept,
bounded in lines and bytes; beyond that new lines are dropped, counted, and the
count is logged at the place where they are missing.  Nothing here blocks.

The events and their fields are a contract: events.py, docs/logs.md.  How a
value is written stands in log_format.py, where to in log_destination.py.

Rank 0: imports only its own rank.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fastsmtp.events import EVENTS
from fastsmtp.log_destination import Destination
from fastsmtp.log_format import Format

FLUSH_AT = 256  # lines; a worker at 20,000 messages/s then writes 80 times a second
MAX_LINES = 10_000  # about what 1 MiB holds
TRACEBACK_LINES = 12  # of a defect: what broke stands in the innermost ones
MAX_BYTES = 1 << 20  # a worker; a pipe itself holds 64 KiB


class Log(Protocol):
    """What the rest of the program sees.

    event is a word of events.EVENTS; the fields are in events.FIELDS.  Values are str, bytes,
    int, float, bool, or a list of these; None leaves the field out.  One underscore at the end of a
    field's name is dropped: from_=sender.  Values must not be changed afterwards.
    """

    def line(self, event: str, **fields: object) -> None: ...
    def flush(self) -> None: ...


def log_defect(log: Log, error: BaseException, **fields: object) -> None:
    """An exception of ours, with the innermost lines of its traceback: they tell what broke."""
    import traceback

    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    trace = "\n".join(lines[-TRACEBACK_LINES:])
    log.line("defect", reason=f"{type(error).__name__}: {error}", trace=trace, **fields)


class LogWriter:
    """The log of a process: batches lines, formats them in flush(), hands them to a destination.

    wall  seconds since the epoch, called once a line
    """

    def __init__(
        self,
        destination: Destination,
        format_line: Format,
        *,
        wall: Callable[[], float] = time.time,
        flush_at: int = FLUSH_AT,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._destination = destination
        self._format = format_line
        self._wall = wall
        self._flush_at = flush_at
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._waiting: list[tuple[float, str, dict[str, object]]] = []  # not yet formatted
        self._pending: deque[bytes] = deque()  # formatted, not yet taken by the destination
        self._pending_bytes = 0
        self._missing = 0  # dropped since the last log_dropped line
        self.dropped = 0  # dropped in all; a counter for the metrics

    def line(self, event: str, **fields: object) -> None:
        """Take one event.  About 0.3 us; every FLUSH_AT lines it flushes."""
        waiting = self._waiting
        waiting.append((self._wall(), event, fields))
        if len(waiting) >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Format what waits and write as much as the reader takes.  Never blocks, never raises OSError."""
        if self._pending:
            self._send()
        if self._missing and self._is_half_empty():
            lines, self._missing = self._missing, 0
            self._keep([(self._wall(), "log_dropped", {"lines": lines})])
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._keep(waiting)
        if self._pending:
            self._send()

    def reopen(self) -> None:
        """Open the log file anew (after logrotate, on SIGHUP); nothing for other destinations."""
        self.flush()
        self._destination.reopen()

    def forget(self) -> None:
        """Drop what has not been written, uncounted: in a child after a fork, since the parent writes it."""
        self._waiting = []
        self._pending.clear()
        self._pending_bytes = 0
        self._missing = 0

    def close(self) -> None:
        """Flush what the reader takes now and close the destination."""
        self.flush()
        self._destination.close()

    def _is_half_empty(self) -> bool:
        return len(self._pending) <= self._max_lines // 2 and self._pending_bytes <= self._max_bytes // 2

    def _keep(self, waiting: list[tuple[float, str, dict[str, object]]]) -> None:
        """Format these, as far as there is room."""
        pending, frame, format_line = self._pending, self._destination.frame, self._format
        for when, event, fields in waiting:
            # Once lines are missing, the rest is missing too until there is room for good:
            # one gap and one count, not every tenth line.
            if not self._missing and len(pending) < self._max_lines:
                line = frame(when, event, format_line(when, event, fields))
                if self._pending_bytes + len(line) <= self._max_bytes:
                    pending.append(line)
                    self._pending_bytes += len(line)
                    continue
            self._missing += 1
            self.dropped += 1

    def _send(self) -> None:
        self._pending_bytes -= self._destination.send(self._pending)


class NullLog:
    """Throws every line away."""

    def line(self, event: str, **fields: object) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


class ListLog:
    """The log of tests: keeps (event, fields) in `lines` and refuses what the contract doesn't have."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def line(self, event: str, **fields: object) -> None:
        """Keep one event.  Raises ValueError when event or a field isn't in events.EVENTS."""
        known = EVENTS.get(event)
        if known is None:
            raise ValueError(f"event {event!r} is not in fastsmtp/events.py")
        named = {name.removesuffix("_"): value for name, value in fields.items()}
        for name in named:
            if name not in known.fields:
                raise ValueError(f"event {event!r} has no field {name!r} in fastsmtp/events.py")
        self.lines.append((event, named))

    def flush(self) -> None:
        """Nothing: lines are kept as they come."""

    def of(self, event: str) -> list[dict[str, object]]:
        """The fields of every line of this event, in order."""
        return [fields for name, fields in self.lines if name == event]
