"""Regular expressions that are compiled when they are first used.

re.compile at the top of a module costs 0.1 to 0.3 ms at each start, used or not; together a tenth of the
start of `fastsmtp smtpd`, which uses few of them.

Rank 0: imports nothing but what Python has loaded already.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from re import compile

    __all__ = ["compile"]
else:

    class _Later:
        """A pattern that isn't compiled yet; once it is, its methods are the compiled one's own."""

        def __init__(self, text, flags):
            self._text = text
            self._flags = flags

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            import re

            made = re.compile(self._text, self._flags)
            for method in ("match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"):
                setattr(self, method, getattr(made, method))
            self.pattern = made.pattern
            return getattr(made, name)

    def compile(text, flags=0):
        """As re.compile; a wrong pattern is told when it is used, so a test uses each."""
        return _Later(text, flags)
