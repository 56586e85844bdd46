"""Dot-stuffing and line ends, however the body is cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp._stuff import text_of
from fastsmtp.delivery.dot import DotEncoder, LfDecoder


def cut(data: bytes, seed: int) -> list[bytes]:
    """The same bytes in pieces; seed 0 leaves them whole, 1 is byte by byte, others are random cuts."""
    if seed == 0:
        return [data]
    if seed == 1:
        return [data[at : at + 1] for at in range(len(data))]
    source = random.Random(seed)
    cuts = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(1, 6)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def encoded(data: bytes, seed: int) -> bytes:
    encoder = DotEncoder()
    return b"".join([*map(encoder.feed, cut(data, seed)), encoder.finish()])


DOTTED = [
    ("an empty body is the end of data alone", b"", b".\r\n"),
    ("a line", b"one\r\n", b"one\r\n.\r\n"),
    ("a last line without its end gets one", b"one", b"one\r\n.\r\n"),
    ("a dot at the start of the body", b".one\r\n", b"..one\r\n.\r\n"),
    ("a lone dot", b".\r\n", b"..\r\n.\r\n"),
    ("a lone dot without a line end", b".", b"..\r\n.\r\n"),
    ("a dot inside a line", b"a.b\r\n", b"a.b\r\n.\r\n"),
    ("an end of data inside the body", b"a\r\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
    ("dots in a row", b"..\r\n...\r\n", b"...\r\n....\r\n.\r\n"),
    ("lines of one dot each", b".\r\n.\r\n.\r\n", b"..\r\n..\r\n..\r\n.\r\n"),
    ("8-bit", b"\xff\x80\r\n", b"\xff\x80\r\n.\r\n"),
]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("case", "body", "wire"), DOTTED)
def test_dots_are_stuffed(case: str, body: bytes, wire: bytes, seed: int) -> None:
    assert encoded(body, seed) == wire


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("body", [b"a\n.\nb", b"a\r.\rb", b"\n", b"a\r", b"\r\r\n", b"a\n.\r\n", b"a\r\n\n"])
def test_what_a_lax_peer_may_take_for_an_end_of_data_never_leaves(body: bytes, seed: int) -> None:
    with pytest.raises(ValueError, match="bare CR"):
        encoded(body, seed)


@given(st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\xe4"])), st.integers(0, 50))
def test_the_text_of_data_comes_back_unstuffed(parts: list[bytes], seed: int) -> None:
    body = b"".join(parts)
    wire = encoded(body, seed)
    text, end = wire[:-3], wire[-3:]
    assert end == b".\r\n"
    assert text == b"" or text.endswith(b"\r\n")
    assert b"\r\n.\r\n" not in b"\r\n" + text
    lines = [line.removeprefix(b".") for line in text.split(b"\r\n")]
    expected = body if body.endswith(b"\r\n") or not body else body + b"\r\n"
    assert b"\r\n".join(lines) == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", b""),
        (b"a\r\nb\r\n", b"a\nb\n"),
        (b"no end", b"no end"),
        (b".\r\n..\r\n", b".\n..\n"),
        (b"a\rb\r", b"a\rb\r"),
        (b"\r\r\n", b"\r\n"),
    ],
)
def test_files_get_lf(body: bytes, text: bytes, seed: int) -> None:
    decoder = LfDecoder()
    assert b"".join([*map(decoder.feed, cut(body, seed)), decoder.finish()]) == text


@given(
    st.lists(st.sampled_from([b"\r\n", b".", b"a", b"\r", b"\n", b"long " * 50]), max_size=30).map(b"".join)
)
def test_a_whole_message_is_encoded_as_one_in_pieces(message: bytes) -> None:
    try:
        expected = encoded(message, 0)
    except ValueError:
        with pytest.raises(ValueError, match="bare CR or LF"):
            text_of(message)
    else:
        assert text_of(message) == expected


@pytest.mark.parametrize(("name", "body", "text"), DOTTED, ids=[name for name, _, _ in DOTTED])
def test_dots_of_a_whole_message(name: str, body: bytes, text: bytes) -> None:
    assert text_of(body) == text
