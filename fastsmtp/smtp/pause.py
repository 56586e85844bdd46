"""A reply that is held back: a tarpit's, or any other Delay's.

It is no task and has no timer: the connection waits as it waits for a client, and the service's tick ends it
(docs/decisions/0002-time-is-a-sweep.md).  So ten thousand slow sessions cost what they hold, and nothing else.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from fastsmtp.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsmtp.promise import Promise
    from fastsmtp.reply import Reply


class Pause:
    """For so many seconds nothing is said; then `then` says it."""

    __slots__ = ("seconds", "then")

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        self.seconds = seconds
        self.then = then


class Coming:
    """The sink's answer comes by itself, without a task; then `then` is told."""

    __slots__ = ("promise", "then")

    def __init__(self, promise: Promise, then: Callable[[Reply | Exception], None]) -> None:
        self.promise = promise
        self.then = then


# What a handler gives the connection: nothing, when all is done; something to be awaited, which may end in a Pause;
# or a Pause, or what comes by itself.
Wait = Coroutine[Any, Any, "Pause | None"] | Pause | Coming | None


async def rest(wait: Wait) -> Pause | None:
    """For who is awaited already: what a further handler gave."""
    if wait is None or type(wait) is Pause:
        return wait
    if type(wait) is Coming:
        try:
            answer: Reply | Exception = await wait.promise
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for it says what becomes of it
            answer = error
        wait.then(answer)
        return None
    ended: Pause | None = await wait  # type: ignore[misc]
    return ended
