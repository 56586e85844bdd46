"""What we use of typing, for modules that `fastsmtp smtpd` imports at each start: typing costs it 3 ms.

For a type checker these are typing's own; when the program runs, nearly all of them are nothing at all,
since annotations are never looked at (`from __future__ import annotations`).

Rank 0: imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Final, Literal, NoReturn, Protocol, TypeVar, cast

    __all__ = [
        "TYPE_CHECKING",
        "Any",
        "ClassVar",
        "Final",
        "Literal",
        "NoReturn",
        "Protocol",
        "TypeVar",
        "cast",
    ]
else:

    class _Nothing:
        """Stands where a type would; X[...] is nothing as well."""

        __slots__ = ()

        def __getitem__(self, item):
            return self

        def __or__(self, other):
            return self

        __ror__ = __or__

    Any = object
    ClassVar = Final = Literal = NoReturn = _Nothing()

    class Protocol:
        """A class of this kind is for the type checker; nothing is an instance of it."""

        __slots__ = ()

    def TypeVar(name, *bounds, **more):
        """As a name it is of no use when the program runs."""
        return object

    def cast(kind, value):
        """The value."""
        return value
