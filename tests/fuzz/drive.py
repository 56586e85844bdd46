"""The process that libFuzzer runs in:  python -m tests.fuzz.drive BUILD TARGET [libFuzzer's arguments]

BUILD is what run.py made: site/ with the instrumented package, driver.so beside it.
"""

from __future__ import annotations

import importlib
import os
import sys


def main(build: str, target: str, *arguments: str) -> None:
    # The driver holds libFuzzer's own symbols; the instrumented modules look for them in the global scope.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
    sys.path[:0] = [os.path.join(build, "site"), build]
    driver = importlib.import_module("driver")
    sys.setdlopenflags(flags)
    targets = importlib.import_module("tests.fuzz.targets")
    parser = importlib.import_module("fastsmtp._parser")
    if not str(parser.__file__).startswith(os.path.join(build, "site")):
        sys.exit(f"{parser.__file__} is not the instrumented module")
    driver.run([target, *arguments], targets.TARGETS[target])


if __name__ == "__main__":
    main(*sys.argv[1:])
