"""DNS for any asyncio program: many questions in, as many answers out, one deadline.

    resolver = Resolver()
    mx, a = await resolver.ask((Question(b"example.org", MX), Question(b"example.org", A)))

An answer is a value whatever happened: records, "there is no such name", a
time-out.  Nothing here raises for what the network does.  How it stays cheap
is in _dns.pyx; what is decided here is which server is asked, when again, and
when over TCP.  docs/dns.md is the manual.

Make a Resolver before or after the fork, use it only after: sockets, random
bytes and the c-ares channel come with the first question.  Rank 3.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from fastsmtp._dns import (
    CASE,
    FAILED,
    NO_EDNS,
    NOBODY,
    TIMED_OUT,
    TRUNCATED,
    Answer,
    Batch,
    Engine,
    Mx,
    Open,
    Port,
    Question,
    Server,
    Soa,
    Srv,
    Status,
    Tlsa,
    make_answer,
)
from fastsmtp.dns_meters import ResolverMeter
from fastsmtp.dns_servers import Options, connected_socket, servers_of, system_servers
from fastsmtp.dns_tcp import Stream
from fastsmtp.hosts import Hosts
from fastsmtp.metrics import Sheet

__all__ = [
    "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TLSA", "TXT", "A", "Answer", "Asker", "Hosts", "Mx",
    "Question", "Resolver", "Server", "Soa", "Srv", "Status", "Tlsa", "make_resolver",
]  # fmt: skip

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, TLSA = 1, 2, 5, 6, 12, 15, 16, 28, 33, 52

# Sockets a server: each batch leaves from one of them, drawn at random.
POOL = 8
# Queries that leave at once; more wait for the next tick: a server's socket takes some 270 (212 kB of buffer).
BURST = 128
# How exact deadlines and retries are.
TICK_S = 0.05
# Silence before the next try, for the first, second and every later one.  glibc waits 5 s, unbound's first
# guess is 0.4 s; a recursive server needs up to a second for a cold name.
WAITS_S = (1.0, 1.5, 2.5)
TCP_WAIT_S = 3.0
# Silences in a row after which another server is preferred, and for how long at first and at most.
FAILURES = 3
BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
# Answers in other letters, with never one in ours, after which a server is asked in small letters only.
CASE_MISSES = 3
EDNS_REFUSALS = 3

Answers = tuple[Answer, ...]


class Asker(Protocol):
    """What both engines are to their users."""

    async def ask(self, questions: Sequence[Question], deadline: float | None = None) -> Answers:
        """The answers in the order of the questions; deadline is absolute, on time.monotonic()."""

    def put(
        self, questions: Sequence[Question], deadline: float, callback: Callable[[Answers], object]
    ) -> Answers | None:
        """The answers when all are known; else None, and callback(answers) is called once, later."""

    def close(self) -> None:
        """Answer what is open and give everything back."""


class Resolver:
    """The resolver of one worker, on the running loop.

    servers      "address", "address:port" or "[v6]:port", asked in this order; () for resolv.conf
    timeout_s    the deadline of an ask() that names none
    cache_bytes  of all workers together; this one gets its share
    trusts_ad    believe the AD bit of servers that are not on loopback
    clock        seconds, monotonic;  random(n)  n unpredictable bytes
    engine       Engine, with the counts: queries, answers, timeouts, late, duplicates, forged, joined ...
    name_servers list of Server, each with its own counts and latency
    retries      how often a question was asked again
    """

    def __init__(
        self,
        servers: Iterable[str] = (),
        *,
        timeout_s: float = 5.0,
        cache_bytes: int = 67_108_864,
        workers: int = 1,
        trusts_ad: bool = False,
        mixes_case: bool = True,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = os.urandom,
        one_by_one: bool = False,
    ) -> None:
        self.timeout_s = timeout_s
        self.engine = Engine(random, cache_bytes=max(65_536, cache_bytes // workers), one_by_one=one_by_one)
        self.name_servers: list[Server] = []
        self.retries = 0
        self._meter: ResolverMeter | None = None
        self._texts = tuple(servers)
        self._trusts_ad = trusts_ad
        self._mixes_case = mixes_case
        self._clock = clock
        self._options = Options()
        self._waits_s: tuple[float, ...] = WAITS_S
        self._most_attempts = 3
        self._turn = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._retired: list[Port] = []
        self._streams: dict[Server, Stream] = {}
        self._on_tcp: dict[Open, Stream] = {}
        self._is_closed = False

    async def ask(self, questions: Sequence[Question], deadline: float | None = None) -> Answers:
        """The answers in the order of the questions, at the latest at the deadline (within TICK_S).

        deadline is absolute, on time.monotonic(); None: timeout_s from now.  What is not known by then is
        answered TIMEOUT.
        """
        now = self._clock()
        if self._is_closed:
            return self._refuse(questions)
        batch = self.engine.ask(questions, now + self.timeout_s if deadline is None else deadline, now, None)
        if batch.missing == 0:
            return batch.done()
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

        def answered(answers: Answers) -> None:
            if not future.done():
                future.set_result(answers)

        batch.callback = answered
        self._dispatch(batch, now)
        return await future

    def put(
        self, questions: Sequence[Question], deadline: float, callback: Callable[[Answers], object]
    ) -> Answers | None:
        """The same without a coroutine: the answers if all are known now, else None.

        callback(answers) is then called once, never from within put(), at the latest at the deadline.
        """
        now = self._clock()
        if self._is_closed:
            return self._refuse(questions)
        batch = self.engine.ask(questions, deadline, now, callback)
        if batch.missing == 0:
            return batch.done()
        self._dispatch(batch, now)
        return None

    def peek(self, question: Question) -> Answer | None:
        """The answer if the cache has it."""
        return self.engine.peek(question, self._clock())

    def know(self, questions: tuple[object, ...]) -> tuple[Answer, ...] | None:
        """The answers if the cache has all of them, else None."""
        return self.engine.know(questions, self._clock())

    def measure(self, sheet: Sheet) -> None:
        """From now on publish() copies all counts to this sheet."""
        self._meter = ResolverMeter(sheet, self.engine)

    def publish(self) -> None:
        """Copy the counts into the metrics, where measure() was called."""
        if self._meter is not None:
            self._meter.publish(self.name_servers, self.retries, self._clock())

    def close(self) -> None:
        """Answer everything that is open with TIMEOUT and close the sockets."""
        self._is_closed = True
        now = self._clock()
        for question in self.engine.opens():
            self.engine.settle(question, now, Status.TIMEOUT)
        if self._loop is None:
            return
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._on_tcp.clear()
        for server in self.name_servers:
            self._retired.extend(port for port in server.ports if port is not None)
            server.ports = []
        for port in self._retired:
            self._close_port(port)
        self._retired.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @staticmethod
    def _refuse(questions: Sequence[Question]) -> Answers:
        return tuple(make_answer(Status.UNREACHABLE) for _ in questions)

    def _dispatch(self, batch: Batch, now: float) -> None:
        """Send what is new in a batch."""
        if self._timer is None:
            self._start()
        fresh = batch.fresh
        if fresh is None:
            return
        number = self._choose(0, now)
        if self._options.uses_tcp:
            for question in fresh:
                self._ask_stream(question, number)
        else:
            self._send(fresh, number, now)

    # ----------------------------------------------------- which server

    def _start(self) -> None:
        """The timer; the first time the servers too."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            texts = self._texts
            if not texts:
                texts, self._options = system_servers()
            trusts_ad = self._trusts_ad or self._options.trusts_ad
            self.name_servers = servers_of(texts, trusts_ad=trusts_ad, mixes_case=self._mixes_case)
            for server in self.name_servers:
                server.ports = [None] * POOL
            if self._options.timeout_s is not None:
                self._waits_s = tuple(min(wait_s, self._options.timeout_s) for wait_s in WAITS_S)
            self._most_attempts = max(3, (self._options.attempts or 2) * len(self.name_servers))
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def _choose(self, tried: int, now: float) -> int:
        """The number of the server to ask: the first well one that was not tried, else an untried, else any.

        A server that was silent gets one batch each time its time is up, until it answers again.
        """
        servers = self.name_servers
        count = len(servers)
        if count == 1:
            return 0
        if self._options.is_rotated:
            self._turn += 1
        order = [(self._turn + i) % count for i in range(count)]
        untried = [number for number in order if not tried >> number & 1] or order
        for number in untried:
            server = servers[number]
            if server.down_until <= now:
                if server.down_until > 0.0:
                    server.down_until = now + server.backoff_s
                return number
        return min(untried, key=lambda number: servers[number].down_until)

    def _mark(self, server: Server, now: float) -> None:
        """After a silence: prefer the others for a while once it was silent often enough."""
        if server.failures >= FAILURES and server.down_until <= now and len(self.name_servers) > 1:
            server.backoff_s = min(max(BACKOFF_S, server.backoff_s * 2), MAX_BACKOFF_S)
            server.down_until = now + server.backoff_s

    # ------------------------------------------------------------- UDP

    def _send(self, questions: list[Open], number: int, now: float) -> None:
        server = self.name_servers[number]
        if len(questions) > BURST:
            for question in questions[BURST:]:
                question.due = now
            questions = questions[:BURST]
        slot = self.engine.draw(POOL)
        port = server.ports[slot]
        if port is None or port.is_spent(now):
            port = self._open_port(server, slot, now)
            if port is None:
                self._unreachable(questions, number, now)
                return
        attempt = questions[0].attempts
        wait_s = self._waits_s[min(attempt, len(self._waits_s) - 1)]
        error = self.engine.send(port, questions, now, wait_s, 1 << number)
        if error and error not in (errno.EAGAIN, errno.ENOBUFS):
            self._mark_unreachable(server, now)

    def _open_port(self, server: Server, slot: int, now: float) -> Port | None:
        """A new socket in this place of the pool; the old one is closed when its questions are answered."""
        assert self._loop is not None
        old = server.ports[slot]
        server.ports[slot] = None
        if old is not None:
            self._retired.append(old)
        try:
            sock = connected_socket(server)
        except OSError:
            return None
        port = Port(server, sock, now)
        server.ports[slot] = port
        self._loop.add_reader(sock.fileno(), self._readable, port)
        return port

    def _close_port(self, port: Port) -> None:
        assert self._loop is not None
        self._loop.remove_reader(port.socket.fileno())
        port.socket.close()

    def _readable(self, port: Port) -> None:
        now = self._clock()
        back = self.engine.receive(port, now)
        if back is not None:
            self._decide(back, now)

    def _unreachable(self, questions: list[Open], number: int, now: float) -> None:
        """No socket could be made: as if the server had been silent, but known sooner."""
        self._mark_unreachable(self.name_servers[number], now)
        for question in questions:
            question.tried |= 1 << number
            question.attempts += 1
            question.verdict = NOBODY
            question.due = now + self._waits_s[0] / 5

    def _mark_unreachable(self, server: Server, now: float) -> None:
        server.failures += FAILURES
        self._mark(server, now)

    # ------------------------------------------------------------- TCP

    def _ask_stream(self, question: Open, number: int) -> None:
        server = self.name_servers[number]
        stream = self._streams.get(server)
        if stream is None or stream.is_closed:
            stream = Stream(self.engine, server, self._clock, self._stream_back, self._stream_lost)
            self._streams[server] = stream
            stream.connect()
        question.tried |= 1 << number
        self._on_tcp[question] = stream
        stream.ask(question, TCP_WAIT_S)

    def _stream_back(self, questions: list[Open]) -> None:
        self._decide(questions, self._clock())

    def _stream_lost(self, questions: list[Open]) -> None:
        """The connection failed: another server, over UDP first."""
        now = self._clock()
        for question in questions:
            self._on_tcp.pop(question, None)
            if question.server is not None:
                self._mark_unreachable(question.server, now)
        self._again(questions, now, Status.UNREACHABLE)

    # ------------------------------------------------------- decisions

    def _tick(self) -> None:
        """Every TICK_S while something is open: deadlines, silences, sockets that have done their work."""
        assert self._loop is not None
        now = self._clock()
        silent = self.engine.tick(now)
        if silent:
            for question in silent:
                if question.server is not None:
                    self._mark(question.server, now)
            self._decide(silent, now)
        if self._retired:
            for port in [port for port in self._retired if port.open == 0]:
                self._close_port(port)
                self._retired.remove(port)
        if self._on_tcp:
            self._on_tcp = {
                question: stream for question, stream in self._on_tcp.items() if question.is_awaited
            }
        self._timer = None
        if (len(self.engine) or self._retired) and not self._is_closed:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _decide(self, questions: list[Open], now: float) -> None:
        """What becomes of questions that the engine handed back."""
        again: list[Open] = []
        for question in questions:
            stream = self._on_tcp.pop(question, None)
            if stream is not None:
                stream.forget(question)
            server, verdict = question.server, question.verdict
            if server is None or verdict not in (TRUNCATED, CASE, NO_EDNS):
                if server is not None and verdict == NOBODY:
                    self._mark_unreachable(server, now)
                again.append(question)
                continue
            number = self.name_servers.index(server)
            if verdict == NO_EDNS:
                question.has_edns = False
                server.edns_refusals += 1
                if server.edns_refusals >= EDNS_REFUSALS and not server.edns_answers:
                    server.has_edns = False
                self._send([question], number, now)
                continue
            if verdict == CASE and not server.case_matches and server.case_misses >= CASE_MISSES:
                server.mixes_case = False
            self._ask_stream(question, number)
        if again:
            self._again(again, now)

    def _again(self, questions: list[Open], now: float, status: Status | None = None) -> None:
        """Ask the next server, or give up; questions for one server go together."""
        everybody = (1 << len(self.name_servers)) - 1
        groups: dict[tuple[int, int], list[Open]] = {}
        for question in questions:
            is_known = question.verdict == FAILED and question.tried & everybody == everybody
            if is_known or question.attempts >= self._most_attempts or not question.is_awaited:
                last = Status.TIMEOUT if question.verdict == TIMED_OUT else Status.UNREACHABLE
                self.engine.settle(question, now, status or last)
                continue
            if question.tried & everybody == everybody and question.verdict not in (TIMED_OUT, FAILED):
                # Everybody has refused: not at once again.
                question.tried = 0
                question.due = now + self._waits_s[0] / 5 * question.attempts
                continue
            if question.tried & everybody == everybody:
                question.tried = 0
            groups.setdefault((self._choose(question.tried, now), question.attempts), []).append(question)
        for (number, _), group in groups.items():
            self.retries += len(group)
            self._send(group, number, now)


def make_resolver(servers: Iterable[str] = (), **settings: object) -> Asker:
    """A Resolver, or where this loop or system has no use for raw UDP sockets, the engine on c-ares.

    Call it on the running loop.  settings as for Resolver.
    """
    import socket

    loop = asyncio.get_running_loop()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            loop.add_reader(probe.fileno(), int)
            loop.remove_reader(probe.fileno())
    except (OSError, NotImplementedError):
        from fastsmtp.dns_cares import CaresResolver

        timeout_s = settings.get("timeout_s", 5.0)
        assert isinstance(timeout_s, float)
        return CaresResolver(servers, timeout_s=timeout_s)
    return Resolver(servers, **settings)  # type: ignore[arg-type]
