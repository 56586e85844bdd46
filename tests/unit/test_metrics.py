"""The shared numbers: sums over processes that never go back, and the registry of what is counted."""

from __future__ import annotations

import ast
import os
import pathlib
import re

import pytest

from fastsmtp._metrics import MOST, Board
from fastsmtp.admin.catalogue import DECLARED_IN, declared, renewed
from fastsmtp.metrics import LATENCIES_S, Counter, Gauge, Histogram

ROOT = pathlib.Path(__file__).resolve().parents[2]

SEEN = Counter("fastsmtp_seen_total", "Seen", "what")
OPEN = Gauge("fastsmtp_open", "Open")
TOOK = Histogram("fastsmtp_took_seconds", "Took", "what")


def test_the_sum_is_over_all_sheets_by_name_and_labels() -> None:
    board = Board(3)
    for number in (0, 2):
        sheet = board.sheet(number)
        SEEN.of(sheet, "a").add(10 + number)
        SEEN.of(sheet, "a").inc()
        SEEN.of(sheet, "b").inc()
        OPEN.of(sheet).set(4)
        OPEN.of(sheet).dec()
    assert board.read() == {
        b"cfastsmtp_seen_total\0a": 24,
        b"cfastsmtp_seen_total\0b": 2,
        b"gfastsmtp_open": 6,
    }


def test_the_same_labels_are_the_same_number() -> None:
    sheet = Board(1).sheet(0)
    first, second = SEEN.of(sheet, "a"), SEEN.of(sheet, "a")
    first.inc()
    second.inc()
    assert int(first) == int(second) == 2


@pytest.mark.parametrize("values", [(), ("a", "b")])
def test_labels_must_be_as_many_as_declared(values: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="has the labels"):
        SEEN.of(Board(1).sheet(0), *values)


def test_a_label_cannot_pretend_to_be_two_nor_be_endless() -> None:
    board = Board(1)
    SEEN.of(board.sheet(0), "a\0b" + "c" * 9_999).inc()
    (key,) = board.read()
    assert key.count(b"\0") == 1
    assert len(key) < 300


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (30.0, len(LATENCIES_S) - 1), (30.1, len(LATENCIES_S))],
)
def test_a_histogram_counts_up_to_and_with_its_bound(seconds: float, bucket: int) -> None:
    board = Board(1)
    TOOK.of(board.sheet(0), "x").observe(seconds)
    read = board.read()
    counted = [
        key for key, value in read.items() if value and not key.endswith(b"\0%d" % (len(LATENCIES_S) + 1))
    ]
    assert counted == [b"hfastsmtp_took_seconds\0x\0%d" % bucket]
    assert read[b"hfastsmtp_took_seconds\0x\0%d" % (len(LATENCIES_S) + 1)] == round(seconds * 1e6)


def test_what_an_ended_process_counted_stays_and_what_it_had_open_goes() -> None:
    board = Board(3)
    master, first = board.sheet(2), board.sheet(0)
    SEEN.of(first, "a").add(5)
    OPEN.of(first).add(3)
    TOOK.of(first, "x").observe(0.2)
    before = board.read()
    board.fold(0, master)
    after = board.read()
    assert after == {key: value for key, value in before.items() if value and key != b"gfastsmtp_open"}
    second = board.sheet(0)
    SEEN.of(second, "a").inc()
    OPEN.of(second).inc()
    board.fold(0, master)
    board.fold(0, master)
    assert board.read()[b"cfastsmtp_seen_total\0a"] == 6


def test_another_process_writes_and_this_one_reads() -> None:
    board = Board(2)
    pid = os.fork()
    if pid == 0:
        SEEN.of(board.sheet(1), "child").add(7)
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.read() == {b"cfastsmtp_seen_total\0child": 7}


def test_a_sheet_that_is_full_counts_what_finds_no_place() -> None:
    board = Board(1)
    sheet = board.sheet(0)
    for number in range(MOST + 10):
        SEEN.of(sheet, str(number)).inc()
    assert sheet.lost == 10
    assert len(board.read()) == MOST
    with pytest.raises(ValueError, match="size"):
        sheet.cell(b"x" * 5_000)


@pytest.mark.parametrize("number", [-1, 2])
def test_there_are_so_many_sheets_as_were_asked_for(number: int) -> None:
    with pytest.raises(IndexError):
        Board(2).sheet(number)
    with pytest.raises(IndexError):
        Board(2).fold(number, Board(2).sheet(0))


def test_numbers_are_made_by_their_owners_only() -> None:
    board = Board(1)
    sheet = board.sheet(0)
    for kind in (type(sheet), type(sheet.cell(b"cx")), type(sheet.spread(b"hx", (1.0,)))):
        with pytest.raises(TypeError):
            kind()
    with pytest.raises(ValueError, match="itself"):
        board.fold(0, sheet)
    with pytest.raises(ValueError, match="at least one"):
        Board(0)


# --- the registry -------------------------------------------------------------------------------------


def test_the_page_is_what_the_modules_declare() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == renewed(page), "run: python -m fastsmtp.admin.catalogue docs/metrics.md"


def test_a_page_without_its_marks_is_not_written() -> None:
    with pytest.raises(ValueError, match="two marks"):
        renewed("# nothing here")


def test_every_module_that_declares_a_metric_is_in_the_table() -> None:
    declaring = set()
    for path in (ROOT / "fastsmtp").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            made = node.value if isinstance(node, ast.Assign) else None
            if (
                isinstance(made, ast.Call)
                and isinstance(made.func, ast.Name)
                and made.func.id in {"Counter", "Gauge", "Histogram"}
            ):
                declaring.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert declaring == set(DECLARED_IN)


@pytest.mark.parametrize("name", declared())
def test_names_follow_prometheus(name: str) -> None:
    one = declared()[name]
    assert re.fullmatch("fastsmtp(_[a-z0-9]+)+", name)
    assert name.endswith("_total") is (one.kind == "counter")
    assert name.endswith("_seconds") or one.kind != "histogram"
    assert one.text
    assert not one.text.endswith(".")
    assert all(re.fullmatch("[a-z_]+", label) and label != "le" for label in one.labels)
