"""The unit tests of the compiled modules under AddressSanitizer and UndefinedBehaviorSanitizer:  make asan

    python tools/asan.py [pytest's arguments]      default: those files in tests/unit that import a compiled module
    python tools/asan.py --prove                   a build with a seeded over-read must be caught

Builds the package once more, into build/asan, and runs the tests against that copy: the sanitizer's libraries are
preloaded into Python, whose own allocator steps aside (PYTHONMALLOC=malloc), so that each bytes object has its own
guarded block.  Bounds checks see nothing in C pointers; this does.  Leaks are not looked for: CPython keeps much.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPILED = re.compile(r"\bfastsmtp\._[a-z]|\bfastsmtp import _[a-z]|\bfuzz import|\bfuzz\.targets")


def environment() -> dict[str, str]:
    # meson looks the interpreter up on PATH; the one that runs this file is the one that is meant.
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
    }


def build(into: pathlib.Path, *options: str) -> pathlib.Path:
    """The package with sanitizers in into/site; returns that folder.  Prints what the build said when it failed."""
    site = into / "site"
    commands: list[list[str]] = []
    if not (into / "meson" / "build.ninja").exists():
        commands.append(
            ["meson", "setup", str(into / "meson"), str(ROOT), "-Db_sanitize=address,undefined", "-Db_lundef=false",
             "-Dbuildtype=debugoptimized", f"-Dpython.platlibdir={site}", f"-Dpython.purelibdir={site}",
             f"--prefix={into / 'prefix'}", *options]
        )  # fmt: skip
    commands.append(["meson", "install", "-C", str(into / "meson"), "--quiet"])
    for command in commands:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
        )
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}")
    return site


def libraries() -> str:
    """The sanitizers' shared libraries of the compiler that meson takes, for LD_PRELOAD."""
    compiler = os.environ.get("CC", "cc").split()[0]
    found = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        if not os.path.isabs(path):
            sys.exit(
                f"{compiler} has no {name} (Debian: it comes with gcc; Fedora: dnf install libasan libubsan)"
            )
        found.append(path)
    return " ".join(found)


def command(arguments: list[str]) -> list[str]:
    # -P and an empty pythonpath: else the source folder, with its own compiled modules, would come first.
    # --capture=sys: a sanitizer writes its report to descriptor 2 and aborts; pytest must not have swallowed it.
    return [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-o",
        "pythonpath=",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
        *arguments,
    ]


def sanitized(site: pathlib.Path) -> dict[str, str]:
    return {
        **environment(),
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "LD_PRELOAD": libraries(),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def prove() -> int:
    """Exit code 0: the seeded over-read (_body.pyx) was caught."""
    site = build(ROOT / "build" / "asan-proof", "-Dseeded_defect=true")
    done = subprocess.run(
        command(["-q", "-x", "tests/unit/test_body.py"]),
        cwd=ROOT,
        env=sanitized(site),
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    if done.returncode == 0 or "heap-buffer-overflow" not in said or "_body" not in said:
        print(f"NOT CAUGHT\n{said[-4000:]}")
        return 1
    print(next(line for line in said.splitlines() if "heap-buffer-overflow" in line))
    return 0


def main(arguments: list[str]) -> int:
    if arguments == ["--prove"]:
        return prove()
    site = build(ROOT / "build" / "asan")
    if not arguments:
        files = sorted((ROOT / "tests" / "unit").glob("test_*.py"))
        arguments = ["-q", *(str(path) for path in files if COMPILED.search(path.read_text()))]
    return subprocess.run(command(arguments), cwd=ROOT, env=sanitized(site)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
