"""The process that libFuzzer runs in:  python -m tests.fuzz.drive BUILD TARGET [libFuzzer's arguments]

BUILD is what run.py made: site/ with the instrumented package, driver.so beside it.
"""

from __future__ import annotations

import importlib
import os
import sys
import zlib
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


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
    function = targets.TARGETS[target]
    if target in targets.IN_PYTHON:
        function = counting(function, driver.lines, os.path.join(build, "site"))
    driver.run([target, *arguments], function)


def counting(function: Callable[[bytes], None], counters: memoryview, folder: str) -> Callable[[bytes], None]:
    """The function; each step from one line to the next in a module below the folder counts, as an edge does in C."""
    places: dict[CodeType, int] = {}
    before = 0

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal before
        if event == "line":
            here = places[frame.f_code] + frame.f_lineno
            at = (here ^ before >> 1) % len(counters)
            before = here
            if counters[at] < 255:
                counters[at] += 1
        return step

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(folder):
            return None
        if code not in places:
            places[code] = zlib.crc32(f"{code.co_filename}:{code.co_qualname}".encode())
        return step

    def run(data: bytes) -> None:
        nonlocal before
        before = 0
        sys.settrace(called)
        try:
            function(data)
        finally:
            sys.settrace(None)

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
