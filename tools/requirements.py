"""Print what the project needs, one requirement a line, from pyproject.toml alone.

    python tools/requirements.py build test     the dependencies and two groups

Unlike `pip install --group` this works with the pip that any Python 3.11
brings, and it includes the run-time dependencies without building the project.
"""

from __future__ import annotations

import pathlib
import sys
import tomllib
from typing import Any

PYPROJECT = pathlib.Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(pyproject: dict[str, Any], groups: list[str]) -> list[str]:
    """The project's dependencies, then those of each group (PEP 735), each once and in order."""
    found: dict[str, None] = dict.fromkeys(pyproject["project"]["dependencies"])

    def add(group: str) -> None:
        for entry in pyproject["dependency-groups"][group]:
            if isinstance(entry, str):
                found[entry] = None
            else:
                add(entry["include-group"])

    for group in groups:
        add(group)
    return list(found)


if __name__ == "__main__":
    print("\n".join(requirements(tomllib.loads(PYPROJECT.read_text()), sys.argv[1:])))
