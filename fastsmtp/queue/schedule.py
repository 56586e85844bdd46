"""When a message is tried again, when its sender is told of the delay, and when it is given up.

    next = after_failure(row, patience, now_ms=..., random=...)      GiveUp, or Wait with the row to defer

RFC 5321 section 4.5.4.1: the wait is doubled with every attempt, from retry_min
to retry_max, with a random part, so that what failed together isn't tried
together for ever.

The wall clock is not trusted.  A message's age is the time in which it was
seen to wait: what lies between two of its attempts counts, but never more than
twice retry_max, and never less than nothing.  So mail isn't given up because
the clock was set right by fifty years, or the server was down for a week; and
pull_in() of the index sees to it that no attempt is further away than retry_max
when the clock was set back.  docs/queue.md, "When the clock jumps".

Rank 5: pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastsmtp.config.model import Queue
from fastsmtp.queue.row import Row, Said

# The random part, of the wait: what failed in one second is tried again over a minute or more.
JITTER = 0.25
_HOUR_MS = 3_600_000
# 2 to the 40th times any wait is more than any retry_max.
_MOST_DOUBLINGS = 40


class Patience(NamedTuple):
    """[queue] in milliseconds.  delay_warning_ms 0: nobody is warned."""

    retry_min_ms: int
    retry_max_ms: int
    lifetime_ms: int
    delay_warning_ms: int


def patience_of(queue: Queue) -> Patience:
    return Patience(
        max(1, int(queue.retry_min_s * 1000)),
        max(1, int(queue.retry_max_s * 1000)),
        int(queue.lifetime_h * _HOUR_MS),
        int(queue.delay_warning_h * _HOUR_MS),
    )


class Wait(NamedTuple):
    """Defer this row.  is_late: tell its sender of the delay, now and once."""

    row: Row
    is_late: bool


class GiveUp(NamedTuple):
    """It was in the queue for its lifetime: report it as failed (4.4.7, RFC 3463 section 3.5)."""

    row: Row


def after_failure(
    row: Row, patience: Patience, *, now_ms: int, random: Callable[[], float], said: Said
) -> Wait | GiveUp:
    """An attempt failed for now.

    row     as it was handed out, or row_of() at the first attempt; site and source as they were used
    random  0.0 <= random() < 1.0; rows of one message that failed together are given the same number, so that
            they are tried together again
    """
    waited_ms = age_ms(row, patience, now_ms)
    row = row._replace(attempts=row.attempts + 1, last_ms=now_ms, waited_ms=waited_ms, said=said)
    if waited_ms >= patience.lifetime_ms:
        return GiveUp(row)
    wait_ms = interval_ms(row.attempts, patience, random())
    # The last attempt is at the end of its lifetime, not long after it.
    wait_ms = min(wait_ms, max(patience.lifetime_ms - waited_ms, patience.retry_min_ms))
    is_late = bool(patience.delay_warning_ms) and not row.is_warned and waited_ms >= patience.delay_warning_ms
    return Wait(row._replace(next_ms=now_ms + wait_ms, is_warned=row.is_warned or is_late), is_late)


def put_off(row: Row, patience: Patience, *, now_ms: int, wait_ms: int) -> Row:
    """Not tried, since its site is left in peace for wait_ms: no attempt is counted, its age goes on."""
    wait_ms = max(0, min(wait_ms, patience.retry_max_ms))
    return row._replace(next_ms=now_ms + wait_ms, last_ms=now_ms, waited_ms=age_ms(row, patience, now_ms))


def interval_ms(attempts: int, patience: Patience, random: float) -> int:
    """How long to wait after so many attempts (1 or more): retry_min to retry_max, both ends included."""
    doubled = patience.retry_min_ms << min(attempts - 1, _MOST_DOUBLINGS)
    base = min(doubled, int(patience.retry_max_ms / (1 + JITTER)))
    wait = int(base * (1 + JITTER * random))
    return min(max(wait, patience.retry_min_ms), max(patience.retry_max_ms, patience.retry_min_ms))


def age_ms(row: Row, patience: Patience, now_ms: int) -> int:
    """How long it has been seen to wait; see the top of this file."""
    gap = now_ms - row.last_ms
    return row.waited_ms + min(max(gap, 0), 2 * patience.retry_max_ms)


def latest_ms(patience: Patience, now_ms: int) -> int:
    """No attempt is further away than this, or the clock was set back meanwhile."""
    return now_ms + max(patience.retry_max_ms, patience.retry_min_ms)
