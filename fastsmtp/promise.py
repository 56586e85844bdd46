"""An answer that comes by itself: what a sink gives for a commit that many share.

Rank 3: waits on the loop where it is awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from fastsmtp.typed import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import asyncio

    from fastsmtp.reply import Reply


class Promise:
    """An answer to commit() that comes by itself: an awaitable that costs no task.

    value   the Reply, or the exception that came instead; None while it is on its way
    """

    __slots__ = ("_then", "value")

    def __init__(self) -> None:
        self.value: Reply | Exception | None = None
        self._then: Callable[[Reply | Exception], object] | None = None

    def keep(self, value: Reply | Exception) -> None:
        """It is known; once."""
        self.value = value
        if self._then is not None:
            self._then(value)

    def then(self, callback: Callable[[Reply | Exception], object]) -> None:
        """Call back when it is known, and now if it is; one callback only.  It must not raise."""
        if self.value is None:
            self._then = callback
        else:
            callback(self.value)

    def __await__(self) -> Generator[Any, None, Reply]:
        import asyncio

        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.then(lambda value: None if future.done() else future.set_result(None))
        yield from future
        if isinstance(self.value, Exception):
            raise self.value
        return cast("Reply", self.value)
