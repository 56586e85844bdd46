"""Play a client's bytes to a session, compiled or reference, and write down all that it says.

The answers to its events are drawn from a seed, in the order of the events; so they are the same for both, and
however the bytes are cut.  STARTTLS and XCLIENT, answered with yes, forget input that was shown before: how much
that is depends on the cuts, so the client's bytes end there, and a fixed line follows the restart.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from fastsmtp import reply as replies
from fastsmtp.reply import Reply

TEMPORARY = Reply(451, "4.7.1", "Later")
PERMANENT = Reply(550, "5.7.1", "Never")
GOOD = {
    "HELO": replies.OK,
    "MAIL": replies.SENDER_OK,
    "RCPT": replies.RECIPIENT_OK,
    "DATA": replies.START_DATA,
    "END": replies.accepted("1"),
    "STARTTLS": replies.START_TLS,
    "XCLIENT": replies.banner("mx.example"),
}
AFTER_RESTART = b"NOOP\r\nMAIL FROM:<>\r\nEHLO again.example\r\n"

# Fields of an event by its kind; _session.pyi.
FIELDS = {
    "HELO": ("name", "is_extended"),
    "MAIL": ("path", "size_bytes", "body", "is_smtputf8", "ret", "envid"),
    "RCPT": ("path", "notify", "orcpt"),
    "DATA": ("is_chunked",),
    "END": ("size_bytes", "replies"),
    "XCLIENT": ("attributes",),
    "VIOLATION": ("violation", "reply", "is_fatal"),
}
# SIZE= may have 20 digits; behind this the compiled session says "more than you will ever allow".
SIZE_MOST = 1 << 58


class Outcome(NamedTuple):
    events: list[tuple[Any, ...]]
    output: bytes
    errors: int
    commands: int
    is_closing: bool
    is_tls: bool
    state: str


class Answers:
    """Good with a probability of `kindness` in 8."""

    def __init__(self, seed: int, kindness: int) -> None:
        self._dice = random.Random(seed)
        self._kindness = kindness

    def __call__(self, kind: str) -> Reply:
        draw = self._dice.randrange(8)
        if draw < self._kindness:
            return GOOD[kind]
        if draw == 7 and self._dice.randrange(4) == 0:
            return replies.SHUTTING_DOWN
        return TEMPORARY if draw & 1 else PERMANENT


class Player:
    """One session and what it has said."""

    def __init__(self, session: Any, answers: Answers, names: Any = None) -> None:
        """names: EVENT_NAMES and STATE_NAMES of the compiled session, None for the reference."""
        self.session = session
        self.answers = answers
        self.names = names
        self.events: list[tuple[Any, ...]] = []
        self.output = b""
        self.is_restarted = False
        self.held_most = 0

    def play(self, pieces: Iterable[bytes], greeting: Reply) -> Outcome:
        self.session.greet(greeting)
        self._pull()
        for piece in pieces:
            self._show(piece)
            if self.is_restarted:
                self._show(AFTER_RESTART)
                break
        state = self.session.state
        return Outcome(
            self.events,
            self.output,
            self.session.errors,
            self.session.commands,
            self.session.is_closing,
            self.session.is_tls,
            state if self.names is None else self.names.STATE_NAMES[state],
        )

    def _show(self, piece: bytes) -> None:
        if self.names is None:
            self.session.feed(piece)
        else:
            # As the connection does it: a buffer that is overwritten as soon as the session has let go of it.
            buffer = bytearray(piece) + b"\xaa" * 8
            self.session.feed(buffer, len(piece))
        self._pull()
        self.session.hold()
        if self.names is not None:
            buffer[:] = b"\xaa" * len(buffer)
            self.held_most = max(self.held_most, self.session.held_bytes)

    def _pull(self) -> None:
        while True:
            event = self.session.next_event()
            if event is None:
                taken = self.session.take()
                self.output += taken
                if not taken:
                    return
                continue
            kind = event.kind if self.names is None else self.names.EVENT_NAMES[event.kind]
            self._write_down(kind, event)
            if not self.session.is_open:
                continue
            reply = self.answers(kind)
            is_restart = reply is GOOD.get(kind) and kind in {"STARTTLS", "XCLIENT"}
            if is_restart and kind == "XCLIENT":
                self.session.restart()
            self.session.reply(reply)
            if is_restart:
                self.output += self.session.take()
                if kind == "STARTTLS":
                    self.session.restart(is_tls=True)
                self.is_restarted = True

    def _write_down(self, kind: str, event: Any) -> None:
        if kind == "BODY":
            chunk = event.fields["chunk"] if self.names is None else event.chunk
            assert chunk != b""
            if self.events and self.events[-1][0] == "BODY":
                chunk = self.events.pop()[1] + chunk
            self.events.append((kind, chunk))
            return
        values = []
        for name in FIELDS.get(kind, ()):
            if self.names is None:
                value = event.fields.get(name, 1 if name == "replies" else None)
            else:
                value = getattr(event, name)
            if name == "path":
                value = (value.address, value.local, value.mailbox, value.domain, value.key, value.is_utf8)
            elif name == "size_bytes":
                value = min(value, SIZE_MOST)
            values.append(value)
        self.events.append((kind, *values))


def comparable(outcome: Outcome) -> Outcome:
    """What reference and compiled session must have in common.

    How much of a text was given out before it was found bad is not promised; nor which of two faults of one
    address is named: needing SMTPUTF8 counts as bad syntax.
    """
    events = [
        event
        for event, following in itertools.pairwise([*outcome.events, ("",)])
        if event[0] != "BODY" or following[0] == "END"
    ]
    output = outcome.output
    for bad in (replies.BAD_SENDER_SYNTAX, replies.BAD_RECIPIENT_SYNTAX):
        output = output.replace(bad.head, replies.NEED_SMTPUTF8.head)
    return outcome._replace(events=events, output=output)
