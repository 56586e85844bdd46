"""What all tests share: peers that may be missing, and a summary that says which tests were left out.

`needs` is here for `from tests.conftest import needs`; the table is in peers.py.

FASTSMTP_ALL_PEERS=1   a test whose peer is missing fails
FASTSMTP_NO_SKIPS=1    so does one that is left out for whatever other reason, but for those of MAY_BE_LEFT_OUT
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tests.peers import advice, missing, needs, packages

__all__ = ["needs"]

# The same examples in each run, and no judgement of their time: it tells of what else the machine does.
settings.register_profile(
    "fastsmtp", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastsmtp")

ALL_PEERS = os.environ.get("FASTSMTP_ALL_PEERS", "") not in {"", "0"}
NO_SKIPS = os.environ.get("FASTSMTP_NO_SKIPS", "") not in {"", "0"}

# What neither root nor a package can give to a machine: how a reason begins.
MAY_BE_LEFT_OUT = ("no IPv6 here", "root of a container that may not mount")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

LEFT_OUT = pytest.StashKey[Counter[str]]()
NOT_HERE = pytest.StashKey[dict[str, str]]()
"""Tests that MAY_BE_LEFT_OUT excuses, each with its reason."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    config.stash[NOT_HERE] = {}
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


def _judged(report: Report, config: pytest.Config) -> Report:
    """The report; where no test may be left out it is a failure if it tells of one."""
    if NO_SKIPS and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith(MAY_BE_LEFT_OUT):
            config.stash[NOT_HERE][report.nodeid] = reason
        else:
            report.outcome = "failed"
            report.longrepr = f"left out, and FASTSMTP_NO_SKIPS is set: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judged((yield), item.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judged((yield), collector.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for test, reason in config.stash[NOT_HERE].items():
        terminalreporter.write_line(f"NOT TESTED HERE: {test}: {reason}", red=True, bold=True)
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
