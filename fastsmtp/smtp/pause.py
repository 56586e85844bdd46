"""A reply that is held back: a tarpit's, or any other Delay's.

It is no task and has no timer: the connection waits as it waits for a client, and the service's tick ends it
(docs/decisions/0002-time-is-a-sweep.md).  So ten thousand slow sessions cost what they hold, and nothing else.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any


class Pause:
    """For so many seconds nothing is said; then `then` says it."""

    __slots__ = ("seconds", "then")

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        self.seconds = seconds
        self.then = then


# What a handler gives the connection: nothing, when all is done; something to be awaited, which may end in a Pause;
# or a Pause.
Wait = Coroutine[Any, Any, "Pause | None"] | Pause | None


async def rest(wait: Wait) -> Pause | None:
    """For who is awaited already: what a further handler gave."""
    return wait if wait is None or type(wait) is Pause else await wait  # type: ignore[misc]
