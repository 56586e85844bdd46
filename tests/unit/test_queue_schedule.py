"""When a message is tried again, late, given up; what the clock may do meanwhile; the watchdog's sums."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.config.model import Queue
from fastsmtp.queue.row import Row, Said
from fastsmtp.queue.schedule import (
    GiveUp,
    Patience,
    Wait,
    after_failure,
    interval_ms,
    latest_ms,
    patience_of,
    put_off,
)
from fastsmtp.queue.watchdog import Balance, Watchdog
from tests.waiting import NOW, row

HOUR = 3_600_000
DEFAULT = patience_of(Queue())
SAID = Said(451, "4.7.1", "later", "mx.there.example")


def fresh(accepted_ms: int = NOW) -> Row:
    return row(accepted_ms=accepted_ms, last_ms=accepted_ms, attempts=0, waited_ms=0)


def live(
    patience: Patience, clock: Callable[[int], int] = lambda now: now, dice: Callable[[], float] = lambda: 0.0
) -> tuple[list[int], list[int], int]:
    """Seconds of the true clock at which each attempt was made, and the sender was warned; the last is given up."""
    waiting, now = fresh(clock(NOW)), NOW
    attempts: list[int] = []
    warned: list[int] = []
    for _ in range(10_000):
        attempts.append((now - NOW) // 1000)
        verdict = after_failure(waiting, patience, now_ms=clock(now), random=dice, said=SAID)
        if isinstance(verdict, GiveUp):
            return attempts, warned, verdict.row.attempts
        if verdict.is_late:
            warned.append((now - NOW) // 1000)
        waiting = verdict.row
        # As the dispatcher does: nothing is further away than latest_ms, whatever the clock said before.
        next_ms = min(waiting.next_ms, latest_ms(patience, clock(now)))
        step = max(1, next_ms - clock(now))
        now += step
    pytest.fail("it is never given up")


def test_the_wait_is_doubled_from_the_least_to_the_most() -> None:
    waits = [interval_ms(attempts, DEFAULT, 0.0) // 1000 for attempts in range(1, 8)]
    assert waits == [300, 600, 1200, 2400, 3200, 3200, 3200]
    most = [interval_ms(attempts, DEFAULT, 0.999) // 1000 for attempts in range(1, 8)]
    assert most == [374, 749, 1499, 2999, 3999, 3999, 3999]
    assert interval_ms(10**9, DEFAULT, 0.5) <= 4_000_000


@given(st.integers(1, 10**6), st.integers(1, 10**8), st.integers(1, 10**8), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_between_the_two_whatever_they_are(attempts: int, low: int, high: int, dice: float) -> None:
    patience = Patience(min(low, high), max(low, high), HOUR, 0)
    assert patience.retry_min_ms <= interval_ms(attempts, patience, dice) <= patience.retry_max_ms


def test_with_the_defaults_a_message_is_tried_for_five_days() -> None:
    attempts, warned, count = live(DEFAULT, dice=random.Random(1).random)
    # RFC 5321 section 4.5.4.1: two attempts in the first hour at least.
    assert len([at for at in attempts if at <= 3_600]) >= 3
    assert attempts[-1] in range(5 * 86_400, 5 * 86_400 + 301)
    assert 110 <= count <= 150
    assert warned == []


def test_the_sender_is_warned_once_and_before_the_end() -> None:
    attempts, warned, _ = live(patience_of(Queue(delay_warning_h=4)))
    assert len(warned) == 1
    assert 4 * 3_600 <= warned[0] <= 4 * 3_600 + 4_000
    assert attempts[-1] >= 5 * 86_400


def test_a_short_life_ends_on_time() -> None:
    attempts, _, _ = live(patience_of(Queue(lifetime_h=1)))
    assert attempts == [0, 300, 900, 2_100, 3_600]
    assert live(patience_of(Queue(lifetime_h=0)))[0] == [0]


def test_the_row_says_what_happened() -> None:
    verdict = after_failure(fresh(), DEFAULT, now_ms=NOW + 5_000, random=lambda: 0.5, said=SAID)
    assert isinstance(verdict, Wait)
    found = verdict.row
    assert (found.attempts, found.last_ms, found.waited_ms, found.said) == (1, NOW + 5_000, 5_000, SAID)
    assert found.next_ms == NOW + 5_000 + 337_500
    put = put_off(found, DEFAULT, now_ms=NOW + 65_000, wait_ms=10**12)
    assert (put.attempts, put.waited_ms, put.next_ms) == (1, 65_000, NOW + 65_000 + 4_000_000)


YEAR = 365 * 24 * HOUR

JUMPS: dict[str, Callable[[int], int]] = {
    "fifty years forward, as when a clock that began in 1970 is set": lambda now: now + (
        50 * YEAR if now > NOW + HOUR else 0
    ),
    "a day forward": lambda now: now + (24 * HOUR if now > NOW + HOUR else 0),
    "a day back": lambda now: now - (24 * HOUR if now > NOW + HOUR else 0),
    "fifty years back": lambda now: now - (50 * YEAR if now > NOW + HOUR else 0),
}  # fmt: skip


@pytest.mark.parametrize("clock", JUMPS.values(), ids=JUMPS)
def test_a_clock_that_jumps_gives_nothing_up_early_and_lets_nothing_wait_for_long(
    clock: Callable[[int], int],
) -> None:
    attempts, _, count = live(DEFAULT, clock)
    assert 5 * 86_400 - 2 * 4_000 <= attempts[-1] <= 5 * 86_400 + 3 * 4_000
    assert max(after - before for before, after in itertools.pairwise(attempts)) <= 4_001
    assert count >= 100


def test_a_server_that_was_down_for_a_week_gives_its_mail_up_no_sooner() -> None:
    verdict = after_failure(
        row(attempts=4, last_ms=NOW, waited_ms=HOUR), DEFAULT, now_ms=NOW + 7 * 24 * HOUR, random=lambda: 0.0,
        said=SAID,
    )  # fmt: skip
    assert isinstance(verdict, Wait)
    assert verdict.row.waited_ms == HOUR + 2 * 4_000_000


# --- the watchdog -----------------------------------------------------------------------------------------------

LOOKS: list[tuple[str, list[Balance], list[int]]] = [
    ("all is accounted for", [Balance(5, 2, 3)] * 3, [0, 0, 0]),
    ("on its way at one look", [Balance(5, 1, 3), Balance(5, 2, 3)], [0, 0]),
    ("stranded", [Balance(5, 2, 3), Balance(5, 1, 3), Balance(5, 1, 3), Balance(5, 0, 3)], [0, 0, 1, 1]),
    ("more stranded at the second look", [Balance(9, 4, 3), Balance(9, 1, 3)], [0, 2]),
    ("known twice", [Balance(5, 3, 3), Balance(5, 3, 3)], [0, -1]),
    ("this way and that", [Balance(5, 3, 3), Balance(5, 1, 3), Balance(5, 3, 3)], [0, 0, 0]),
]


@pytest.mark.parametrize(("looks", "stranded"), [case[1:] for case in LOOKS], ids=[case[0] for case in LOOKS])
def test_the_watchdog_reports_what_does_not_add_up_twice(looks: list[Balance], stranded: list[int]) -> None:
    dog = Watchdog()
    assert [dog.look({(1, 2): balance}).get((1, 2), 0) for balance in looks] == stranded
