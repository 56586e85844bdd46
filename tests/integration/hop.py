"""A NextHop in a thread of its own, for tests that block."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from tests.nexthop import NextHop


class Hop:
    """`with Hop(...) as hop:` is a NextHop that serves meanwhile."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __enter__(self) -> NextHop:
        started = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.stop = asyncio.Event()
        self.failure: OSError | None = None

        async def serve() -> None:
            try:
                async with NextHop(**self.options) as self.hop:
                    started.set()
                    await self.stop.wait()
            except OSError as error:
                self.failure = error
                started.set()

        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(serve()))
        self.thread.start()
        assert started.wait(60)
        if self.failure is not None:
            self._end()
            raise self.failure
        return self.hop

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self._end()

    def _end(self) -> None:
        self.thread.join()
        self.loop.close()
