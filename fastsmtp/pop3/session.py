"""A POP3 session behind the login (RFC 1939): lines in, answers out; it sees no socket.

What is not there on purpose: USER, PASS and APOP.  Whoever started us has
looked at the password (pop3/login.py), and the greeting here is the answer to it.

Rank 8: sans-IO; the maildrop reads files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from fastsmtp.pop3.lines import Lines, LineTooLong
from fastsmtp.pop3.text import stuffed, top

CAPABILITIES = (b"TOP", b"UIDL", b"PIPELINING", b"RESP-CODES", b"AUTH-RESP-CODE")


class Drop(Protocol):
    """What a session needs of a maildrop; numbers count from 0."""

    @property
    def letters(self) -> Iterable[HasUid]: ...
    def size_bytes(self, number: int) -> int: ...
    def read(self, number: int) -> Iterator[bytes]: ...
    def update(self, deleted: set[int]) -> int: ...


class HasUid(Protocol):
    """A message by its unique-id."""

    @property
    def uid(self) -> str: ...


class Refused(Exception):
    """The text of a -ERR."""


class Session:
    """One client.

    is_over  QUIT was answered, or the client is impossible: send what feed() gave, then close

    Only QUIT changes the maildrop: a session that ends in any other way leaves it as it was.
    """

    def __init__(self, drop: Drop) -> None:
        self._drop = drop
        self._uids = [letter.uid for letter in drop.letters]
        self._deleted: set[int] = set()
        self._last = 0
        self._lines = Lines()
        self.is_over = False

    def greeting(self) -> bytes:
        return b"+OK\r\n"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Answers to the commands in data, in their order.

        To be used up before the next feed(); a command is carried out when its answer is asked for.
        OSError when a message can't be read to its end: close then, so that the client doesn't keep half.
        """
        try:
            for line in self._lines.feed(data):
                yield from self._answer(line)
                if self.is_over:
                    return
        except LineTooLong:
            self.is_over = True
            yield b"-ERR a line without end\r\n"

    def _answer(self, line: bytes) -> Iterator[bytes]:
        verb, _, argument = line.partition(b" ")
        command = _COMMANDS.get(verb.upper())
        if command is None:
            yield b"-ERR there is no such command\r\n"
            return
        try:
            yield from command(self, argument.strip(b" "))
        except Refused as refused:
            yield b"-ERR %s\r\n" % str(refused).encode()

    # --- the commands ----------------------------------------------------------------------------

    def _stat(self, argument: bytes) -> Iterator[bytes]:
        there = self._there()
        yield b"+OK %d %d\r\n" % (len(there), sum(map(self._drop.size_bytes, there)))

    def _list(self, argument: bytes) -> Iterator[bytes]:
        yield from self._listing(argument, lambda number: b"%d" % self._drop.size_bytes(number))

    def _uidl(self, argument: bytes) -> Iterator[bytes]:
        yield from self._listing(argument, lambda number: self._uids[number].encode())

    def _listing(self, argument: bytes, show: Callable[[int], bytes]) -> Iterator[bytes]:
        if argument:
            number = self._number(argument)
            yield b"+OK %d %s\r\n" % (number + 1, show(number))
            return
        rows = [b"%d %s\r\n" % (number + 1, show(number)) for number in self._there()]
        yield b"".join((b"+OK\r\n", *rows, b".\r\n"))

    def _retr(self, argument: bytes) -> Iterator[bytes]:
        number = self._number(argument)
        pieces = self._open(number)
        self._last = max(self._last, number + 1)
        yield self._size_line(number)
        yield from stuffed(pieces)
        yield b".\r\n"

    def _top(self, argument: bytes) -> Iterator[bytes]:
        which, _, count = argument.partition(b" ")
        number = self._number(which)
        lines = _decimal(count.strip(b" "))
        if lines is None:
            raise Refused("TOP wants a message and a number of lines")
        pieces = self._open(number)
        # The size of the whole message here too: Netscape's patch has it so, and clients show progress with it.
        yield self._size_line(number)
        yield from stuffed(top(pieces, lines))
        yield b".\r\n"

    def _dele(self, argument: bytes) -> Iterator[bytes]:
        number = self._number(argument)
        self._deleted.add(number)
        self._last = max(self._last, number + 1)
        yield b"+OK deleted when you QUIT\r\n"

    def _rset(self, argument: bytes) -> Iterator[bytes]:
        self._deleted.clear()
        self._last = 0
        yield b"+OK\r\n"

    def _noop(self, argument: bytes) -> Iterator[bytes]:
        yield b"+OK\r\n"

    def _last_seen(self, argument: bytes) -> Iterator[bytes]:
        # LAST is RFC 1460's; RFC 1939 dropped it, qmail-pop3d has it.
        yield b"+OK %d\r\n" % self._last

    def _capa(self, argument: bytes) -> Iterator[bytes]:
        yield capabilities(CAPABILITIES)

    def _quit(self, argument: bytes) -> Iterator[bytes]:
        self.is_over = True
        failed = self._drop.update(self._deleted)
        yield b"-ERR [SYS/TEMP] some deleted messages not removed\r\n" if failed else b"+OK\r\n"

    # --- what they share -------------------------------------------------------------------------

    def _there(self) -> list[int]:
        return [number for number in range(len(self._uids)) if number not in self._deleted]

    def _number(self, argument: bytes) -> int:
        number = _decimal(argument)
        if number is None:
            raise Refused("the number of a message is wanted")
        if not 1 <= number <= len(self._uids):
            raise Refused(f"there are {len(self._uids)} messages")
        if number - 1 in self._deleted:
            raise Refused("that message is deleted")
        return number - 1

    def _open(self, number: int) -> Iterator[bytes]:
        try:
            return self._drop.read(number)
        except OSError:
            raise Refused("[SYS/TEMP] that message can't be read now") from None

    def _size_line(self, number: int) -> bytes:
        return b"+OK %d octets\r\n" % self._drop.size_bytes(number)


def capabilities(names: Iterable[bytes]) -> bytes:
    """The answer to CAPA (RFC 2449 section 5)."""
    return b"".join((b"+OK\r\n", *(b"%s\r\n" % name for name in names), b".\r\n"))


def _decimal(text: bytes) -> int | None:
    # Longer ones are no count of anything; int() would take its time for them.
    return int(text) if text.isdigit() and len(text) <= 18 else None


_COMMANDS: dict[bytes, Callable[[Session, bytes], Iterator[bytes]]] = {
    b"STAT": Session._stat,
    b"LIST": Session._list,
    b"UIDL": Session._uidl,
    b"RETR": Session._retr,
    b"TOP": Session._top,
    b"DELE": Session._dele,
    b"RSET": Session._rset,
    b"NOOP": Session._noop,
    b"LAST": Session._last_seen,
    b"CAPA": Session._capa,
    b"QUIT": Session._quit,
}
