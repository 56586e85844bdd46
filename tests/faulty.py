"""An `os` that fails where a test wants it: the disk full, the disk broken."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any


class FaultyOs:
    """os, but call number `at` (from 1) of `name` raises OSError(number).

    calls counts the calls, open_fds holds the descriptors that are open.
    """

    def __init__(self, name: str = "", at: int = 0, number: int = 0) -> None:
        self._name = name
        self._at = at
        self._number = number
        self.calls: Counter[str] = Counter()
        self.open_fds: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            if name == self._name and self.calls[name] == self._at:
                raise OSError(self._number, os.strerror(self._number))
            result = real(*arguments, **named)
            if name == "open":
                self.open_fds.add(result)
            elif name == "close":
                self.open_fds.discard(arguments[0])
            return result

        return call
