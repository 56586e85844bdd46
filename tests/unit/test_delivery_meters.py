"""What a delivery process counts: labels come from closed sets, whatever a next hop says."""

from __future__ import annotations

import errno

import pytest

from fastsmtp import errors
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.meters import DeliveryMeter, reason_of, said_class
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.metrics import Board
from fastsmtp.reply import Reply

ATTEMPTS = b"cfastsmtp_delivery_attempts_total\0"


@pytest.mark.parametrize(
    ("code", "enhanced", "said"),
    [
        (450, "4.2.1", "4.2"),
        (550, "5.7.26", "5.7"),
        (550, "", "5.0"),
        (451, "4.99.1", "4.0"),
        (550, "5.evil.1", "5.0"),
        (421, "2.1.1", "4.1"),
    ],
)
def test_an_answer_is_counted_by_class_and_subject(code: int, enhanced: str, said: str) -> None:
    assert said_class(code, enhanced) == said


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (errors.NextHopDown("x"), ConnectionRefusedError(errno.ECONNREFUSED, "x"), "refused"),
        (errors.NextHopDown("x"), OSError(errno.EHOSTUNREACH, "x"), "unreachable"),
        (errors.NextHopDown("x"), OSError(errno.EMFILE, "x"), "system"),
        (errors.NextHopDown("x"), TimeoutError(), "timeout"),
        (errors.NextHopDown("x"), None, "closed"),
        (errors.NextHopInsecure("x"), None, "tls"),
        (errors.NextHopGarbled("x"), None, "protocol"),
        (errors.SourceUnusable("x"), OSError(errno.EADDRNOTAVAIL, "x"), "source"),
    ],
)
def test_why_there_is_no_connection(error: Exception, cause: Exception | None, reason: str) -> None:
    error.__cause__ = cause
    assert reason_of(error) == reason


def test_outcomes_are_counted_by_kind_of_destination_and_never_by_its_path() -> None:
    board = Board(1)
    meter = DeliveryMeter(board.sheet(0))
    outcomes: list[Outcome | Damaged] = [
        Delivered("ok"),
        Delivered("ok"),
        Retry(Reply(450, "4.2.1", "later"), "later"),
        Failed(Reply(550, "5.1.1", "no"), "no"),
        Damaged("torn"),
    ]
    meter.attempted("maildir:/home/joe/{local}", outcomes, 2.0)
    meter.attempted("mx", outcomes[:1], 0.02)
    read = board.read()
    assert {key: value for key, value in read.items() if key.startswith(ATTEMPTS)} == {
        ATTEMPTS + b"maildir\0delivered\0002": 2,
        ATTEMPTS + b"maildir\0deferred\0004.2": 1,
        ATTEMPTS + b"maildir\0failed\0005.1": 1,
        ATTEMPTS + b"maildir\0damaged\0": 1,
        ATTEMPTS + b"mx\0delivered\0002": 1,
    }
    assert not [key for key in read if b"joe" in key]


def test_a_queue_that_outlives_many_configurations_costs_no_more_series() -> None:
    board = Board(1)
    meter = DeliveryMeter(board.sheet(0))
    for number in range(3_000):
        meter.attempted(f"smtp://h{number}.example", [Delivered("ok")], 0.0)
    assert board.read()[ATTEMPTS + b"smtp\0delivered\0002"] == 3_000


def test_transactions_of_a_connection_are_counted_when_it_ends() -> None:
    board = Board(1)
    meter = DeliveryMeter(board.sheet(0))
    for served in (0, 1, 5):
        meter.opened("two", "TLSv1.3" if served else "")
        meter.ended("two", served)
    read = board.read()
    carried = b"cfastsmtp_delivery_transactions_total\0two\0"
    assert (read[carried + b"first"], read[carried + b"reused"]) == (2, 4)
    assert read[b"cfastsmtp_delivery_tls_total\0clear"] == 1
