"""The addresses that we send from, and how they do.

Which source a message takes is the route's choice, by weight.  One whose address can't be bound is left
alone for a while; its mail waits, unless the source says "next": then another one of the route's takes it.
Nothing is ever sent from an address that the route does not name.

Rank 6: sockets are made and bound here, connected elsewhere.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable

from fastsmtp.config.routes import Route, Source
from fastsmtp.delivery.rate import Rate
from fastsmtp.errors import SourceUnusable

# How long an address that could not be bound is left alone, in seconds.
REST_S = 60.0

# Linux' IP_BIND_ADDRESS_NO_PORT (ip(7)): the port is chosen at connect, so that 28,000 ports last for each
# destination and not for all of them.
_BIND_ADDRESS_NO_PORT = 24

Random = Callable[[], float]


class SourceState:
    """One source in this process; the system's own choice is one, too, with no address to bind.

    share_of     the limits are of all delivery processes: this one has its part
    open_count   connections from it, those that are being made included
    bad_until_s  not to be used before; reason  why
    """

    __slots__ = ("bad_until_s", "connections", "helo", "open_count", "rate", "reason", "source")

    def __init__(self, source: Source | None, helo: str, processes: int = 1) -> None:
        self.source = source
        self.helo = source.helo if source is not None and source.helo else helo
        self.connections = 0 if source is None else max(1, source.connections // processes)
        self.rate = Rate(0.0 if source is None else source.messages_per_s / processes)
        self.open_count = 0
        self.bad_until_s = 0.0
        self.reason = ""

    @property
    def name(self) -> str:
        return "" if self.source is None else self.source.name

    @property
    def is_full(self) -> bool:
        return bool(self.connections) and self.open_count >= self.connections

    def has_family(self, address: str) -> bool:
        """Whether a destination address can be reached from it."""
        if self.source is None:
            return True
        return bool(self.source.ipv6 if ":" in address else self.source.ipv4)

    def local_address(self, address: str) -> str:
        """What is bound for this destination; "" for the system's choice."""
        if self.source is None:
            return ""
        return self.source.ipv6 if ":" in address else self.source.ipv4

    def socket_for(self, address: str) -> socket.socket:
        """A socket bound for this destination.  Raises errors.SourceUnusable; OSError without a source."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        local = self.local_address(address)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if local:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                bind(sock, local)
        except OSError as error:
            sock.close()
            raise SourceUnusable(f"{local}: {error.strerror or error}") from None
        except BaseException:
            sock.close()
            raise
        return sock


def bind(sock: socket.socket, local: str) -> None:
    """Bind to an address of ours, any port.  Raises OSError."""
    if ":" in local:
        host, _, zone = local.partition("%")
        sock.bind((host, 0, 0, socket.if_nametoindex(zone) if zone else 0))
    else:
        sock.bind((local, 0))


def fault_of_binding(local: str) -> str:
    """Why an address can't be sent from, in the system's words; "" when it can."""
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            bind(sock, local)
    except OSError as error:
        return error.strerror or str(error)
    return ""


class Sources:
    """All sources of a process, and the choice among a route's.

    random   a number from 0.0 to 1.0, 1.0 excluded
    """

    def __init__(self, helo: str, random: Random, processes: int = 1) -> None:
        self._helo = helo
        self._random = random
        self._processes = processes
        self._states: dict[Source, SourceState] = {}
        self.default = SourceState(None, helo)

    def of(self, source: Source) -> SourceState:
        state = self._states.get(source)
        if state is None:
            state = self._states[source] = SourceState(source, self._helo, self._processes)
        return state

    def known(self) -> Iterable[SourceState]:
        return self._states.values()

    def choose(self, route: Route, now: float, without: Iterable[SourceState] = ()) -> SourceState | None:
        """The source of a message; None when each that may be taken has just failed.

        One that is bad and says "defer" keeps its share, which waits; one that says "next" has left the pool.
        without   those that this message has tried
        """
        sources = route.sources
        if not sources:
            return self.default
        if len(sources) == 1 and not without:
            return self.of(sources[0][0])
        tried = set(without)
        states = [(self.of(source), weight) for source, weight in sources]
        states = [
            (state, weight)
            for state, weight in states
            if state not in tried
            and (state.bad_until_s <= now or (state.source is not None and not state.source.may_pass_on))
        ]
        total = sum(weight for _, weight in states)
        point = self._random() * total
        for state, weight in states:
            point -= weight
            if point < 0.0:
                return state
        return states[-1][0] if states else None
