"""docs/threat-model.md names tests; they are there."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    text = (ROOT / "docs" / "threat-model.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_attack_has_a_defence_and_tests_that_exist() -> None:
    known = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    attacks = rows("Attacks")
    assert len(attacks) > 10
    for attack, defence, tests in attacks:
        assert attack and defence
        names = tests.split()
        assert names, f"no test shows: {attack}"
        assert set(names) <= known, f"{attack}: {sorted(set(names) - known)}"
