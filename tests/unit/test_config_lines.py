"""Where the keys and values of a TOML text stand."""

from __future__ import annotations

import pathlib
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp.config.lines import find_lines

DESIGN = pathlib.Path(__file__).parent.parent / "data" / "design.example.toml"

TEXT = """\
# comment = 1
top = 1

[table] # [not.a.table]
plain = "a # b"
"quoted key" = 'it''s'
dotted.inner = 3
list = [
  "one",   # ], "no"
  "two", ["three",
  "four"],
]
inline = { a = 1, b = { c = "}" } }
basic = \"\"\"
first = 1
\\"\"\" still \"\"\"
literal = '''
second = [
'''

[[array]]
a = 1
[array.inner]
b = 2

[[array]]
a = 3
[[array.deep]]
c = 4
["a.b"."c"]
d = 1979-05-27T07:32:00Z
""".replace("'it''s'", "'its'")

PLACES = [
    (("top",), 2),
    (("table",), 4),
    (("table", "plain"), 5),
    (("table", "quoted key"), 6),
    (("table", "dotted"), 7),
    (("table", "dotted", "inner"), 7),
    (("table", "list"), 8),
    (("table", "list", 0), 9),
    (("table", "list", 1), 10),
    (("table", "list", 2), 10),
    (("table", "list", 2, 1), 11),
    (("table", "inline"), 13),
    (("table", "inline", "b", "c"), 13),
    (("table", "basic"), 14),
    (("table", "literal"), 17),
    (("array",), 21),
    (("array", 0), 21),
    (("array", 0, "a"), 22),
    (("array", 0, "inner"), 23),
    (("array", 0, "inner", "b"), 24),
    (("array", 1, "a"), 27),
    (("array", 1, "deep", 0, "c"), 29),
    (("a.b", "c"), 30),
    (("a.b", "c", "d"), 31),
]


@pytest.mark.parametrize(("path", "line"), PLACES, ids=str)
def test_each_key_and_value_has_its_line(path: tuple[str | int, ...], line: int) -> None:
    tomllib.loads(TEXT)
    assert find_lines(TEXT)[path] == line


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))] or [path]
    if isinstance(value, list):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, (*path, index))] or [path]
    return [path]


def test_every_value_of_the_designs_example_has_a_line() -> None:
    text = DESIGN.read_text()
    lines = find_lines(text)
    assert [path for path in leaves(tomllib.loads(text)) if path not in lines] == []


# Everything that TOML can hold, written the long and the short way.
SCALARS = st.one_of(
    st.integers(-9, 9).map(str),
    st.sampled_from(
        ['"a"', "'b'", '"\\""', "'''x\ny'''", '"""\n"\\\\"""', "true", "1.5", '"#,]}"', '""', "''"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[ # c\n" + ",\n".join(items) + "\n]"),
        st.lists(inner, max_size=2).map(
            lambda items: "{" + ",".join(f"k{number}={item}" for number, item in enumerate(items)) + "}"
        ),
    ),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_what_tomllib_takes_is_followed_to_the_last_value(values: list[str]) -> None:
    text = "".join(f"[[t]]\nkey{number} = {value} # end\n" for number, value in enumerate(values))
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a line end inside an inline table
    lines = find_lines(text)
    for path in leaves(tree):
        assert path in lines, text
