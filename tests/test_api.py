"""`fastsmtp.__all__` is the interface that others build on; docs/api.md says it.

No name comes or goes by accident.
"""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import fastsmtp

DOCUMENT = pathlib.Path(__file__).resolve().parent.parent / "docs" / "api.md"


def documented() -> list[str]:
    """The names that docs/api.md has a heading for: ### `Name`, or ### `Name(arguments)`."""
    return re.findall(r"^### `(?:fastsmtp\.)?(\w+)", DOCUMENT.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(fastsmtp.__all__))
def test_a_public_name_exists_and_says_what_it_is(name: str) -> None:
    thing = getattr(fastsmtp, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert inspect.getdoc(thing), f"fastsmtp.{name} has no docstring"


def test_the_document_and_the_list_name_the_same() -> None:
    names = documented()
    assert len(names) == len(set(names)), "docs/api.md has a name twice"
    assert set(names) == set(fastsmtp.__all__) - {"__version__"}


def test_the_list_has_each_name_once() -> None:
    assert len(fastsmtp.__all__) == len(set(fastsmtp.__all__))


def test_each_name_is_offered_to_type_checkers_and_at_run_time_alike() -> None:
    """The names are imported when they are asked for: the lists for checkers and for the run must not drift apart."""
    tree = ast.parse(pathlib.Path(fastsmtp.__file__).read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastsmtp")
        for alias in node.names
    }
    assert imported == set(fastsmtp.__all__)
    assert set(fastsmtp.__all__) <= set(dir(fastsmtp))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        fastsmtp.no_such_name  # noqa: B018


def test_the_command_line_starts_without_the_heavy_modules() -> None:
    """`fastsmtp --version` and completion must not pay for an event loop and TLS (100 ms of CPU)."""
    heavy = {"asyncio", "ssl", "uvloop", "cryptography", "msgspec"}
    program = f"import sys, fastsmtp.cli; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_example_in_the_document_runs() -> None:
    """All but the wait at its end."""
    example = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    text = example[1].replace("await asyncio.Event().wait()", "return")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
