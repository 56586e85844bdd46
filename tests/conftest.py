"""What all tests share: peers that may be missing, and a summary that says which tests were left out.

`needs` is here for `from tests.conftest import needs`; the table is in peers.py.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.peers import advice, missing, needs, packages

__all__ = ["needs"]

ALL_PEERS = os.environ.get("FASTSMTP_ALL_PEERS", "") not in {"", "0"}

LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    config.addinivalue_line("markers", "needs(*programs): talks to programs of tests/peers.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    wanted = [program for mark in item.iter_markers("needs") for program in mark.args]
    absent = missing(*wanted)
    if not absent:
        return
    reason = f"needs {', '.join(absent)} (Debian: {' '.join(packages(absent))})"
    if ALL_PEERS:
        pytest.fail(reason, pytrace=False)
    item.config.stash[LEFT_OUT].update(absent)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[LEFT_OUT]
    if not left_out:
        return
    terminalreporter.section("left out", sep="-")
    for program, tests in sorted(left_out.items()):
        noun = "test talks" if tests == 1 else "tests talk"
        terminalreporter.write_line(
            f"{tests} {noun} to {program}, which is not installed ({packages([program])[0]})"
        )
    terminalreporter.write_line(f"To run them: {'; '.join(advice(sorted(left_out)))}")
