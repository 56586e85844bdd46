"""`needs`: what a missing peer does to a test, and what the run says at its end."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.peers import PACKAGES, find, missing, needs, packages

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

MODULE = """
from tests import peers

peers.PACKAGES["no-such-program"] = "no-such-package"
peers.PACKAGES["sh"] = "dash"

@peers.needs("no-such-program", "sh")
def test_that_talks_to_it():
    raise AssertionError("it must not run")

@peers.needs("sh")
def test_that_talks_to_what_is_there():
    pass
"""


SKIPS = """
import pytest

def test_that_needs_what_this_machine_has_not():
    pytest.skip("no IPv6 here")

def test_that_finds_a_reason_on_its_way():
    pytest.skip("not today")

@pytest.mark.skipif(True, reason="not like this")
def test_that_is_never_begun():
    raise AssertionError("it must not run")

def test_that_runs():
    pass
"""


def run_module(folder: pathlib.Path, module: str, **environment: str) -> tuple[int, str]:
    (folder / "test_module.py").write_text(module)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull,
         "--rootdir", str(folder), str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={
            **os.environ, "FASTSMTP_ALL_PEERS": "", "FASTSMTP_NO_SKIPS": "", **environment,
            "PYTHONPATH": str(ROOT),
        },
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_missing_peer_leaves_the_test_out_and_is_named_at_the_end(tmp_path: pathlib.Path) -> None:
    status, output = run_module(tmp_path, MODULE)
    assert status == 0, output
    assert "1 passed, 1 skipped" in output
    assert "1 test talks to no-such-program, which is not installed (no-such-package)" in output
    assert "To run them: apt-get install no-such-package" in output


def test_a_missing_peer_is_a_failure_where_all_peers_must_be_there(tmp_path: pathlib.Path) -> None:
    status, output = run_module(tmp_path, MODULE, FASTSMTP_ALL_PEERS="1")
    assert status == 1, output
    assert "1 passed, 1 error" in output
    assert "needs no-such-program (Debian: no-such-package)" in output


def test_tests_may_be_left_out_where_nobody_forbids_it(tmp_path: pathlib.Path) -> None:
    status, output = run_module(tmp_path, SKIPS)
    assert status == 0, output
    assert "1 passed, 3 skipped" in output


def test_a_test_that_is_left_out_is_a_failure_where_none_may_be(tmp_path: pathlib.Path) -> None:
    status, output = run_module(tmp_path, SKIPS, FASTSMTP_NO_SKIPS="1")
    assert status == 1, output
    assert "1 failed, 1 passed, 1 skipped, 1 error" in output
    for reason in ("not today", "not like this"):
        assert f"left out, and FASTSMTP_NO_SKIPS is set: {reason}" in output
    assert (
        "NOT TESTED HERE: test_module.py::test_that_needs_what_this_machine_has_not: no IPv6 here" in output
    )


def test_a_module_that_is_left_out_is_a_failure_where_none_may_be(tmp_path: pathlib.Path) -> None:
    module = 'import pytest\npytest.skip("not this one", allow_module_level=True)\n'
    status, output = run_module(tmp_path, module, FASTSMTP_NO_SKIPS="1")
    assert status != 0, output
    assert "left out, and FASTSMTP_NO_SKIPS is set: not this one" in output


def test_a_program_without_a_package_is_refused() -> None:
    with pytest.raises(KeyError, match=r"tests/peers\.py"):
        needs("no-such-program")


def test_packages_are_named_once_and_in_order() -> None:
    assert packages(["smtp-source", "curl", "smtp-sink"]) == ["curl", "postfix"]
    assert set(missing(*PACKAGES)) == {program for program in PACKAGES if find(program) is None}
