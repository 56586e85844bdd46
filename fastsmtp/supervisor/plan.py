"""The plan that serves SMTP: a loaded configuration with its TLS contexts and its log, and what a worker makes of it.

The master makes it, so private keys are read while it still is root, and every
worker inherits the same contexts: a ticket of one resumes on any other.
Contents of changed files come in as bytes; workers open none of them.
"""

from __future__ import annotations

import asyncio
import copy
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module

from fastsmtp.admin.exposition import Exposition
from fastsmtp.authorities import Authorities, concerns, read_authorities
from fastsmtp.certificate import end_concern, key_concern, self_made
from fastsmtp.config.endpoint import parse_endpoint
from fastsmtp.config.host import Host
from fastsmtp.config.lists import Lists
from fastsmtp.config.load import Loaded
from fastsmtp.config.model import Tls
from fastsmtp.config.settings import Settings, compile_settings, user_pairs
from fastsmtp.errors import ConfigError
from fastsmtp.log import LogWriter
from fastsmtp.log_destination import Destination, open_destination
from fastsmtp.log_format import JsonLines, Logfmt
from fastsmtp.policy.own import load_stages, places_of
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.spool import Budget
from fastsmtp.queue_sink import EitherSink
from fastsmtp.resolver import make_resolver
from fastsmtp.sink import DirectSink, Sink
from fastsmtp.smtp.answerers import answerers_of
from fastsmtp.smtp.service import Service
from fastsmtp.supervisor.lspawn import LspawnAside
from fastsmtp.supervisor.queue import Hall, open_sink, processes, runs_programs, uses_direct, uses_queue
from fastsmtp.supervisor.shapes import Aside, Listener, Seat
from fastsmtp.supervisor.worker import DRAIN_S
from fastsmtp.tls import Credentials, ServerTls, ignore_bad_server_names, key_mode_faults, read_credentials

# A client that connected while its worker was being replaced begins within a round trip or two.
FRESH_S = 5.0
# Who renews by ACME does it 30 days before the end: with 14 days left that has failed for two weeks.
# How many programs (qmail-queue) a worker runs at a time; a message that finds none free waits for one.
# tcpserver runs 40 qmail-smtpds at a time, each with its own.
PROGRAMS = 20
SPOOL = "spool"
MAILDIR = "maildir"


# What others import only where they need it: the master does it for all workers, which share it then, and may
# not be able to read it as their account.
_SHARED = (
    "hashlib", "ipaddress", "json", "re", "socket", "tempfile", "traceback",
    "fastsmtp._signatures",
    "fastsmtp.delivery.handover", "fastsmtp.delivery.identity", "fastsmtp.delivery.pool", "fastsmtp.delivery.printer",
    *(f"fastsmtp.policy.{rule}" for rule in (
        "badmailfrom", "badrcptto", "callout", "clients", "denymail", "dnsbl", "helo", "mfcheck", "p0f", "rblsmtpd",
        "require_tls", "reverse_dns", "rhsbl", "signatures", "tarpit",
    )),
)  # fmt: skip


