"""POP3 dialogues: what a client sends, and every octet that comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from fastsmtp.pop3.login import ERRORS_MAX, Credentials, Login
from fastsmtp.pop3.session import Session
from fastsmtp.pop3.text import octets


@dataclasses.dataclass
class FakeLetter:
    uid: str
    mail: bytes


class FakeDrop:
    """Two messages, or those given; remembers what QUIT asked for."""

    def __init__(self, *mails: bytes, failed: int = 0) -> None:
        self.letters = [FakeLetter(f"uid{n}", mail) for n, mail in enumerate(mails, 1)]
        self.updates: list[set[int]] = []
        self.failed = failed
        self.gone: set[int] = set()

    def size_bytes(self, number: int) -> int:
        return octets([self.letters[number].mail])

    def read(self, number: int) -> Iterator[bytes]:
        if number in self.gone:
            raise FileNotFoundError
        return iter([self.letters[number].mail])

    def update(self, deleted: set[int]) -> int:
        self.updates.append(set(deleted))
        return self.failed


ONE = b"Subject: 1\n\n.dot\nlast\n"
TWO = b"Subject: 2\r\n\r\nno end"
ONE_WIRE = b"Subject: 1\r\n\r\n..dot\r\nlast\r\n"
TWO_WIRE = b"Subject: 2\r\n\r\nno end\r\n"
# What is told is what is sent, less the dot that was stuffed.
SIZES = (len(ONE_WIRE) - 1, len(TWO_WIRE))
BOTH = sum(SIZES)

DIALOGUES = {
    "the count and the size of all": ([b"STAT"], [b"+OK 2 %d" % BOTH]),
    "every size, or one": (
        [b"LIST", b"LIST 2"],
        [b"+OK", b"1 %d" % SIZES[0], b"2 %d" % SIZES[1], b".", b"+OK 2 %d" % SIZES[1]],
    ),
    "every unique-id, or one": (
        [b"UIDL", b"UIDL 1"],
        [b"+OK", b"1 uid1", b"2 uid2", b".", b"+OK 1 uid1"],
    ),
    "a message with its size, dots stuffed": ([b"RETR 1"], [b"+OK %d octets" % SIZES[0], ONE_WIRE[:-2], b"."]),
    "a message without a line end gets one": ([b"RETR 2"], [b"+OK %d octets" % SIZES[1], TWO_WIRE[:-2], b"."]),
    "TOP tells the size of the whole": (
        [b"TOP 1 1", b"TOP 2 0"],
        [
            b"+OK %d octets" % SIZES[0], b"Subject: 1", b"", b"..dot", b".",
            b"+OK %d octets" % SIZES[1], b"Subject: 2", b"", b".",
        ],
    ),
    "TOP with more lines than there are": (
        [b"TOP 1 99"],
        [b"+OK %d octets" % SIZES[0], ONE_WIRE[:-2], b"."],
    ),
    "a deleted message is out of every list": (
        [b"DELE 1", b"STAT", b"LIST", b"UIDL", b"RETR 1", b"LIST 1", b"DELE 1"],
        [
            b"+OK deleted when you QUIT", b"+OK 1 %d" % SIZES[1], b"+OK", b"2 %d" % SIZES[1], b".", b"+OK", b"2 uid2",
            b".", b"-ERR that message is deleted", b"-ERR that message is deleted", b"-ERR that message is deleted",
        ],
    ),
    "RSET takes it back": (
        [b"DELE 1", b"RSET", b"STAT"],
        [b"+OK deleted when you QUIT", b"+OK", b"+OK 2 %d" % BOTH],
    ),
    "LAST is the highest that was touched": (
        [b"LAST", b"DELE 2", b"RETR 1", b"LAST", b"RSET", b"LAST"],
        [b"+OK 0", b"+OK deleted when you QUIT", b"+OK %d octets" % SIZES[0], ONE_WIRE[:-2], b".", b"+OK 2", b"+OK",
         b"+OK 0"],
    ),
    "commands in any case, numbers with zeros, blanks around": (
        [b"stat", b"Uidl  01 ", b"nOOp"],
        [b"+OK 2 %d" % BOTH, b"+OK 1 uid1", b"+OK"],
    ),
    "numbers that are none": (
        [b"RETR", b"RETR 0", b"RETR 3", b"RETR -1", b"RETR x", b"RETR 1x", b"LIST 99999999999999999999", b"DELE"],
        [
            b"-ERR the number of a message is wanted", b"-ERR there are 2 messages", b"-ERR there are 2 messages",
            b"-ERR the number of a message is wanted", b"-ERR the number of a message is wanted",
            b"-ERR the number of a message is wanted", b"-ERR the number of a message is wanted",
            b"-ERR the number of a message is wanted",
        ],
    ),
    "TOP wants both": (
        [b"TOP 1", b"TOP 1 -1", b"TOP"],
        [b"-ERR TOP wants a message and a number of lines"] * 2 + [b"-ERR the number of a message is wanted"],
    ),
    "no login here, and nothing unknown": (
        [b"USER x", b"", b"FROB", b"\xff"],
        [b"-ERR there is no such command"] * 4,
    ),
    "what it can": (
        [b"CAPA"],
        [b"+OK", b"TOP", b"UIDL", b"PIPELINING", b"RESP-CODES", b"AUTH-RESP-CODE", b"."],
    ),
    "nothing is answered behind QUIT": ([b"QUIT", b"STAT"], [b"+OK"]),
}  # fmt: skip


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("step", [10_000, 1, 3], ids=["whole", "by octets", "by threes"])
def test_dialogue(dialogue: str, line_end: bytes, step: int) -> None:
    said, heard = DIALOGUES[dialogue]
    session = Session(FakeDrop(ONE, TWO))
    assert session.greeting() == b"+OK\r\n"
    data = b"".join(line + line_end for line in said)
    got = b""
    for at in range(0, len(data), step):
        if not session.is_over:
            got += b"".join(session.feed(data[at : at + step]))
    assert got == b"".join(line + b"\r\n" for line in heard)


def test_an_empty_maildrop() -> None:
    session = Session(FakeDrop())
    assert b"".join(session.feed(b"STAT\r\nLIST\r\nUIDL\r\nRETR 1\r\n")) == (
        b"+OK 0 0\r\n+OK\r\n.\r\n+OK\r\n.\r\n-ERR there are 0 messages\r\n"
    )


def test_only_quit_changes_the_maildrop() -> None:
    drop = FakeDrop(ONE, TWO)
    session = Session(drop)
    list(session.feed(b"DELE 1\r\nRETR 2\r\nRSET\r\nDELE 2\r\nNOOP\r\n"))
    assert drop.updates == []
    list(session.feed(b"QUIT\r\n"))
    assert drop.updates == [{1}]
    assert session.is_over


def test_what_could_not_be_deleted_is_told() -> None:
    session = Session(FakeDrop(ONE, failed=1))
    assert b"".join(session.feed(b"DELE 1\r\nQUIT\r\n")).endswith(
        b"-ERR [SYS/TEMP] some deleted messages not removed\r\n"
    )


def test_a_message_that_is_gone_is_an_error_and_the_session_goes_on() -> None:
    drop = FakeDrop(ONE, TWO)
    drop.gone.add(0)
    answers = b"".join(Session(drop).feed(b"RETR 1\r\nTOP 1 0\r\nNOOP\r\n"))
    assert answers == b"-ERR [SYS/TEMP] that message can't be read now\r\n" * 2 + b"+OK\r\n"


def test_a_message_that_breaks_off_is_never_ended_with_a_dot() -> None:
    class Broken(FakeDrop):
        def read(self, number: int) -> Iterator[bytes]:
            def pieces() -> Iterator[bytes]:
                yield b"Subject: x\n"
                raise OSError(5, "Input/output error")

            return pieces()

    answers = Session(Broken(ONE)).feed(b"RETR 1\r\n")
    assert next(answers).startswith(b"+OK")
    assert next(answers) == b"Subject: x\r\n"
    with pytest.raises(OSError, match="Input/output"):
        next(answers)


@pytest.mark.parametrize("data", [b"x" * 2_000, b"x" * 2_000 + b"\r\n"], ids=["endless", "long"])
@pytest.mark.parametrize("session", [Session(FakeDrop()), Login(b"<1.2@h>")], ids=["session", "login"])
def test_a_line_without_end_ends_the_session(data: bytes, session: Session | Login) -> None:
    fresh = Session(FakeDrop()) if isinstance(session, Session) else Login(b"<1.2@h>")
    assert b"".join(fresh.feed(data)) == b"-ERR a line without end\r\n"
    assert fresh.is_over


LOGINS = {
    "name and password": ([b"USER joe", b"PASS se cret "], [b"+OK"], Credentials(b"joe", b"se cret ")),
    "APOP": ([b"apop joe 0123abcd"], [], Credentials(b"joe", b"0123abcd")),
    "the last name counts": ([b"USER a", b"USER b", b"PASS x"], [b"+OK", b"+OK"], Credentials(b"b", b"x")),
    "the password first": ([b"PASS x"], [b"-ERR USER first"], None),
    "no name": ([b"USER", b"USER "], [b"-ERR a name is wanted"] * 2, None),
    "no password": ([b"USER a", b"PASS"], [b"+OK", b"-ERR a password is wanted"], None),
    "APOP without a digest": ([b"APOP joe"], [b"-ERR APOP wants a name and a digest"], None),
    "a NUL": ([b"USER a\0b", b"PASS x"], [b"-ERR no NUL, please", b"-ERR USER first"], None),
    "mail before the login": ([b"STAT", b"RETR 1"], [b"-ERR authorization first"] * 2, None),
    "what it can": (
        [b"CAPA", b"NOOP"],
        [b"+OK", b"USER", b"TOP", b"UIDL", b"PIPELINING", b"RESP-CODES", b"AUTH-RESP-CODE", b".", b"+OK"],
        None,
    ),
    "nothing is answered behind the password": (
        [b"USER a", b"PASS x", b"STAT"],
        [b"+OK"],
        Credentials(b"a", b"x"),
    ),
}


@pytest.mark.parametrize("dialogue", LOGINS)
def test_login(dialogue: str) -> None:
    said, heard, credentials = LOGINS[dialogue]
    login = Login(b"<1.2@h>")
    assert login.greeting() == b"+OK <1.2@h>\r\n"
    got = b"".join(login.feed(b"".join(line + b"\r\n" for line in said)))
    assert got == b"".join(line + b"\r\n" for line in heard)
    assert login.credentials == credentials
    assert not login.is_over


def test_quit_before_the_login() -> None:
    login = Login(b"<1.2@h>")
    assert b"".join(login.feed(b"USER x\r\nQUIT\r\nPASS y\r\n")) == b"+OK\r\n+OK\r\n"
    assert login.is_over and login.credentials is None


def test_so_many_errors_end_the_login() -> None:
    login = Login(b"<1.2@h>")
    answers = b"".join(login.feed(b"FROB\r\n" * 100))
    assert answers.count(b"-ERR") == ERRORS_MAX
    assert login.is_over
