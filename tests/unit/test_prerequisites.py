"""tools/prerequisites: what `make run` says on a machine that lacks something, instead of a compiler's error."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parent.parent.parent / "tools" / "prerequisites"
LINES = ("apt-get install gcc make python3-dev python3-venv", "dnf install gcc make python3-devel")

# A Python that answers the script's questions as the test wants.
PYTHON = """#!/bin/sh
case "$2" in
    *version_info*) exit {old} ;;
    *python_version*) echo 3.9.2 ;;
    *venv*) exit {no_venv} ;;
    *sysconfig*) echo "{include}" ;;
esac
"""


def run(
    folder: pathlib.Path, *, old: int = 0, no_venv: int = 0, header: bool = True, compiler: bool = True
) -> str:
    """The script's complaint on a machine as described, "" when it has none."""
    include = folder / "include"
    include.mkdir()
    if header:
        (include / "Python.h").touch()
    programs = folder / "bin"
    programs.mkdir()
    fake = PYTHON.format(old=old, no_venv=no_venv, include=include)
    for name, text in {"python3": fake, **({"cc": "#!/bin/sh\n"} if compiler else {})}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "cat").symlink_to(shutil.which("cat") or "/bin/cat")
    shell = shutil.which("sh") or "/bin/sh"
    environment = {key: value for key, value in os.environ.items() if key != "CC"}
    done = subprocess.run(
        [shell, str(SCRIPT), "python3"], env={**environment, "PATH": str(programs)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (1 if done.stderr else 0)
    assert done.stdout == ""
    return done.stderr


def test_a_machine_that_has_everything_hears_nothing(tmp_path: pathlib.Path) -> None:
    assert run(tmp_path) == ""


@pytest.mark.parametrize(
    ("lacks", "named"),
    [({"no_venv": 1}, "venv"), ({"header": False}, "Python.h"), ({"compiler": False}, "C compiler")],
    ids=["venv", "headers", "compiler"],
)
def test_what_is_missing_is_answered_by_the_line_to_type(
    lacks: dict[str, int], named: str, tmp_path: pathlib.Path
) -> None:
    complaint = run(tmp_path, **lacks)  # type: ignore[arg-type]
    assert named in complaint.splitlines()[0]
    assert all(line in complaint for line in LINES)


def test_an_old_python_is_named_and_another_one_asked_for(tmp_path: pathlib.Path) -> None:
    complaint = run(tmp_path, old=1)
    assert "Python 3.11 or later; python3 is 3.9.2" in complaint
    assert "make run PYTHON=" in complaint


def test_no_python_at_all_is_answered_by_the_line_to_type(tmp_path: pathlib.Path) -> None:
    done = subprocess.run([SCRIPT, str(tmp_path / "python9")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert all(line in done.stderr for line in LINES)
