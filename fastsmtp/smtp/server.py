"""fastsmtp.Server: the same engine in a program of yours.

    async def keep(message):
        print(message.envelope.sender, len(await message.content()))

    async with fastsmtp.Server(sink=keep, listen=("127.0.0.1", 0)) as server:
        ...                       # server.port is the port

It runs in the caller's loop (uvloop's or asyncio's): no fork, no thread, no
signal handler, no set-up of logging.

Rank 8.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from fastsmtp._counters import Counters
from fastsmtp.callable_sink import CallableSink, Handler
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.log import Log, NullLog
from fastsmtp.policy.own import load_stages
from fastsmtp.queue.spool import Budget
from fastsmtp.resolver import make_resolver
from fastsmtp.sink import Sink
from fastsmtp.smtp.answerers import answerers_of
from fastsmtp.smtp.service import Service

if TYPE_CHECKING:
    from fastsmtp.policy.runner import Observer
    from fastsmtp.resolver import Asker
    from fastsmtp.tls import ServerTls

# One process has few clients at once; the daemon's table is larger.
_CLIENT_SLOTS = 4_096


class Server:
    """An SMTP server in this loop, from `async with` to its end.

    sink      `async def sink(message)`: returns None (250) or a Reply; or an object with the Sink protocol
    listen    (host, port), or several of them, or bound sockets; port 0: any free one
    listener  the keys of its [[listen]] but the address: {"greeting_delay_s": 1.0, "proxy_from": [...]}
    log       where log lines go: an object with line(event, **fields) and flush(); default: nowhere
    observer  told of every policy stage that ran
    resolver  answers the questions of the checks: a fastsmtp.resolver.Resolver, or anything with its put();
              its owner closes it.  Without one, one is made when `config` has a `dns` table (dns={} is
              resolv.conf).  With neither nothing is ever asked, and the checks that need answers (mfcheck,
              reverse DNS, DNS lists ...) don't run
    drain_s   at the end, seconds for open transactions to finish
    config    the tables of the configuration file as keywords, nested as there: hostname="mx.example.org",
              limits={"recipients": 10}, accept=[{"domain": ["example.org"]}].  Without accept, mail for
              every domain is taken: the sink decides

    errors.ConfigError names every fault of the configuration.  An exception in the sink is 451 4.3.0 for
    the client and a `defect` line in the log, never 250.
    """

    def __init__(
        self,
        sink: Handler | Sink,
        *,
        listen: tuple[str, int] | socket.socket | Sequence[tuple[str, int] | socket.socket] = (
            "127.0.0.1",
            0,
        ),
        log: Log | None = None,
        listener: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        resolver: Asker | None = None,
        drain_s: float = 5.0,
        **config: Any,
    ) -> None:
        if isinstance(listen, socket.socket) or (isinstance(listen, tuple) and isinstance(listen[0], str)):
            listen = [listen]
        self._places: list[tuple[str, int] | socket.socket] = list(listen)  # type: ignore[arg-type]
        self._sink = sink
        self._log = log or NullLog()
        self._observer = observer
        self._resolver = resolver
        self._drain_s = drain_s
        self._config = config
        self._listener = dict(listener or {})
        self._service: Service | None = None
        self.addresses: tuple[tuple[str, int], ...] = ()

    @property
    def port(self) -> int:
        """The first address's port."""
        return self.addresses[0][1]

    async def start(self) -> None:
        """Bind and serve.  OSError when an address can't be bound, errors.ConfigError for a faulty configuration."""
        values = dict(self._config)
        values["listen"] = [self._listener]
        values.setdefault("accept", [{"domain": ["*"], "deliver": "discard"}])
        # The sink is the caller's: there is no queue of ours between it and the client.
        values["deliver"] = {"queue": False, **values.get("deliver", {})}
        loaded = load(values=values)
        settings = loaded.settings
        own_stages = load_stages([one.policy for one in settings])
        dns = loaded.config.dns
        resolver = self._resolver
        if resolver is None and "dns" in self._config:
            resolver = make_resolver(dns.servers, timeout_s=dns.timeout_s, cache_bytes=dns.cache_bytes)
        sockets = [_bind(place) for place in self._places]
        try:
            service = Service(
                settings=settings,
                log=self._log,
                counters=Counters(1, _CLIENT_SLOTS).region(0),
                sink=self._as_sink(settings[0].limits.body_memory_bytes),
                tls=[_tls_of(one) for one in settings],
                resolver=resolver,
                closes_resolver=resolver is not self._resolver,
                answerers=answerers_of(settings, self._log),
                questions_s=dns.timeout_s,
                own_stages=own_stages,
                observer=self._observer,
            )
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        self._service = service
        self.addresses = tuple(sock.getsockname()[:2] for sock in sockets)
        for sock in sockets:
            await service.listen(0, sock)

    def _as_sink(self, body_memory_bytes: int) -> Sink:
        if hasattr(self._sink, "open"):
            return cast("Sink", self._sink)
        return CallableSink(self._sink, budget=Budget(body_memory_bytes), log=self._log)

    async def stop(self) -> None:
        """Finish what is open, for drain_s at most, and close."""
        service, self._service = self._service, None
        if service is not None:
            await service.drain(self._drain_s)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def serve_forever(self) -> None:
        """Serve until cancelled."""
        async with self:
            await asyncio.get_running_loop().create_future()


def _bind(place: tuple[str, int] | socket.socket) -> socket.socket:
    if isinstance(place, socket.socket):
        return place
    family, kind, number, _, address = socket.getaddrinfo(
        *place, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _tls_of(settings: Settings) -> ServerTls | None:
    """The engine of the certificate that the configuration names; a program without one offers no TLS."""
    if settings.listen.tls == "off" or not settings.tls.certificate:
        return None
    from fastsmtp.tls import ServerTls, read_configured

    tls = settings.tls
    authorities = None
    if settings.listen.tls != "off" and tls.client_ca and settings.certificates:
        from fastsmtp.authorities import read_authorities

        authorities = read_authorities(tls.client_ca, tls.client_crl)
    return ServerTls(*read_configured(tls), minimum=tls.minimum, ciphers=tls.ciphers, authorities=authorities)
