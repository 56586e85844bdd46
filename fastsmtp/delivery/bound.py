"""One source whose address depends on the destination's: what qmail-remote's control files come to.

An address that can't be bound is as a server that doesn't answer: the next one is tried, and nothing leaves
from another address of ours.

Rank 6.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from fastsmtp import errors
from fastsmtp.config.routes import Route
from fastsmtp.delivery.source import Sources, SourceState

Bound = Callable[[str], str]
"""Destination address -> our address to bind, "" for the system's choice.  Raises errors.NextHopDown."""


class BoundState(SourceState):
    """See source.SourceState; it has no name, and no limits of its own."""

    __slots__ = ("_bound",)

    def __init__(self, helo: str, bound: Bound) -> None:
        super().__init__(None, helo)
        self._bound = bound

    def local_address(self, address: str) -> str:
        return self._bound(address)

    def socket_for(self, address: str) -> socket.socket:
        try:
            return super().socket_for(address)
        except errors.SourceUnusable as error:
            raise errors.NextHopDown(f"{address}: cannot send from {error}") from None


class BoundSources(Sources):
    """For every route the same one."""

    def __init__(self, helo: str, bound: Bound) -> None:
        super().__init__(helo, float)
        self.default = BoundState(helo, bound)

    def choose(self, route: Route, now: float, without: Iterable[SourceState] = ()) -> SourceState | None:
        return self.default
