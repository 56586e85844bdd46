"""Messages as POP3 sends them, against functions that are slow and obvious, however they are cut."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.pop3.text import octets, stuffed, top


def lines(mail: bytes) -> list[bytes]:
    """Without line ends; a CR before the LF belongs to it."""
    found = [line.removesuffix(b"\r") for line in mail.split(b"\n")]
    # What stands behind the last LF is a line only if there is something; no LF ends it, so its CR stays.
    last = mail.rpartition(b"\n")[2]
    return [*found[:-1], last] if last else found[:-1]


def wire(mail: bytes) -> bytes:
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines(mail))


def size(mail: bytes) -> int:
    return sum(len(line) + 2 for line in lines(mail))


def slow_top(mail: bytes, count: int) -> bytes:
    kept: list[bytes] = []
    body: int | None = None
    for line in lines(mail):
        if body is not None:
            if body == count:
                break
            body += 1
        elif not line:
            body = 0
        kept.append(line)
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in kept)


MAILS = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b".", b"a", b"..", b"\0", b"x" * 70])).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=6)


def cut(mail: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, *(min(place, len(mail)) for place in cuts), len(mail)})
    return [mail[begin:end] for begin, end in zip(at, [*at[1:], len(mail)], strict=True)]


@given(MAILS, CUTS)
def test_a_message_on_the_wire(mail: bytes, cuts: list[int]) -> None:
    assert b"".join(stuffed(cut(mail, cuts))) == wire(mail)


@given(MAILS, CUTS)
def test_the_size_is_what_is_sent_without_the_stuffing(mail: bytes, cuts: list[int]) -> None:
    assert octets(cut(mail, cuts)) == size(mail)


@given(MAILS, CUTS, st.integers(0, 5))
def test_the_top_of_a_message(mail: bytes, cuts: list[int], count: int) -> None:
    assert b"".join(stuffed(top(cut(mail, cuts), count))) == slow_top(mail, count)


def test_no_piece_is_larger_than_twice_what_was_read() -> None:
    pieces = [b"\n" * 60_000] * 20
    assert max(map(len, stuffed(pieces))) <= 120_001


def test_top_reads_no_more_than_it_needs() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"Subject: x\n\n1\n2\n"
        raise AssertionError("read on")

    assert b"".join(top(pieces(), 2)) == b"Subject: x\n\n1\n2\n"
    assert b"".join(top(pieces(), 0)) == b"Subject: x\n\n"
