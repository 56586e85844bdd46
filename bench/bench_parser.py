"""The parser's parts, one at a time:  python -m pytest bench/bench_parser.py"""

from __future__ import annotations

from typing import Any

import pytest

from fastsmtp._parser import DataDecoder, ReplyParser, parse_parameters, parse_path

LINE = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n"


def body(size_bytes: int, line: bytes = LINE) -> bytes:
    return (line * (size_bytes // len(line) + 1))[: size_bytes - 2] + b"\r\n"


def decode(data: bytes) -> None:
    decoder = DataDecoder()
    _, consumed = decoder.feed(data)
    assert decoder.is_done
    assert consumed == len(data)


@pytest.mark.parametrize("size_bytes", [4_096, 65_536, 102_400])
def bench_decode(benchmark: Any, size_bytes: int) -> None:
    benchmark(decode, body(size_bytes) + b".\r\n")


def bench_decode_dots(benchmark: Any) -> None:
    """Every line is stuffed: the automaton's worst honest case."""
    benchmark(decode, body(65_536, b".." + LINE) + b".\r\n")


def bench_decode_dots_only(benchmark: Any) -> None:
    """Nothing but stuffed dots: what an attacker would send."""
    benchmark(decode, b"..\r\n" * 16_384 + b".\r\n")


def bench_path(benchmark: Any) -> None:
    benchmark(parse_path, b"<some.sender@mail.example.org> SIZE=4096")


def bench_parameters(benchmark: Any) -> None:
    benchmark(parse_parameters, b" SIZE=4096 BODY=8BITMIME RET=HDRS")


def bench_reply(benchmark: Any) -> None:
    parser = ReplyParser()
    benchmark(parser.feed, b"250 2.1.5 Ok\r\n")
