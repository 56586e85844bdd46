"""Whole transactions through the session, Python calls included:  python -m pytest bench/bench_session.py"""

from __future__ import annotations

from typing import Any

import pytest

from bench.bench_parser import body
from fastsmtp import reply as replies
from fastsmtp._session import BODY, DATA, END, MAIL, RCPT, Session, Terms

TERMS = Terms(hostname="mx.example.org")
ANSWERS = (
    replies.OK,
    replies.SENDER_OK,
    replies.RECIPIENT_OK,
    replies.START_DATA,
    None,
    replies.accepted("7F3A9C2E-1"),
)
ENVELOPE = (
    b"MAIL FROM:<sender@example.org> SIZE=4096\r\n",
    b"RCPT TO:<recipient@example.com>\r\n",
    b"DATA\r\n",
)


def ready() -> Session:
    session = Session(TERMS, b"7F3A9C2E")
    session.greet(replies.banner("mx.example.org"))
    session.feed(b"EHLO client.example.org\r\n")
    session.next_event()
    session.reply(replies.OK)
    session.hold()
    session.take()
    return session


def pull(session: Session, data: bytes) -> bytes:
    session.feed(data)
    while (event := session.next_event()) is not None:
        answer = ANSWERS[event.kind]
        if answer is not None:
            session.reply(answer)
    session.hold()
    return session.take()


def message(session: Session, pieces: tuple[bytes, ...]) -> None:
    for piece in pieces:
        pull(session, piece)


@pytest.mark.parametrize("size_bytes", [4_096, 61_440])
def bench_message(benchmark: Any, size_bytes: int) -> None:
    """MAIL, RCPT, DATA and body, each in a read of its own."""
    benchmark(message, ready(), (*ENVELOPE, body(size_bytes) + b".\r\n"))


def bench_message_pipelined(benchmark: Any) -> None:
    """The envelope in one read, the body in the next."""
    benchmark(message, ready(), (b"".join(ENVELOPE), body(4_096) + b".\r\n"))


def bench_connection(benchmark: Any) -> None:
    """A session's making, greeting and EHLO."""
    benchmark(ready)


def bench_noop(benchmark: Any) -> None:
    benchmark(pull, ready(), b"NOOP\r\n")


assert (MAIL, RCPT, DATA, BODY, END) == (1, 2, 3, 4, 5)
