"""Which answers of a DNS list are a listing."""

from __future__ import annotations

import socket

import pytest

from fastsmtp.config.zones import FOREIGN, REFUSED, Answers, oddity, parse_answers


def packed(*texts: str) -> tuple[bytes, ...]:
    return tuple(socket.inet_aton(text) for text in texts)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.2", (0x7F000002, 0x7F000002)),
        ("127.0.0.2-127.0.0.11", (0x7F000002, 0x7F00000B)),
        ("127.0.0.2-11", (0x7F000002, 0x7F00000B)),
        ("127.0.1.0-127.0.3.255", (0x7F000100, 0x7F0003FF)),
        ("&0.0.0.6", (6, -1)),
    ],
)
def test_answers_are_read(text: str, found: tuple[int, int]) -> None:
    assert parse_answers(text) == found


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0", "10.0.0.1", "127.0.0.9-127.0.0.2", "127.0.0.2-10.0.0.1", "127.0.0.2-300", "127.255.255.254",
     "127.0.0.2-127.255.255.1", "&", "&6", "&127.0.0.1", "&0.0.0.0", "x-y", "127.0.0.2-"],
)  # fmt: skip
def test_what_is_no_answer_is_a_fault(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_answers(text)


@pytest.mark.parametrize(
    ("texts", "records", "found"),
    [
        ([], [], ""),
        ([], ["127.0.0.2"], "127.0.0.2"),
        ([], ["127.9.9.9"], "127.9.9.9"),
        ([], ["127.255.255.1"], ""),
        ([], ["128.0.0.1"], ""),
        ([], ["203.0.113.1", "127.0.0.3"], "127.0.0.3"),
        (["127.0.0.4"], ["127.0.0.2", "127.0.0.4"], "127.0.0.4"),
        (["127.0.0.4"], ["127.0.0.5"], ""),
        (["&0.0.0.5"], ["127.0.0.4"], "127.0.0.4"),
        (["&0.0.0.5"], ["127.0.0.2"], ""),
        (["127.0.0.2", "&0.0.1.0"], ["127.0.1.9"], "127.0.1.9"),
    ],
)
def test_listings(texts: list[str], records: list[str], found: str) -> None:
    assert Answers(texts).find(packed(*records)) == found


@pytest.mark.parametrize(
    ("records", "what"),
    [([], ""), (["127.0.0.2"], ""), (["127.255.255.254"], REFUSED), (["192.0.2.1"], FOREIGN)],
)
def test_oddities(records: list[str], what: str) -> None:
    assert oddity(packed(*records)) == what
