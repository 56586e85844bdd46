"""The process that shows the metrics: GET /metrics for Prometheus, and /healthz.

It only reads the shared mapping, has no rights, no configuration but its address, and is no part of anything: its
death costs a scrape.  The format (text or OpenMetrics, by Accept) is prometheus_client's, which no other
process imports.

Rank 9.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from fastsmtp.admin.catalogue import declared
from fastsmtp.admin.http import Answer, Front
from fastsmtp.config.endpoint import parse_endpoint
from fastsmtp.errors import ConfigError
from fastsmtp.log import Log
from fastsmtp.metrics import Board, Declared, Histogram
from fastsmtp.supervisor.shapes import Aside, Seat

if TYPE_CHECKING:
    from prometheus_client.core import Metric

UNIX: Final = "unix:"
MICROSECOND: Final = 1e-6

FRESH_S: Final = 0.5
"""A page of this age is shown again: whoever asks all the time costs no more than two pages a second."""


class Exposition:
    """The aside; see supervisor.shapes.

    listen  HOST:PORT or unix:PATH
    log     of the master; the process itself writes none
    """

    name = "metrics"
    order = 0

    def __init__(self, listen: str, user: str, log: Log) -> None:
        self.user = user
        self._listen = listen
        self._log = log
        self._socket: socket.socket | None = None

    @property
    def descriptors(self) -> Sequence[int]:
        return [] if self._socket is None else [self._socket.fileno()]

    def is_same(self, other: Aside) -> bool:
        return isinstance(other, Exposition) and (other._listen, other.user) == (self._listen, self.user)

    def own(self, account: tuple[int, int] | None) -> None:
        """Bind, as root where we are; the socket stays ours, so a client of a dead process waits for the next."""
        if self._socket is None:
            self._socket = bound(self._listen)
            where = self._socket.getsockname()
            shown = where if isinstance(where, str) else f"{where[0]}:{where[1]}"
            self._log.line("listening", listener=self.name, address=shown)

    def prepare(self) -> None:
        """An account without rights need not be able to read where Python's modules are."""
        import prometheus_client.exposition  # noqa: F401

    def release(self) -> None:
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        if self._listen.startswith(UNIX):
            with suppress(OSError):
                os.unlink(self._listen.removeprefix(UNIX))

    async def start(self, seat: Seat) -> Answerer:
        if self._socket is None:
            raise ConfigError("metrics.listen: there is no socket")
        page = MetricsPage(seat.board, time.monotonic)
        front = Front({"/metrics": page.answer, "/healthz": healthy})
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        if self._listen.startswith(UNIX):
            server = await loop.create_unix_server(front.connection, sock=self._socket)
        else:
            server = await loop.create_server(front.connection, sock=self._socket)
        return Answerer(server, front)


class Answerer:
    """See shapes.Running."""

    def __init__(self, server: asyncio.AbstractServer, front: Front) -> None:
        self._server = server
        self._front = front

    async def replace(self, files: Mapping[str, bytes]) -> None:
        """No file matters here."""

    async def drain(self, timeout_s: float) -> None:
        """Nobody waits for more than a page."""

    async def close(self) -> None:
        self._server.close()
        self._front.close()


def bound(listen: str) -> socket.socket:
    """A listening socket.  ConfigError: it can't be."""
    try:
        if listen.startswith(UNIX):
            return _bound_unix(listen.removeprefix(UNIX))
        host, port = parse_endpoint(listen)
        family, kind, number, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, number)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            sock.listen()
        except OSError:
            sock.close()
            raise
        return sock
    except OSError as error:
        raise ConfigError(f"metrics.listen: cannot listen on {listen}: {error.strerror or error}") from None


def _bound_unix(path: str) -> socket.socket:
    """What a killed server left there is removed; a living one's is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            with suppress(FileNotFoundError):
                os.unlink(path)
        else:
            raise ConfigError(f"metrics.listen: something else listens on {path}")
        sock.close()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        # As a port on loopback would be: whoever is on this machine may look.
        os.chmod(path, 0o666)  # noqa: S103
        sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock


def healthy(accept: str) -> Answer:
    """That this process lives."""
    return Answer("text/plain; charset=utf-8", b"ok\n")


class MetricsPage:
    """The numbers of a board in Prometheus' formats."""

    def __init__(self, board: Board, now: Callable[[], float]) -> None:
        from prometheus_client import CollectorRegistry

        self._board = board
        self._now = now
        self._declared = declared()
        self._made: dict[str, tuple[float, Answer]] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def answer(self, accept: str) -> Answer:
        """The page in the format that fits Accept."""
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        now = self._now()
        made = self._made.get(content_type)
        if made is None or now - made[0] >= FRESH_S:
            # A few content types, whatever Accept says: old pages of others go.
            self._made = {kind: old for kind, old in self._made.items() if now - old[0] < FRESH_S}
            self._made[content_type] = made = now, Answer(content_type, encode(self._registry))
        return made[1]

    def collect(self) -> Iterable[Metric]:
        """What prometheus_client asks of a collector."""
        found: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for key, value in self._board.read().items():
            name, *labels = key[1:].decode("utf-8", "replace").split("\0")
            found.setdefault(name, []).append((tuple(labels), value))
        for name, one in self._declared.items():
            if name in found:
                yield _family(one, found[name])


def _family(one: Declared, series: list[tuple[tuple[str, ...], int]]) -> Metric:
    """One metric with all its label values, in their order."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    series.sort()
    if isinstance(one, Histogram):
        histogram = HistogramMetricFamily(one.name, one.text, labels=one.labels)
        cells: dict[tuple[str, ...], dict[str, int]] = {}
        for labels, value in series:
            cells.setdefault(labels[:-1], {})[labels[-1]] = value
        for labels, counts in cells.items():
            buckets, seen = [], 0
            for at, bound_s in enumerate((*map(str, one.bounds_s), "+Inf")):
                seen += counts.get(str(at), 0)
                buckets.append((bound_s, float(seen)))
            total = counts.get(str(len(buckets)), 0) * MICROSECOND
            histogram.add_metric(labels, buckets, total)
        return histogram
    counter = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
    family = counter(one.name, one.text, labels=one.labels)
    unit = MICROSECOND if one.name.endswith(("_seconds_total", "_seconds")) else 1
    for labels, value in series:
        family.add_metric(labels, value * unit)
    return family
