"""Everything that one event loop needs to serve SMTP.

No fork, no thread, no signal handler and no set-up of logging: the supervisor's
workers and the library's Server put this into a loop and give it the outside
world (clock, randomness, counters, log, sink, listening sockets).

Rank 8.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fastsmtp import reply
from fastsmtp._counters import Region
from fastsmtp._dns import Question
from fastsmtp.config.settings import Settings
from fastsmtp.listcare import ListCare
from fastsmtp.log import Log, log_defect
from fastsmtp.metrics import Board, Sheet
from fastsmtp.policy.runner import Observer
from fastsmtp.policy.stage import Stage
from fastsmtp.sink import Sink
from fastsmtp.smtp.connection import Connection
from fastsmtp.smtp.ids import SessionIds
from fastsmtp.smtp.life import STRESSED_COMMAND_S
from fastsmtp.smtp.listener import Listener
from fastsmtp.smtp.meters import Measured, WorkerMeter
from fastsmtp.smtp.profile import Profile

if TYPE_CHECKING:
    from fastsmtp.config.rules import PythonStage
    from fastsmtp.resolver import Asker
    from fastsmtp.smtp.answerers import ClosableAnswerer
    from fastsmtp.smtp.inquiry import Answerer
    from fastsmtp.tls import ServerTls

# The read window inside a body, and while commands are expected.  What a client sends while it has to wait is kept
# up to one window, so the small one bounds what a tarpitted client costs.
WINDOW_BYTES = 65_536
COMMAND_WINDOW_BYTES = 4_096
TICK_S = 0.5
# How often transactions are looked at for limits.transaction_s, which is in minutes.
SWEEP_S = 5.0
# Postfix's stress begins when all server processes are taken; we begin a little earlier.
STRESS_SHARE = 0.8
# Descriptors kept for log, spool files, next hops and the loop itself.
DESCRIPTORS_KEPT = 64


class Service:
    """Serves listeners until drained.

    settings     one a listener; tls beside it, None where the listener has none
    counters     this worker's region of the shared counters
    worker       its number, part of the session ids
    now, wall    monotonic and wall clock, seconds
    descriptors  how many open files this process may have; None: no limit
    resolver     answers the DNS questions of policy; None: nobody does, and rules that need answers are left out.
                 Closed with the service, unless closes_resolver is False
    answerers    who answers questions of other kinds, by the question's class.  Closed with the service
    questions_s  how long the questions of one phase may take
    own_stages   the operator's own stages, as policy.own.load_stages gives them
    observer     told of every stage that ran
    metrics      this worker's sheet; None: one that nobody reads
    measured     what else copies its counts into the metrics with every tick
    """

    def __init__(
        self,
        *,
        settings: Sequence[Settings],
        log: Log,
        counters: Region,
        sink: Sink,
        tls: Sequence[ServerTls | None] = (),
        worker: int = 0,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        descriptors: int | None = None,
        resolver: Asker | None = None,
        closes_resolver: bool = True,
        answerers: Mapping[type, ClosableAnswerer] | None = None,
        questions_s: float = 5.0,
        own_stages: Mapping[PythonStage, Stage] | None = None,
        observer: Observer | None = None,
        metrics: Sheet | None = None,
        measured: Iterable[Measured] = (),
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.log = log
        self.counters = counters
        self.sink = sink
        self.now = now
        self.wall = wall
        self.resolver = resolver
        self._closes_resolver = closes_resolver
        self._answerers = answerers or {}
        self.answerers: Mapping[type, Answerer] = (
            dict(self._answerers) if resolver is None else {**self._answerers, Question: resolver}
        )
        self.know = None if resolver is None else getattr(resolver, "know", None)
        self.questions_s = questions_s
        self.own_stages = own_stages or {}
        self.lists = ListCare(
            [
                zone
                for one in settings
                for zone in (*one.lists, *(z for zones in one.rhsbl.values() for z in zones))
            ],
            resolver,
            log=log,
            now=now,
            random=os.urandom,
            worker=worker,
            timeout_s=questions_s,
        )
        self.lists.tick(now())
        self.metrics = metrics or Board(1).sheet(0)
        self._meter = WorkerMeter(self.metrics, log, counters)
        for source in (self.lists, resolver, *self._answerers.values(), *measured):
            self._meter.add(source)
        self.observer = observer
        self.ids = SessionIds(worker, wall)
        self.buffer = bytearray(WINDOW_BYTES)
        self.window = memoryview(self.buffer)
        self.command_window = self.window[:COMMAND_WINDOW_BYTES]
        # A paused transport and its protocol are a cycle that nothing else refers to: without this set the next
        # garbage collection closes the connection.
        self.connections: set[Connection] = set()
        # The time of the last tick, for all that need not know it better.
        self.tick_s = self._swept_s = now()
        self.is_draining = False
        self._fresh_s = 0.0
        self.is_stressed = False
        self._tls = list(tls) or [None] * len(settings)
        self._profiles = self._make_profiles(settings)
        self._banners: dict[str, reply.Reply] = {}
        self._listeners: list[Listener] = []
        self._capacity = None if descriptors is None else max(1, descriptors - DESCRIPTORS_KEPT)
        self._connections_max = min((s.limits.connections for s in settings), default=0)
        self._timer = self.loop.call_later(TICK_S, self.tick)
        self._empty: asyncio.Event = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()

    def _make_profiles(self, settings: Sequence[Settings]) -> list[Profile]:
        return [Profile(self, one, self._tls[at]) for at, one in enumerate(settings)]

    async def listen(self, at: int, sock: socket.socket) -> None:
        """Accept on this bound socket with the settings of listener `at`.  The service owns the socket now."""
        listener = Listener(self, at, self._profiles[at], sock)
        await listener.open()
        self._listeners.append(listener)

    def update(self, settings: Sequence[Settings]) -> None:
        """New settings, as many as before, for the connections that are accepted from now on."""
        if len(settings) != len(self._profiles):
            raise ValueError("listeners can't be added or removed in place")
        self._profiles = self._make_profiles(settings)
        self._connections_max = min((s.limits.connections for s in settings), default=0)
        for listener in self._listeners:
            listener.profile = self._profiles[listener.at]

    def profile(self, at: int) -> Profile:
        """Of listener `at`, as it is now."""
        return self._profiles[at]

    def banner(self, profile: Profile) -> reply.Reply:
        name = profile.settings.greeting or profile.settings.hostname
        banner = self._banners.get(name)
        if banner is None:
            banner = self._banners[name] = reply.banner(name)
        return banner

    # --- called by connections -------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._capacity is not None and len(self.connections) >= self._capacity:
            self._pause()

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self.is_draining and not self.connections:
            self._empty.set()

    def log_failure(self, what: str, error: BaseException) -> None:
        """An exception of ours that belongs to no session."""
        log_defect(self.log, error, what=what)

    # --- time ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Every TICK_S: deadlines, heartbeat, stress, log.  One timer a worker, whatever the number of connections."""
        self._timer = self.loop.call_later(TICK_S, self.tick)
        self.tick_s = now = self.now()
        self.counters.beat(now)
        self._feel_stress()
        self._meter.publish()
        for connection in [c for c in self.connections if c.since_s + c.patience_s <= now or c.ends_s <= now]:
            self._expire(connection, now)
        if now - self._swept_s >= SWEEP_S:
            self._swept_s = now
            self.lists.tick(now)
            for connection in [c for c in self.connections if c.is_transaction_over(now)]:
                self._expire(connection, now)
        if self.is_stressed or self.is_draining:
            # Whom we hold back holds a place: who is held back ends sooner if we are quick.
            for connection in [c for c in self.connections if c.is_held_back]:
                self._end_pause(connection)
        if self.is_stressed:
            for connection in [c for c in self.connections if c.is_idle_since(now) > STRESSED_COMMAND_S]:
                connection.say_goodbye(reply.OVERLOADED)
        if self.is_draining:
            self._send_idle_away()
        elif self._listeners and self._listeners[0].is_paused and self._has_room():
            self._go_on()
        self.log.flush()

    def _expire(self, connection: Connection, now: float) -> None:
        try:
            connection.expired(now)
        except Exception as error:  # noqa: BLE001 - one connection's defect must not stop the clock of all others
            self.log_failure("deadline", error)

    def _end_pause(self, connection: Connection) -> None:
        try:
            connection.end_pause()
        except Exception as error:  # noqa: BLE001 - as in _expire()
            self.log_failure("pause", error)

    def _feel_stress(self) -> None:
        """From the high-water mark on, silent clients make room (Postfix's stress)."""
        is_stressed = self.counters.connections() > STRESS_SHARE * self._connections_max
        if is_stressed is not self.is_stressed:
            self.is_stressed = is_stressed
            found = self.counters.connections()
            if is_stressed:
                self.log.line(
                    "overload", limit="limits.connections", allowed=self._connections_max, found=found
                )
            else:
                self.log.line("overload_end", limit="limits.connections", found=found)

    # --- descriptors -----------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return self._capacity is None or len(self.connections) < self._capacity * 0.95

    def _pause(self) -> None:
        if any(not listener.is_paused for listener in self._listeners):
            self.log.line("overload", limit="open files", allowed=self._capacity, found=len(self.connections))
        for listener in self._listeners:
            listener.pause()

    def _go_on(self) -> None:
        self.log.line("overload_end", limit="open files", found=len(self.connections))
        for listener in self._listeners:
            task = self.loop.create_task(listener.open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    # --- the end ---------------------------------------------------------------------------------

    async def drain(self, timeout_s: float, fresh_s: float = 0.0) -> None:
        """Stop accepting, finish transactions, tell idle sessions 421 4.3.2; at the time-out close what is left.

        fresh_s  so long after accept a session that has brought no message yet may still begin: a client that
                 connected in the moment of a reload is served, not refused
        """
        self.is_draining = True
        self._fresh_s = fresh_s
        for listener in self._listeners:
            listener.close()
        for _ in range(3):
            # What the loop has accepted but not yet made known must be told 421 as well.
            await asyncio.sleep(0)
        if self.connections:
            self._send_idle_away()
            try:
                await asyncio.wait_for(self._empty.wait(), timeout_s)
            except TimeoutError:
                self.log.line("drain", found=len(self.connections), reason="closed at the time-out")
        await self.close()

    def _send_idle_away(self) -> None:
        now = self.now()
        for connection in [c for c in self.connections if c.is_idle]:
            if not connection.is_fresh(now - self._fresh_s) and not connection.has_just_spoken(now - TICK_S):
                connection.say_goodbye(reply.SHUTTING_DOWN)

    async def close(self) -> None:
        """Close everything now."""
        self.is_draining = True
        self._timer.cancel()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for connection in list(self.connections):
            connection.abort()
        for _ in range(3):
            # connection_lost is called by the loop in one of its next turns.
            await asyncio.sleep(0)
        await self.sink.close()
        self.lists.close()
        for answerer in self._answerers.values():
            await answerer.close()
        self._meter.publish()
        if self.resolver is not None and self._closes_resolver:
            self.resolver.close()
        self.log.flush()
