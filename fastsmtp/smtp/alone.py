"""What a Service is to its connections, for a process that serves one client and ends: `fastsmtp smtpd`.

No loop, no resolver and no TLS until the session needs one; no counters that others share, so limits of a
client over all its connections are tcpserver's.  Lists are not probed before they are asked.

Rank 8.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping

from fastsmtp import reply
from fastsmtp.metrics import Board
from fastsmtp.policy.decision import Decision
from fastsmtp.smtp.ids import SessionIds
from fastsmtp.smtp.profile import Profile
from fastsmtp.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from fastsmtp.authorities import Authorities
    from fastsmtp.config.load import Loaded
    from fastsmtp.config.model import Tls
    from fastsmtp.config.rules import PythonStage
    from fastsmtp.config.zones import Zone
    from fastsmtp.log import Log, LogWriter
    from fastsmtp.message import Envelope
    from fastsmtp.policy.facts import Facts
    from fastsmtp.policy.runner import Observer, Round
    from fastsmtp.policy.stage import Stage
    from fastsmtp.sink import DirectSink, DirectTransaction
    from fastsmtp.smtp.inquiry import Answerer, Inquiry
    from fastsmtp.tls import ServerTls


class Alone:
    """The service of one session.

    make_sink  makes what its messages go to, with the first accepted recipient
    """

    is_stressed = False
    observer: Observer | None = None
    know = None

    def __init__(
        self,
        loaded: Loaded,
        make_sink: Callable[[], DirectSink],
        log: Log,
        own_stages: Mapping[PythonStage, Stage],
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._loaded = loaded
        self.sink = LaterSink(make_sink)
        self.log = log
        self.own_stages = own_stages
        self.now = now
        self.wall = wall
        self.tick_s = now()
        self.counters = SoleCounters()
        # Counted, and read by nobody.
        self.metrics = Board(1).sheet(0)
        self.lists = NoCare()
        # Nobody reads what one session counts.
        self.metrics = Board(1).sheet(0)
        self.questions_s = loaded.config.dns.timeout_s
        # Whoever asks for it knows that questions are answered; who does that is made with the first one.
        self.resolver = self
        self.answerers: Mapping[type, Answerer] = _Answerers(self)
        self.ids = SessionIds(os.getpid(), wall)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dns: Any = None
        self._p0f: Any = None

    def banner(self, profile: Profile) -> reply.Reply:
        return reply.banner(profile.settings.greeting or profile.settings.hostname)

    def log_failure(self, what: str, error: BaseException) -> None:
        from fastsmtp.log import log_defect

        log_defect(self.log, error, what=what)

    # --- waiting ---------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Made when something must be waited for: a name server, a next hop."""
        if self._loop is None:
            import asyncio

            self._loop = asyncio.new_event_loop()
        return self._loop

    def run(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """To its end: in one step as long as nothing has needed a loop, else on that."""
        if self._loop is not None:
            return self._loop.run_until_complete(waiting)
        try:
            waiting.send(None)
        except StopIteration as ended:
            return ended.value
        waiting.close()
        raise RuntimeError("something is waited for, and there is no loop")

    def in_loop(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it where there is a running loop."""

        async def call() -> Any:
            return function(*arguments)

        return self.loop.run_until_complete(call())

    def name_servers(self) -> Any:
        """The resolver; call it in the loop."""
        if self._dns is None:
            from fastsmtp.resolver import make_resolver

            config = self._loaded.config
            self._dns = make_resolver(
                config.dns.servers, timeout_s=config.dns.timeout_s, cache_bytes=config.dns.cache_bytes
            )
        return self._dns

    def p0f(self) -> Any:
        """Who asks p0f."""
        if self._p0f is None:
            from fastsmtp.p0f import P0f

            self._p0f = P0f(now=self.now, log=self.log)
        return self._p0f

    def close(self) -> None:
        self.run(self.sink.close())
        if self._p0f is not None:
            self.run(self._p0f.close())
        if self._dns is not None:
            self.in_loop(self._dns.close)
        if self._loop is not None:
            self._loop.close()
        self.log.flush()


class _Answerers(Mapping[type, "Answerer"]):
    """DNS and p0f, when they are asked for."""

    def __init__(self, alone: Alone) -> None:
        self._alone = alone

    def __getitem__(self, kind: type) -> Answerer:
        from fastsmtp._dns import Question
        from fastsmtp.fingerprint import P0fQuestion

        if kind not in (Question, P0fQuestion):
            raise KeyError(kind)
        found: Answerer = self._alone.name_servers() if kind is Question else self._alone.p0f()
        return found

    def __iter__(self) -> Iterator[type]:
        from fastsmtp._dns import Question
        from fastsmtp.fingerprint import P0fQuestion

        return iter((Question, P0fQuestion))

    def __len__(self) -> int:
        return 2


class SoleProfile(Profile):
    """A Profile whose questions bring the loop in."""

    __slots__ = ()

    def inquire(self, first: Round) -> Inquiry:
        from fastsmtp.smtp.inquiry import Inquiry

        service: Any = self.service
        found: Inquiry = service.in_loop(Inquiry, service, first)
        return found

    def decided(self, asked: Decision | Round) -> Decision:
        """The decision, when all is answered."""
        if type(asked) is Decision:
            return asked
        # Asked first: that brings the loop in, which run() needs to wait for the answers.
        inquiry = self.inquire(asked)  # type: ignore[arg-type]
        service: Any = self.service
        found: Decision = inquiry.decision or service.run(inquiry.wait())
        return found


class SoleCounters:
    """The counters of one connection: it is the only one, and its own events are all there are."""

    def __init__(self) -> None:
        self._events = [0, 0, 0, 0]

    def connections(self) -> int:
        return 1

    def rate(self, key: bytes, token: int, now_s: float) -> int:
        return self._events[token]

    def take(self, key: bytes, token: int, now_s: float) -> None:
        self._events[token] += 1

    def grant_pass(self, key: bytes, until_s: float) -> None:
        """Nobody would ask for it."""


class NoCare:
    """Lists in one session: none is known to be bad."""

    bad: frozenset[bytes] = frozenset()

    def asked(self, zones: tuple[Zone, ...]) -> None:
        """No count is kept."""

    def hit(self, zone: str) -> None:
        """No count is kept."""

    def failed(self, zone: str) -> None:
        """No count is kept."""


class LaterSink:
    """A sink that is made when it is needed: most sessions bring no mail that is taken."""

    def __init__(self, make: Callable[[], DirectSink]) -> None:
        self._make = make
        self._made: DirectSink | None = None

    def open(self, envelope: Envelope, facts: Facts) -> DirectTransaction:
        if self._made is None:
            self._made = self._make()
        return self._made.open(envelope, facts)

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()


class LaterLog:
    """The configured log, opened with its first line."""

    def __init__(self, to: str, form: str) -> None:
        self._to = to
        self._form = form
        self._writer: LogWriter | None = None

    def line(self, event: str, **fields: object) -> None:
        if self._writer is None:
            from fastsmtp.log import LogWriter
            from fastsmtp.log_destination import open_destination
            from fastsmtp.log_format import JsonLines, Logfmt

            self._writer = LogWriter(
                open_destination(self._to), JsonLines() if self._form == "json" else Logfmt()
            )
        self._writer.line(event, **fields)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()


class LaterTls:
    """A listener's TLS, read with the first handshake."""

    def __init__(self, table: Tls, log_failure: Callable[[str, BaseException], None]) -> None:
        self._table = table
        self._log_failure = log_failure
        self._made: ServerTls | None = None

    def load(self, *, asks: bool = False) -> ServerTls:
        """asks: the engine that asks for a certificate is wanted.  ConfigError when our own can't be used."""
        if self._made is None:
            from fastsmtp.tls import ServerTls, ignore_bad_server_names, read_configured

            ignore_bad_server_names()
            table = self._table
            self._made = ServerTls(
                *read_configured(table),
                minimum=table.minimum,
                ciphers=table.ciphers,
                authorities=self._authorities() if asks and table.client_ca else None,
            )
        return self._made

    def _authorities(self) -> Authorities | None:
        """None when they can't be used: nobody relays by a certificate then, and all else goes on."""
        from fastsmtp.authorities import read_authorities
        from fastsmtp.errors import ConfigError

        try:
            return read_authorities(self._table.client_ca, self._table.client_crl)
        except ConfigError as error:
            self._log_failure("tls.client_ca", error)
            return None
