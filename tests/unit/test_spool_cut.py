"""Header fields that are left out of a body, however it came in pieces."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.spool import Body, Budget, Cutter

LINES = st.lists(st.tuples(st.binary(min_size=1, max_size=5), st.booleans()), max_size=8)


@settings(deadline=None, derandomize=True, database=None)
@given(LINES, st.lists(st.integers(0, 40), max_size=6))
def test_pieces_without_ranges_are_the_whole_without_them(
    lines: list[tuple[bytes, bool]], cuts: list[int]
) -> None:
    whole = b"".join(line for line, _ in lines)
    offset = 0
    ranges = []
    for line, is_cut in lines:
        if is_cut:
            ranges.append((offset, len(line)))
        offset += len(line)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    cutter = Cutter(ranges)
    pieces = [cutter.take(whole[a:b]) for a, b in itertools.pairwise(places)]
    assert b"".join(pieces) == b"".join(line for line, is_cut in lines if not is_cut)


@pytest.mark.parametrize("is_spooled", [False, True])
@pytest.mark.parametrize(
    ("text", "ranges", "left", "ends_with_crlf"),
    [
        (b"A: 1\r\nB: 2\r\n\r\nx", [(0, 6)], b"B: 2\r\n\r\nx", False),
        (b"A: 1\r\nB: 2\r\n\r\nx\r\n", [(6, 6)], b"A: 1\r\n\r\nx\r\n", True),
        (b"A: 1\r\nB: 2\r\n", [(6, 6)], b"A: 1\r\n", True),
        (b"A: 1\r\nB: 2", [(6, 4)], b"A: 1\r\n", True),
        (b"A: 1\r\n", [(0, 6)], b"", True),
        (b"A: 1", [(0, 4)], b"", True),
        (b"A: 1\r\nA: 2\r\nB: 3\r\nA: 4\r\n", [(0, 6), (6, 6), (18, 6)], b"B: 3\r\n", True),
    ],
)
def test_a_body_without_some_fields(
    tmp_path: Path,
    text: bytes,
    ranges: list[tuple[int, int]],
    left: bytes,
    ends_with_crlf: bool,
    is_spooled: bool,
) -> None:
    async def main() -> None:
        body = Body(InlineDisk(), Budget(0 if is_spooled else 1 << 20), str(tmp_path))
        for at in range(0, len(text), 3):
            body.write(text[at : at + 3])
        assert body.is_spooled is is_spooled
        body.cut(ranges)
        assert b"".join([piece async for piece in body.pieces()]) == left
        assert b"".join(body.blocking_pieces(os)) == left
        assert (body.size_bytes, body.ends_with_crlf) == (len(left), ends_with_crlf)
        body.release()

    asyncio.run(main())
