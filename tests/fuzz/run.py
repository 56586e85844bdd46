"""Fuzz the compiled modules, guided by the coverage of their C:  make fuzz

    python tests/fuzz/run.py [TARGET...] [--seconds N]

clang builds the package once more, instrumented, into build/fuzz/site; driver.c makes libFuzzer a Python
module; each target (targets.py) then runs for its share of the seconds (FUZZ_SECONDS, default 60), beginning
with the committed corpus.  What is found on the way is kept in build/fuzz/corpus for the next run.

Exit 0: nothing broke.  1: an input breaks a promise; it is printed, and kept in build/fuzz/crashes.  Fix the
defect and commit the input to corpus/TARGET, where the test suite replays it.  2: clang is missing.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FUZZ = ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "fuzz"

MISSING = """\
make fuzz needs clang and its libFuzzer:
  Debian, Ubuntu: apt-get install clang libclang-rt-14-dev   (the version of your clang)
  Fedora:         dnf install clang compiler-rt
"""

# -fsanitize=fuzzer-no-link: counters for every edge and every comparison, without libFuzzer's main.
INSTRUMENT = "-fsanitize=fuzzer-no-link -g1"


def libfuzzer() -> pathlib.Path | None:
    """The static library of libFuzzer without its main, None when it or clang is missing."""
    if shutil.which("clang") is None:
        return None
    resources = subprocess.run(
        ["clang", "-print-resource-dir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    names = (f"libclang_rt.fuzzer_no_main-{platform.machine()}.a", "libclang_rt.fuzzer_no_main.a")
    found = (path for name in names for path in sorted(pathlib.Path(resources).rglob(name)))
    return next(found, None)


def run_quietly(command: list[object], **options: object) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}")


def build(into: pathlib.Path, library: pathlib.Path, *options: str) -> None:
    """The instrumented package in into/site, and into/driver.so; nothing is done twice."""
    site = into / "site"
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CC": "clang"}
    meson = into / "meson"
    if not (meson / "build.ninja").exists():
        run_quietly(
            ["meson", "setup", meson, ROOT, "-Db_lundef=false", "-Dbuildtype=debugoptimized",
             f"-Dc_args={INSTRUMENT}", f"-Dc_link_args={INSTRUMENT}", f"-Dpython.platlibdir={site}",
             f"-Dpython.purelibdir={site}", f"--prefix={into / 'prefix'}", *options],
            env=environment,
        )  # fmt: skip
    run_quietly(["meson", "install", "-C", meson, "--quiet"], env=environment)
    driver = into / "driver.so"
    source = FUZZ / "driver.c"
    if not driver.exists() or driver.stat().st_mtime < source.stat().st_mtime:
        run_quietly(
            ["clang", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra",
             f"-I{sysconfig.get_path('include')}", source,
             "-Wl,--whole-archive", library, "-Wl,--no-whole-archive", "-lstdc++", "-lpthread", "-ldl", "-lm",
             "-o", driver],
        )  # fmt: skip


def drive(target: str, built: pathlib.Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """libFuzzer on one target.  stdout holds its lines and, after a crash, the traceback."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.drive", str(built), target, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def replay(target: str, path: pathlib.Path, built: pathlib.Path = BUILD) -> subprocess.CompletedProcess[str]:
    """One input, once."""
    return drive(target, built, path)


def fuzz(target: str, seconds: int, built: pathlib.Path = BUILD) -> subprocess.CompletedProcess[str]:
    """One target for so long, from the committed corpus and what earlier runs have grown."""
    grown = built / "corpus" / target
    crashes = built / "crashes"
    for folder in (grown, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    words = FUZZ / "dictionaries" / target
    return drive(
        target, built, grown, FUZZ / "corpus" / target,
        f"-max_total_time={seconds}", "-max_len=2048", "-timeout=20", "-rss_limit_mb=1024",
        # An octet nearer to what it is compared with counts as progress: prove.py's defect takes 5 s with it, and
        # in three runs of three more than 30 without.
        "-use_value_profile=1",
        f"-artifact_prefix={crashes}/{target}-", "-print_final_stats=1",
        *([f"-dict={words}"] if words.exists() else []),
    )  # fmt: skip


def names() -> list[str]:
    """The targets, by their folders (the module itself needs the built package)."""
    return sorted(folder.name for folder in (FUZZ / "corpus").iterdir() if folder.is_dir())


def figures(output: str) -> str:
    """Inputs tried and edges covered, out of libFuzzer's last lines; of a target in Python it knows features alone."""
    runs = re.findall(r"^stat::number_of_executed_units: *(\d+)", output, re.MULTILINE)
    covered = re.findall(r" cov: (\d+)", output)
    features = re.findall(r" ft: (\d+)", output)
    reached = f"{covered[-1]} edges" if covered else f"{features[-1] if features else '?'} features"
    return f"{runs[-1] if runs else '?'} inputs, {reached}"


def main() -> int:
    arguments = argparse.ArgumentParser(description="Fuzz the compiled modules.")
    arguments.add_argument("targets", nargs="*", default=None, metavar="TARGET", help=", ".join(names()))
    arguments.add_argument(
        "--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS") or 60), help="in all"
    )
    chosen = arguments.parse_args()
    library = libfuzzer()
    if library is None:
        print(MISSING, end="", file=sys.stderr)
        return 2
    build(BUILD, library)
    targets = chosen.targets or names()
    share_s = max(chosen.seconds // len(targets), 1)
    worst = 0
    for target in targets:
        done = fuzz(target, share_s)
        if done.returncode == 0:
            print(f"{target}: {share_s} s, {figures(done.stdout)}, nothing broke")
        else:
            worst = 1
            print(f"{target}: BROKEN\n{done.stdout[-6000:]}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
