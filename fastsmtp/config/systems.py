"""[[policy.p0f.match]] as a look-up: what is said about an operating system by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from fastsmtp.config.rules import P0fMatch
from fastsmtp.typed import Final

# p0f has some 60 names; more can only come from whoever writes its signatures.
_KEPT_MOST: Final = 1_000


class Systems:
    """The first rule whose pattern fits a name: "Windows *" fits "Windows XP", and "Windows" too.

    "*" is any text, "?" any character, letters count alike; "" is a system that p0f doesn't know.
    """

    __slots__ = ("_found", "_rules")

    def __init__(self, rules: Iterable[P0fMatch] = ()) -> None:
        self._rules = [(re.compile(translate(rule.os), re.IGNORECASE), rule) for rule in rules]
        self._found: dict[str, P0fMatch | None] = {}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def find(self, name: str) -> P0fMatch | None:
        try:
            return self._found[name]
        except KeyError:
            pass
        found = next((rule for fits, rule in self._rules if fits.match(name) or fits.match(f"{name} ")), None)
        if len(self._found) < _KEPT_MOST:
            self._found[name] = found
        return found


NO_SYSTEMS: Final = Systems()
