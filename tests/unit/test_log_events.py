"""The events are a contract: the page, the registry and the log of the tests agree."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

from fastsmtp.events import EVENTS, FIELDS, renewed
from fastsmtp.log import ListLog

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_registry_says() -> None:
    page = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")
    assert page == renewed(page), "run: python -m fastsmtp.events docs/logs.md"


def test_a_page_without_its_marks_is_not_written() -> None:
    with pytest.raises(ValueError, match="two marks"):
        renewed("# nothing here")


@pytest.mark.parametrize("name", EVENTS)
def test_every_field_of_an_event_is_described_and_named_once(name: str) -> None:
    event = EVENTS[name]
    assert re.fullmatch("[a-z_]+", name)
    assert set(event.fields) <= set(FIELDS)
    assert len(set(event.fields)) == len(event.fields)


def test_every_field_belongs_to_an_event() -> None:
    assert set(FIELDS) == {field for event in EVENTS.values() for field in event.fields}


def test_the_log_of_tests_keeps_lines_and_refuses_what_is_not_in_the_contract() -> None:
    log = ListLog()
    log.line("message", id="7F", from_=b"a@b")
    log.line("ready")
    log.flush()
    assert log.lines == [("message", {"id": "7F", "from": b"a@b"}), ("ready", {})]
    assert log.of("message") == [{"id": "7F", "from": b"a@b"}]
    with pytest.raises(ValueError, match="event 'mesage' is not in"):
        log.line("mesage")
    with pytest.raises(ValueError, match="event 'ready' has no field 'helo'"):
        log.line("ready", helo=b"x")


def written_lines() -> list[tuple[str, ast.Call]]:
    """Every call of a method named line with a word as its first argument, with its place."""
    found = []
    for path in sorted((ROOT / "fastsmtp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "line"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node))
    return found


def test_every_line_that_the_sources_write_is_in_the_contract() -> None:
    faults = []
    for place, call in written_lines():
        event = ast.literal_eval(call.args[0])
        if event not in EVENTS:
            faults.append(f"{place}: event {event}")
            continue
        for keyword in call.keywords:
            if keyword.arg is not None and keyword.arg.removesuffix("_") not in EVENTS[event].fields:
                faults.append(f"{place}: {event} has no field {keyword.arg}")
    assert faults == []


def test_every_field_is_some_event_s() -> None:
    used = {field for event in EVENTS.values() for field in event.fields}
    assert [field for field in FIELDS if field not in used] == []
