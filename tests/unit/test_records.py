"""records.dataclass means what the standard library's does, where we use it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from typing import Any

import pytest

from fastsmtp.records import MISSING, dataclass, field, fields, is_dataclass, replace
from tests.programs import environment


@dataclass(frozen=True, slots=True)
class Ours:
    """Of ours."""

    name: str
    size: int = 3
    tags: list[str] = field(default_factory=list, metadata={"doc": "words"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed:
    one: int
    two: int = 2


@dataclass(slots=True)
class Open:
    value: int = 0


@dataclass(frozen=True, slots=True)
class Further(Ours):
    more: int = 7


@dataclass(frozen=True, slots=True)
class Empty:
    pass


@pytest.fixture(params=["the first ones", "compiled"], autouse=True)
def warm(request: pytest.FixtureRequest) -> None:
    """A class gets another __init__ after some instances."""
    if request.param == "compiled":
        for _ in range(20):
            Ours("x"), Keyed(one=1), Open(), Further("x"), Empty()


def test_instances_are_made_as_they_should() -> None:
    assert (Ours("x").name, Ours("x").size, Ours("x").tags) == ("x", 3, [])
    assert Ours("x", 4, tags=["a"]).tags == ["a"]
    assert Ours("x").tags is not Ours("x").tags
    assert (Keyed(one=1).one, Keyed(one=1, two=3).two) == (1, 3)
    assert (Further("x", more=1).more, Further("x").size) == (1, 3)
    assert Empty() == Empty()


@pytest.mark.parametrize(
    ("cls", "arguments", "named"),
    [
        (Ours, (), {}),
        (Ours, ("x",), {"nonsense": 1}),
        (Keyed, (1,), {}),
        (Keyed, (), {"two": 1}),
        (Empty, (1,), {}),
    ],
)
def test_wrong_arguments_are_type_errors(cls: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="__init__"):
        cls(*arguments, **named)


def test_frozen_is_frozen_and_slotted() -> None:
    one: Any = Ours("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "y"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del one.name
    with pytest.raises(AttributeError):
        one.nonsense = 1
    assert not hasattr(one, "__dict__")
    other = Open()
    other.value = 4
    assert other == Open(4)
    with pytest.raises(TypeError, match="unhashable"):
        hash(other)


def test_equal_records_are_one_key() -> None:
    assert Keyed(one=1) == Keyed(one=1) != Keyed(one=2)
    assert len({Keyed(one=1), Keyed(one=1), Keyed(one=2)}) == 2
    other: object = (1, 2)
    assert Keyed(one=1) != other
    assert Ours("x") != Further("x")


def test_they_show_themselves() -> None:
    assert repr(Ours("x", 1)) == "Ours(name='x', size=1, tags=[])"


def test_replace_copies_what_is_not_changed() -> None:
    assert replace(Ours("x", 1, ["a"]), size=2) == Ours("x", 2, ["a"])
    assert dataclasses.replace(Ours("x", 1, ["a"]), size=2) == Ours("x", 2, ["a"])
    with pytest.raises(TypeError):
        replace(Ours("x"), nonsense=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("one", [Ours("x", 1, ["a"]), Keyed(one=3), Further("x", more=2), Open(5), Empty()])
def test_they_can_be_copied_and_sent(one: Any) -> None:
    assert copy.copy(one) == one
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_dataclasses_know_them() -> None:
    assert dataclasses.is_dataclass(Ours)
    assert dataclasses.asdict(Ours("x")) == {"name": "x", "size": 3, "tags": []}
    name, size, tags = dataclasses.fields(Ours)
    assert (name.default, size.default, tags.default) == (dataclasses.MISSING, 3, dataclasses.MISSING)
    assert (tags.default_factory, dict(tags.metadata), tags.type) == (list, {"doc": "words"}, "list[str]")
    name, size, tags = fields(Ours)
    assert (name.default, size.default, tags.default) == (MISSING, 3, MISSING)
    assert is_dataclass(Ours("x"))
    assert not is_dataclass(3)


def test_they_match() -> None:
    match Ours("x", 9):
        case Ours("x", size):
            assert size == 9
        case _:
            pytest.fail("no match")


def test_they_cost_no_import_of_dataclasses() -> None:
    script = "import sys, fastsmtp.config.settings; assert 'dataclasses' not in sys.modules, sys.modules"
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, timeout=60)
