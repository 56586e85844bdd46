"""The session's side towards the caller: feed, hold, take, close, restart and what they keep."""

from __future__ import annotations

import pytest

from fastsmtp import reply as replies
from fastsmtp._session import (
    BODY,
    DATA,
    END,
    EVENT_NAMES,
    HELO,
    MAIL,
    RCPT,
    RESET,
    STATE_FRESH,
    STATE_NAMES,
    STATE_NEW,
    TABLE,
    VIOLATION,
    Event,
    Session,
    Terms,
)

TERMS = Terms(hostname="mx.example.org")
ENVELOPE = b"EHLO c\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n"
YES = {HELO: replies.OK, MAIL: replies.SENDER_OK, RCPT: replies.RECIPIENT_OK, DATA: replies.START_DATA}


def greeted(terms: Terms = TERMS) -> Session:
    session = Session(terms, b"7F3A9C2E")
    session.greet(replies.banner("mx.example.org"))
    session.take()
    return session


def pull(session: Session, data: bytes) -> list[Event]:
    """Feed data and answer yes, up to an event that has no ready answer."""
    session.feed(data)
    events = []
    while (event := session.next_event()) is not None:
        events.append(event)
        if session.is_open:
            if event.kind not in YES:
                break
            session.reply(YES[event.kind])
    session.hold()
    return events


def test_nothing_is_parsed_before_the_greeting() -> None:
    session = Session(TERMS, b"1")
    session.feed(b"EHLO early\r\n")
    assert session.next_event() is None
    session.hold()
    assert session.held_bytes == 12
    assert session.state == STATE_NEW
    session.greet(replies.banner("mx"))
    event = session.next_event()
    assert event is not None
    assert event.name == b"early"


def test_an_implicit_tls_session_is_greeted_after_its_restart() -> None:
    session = Session(TERMS, b"1")
    session.restart(is_tls=True)
    assert session.state == STATE_NEW
    session.greet(replies.banner("mx"))
    assert session.state == STATE_FRESH
    assert session.is_tls


def test_a_second_greeting_is_our_defect() -> None:
    with pytest.raises(RuntimeError):
        greeted().greet(replies.banner("mx"))


def test_a_reply_without_an_event_is_our_defect() -> None:
    with pytest.raises(RuntimeError):
        greeted().reply(replies.OK)


def test_a_late_reply_after_a_time_out_does_nothing() -> None:
    session = greeted()
    session.feed(b"EHLO c\r\n")
    assert session.next_event() is not None
    session.close(replies.IDLE_TOO_LONG)
    session.reply(replies.OK)
    assert session.take() == b"421 4.4.2 Timed out waiting for you (id 7F3A9C2E)\r\n"
    assert session.is_closing
    assert not session.is_open


def test_while_an_event_is_open_nothing_else_is_parsed() -> None:
    session = greeted()
    session.feed(ENVELOPE)
    assert session.next_event() is not None
    assert session.next_event() is None
    session.hold()
    assert session.held_bytes == len(ENVELOPE) - len(b"EHLO c\r\n")


def test_what_is_held_is_let_go_when_it_is_read() -> None:
    session = greeted()
    for octet in b"NOOP":
        assert pull(session, bytes([octet])) == []
    assert session.held_bytes == 4
    pull(session, b"\r\n")
    assert session.held_bytes == 0
    assert session.take() == b"250 2.0.0 Ok\r\n"


def test_an_over_long_line_holds_no_more_than_its_limit() -> None:
    session = greeted()
    for _ in range(1_000):
        pull(session, b"x" * 100)
        assert session.held_bytes <= TERMS.command_bytes
    assert session.take().count(b"\r\n") == 1


def test_a_text_holds_nothing() -> None:
    session = greeted()
    pull(session, ENVELOPE + b"DATA\r\n")
    for piece in (b"abc", b"def\r", b"\n", b".", b"\r"):
        pull(session, piece)
        assert session.held_bytes == 0
        assert session.is_body
    assert [event.kind for event in pull(session, b"\n")] == [END]
    assert not session.is_body


def test_one_feed_gives_one_body() -> None:
    session = greeted()
    pull(session, ENVELOPE + b"DATA\r\n")
    text = b"".join(b"line %d\r\n..dot\r\n" % number for number in range(4_000))
    events = pull(session, text + b".\r\n")
    assert [event.kind for event in events] == [BODY, END]
    assert events[0].chunk == text.replace(b"..", b".")


def test_the_shown_buffer_may_change_after_hold() -> None:
    session = greeted()
    buffer = bytearray(b"NOOP\r\nEHLO na")
    session.feed(buffer, 13)
    assert session.next_event() is None
    session.hold()
    buffer[:5] = b"me\r\nX"
    session.feed(buffer, 4)
    event = session.next_event()
    assert event is not None
    assert event.name == b"name"


def test_feed_takes_no_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="size_bytes"):
        greeted().feed(b"abc", 4)
    with pytest.raises(TypeError):
        greeted().feed("abc")  # type: ignore[arg-type]


def test_a_client_that_never_reads_is_parsed_no_further() -> None:
    session = greeted()
    session.feed(b"NOOP\r\n" * 100_000)
    assert session.next_event() is None
    assert session.is_full
    taken = 0
    while session.is_full:
        output = session.take()
        assert len(output) < 20_000
        taken += len(output)
        assert session.next_event() is None
    assert taken + len(session.take()) == len(b"250 2.0.0 Ok\r\n") * 100_000
    assert session.commands == 100_000


def test_restart_forgets_input_and_transaction_but_not_errors() -> None:
    session = greeted()
    pull(session, ENVELOPE + b"FOO\r\nNOO")
    session.restart(is_tls=True)
    assert (session.held_bytes, session.errors, session.state) == (0, 1, STATE_FRESH)


def test_a_closing_session_takes_nothing() -> None:
    session = greeted()
    session.close()
    session.feed(b"NOOP\r\n")
    assert session.next_event() is None
    assert session.take() == b""


def test_terms_that_no_session_can_keep_are_refused() -> None:
    with pytest.raises(ValueError, match="command_bytes"):
        Terms(hostname="mx", command_bytes=10)
    for name in ("message_bytes", "recipients", "errors"):
        with pytest.raises(ValueError, match="negative"):
            Terms(hostname="mx", **{name: -1})  # type: ignore[arg-type]


def test_python_makes_no_event() -> None:
    with pytest.raises(TypeError):
        Event()


def test_the_table_names_every_verb_in_every_state_once() -> None:
    assert len({(verb, state) for verb, state, _, _ in TABLE}) == len(TABLE) == 16 * 6
    for _, state, _, following in TABLE:
        assert state in STATE_NAMES
        assert following in STATE_NAMES


def test_event_names_stand_by_their_numbers() -> None:
    assert EVENT_NAMES[RESET] == "RESET"
    assert EVENT_NAMES[VIOLATION] == "VIOLATION"
