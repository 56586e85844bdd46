"""Line coverage of the whole package, the compiled modules included.  `make cover`, or python tools/cover.py [TESTS]

Works on a copy of the tree in build/cover, so the modules that `make` built
stay as they are.  Four things must come together, and when one is missing the
compiled modules silently have no coverage at all: the build with line tracing,
the generated .c beside its .pyx, the C tracer, and the Cython plugin (these
two are set in pyproject.toml and below).  The report in HTML: htmlcov/.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "cover"


def copy_tree() -> None:
    """Every file that git knows or would add, into TREE; what is unchanged stays, and so does its build."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for old in TREE.glob("**/*.p[yx]*"):
        if old.is_relative_to(TREE / "build"):
            continue
        if str(old.relative_to(TREE)) not in names:
            old.unlink()
    for name in names:
        source, target = ROOT / name, TREE / name
        if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def build() -> None:
    """The modules with line tracing in TREE, and what Cython generated beside the sources."""
    subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace", "-Dtrace=true", "-Dbuildtype=debug"],
        cwd=TREE,
        check=True,
    )
    for generated in TREE.glob("build/inplace-*/fastsmtp/*.so.p/fastsmtp/*.pyx.c"):
        shutil.copy2(generated, TREE / "fastsmtp" / generated.name.replace(".pyx.c", ".c"))


def main(tests: list[str]) -> int:
    copy_tree()
    build()
    environment = {**os.environ, "COVERAGE_CORE": "ctrace"}
    coverage = [sys.executable, "-m", "coverage"]

    def run(*arguments: str) -> int:
        return subprocess.run([*coverage, *arguments], cwd=TREE, env=environment, check=False).returncode

    run("erase")
    status = run("run", "-m", "pytest", "-p", "no:cacheprovider", *tests)
    run("combine", "--quiet")
    run("html", "--quiet", "--directory", str(ROOT / "htmlcov"))
    run("report", "--skip-empty")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
