"""Each wire dialogue of tests/dialogues: what the file says, and the same events and output however it is cut."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Callable, Iterator

import pytest

from tests.dialogue import Dialogue, Played, faults, files, play, read

FILES = files()
RANDOM_CUTS = 12


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def by(size: int) -> Callable[[bytes], Iterator[bytes]]:
    return lambda data: (data[at : at + size] for at in range(0, len(data), size))


def once(at: int) -> Callable[[bytes], Iterator[bytes]]:
    return lambda data: (piece for piece in (data[:at], data[at:]) if piece)


def at_random(seed: str) -> Callable[[bytes], Iterator[bytes]]:
    chance = random.Random(seed)

    def cut(data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            size = chance.choice((1, 2, 3, 5, 17, 80, 400, 5_000))
            yield data[at : at + size]
            at += size

    return cut


def same(dialogue: Dialogue, wanted: Played, cut: Callable[[bytes], Iterator[bytes]]) -> None:
    got = play(dialogue, cut)
    assert got.events == wanted.events
    assert got.output == wanted.output
    assert got.is_closing == wanted.is_closing


def test_there_are_dialogues() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_dialogue(path: pathlib.Path) -> None:
    dialogue = read(path)
    played = play(dialogue, whole)
    assert faults(dialogue, played) == []
    same(dialogue, played, by(1))
    for number in range(RANDOM_CUTS):
        same(dialogue, played, at_random(f"{path.stem} {number}"))
    # A transaction whose DATA was accepted ends once: END, RESET, or the end of the session.
    is_text = False
    for index, (kind, fields) in enumerate(played.events):
        if kind == "DATA":
            assert not is_text
            is_text = index not in dialogue.answers
        elif kind in {"END", "RESET"} or (kind == "VIOLATION" and fields["is_fatal"]):
            is_text = False
        elif kind == "BODY":
            assert is_text


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size < 3_000], ids=lambda path: path.stem)
def test_dialogue_cut_anywhere(path: pathlib.Path) -> None:
    """Each single cut: the ones that matter are inside CR LF and around dots."""
    dialogue = read(path)
    size = max(len(segment.data) for segment in dialogue.segments)
    if size > 2_000:
        return
    played = play(dialogue, whole)
    for at in range(1, size):
        same(dialogue, played, once(at))
