"""One message goes into the queue or past it, never both: which sink its recipients choose."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fastsmtp import reply
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue_sink import EitherSink, EitherTransaction, QueueSink
from fastsmtp.reply import Reply

OTHER, FULL = reply.OTHER_NEXT_HOP, reply.STORAGE_FULL


class Taking:
    """A sink that keeps what it is told; refuses  what it answers to a recipient whose name begins so."""

    def __init__(self, name: str, refuses: bytes = b"no") -> None:
        self.name = name
        self.told: list[str] = []
        self.full: Reply | None = None
        self._refuses = refuses

    def refusal(self) -> Reply | None:
        return self.full

    def open(self, envelope: Envelope, facts: Any) -> Taking:
        self.told.append("open")
        return self

    def add(self, recipient: Recipient) -> Reply | None:
        if recipient.address.startswith(self._refuses):
            return reply.NEXT_HOP_BUSY
        self.told.append(recipient.address.decode())
        return None

    def abort(self) -> None:
        self.told.append("abort")

    def commit(self, prefix: bytes) -> Reply:
        return reply.accepted(self.name)


def asked(names: str, queue: Taking, direct: Taking) -> tuple[EitherTransaction, list[Reply | None]]:
    """Recipients of a message, those that begin with a capital for the queue; taken ones join the envelope."""
    envelope = Envelope(b"a@example.org", b"example.org")
    sink = EitherSink(cast(QueueSink, queue), cast(Any, direct))
    transaction = sink.open(envelope, cast(Any, None))
    answers = []
    for name in names.split():
        recipient = Recipient(name.lower().encode(), b"example.org", is_queued=name[0].isupper())
        answer = transaction.add(recipient)
        if answer is None:
            envelope.recipients.append(recipient)
        answers.append(cast("Reply | None", answer))
    return transaction, answers


@pytest.mark.parametrize(
    ("names", "answers", "queued", "passed", "at"),
    [
        ("Ann Bob", [None, None], ["open", "ann", "bob"], [], "queue"),
        ("ann bob", [None, None], [], ["open", "ann", "bob"], "direct"),
        ("Ann bob Cid", [None, OTHER, None], ["open", "ann", "cid"], [], "queue"),
        ("ann Bob cid", [None, OTHER, None], [], ["open", "ann", "cid"], "direct"),
        # Nobody was taken yet: free for the other kind.
        ("No bob", [reply.NEXT_HOP_BUSY, None], ["open", "abort"], ["open", "bob"], "direct"),
        ("no Bob", [reply.NEXT_HOP_BUSY, None], ["open", "bob"], ["open", "abort"], "queue"),
    ],
)
def test_the_first_recipient_that_is_taken_chooses(
    names: str, answers: list[Reply | None], queued: list[str], passed: list[str], at: str
) -> None:
    queue, direct = Taking("queue"), Taking("direct")
    transaction, found = asked(names, queue, direct)
    assert found == answers
    assert (queue.told, direct.told) == (queued, passed)
    assert transaction.commit(b"") == reply.accepted(at)


def test_a_queue_that_is_full_refuses_only_what_is_for_it() -> None:
    queue, direct = Taking("queue"), Taking("direct")
    queue.full = FULL
    _, found = asked("Ann bob", queue, direct)
    assert found == [FULL, None]
    assert (queue.told, direct.told) == ([], ["open", "bob"])
