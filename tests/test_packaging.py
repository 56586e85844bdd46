"""What is installed is what stands in the tree, and every fact about the package stands in one place.

Files are installed by name (a glob would ship stray .so and .c files), so a
file that nobody listed would be missing from the wheel and from nowhere else.
"""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastsmtp"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """What meson would install: the place below site-packages -> the file that goes there."""
    programs = pathlib.Path(sys.executable).parent
    meson = programs / "meson"
    if not meson.exists():
        pytest.skip("needs meson beside this Python (the group `build` of pyproject.toml)")
    build = tmp_path_factory.mktemp("introspect") / "build"
    environment = {**os.environ, "PATH": os.pathsep.join([str(programs), os.environ["PATH"]])}
    done = subprocess.run(
        [meson, "setup", build, ROOT], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = subprocess.run(
        [meson, "introspect", "--installed", build], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for source, destination in json.loads(text).items():
        # Only what comes behind the last site-packages (or dist-packages) depends on us.
        below = re.sub(r"^.*/(site|dist)-packages/", "", destination)
        found[below] = pathlib.Path(source)
    return found


def wanted() -> set[str]:
    """Every source that an installed package needs, as a path below site-packages."""
    return {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.suffix in {".py", ".pyi", ".pxd"} or path.name == "py.typed"
    }


def test_every_source_is_installed_and_nothing_else(installed: dict[str, pathlib.Path]) -> None:
    plain = {name for name in installed if not name.endswith((".so", ".pyd"))}
    assert plain == wanted()


def test_every_compiled_module_is_installed(installed: dict[str, pathlib.Path]) -> None:
    modules = {name.partition(".")[0] for name in installed if name.endswith((".so", ".pyd"))}
    own = {path for path in PACKAGE.glob("*.pyx")}
    # Python that is compiled as it stands has its C shape beside it (docs/decisions/0005).
    passed = {path for path in PACKAGE.rglob("*.py") if path.with_suffix(".pxd").exists()}
    assert modules == {str(path.relative_to(ROOT).with_suffix("")) for path in own | passed}


def test_a_compiled_module_that_python_imports_has_its_types() -> None:
    """Without a .pyi it would be Any for us and for everybody who type-checks against us."""
    compiled = {path.stem for path in PACKAGE.glob("*.pyx")}
    typed = {path.stem for path in PACKAGE.glob("*.pyi")}
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    imported = set(re.findall(r"^\s*from fastsmtp\.(_\w+) import", text, re.MULTILINE)) & compiled
    assert imported <= typed
    assert typed <= compiled


def test_compiled_sources_stand_in_the_package_itself() -> None:
    assert [path for path in PACKAGE.rglob("*.pyx") if path.parent != PACKAGE] == []


def test_no_directive_hides_in_a_source() -> None:
    """A directive in a .pyx beats the command line: the build with checks would silently check nothing."""
    for path in PACKAGE.glob("*.p[yx]*"):
        assert not re.search(r"^\s*#\s*cython\s*:", path.read_text(), re.MULTILINE), path.name


def test_the_version_stands_in_meson_build_alone() -> None:
    version = re.search(r"version:\s*'([^']+)'", (ROOT / "meson.build").read_text())
    assert version is not None
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    repeated = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == version[1]
    ]
    assert repeated == []


def test_the_changes_name_the_version() -> None:
    version = re.search(r"version:\s*'([^']+)'", (ROOT / "meson.build").read_text())
    assert version is not None
    assert re.search(rf"^## {re.escape(version[1])}\b", (ROOT / "CHANGES.md").read_text(), re.MULTILINE)


def test_the_files_that_the_metadata_names_are_there() -> None:
    project = PYPROJECT["project"]
    for name in [project["readme"], *project["license-files"]]:
        assert (ROOT / name).is_file(), name
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    module, _, function = project["scripts"]["fastsmtp"].partition(":")
    path = ROOT / module.replace(".", "/")
    assert (
        f"def {function}("
        in ((path / "__init__.py") if path.is_dir() else path.with_suffix(".py")).read_text()
    )


@pytest.mark.parametrize(
    "arguments",
    [[], ["install"], ["build_ext"], ["sdist"], ["bdist_wheel"], ["develop"], ["--inplace", "build_ext"]],
    ids=" ".join,
)
def test_setup_py_builds_in_place_and_refuses_the_rest(arguments: list[str], tmp_path: pathlib.Path) -> None:
    """In a copy without meson.build: a command that was not refused would fail otherwise, and build nothing here."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "build_ext --inplace" in done.stderr and "pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["setup.py"]


def test_setup_py_is_no_second_build() -> None:
    text = (ROOT / "setup.py").read_text()
    assert not re.search(r"^\s*(import|from)\s+(setuptools|distutils)", text, re.MULTILINE)
    assert ".pyx" not in text


def test_setup_py_fails_with_the_compiler_and_without_a_traceback(tmp_path: pathlib.Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
