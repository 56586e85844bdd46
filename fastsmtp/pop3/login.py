"""A POP3 session before the login: a name and a password, or APOP (RFC 1939 sections 4 and 7).

It doesn't look at the password; checkpassword.py has that done.

Rank 8: sans-IO.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastsmtp.pop3.lines import Lines, LineTooLong
from fastsmtp.pop3.session import CAPABILITIES, capabilities

# As many wrong commands as a session of ours may have errors (limits.errors); nobody who has a password needs more.
ERRORS_MAX = 20


class Credentials(NamedTuple):
    """secret: the password of PASS, or the digest of APOP."""

    user: bytes
    secret: bytes


class Login:
    """One client.

    credentials  what it gave, once it did; what came behind is not looked at
    is_over      QUIT, or too much nonsense: close
    """

    def __init__(self, timestamp: bytes) -> None:
        """timestamp: `<pid.time@host>`, what APOP's digest is made with, never the same twice."""
        self._timestamp = timestamp
        self._user = b""
        self._errors = 0
        self._lines = Lines()
        self.credentials: Credentials | None = None
        self.is_over = False

    def greeting(self) -> bytes:
        return b"+OK %s\r\n" % self._timestamp

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Answers to the commands in data; none to the one that completes the credentials."""
        try:
            for line in self._lines.feed(data):
                answer = self._answer(line)
                if answer:
                    yield answer
                if self.credentials is not None or self.is_over:
                    return
        except LineTooLong:
            self.is_over = True
            yield b"-ERR a line without end\r\n"

    def _answer(self, line: bytes) -> bytes:
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        # A NUL would end the field early for whoever reads the password.
        if b"\0" in line:
            return self._error(b"no NUL, please")
        if verb == b"USER":
            if not argument:
                return self._error(b"a name is wanted")
            self._user = argument
            return b"+OK\r\n"
        if verb == b"PASS":
            if not self._user:
                return self._error(b"USER first")
            # Blanks belong to the password (RFC 1939 section 7, PASS).
            return self._given(self._user, argument)
        if verb == b"APOP":
            user, _, digest = argument.partition(b" ")
            if not user or not digest:
                return self._error(b"APOP wants a name and a digest")
            return self._given(user, digest)
        if verb == b"CAPA":
            return capabilities((b"USER", *CAPABILITIES))
        if verb == b"NOOP":
            return b"+OK\r\n"
        if verb == b"QUIT":
            self.is_over = True
            return b"+OK\r\n"
        return self._error(b"authorization first")

    def _given(self, user: bytes, secret: bytes) -> bytes:
        if not secret:
            return self._error(b"a password is wanted")
        self.credentials = Credentials(user, secret)
        return b""

    def _error(self, text: bytes) -> bytes:
        self._errors += 1
        self.is_over = self._errors >= ERRORS_MAX
        return b"-ERR %s\r\n" % text
