"""The committed corpus of the fuzzer and its past crashes, through the promises of its targets; no clang."""

from __future__ import annotations

import pathlib

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = pathlib.Path(__file__).resolve().parent.parent / "fuzz" / "corpus"
FILES = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_input(path: pathlib.Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_each_target_has_a_corpus_and_each_corpus_a_target() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)