class ServerPlan:
    """See shapes.Plan."""

    def __init__(self, loaded: Loaded, hall: Hall | None = None) -> None:
        """ConfigError: a certificate, the log or the state directory can't be used.

        hall   where the queue's processes meet; the plans of one master have one
        """
        for module in _SHARED:
            import_module(module)
        config = loaded.config
        self.loaded = loaded
        self.hall = hall or Hall()
        self.workers = config.workers or Host().cores()
        self.user = config.user
        self.runs_programs = runs_programs(loaded)
        self.state = config.state
        self.listeners: Sequence[Listener] = [_listener(one) for one in loaded.settings]
        self.settings: tuple[Settings, ...] = loaded.settings
        self.lists = loaded.lists
        # Imported here, so that a fault stops the start or the reload, and the workers share what was imported.
        self.own_stages = load_stages(
            [one.policy for one in loaded.settings],
            fresh=True,
            places=places_of(loaded.config, loaded.provenance),
        )
        self._pem: dict[str, bytes] = {}
        self._made: dict[Tls, Credentials] = {}
        make_directory(self.state, 0o755)
        self._tls = {table: self._server_tls(table) for table in self._tables()}
        self.watched = [*self.lists.files, *self._pem]
        self.coming = tuple(loaded.home.files) if loaded.home else ()
        self.warnings = loaded.warnings
        self._destination = open_destination(config.log.to)
        self.log = self._writer(self._destination)
        self._warn_of_ends()

    # --- what the master asks ----------------------------------------------------------------------

    @property
    def descriptors(self) -> Sequence[int]:
        return self._destination.descriptors

    @property
    def asides(self) -> Sequence[Aside]:
        """What runs beside the workers: each part of the server that needs a process adds its own here."""
        config = self.loaded.config
        maildir = os.path.join(self.state, MAILDIR) if self.loaded.is_trial else ""
        asides = processes(self.loaded, self.hall, self.workers, self._make_log, self.descriptors, maildir)
        if asides and user_pairs(config):
            asides.append(LspawnAside(self.loaded, self.hall, self._make_log, self.descriptors))
        if config.metrics.listen:
            asides.append(Exposition(config.metrics.listen, config.user, self.log))
        return asides

    def kind(self, path: str) -> str:
        if path in self._pem:
            return "cert"
        return "lists" if path in self.lists.files else "configuration"

    def own(self, account: tuple[int, int] | None) -> None:
        """Spooled bodies belong to the workers; so does the trial's Maildir where they deliver to it themselves."""
        spool = os.path.join(self.state, SPOOL)
        make_directory(spool, 0o700)
        theirs = [spool]
        if self.loaded.is_trial and not uses_queue(self.loaded):
            maildir = os.path.join(self.state, MAILDIR)
            make_directory(maildir, 0o700)
            theirs += [maildir, *(os.path.join(maildir, name) for name in ("tmp", "new", "cur"))]
        if account is None:
            return
        for path in theirs:
            # A Maildir gets the three with its first mail; an earlier trial may have been root's.
            with suppress(FileNotFoundError):
                os.chown(path, *account, follow_symlinks=False)

    def check(self, files: Mapping[str, bytes]) -> None:
        self._compile(self._lists_with(files))
        if any(path in self._pem for path in files):
            faults = [fault for path in self._keys() for fault in key_mode_faults(path)]
            if faults:
                raise ConfigError(*faults)
            pem = self._pem | self._pem_of(files)
            for table in self._tls:
                self._engine(table, pem)

    def replace(self, files: Mapping[str, bytes]) -> bool:
        self.replace_tls(files)
        for warning in self.replace_lists(files):
            self.log.line("notice", what="lists", reason=warning)
        self._warn_of_authorities(files)
        return True

    def renew(self) -> ServerPlan:
        fresh = copy.copy(self)
        fresh._pem = dict(self._pem)
        fresh._made = {}
        fresh._tls = {table: fresh._server_tls(table) for table in self._tls}
        fresh._warn_of_ends()
        return fresh

    async def start(self, seat: Seat) -> ServerWorker:
        ignore_bad_server_names()
        log = self._writer(self._destination)
        config = self.loaded.config
        resolver = make_resolver(
            config.dns.servers,
            timeout_s=config.dns.timeout_s,
            cache_bytes=config.dns.cache_bytes,
            workers=self.workers,
        )
        budget = Budget(max(one.limits.body_memory_bytes for one in self.settings))
        sink = await self._open_sink(seat, log, budget)
        service = Service(
            settings=self.settings,
            log=log,
            counters=seat.region,
            sink=sink,
            tls=self.tls_of_listeners(),
            worker=seat.identity,
            resolver=resolver,
            answerers=answerers_of(self.settings, log),
            questions_s=config.dns.timeout_s,
            own_stages=self.own_stages,
            descriptors=seat.descriptors,
            metrics=seat.metrics,
            measured=(budget,),
        )
        for listener, sock in seat.sockets:
            await service.listen(listener, sock)
        return ServerWorker(self, service, log)

    async def _open_sink(self, seat: Seat, log: LogWriter, budget: Budget) -> Sink:
        """The queue's, the direct one, or both, as the configuration needs them."""
        direct = None
        if uses_direct(self.loaded):
            direct = DirectSink(
                disk=ThreadDisk(),
                budget=budget,
                spool_directory=os.path.join(self.state, SPOOL),
                hostname=self.loaded.config.hostname,
                log=log,
                programs=ThreadDisk(threads=PROGRAMS),
                is_compatible=self.settings[0].is_compatible,
                metrics=seat.metrics,
            )
            if not uses_queue(self.loaded):
                return direct
        queue = await open_sink(self.state, self.hall, seat.identity, budget, seat.metrics)
        return queue if direct is None else EitherSink(queue, direct)

    # --- TLS ---------------------------------------------------------------------------------------

    def tls_of_listeners(self) -> list[ServerTls | None]:
        return [None if one.listen.tls == "off" else self._tls[one.tls] for one in self.settings]

    def _warn_of_ends(self) -> None:
        """At each start, reload and daily renewal: which certificates end soon.  Self-made ones renew themselves."""
        for table in self._tls:
            default, names = _credentials(table, self._pem, self._made.get(table))
            for name, credentials in [("", default), *names.items()]:
                if credentials is self._made.get(table):
                    continue
                concern = key_concern(credentials.certificate)
                if concern:
                    self.log.line("notice", what=credentials.origin, reason=concern)
                reason = end_concern(credentials.certificate, time.time())
                if reason:
                    self.log.line(
                        "cert_expires", file=credentials.origin, server_name=name or None, reason=reason
                    )

        self._warn_of_authorities(self._pem)

    def _warn_of_authorities(self, files: Mapping[str, bytes]) -> None:
        """What client certificates fail for, or soon will, where one of these files has to do with it."""
        for table in self._tls:
            if table.client_ca in files or table.client_crl in files:
                authorities = self._authorities(table, self._pem)
                for file, reason in [] if authorities is None else concerns(authorities, time.time()):
                    self.log.line("authority_warning", file=file, reason=reason)

    def _tables(self) -> list[Tls]:
        """Each [tls] table that a listener uses, once."""
        return list(dict.fromkeys(one.tls for one in self.settings if one.listen.tls != "off"))

    def _server_tls(self, table: Tls) -> ServerTls:
        for certificate, key in _pairs(table):
            for path in (certificate, key or certificate):
                if path not in self._pem:
                    # Every fault in words of the operator's; then the bytes that are kept.
                    read_credentials(certificate, key)
                    self._pem[path] = pathlib.Path(path).read_bytes()
        if not table.certificate:
            # Kept: a worker could not read it any more.
            self._made[table] = self_made(pathlib.Path(self.state), self.loaded.config.hostname)
        files = [path for path in (table.client_ca, table.client_crl) if path and self._asks(table)]
        if any(path not in self._pem for path in files):
            read_authorities(table.client_ca, table.client_crl)
            for path in files:
                self._pem[path] = pathlib.Path(path).read_bytes()
        return self._engine(table, self._pem)

    def _engine(self, table: Tls, pem: Mapping[str, bytes]) -> ServerTls:
        return ServerTls(
            *_credentials(table, pem, self._made.get(table)),
            minimum=table.minimum,
            ciphers=table.ciphers,
            authorities=self._authorities(table, pem),
        )

    def _asks(self, table: Tls) -> bool:
        """Clients are asked for certificates: somebody is to know them, and they are to be of use."""
        return bool(table.client_ca and self.loaded.config.relay.certificates)

    def _authorities(self, table: Tls, pem: Mapping[str, bytes]) -> Authorities | None:
        if not self._asks(table):
            return None
        crl = pem[table.client_crl] if table.client_crl else b""
        return Authorities(pem[table.client_ca], crl, table.client_ca, table.client_crl)

    def _keys(self) -> Iterator[str]:
        for table in self._tls:
            for certificate, key in _pairs(table):
                yield key or certificate

    def _pem_of(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        return {path: contents for path, contents in files.items() if path in self._pem}

    def replace_tls(self, files: Mapping[str, bytes]) -> None:
        changed = self._pem_of(files)
        if not changed:
            return
        self._pem |= changed
        for table, server_tls in self._tls.items():
            files_of_it = {table.client_ca, table.client_crl}.union(*_pairs(table))
            if not files_of_it.isdisjoint(changed):
                server_tls.replace(
                    *_credentials(table, self._pem, self._made.get(table)),
                    self._authorities(table, self._pem),
                )

    # --- lists -------------------------------------------------------------------------------------

    def _lists_with(self, files: Mapping[str, bytes]) -> Lists:
        lists = self.lists
        for path, contents in files.items():
            if path in lists.files:
                lists = lists.with_file(path, contents)
        return lists

    def _compile(self, lists: Lists, warnings: list[str] | None = None) -> tuple[Settings, ...]:
        return compile_settings(self.loaded.config, lists, self.loaded.environment, warnings)

    def replace_lists(self, files: Mapping[str, bytes]) -> list[str]:
        """Use these contents of lists; returns what the operator should know of them."""
        warnings: list[str] = []
        lists = self._lists_with(files)
        if lists is not self.lists:
            self.settings = self._compile(lists, warnings)
            self.lists = lists
        return warnings

    # --- log ---------------------------------------------------------------------------------------

    def _make_log(self) -> LogWriter:
        return self._writer(self._destination)

    def _writer(self, destination: Destination) -> LogWriter:
        return LogWriter(destination, JsonLines() if self.loaded.config.log.format == "json" else Logfmt())


class ServerWorker:
    """See shapes.Running."""

    def __init__(self, plan: ServerPlan, service: Service, log: LogWriter) -> None:
        self._plan = plan
        self._service = service
        self._log = log

    async def replace(self, files: Mapping[str, bytes]) -> None:
        """Certificates here and now, in between two handshakes; a long list is read in a thread of its own."""
        plan = self._plan
        plan.replace_tls(files)
        await asyncio.get_running_loop().run_in_executor(None, plan.replace_lists, files)
        self._service.update(plan.settings)

    async def drain(self, timeout_s: float) -> None:
        # More time than a stop gives means that others serve already: nobody is in a hurry then.
        is_replaced = timeout_s > DRAIN_S
        await self._service.drain(timeout_s, FRESH_S if is_replaced else 0.0)

    async def close(self) -> None:
        await self._service.close()
        self._log.flush()


def make_directory(path: str, mode: int) -> None:
    """ConfigError if it isn't there and can't be made."""
    try:
        os.makedirs(path, mode, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state: cannot make {path}: {error.strerror}") from None


def _listener(settings: Settings) -> Listener:
    listen = settings.listen
    return Listener(listen.name, tuple(parse_endpoint(address) for address in listen.address))


def _pairs(table: Tls) -> list[tuple[str, str]]:
    """The certificate and key files of a table."""
    named = [(name.certificate, name.key) for name in table.names]
    return [(table.certificate, table.key), *named] if table.certificate else named


def _credentials(
    table: Tls, pem: Mapping[str, bytes], made: Credentials | None
) -> tuple[Credentials, dict[str, Credentials]]:
    """(the default, by server name) of a table, from the contents of its files."""
    default = made or Credentials(
        pem[table.certificate], pem[table.key or table.certificate], table.certificate
    )
    names = {
        name.name: Credentials(pem[name.certificate], pem[name.key or name.certificate], name.certificate)
        for name in table.names
    }
    return default, names
