"""What the queue says of an attempt that failed: to its operator, and to the sender in a report."""

from __future__ import annotations

import pytest

from fastsmtp import reply
from fastsmtp.admin.protocol import Entry
from fastsmtp.cli.queue import words
from fastsmtp.delivery.afterwards import noted, returned_after, told
from fastsmtp.delivery.outcome import Retry
from fastsmtp.queue.row import Said
from fastsmtp.reply import Reply

HOST = "mx1.there.example [192.0.2.1]"
GREYLISTED = Reply(451, "4.7.1", "greylisted")


@pytest.mark.parametrize(
    ("outcome", "operator", "sender"),
    [
        (
            Retry(GREYLISTED, "451 4.7.1 greylisted", remote=HOST),
            f"{HOST} said: 451 4.7.1 greylisted",
            Said(451, "4.7.1", "greylisted", HOST),
        ),
        (
            Retry(reply.NEXT_HOP_DOWN, "192.0.2.1: Connection refused", remote=HOST),
            f"{HOST}: Connection refused",
            Said(0, "4.4.1", "Connection refused", HOST),
        ),
        (
            Retry(reply.NEXT_HOP_DOWN, "10.0.0.1: no connection in time", remote="10.0.0.1"),
            "10.0.0.1: no connection in time",
            Said(0, "4.4.1", "no connection in time", "10.0.0.1"),
        ),
        (
            Retry(reply.DNS_FAILED, "MX of there.example: timeout"),
            "MX of there.example: timeout",
            Said(0, "4.4.3", "MX of there.example: timeout"),
        ),
        (
            Retry(reply.PROGRAM[75], "/usr/bin/filter ended with 75: the list is locked"),
            "/usr/bin/filter ended with 75: the list is locked",
            Said(451, "4.3.0", "Try again later"),
        ),
        # What is wrong with this machine is nobody else's business.
        (
            Retry(reply.STORAGE_FAILED, "/home/joe/Maildir: Permission denied"),
            "/home/joe/Maildir: Permission denied",
            Said(451, "4.3.0", "Can't store the message, try again later"),
        ),
        (
            Retry(reply.PROGRAM_FAILED, "/usr/bin/filter ended with 1: no such list"),
            "/usr/bin/filter ended with 1: no such list",
            Said(451, "4.3.0", "The program that takes this mail failed, try again later"),
        ),
    ],
)
def test_the_operator_reads_why_and_the_sender_what_concerns_him(
    outcome: Retry, operator: str, sender: Said
) -> None:
    assert words(_entry(noted(outcome))) == operator
    assert told(outcome) == sender


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (Said(), ""),
        (Said(451, "4.7.1", "greylisted", HOST), f"; the last answer was: {HOST} said: 451 4.7.1 greylisted"),
        (
            Said(0, "4.4.1", "Connection refused", HOST),
            f"; the last attempt ended with: {HOST}: Connection refused",
        ),
        (Said(0, "4.3.0", "/home/joe/Maildir: Permission denied"), ""),
    ],
)
def test_what_the_operator_returns_says_why_it_waited(last: Said, words: str) -> None:
    assert returned_after(last) == words


def _entry(said: Said) -> Entry:
    return Entry("ID", "deferred", "a@b", "c@d", 1, 0, 0, 1, 0, "mx:d", "", *said)
