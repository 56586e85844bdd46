"""The queue's processes: its owner, the dispatcher, and the shards that deliver; and what a worker needs of them.

The Hall outlives them all, and reloads: the master keeps the socket where they
meet, so that a new dispatcher is found where the old one was, and the shared
memory in which workers say how far they have synced.  Rank 9.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, cast

from fastsmtp._journal import Progress, Writer, answer_soon
from fastsmtp.admin.desk import Desk
from fastsmtp.admin.server import AdminServer
from fastsmtp.config.dest import runs_program
from fastsmtp.config.endpoint import parse_endpoint
from fastsmtp.config.load import Loaded
from fastsmtp.config.settings import user_pairs
from fastsmtp.delivery.as_user import AsUser
from fastsmtp.delivery.deliverer import Deliverer
from fastsmtp.delivery.local import Deliveries, LocalDeliverer
from fastsmtp.delivery.meters import DeliveryMeter
from fastsmtp.delivery.ourselves import Ours
from fastsmtp.delivery.owner import BODIES, Owner, stores
from fastsmtp.delivery.owner_meters import OwnerMeter
from fastsmtp.delivery.shard import Shard
from fastsmtp.delivery.starttls import OutgoingTls, TlsRule
from fastsmtp.delivery.stored import Reader
from fastsmtp.errors import ConfigError, TemporaryError
from fastsmtp.log import LogWriter, log_defect
from fastsmtp.metrics import Sheet
from fastsmtp.queue import frames
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.dsn import Reporter
from fastsmtp.queue.journal import Journal
from fastsmtp.queue.line import listen
from fastsmtp.queue.meters import MAIL, JournalMeter
from fastsmtp.queue.remote import Remote
from fastsmtp.queue.schedule import patience_of
from fastsmtp.queue.spool import Budget
from fastsmtp.queue_sink import QueueSink
from fastsmtp.resolver import Hosts, make_resolver
from fastsmtp.smtp.ids import SessionIds
from fastsmtp.smtp.meters import Measured
from fastsmtp.supervisor.shapes import Aside, Seat

QUEUE: Final = "queue"
SOCKET: Final = "queue.socket"
ERRANDS: Final = "lspawn.socket"
FLUSH_S: Final = 0.5
WORKERS: Final = 2_048
"""Places in the shared progress; a worker's is the number of its region of the counters.  128 bytes each."""

START_S: Final = 45.0
"""How long a worker waits for its first segment: the dispatcher may be reading what an earlier life left."""

SHARDS_MOST: Final = 4
# Blocking jobs of a shard at a time: each waits for a disk or for a program.
SHARD_THREADS: Final = 8


class Hall:
    """What the queue's processes share; made by the master once, and kept."""

    def __init__(self, version: str = "0") -> None:
        """version: of the running program, for the headers of files."""
        self.version = version
        self.progress = Progress(WORKERS)
        self.worker = os.geteuid()
        self._sock: socket.socket | None = None
        self._errands: socket.socket | None = None

    def own_errands(self, state: str, account: tuple[int, int]) -> None:
        """The socket where delivery processes of this account (uid, gid) find lspawn.  Raises OSError."""
        path = os.path.join(state, ERRANDS)
        if self._errands is None:
            self._errands = listen(path)
        if os.geteuid() == 0:
            os.chown(path, *account)
            os.chmod(path, 0o600)

    @property
    def errands(self) -> socket.socket:
        if self._errands is None:
            raise RuntimeError("the socket for errands isn't there")
        return self._errands

    def own(self, state: str, user: str, account: tuple[int, int] | None) -> None:
        """Directories and socket, for a dispatcher of this account (uid, gid); None: everybody is who we are.

        Raises OSError.
        """
        queue = os.path.join(state, QUEUE)
        for path in (queue, os.path.join(queue, BODIES)):
            os.makedirs(path, 0o700, exist_ok=True)
        if account is not None:
            _give(queue, account)
        worker = account_of(user)
        self.worker = worker[0]
        path = os.path.join(state, SOCKET)
        if self._sock is None:
            self._sock = listen(path)
        if os.geteuid() == 0:
            # Who connects needs to write to it: workers by their account, shards by their group.  The dispatcher
            # looks at who it is.
            os.chown(path, worker[0], worker[1] if account is None else account[1])
            os.chmod(path, 0o660)

    @property
    def descriptors(self) -> Sequence[int]:
        return () if self._sock is None else (self._sock.fileno(),)

    @property
    def sock(self) -> socket.socket:
        if self._sock is None:
            raise RuntimeError("the queue's socket isn't there")
        return self._sock


def account_of(user: str) -> tuple[int, int]:
    """(uid, gid) of an account's processes: ours, unless we are root and there is such an account."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return os.geteuid(), os.getegid()
    return entry.pw_uid, entry.pw_gid


def _give(directory: str, account: tuple[int, int]) -> None:
    """All of it belongs to this account; where it does, nothing is looked at."""
    found = os.stat(directory)
    bodies = os.stat(os.path.join(directory, BODIES))
    if (found.st_uid, bodies.st_uid) == (account[0], account[0]):
        return
    for path, _, files in os.walk(directory):
        for name in files:
            os.chown(os.path.join(path, name), *account, follow_symlinks=False)
        os.chown(path, *account, follow_symlinks=False)


def stand_back() -> None:
    """Clients wait for workers, and for us nobody: whoever runs isn't interrupted when we wake up.

    What is started later inherits it, programs of a `pipe:` too.  Where the system has or lets no such thing, nothing.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Process:
    """What the queue's processes have in common; see shapes.Aside."""

    order = 1

    def __init__(
        self, name: str, loaded: Loaded, hall: Hall, shards: int, log: Callable[[], LogWriter], logs: Sequence[int]
    ) -> None:  # fmt: skip
        self.name = name
        self.user = loaded.config.queue_user
        self.loaded = loaded
        self.hall = hall
        self.shards = shards
        self.make_log = log
        self._logs = logs

    @property
    def descriptors(self) -> Sequence[int]:
        return self._logs

    @property
    def state(self) -> str:
        return self.loaded.config.state

    def is_same(self, other: Aside) -> bool:
        return (
            isinstance(other, _Process)
            and other.shards == self.shards
            and other.loaded.config == self.loaded.config
        )

    def own(self, account: tuple[int, int] | None) -> None:
        return None

    def prepare(self) -> None:
        """An account without rights need not be able to read where Python's modules are."""
        stand_back()
        import base64  # noqa: F401
        import codecs
        import sqlite3  # noqa: F401
        import ssl  # noqa: F401

        import msgspec  # noqa: F401

        # uvloop asks for it with the first connection.
        codecs.lookup("idna")

    def release(self) -> None:
        return None


class DispatcherAside(_Process):
    """The owner of the queue."""

    @property
    def descriptors(self) -> Sequence[int]:
        return (*self._logs, *self.hall.descriptors)

    def own(self, account: tuple[int, int] | None) -> None:
        try:
            self.hall.own(self.state, self.loaded.config.user, account)
        except OSError as error:
            raise ConfigError(f"state: cannot make the queue in {self.state}: {error.strerror}") from None

    async def start(self, seat: Seat) -> DispatcherRunning:
        config, loop, log = self.loaded.config, asyncio.get_running_loop(), self.make_log()
        routing = self.loaded.settings[0].routing

        def failed(error: Exception) -> None:
            log_defect(log, error, what="queue")
            log.flush()
            os.kill(os.getpid(), signal.SIGTERM)

        owner = Owner(
            os.path.join(self.state, QUEUE),
            sock=self.hall.sock,
            progress=self.hall.progress,
            shards=self.shards,
            users={frames.Role.WORKER: self.hall.worker, frames.Role.SHARD: os.geteuid()},
            free_bytes=config.queue.free_bytes,
            patience=patience_of(config.queue),
            reporter=Reporter(config.hostname, config.postmaster, double_bounce=config.queue.double_bounce),
            ids=SessionIds(seat.identity, time.time),
            place_for=lambda domain: routing.find(b"", domain, "").deliver,
            version=self.hall.version,
            log=log,
            loop=loop,
            failed=failed,
            metrics=seat.metrics,
        )
        try:
            await owner.start()
        finally:
            log.flush()
        admin = AdminServer(
            Desk(owner.index, owner.hands, wall=time.time), os.path.join(self.state, QUEUE),
            version=self.hall.version, log=log,
        )  # fmt: skip
        try:
            await admin.start()
        except TemporaryError as error:
            # Mail is delivered all the same.
            log.line("queue_failed", reason=str(error))
        meter = OwnerMeter(seat.metrics, owner, admin.commands)
        meter.start()
        return DispatcherRunning(owner, admin, log, meter)


class DispatcherRunning:
    """See shapes.Running."""

    def __init__(self, owner: Owner, admin: AdminServer, log: LogWriter, meter: OwnerMeter) -> None:
        self._owner = owner
        self._admin = admin
        self._meter = meter
        self._flusher = Flusher(log, meter.publish)

    async def replace(self, files: Mapping[str, bytes]) -> None:
        return None

    async def drain(self, timeout_s: float) -> None:
        await self._owner.drain()

    async def close(self) -> None:
        await self._admin.close()
        await self._meter.close()
        await self._owner.close()
        self._flusher.close()


class ShardAside(_Process):
    """One delivery process."""

    order = 2

    def __init__(
        self,
        number: int,
        loaded: Loaded,
        hall: Hall,
        shards: int,
        log: Callable[[], LogWriter],
        logs: Sequence[int],
        maildir: str = "",
    ) -> None:
        super().__init__(f"delivery-{number}", loaded, hall, shards, log, logs)
        self.number = number
        self.runs_programs = runs_programs(loaded)
        self._maildir = maildir
        self._tls: OutgoingTls | None = None

    def prepare(self) -> None:
        """The certificate that we show and those that routes are verified against may be root's to read."""
        super().prepare()
        import idna  # noqa: F401

        "mx".encode("idna")  # the codec, which ssl asks for each server's name
        self._tls = OutgoingTls(self.loaded.config.remote)
        for route in self.loaded.settings[0].routing.routes.all():
            if route.tls != "off":
                # A file that is gone by now is that route's trouble, and is said for each attempt.
                with suppress(ConfigError):
                    self._tls.context(TlsRule(route.tls, route.ca))

    def own(self, account: tuple[int, int] | None) -> None:
        """The trial's Maildir is the delivery's; nobody else would make it that."""
        if not self._maildir:
            return
        os.makedirs(self._maildir, 0o700, exist_ok=True)
        if account is not None:
            for name in ("", "tmp", "new", "cur"):
                with suppress(FileNotFoundError):
                    os.chown(os.path.join(self._maildir, name), *account, follow_symlinks=False)

    async def start(self, seat: Seat) -> ShardRunning:
        config, loop, log = self.loaded.config, asyncio.get_running_loop(), self.make_log()
        disk = ThreadDisk(threads=SHARD_THREADS)
        # Beside the disk: a program that hangs keeps its thread, and Maildirs must not wait for it.
        programs = ThreadDisk(threads=SHARD_THREADS)
        meter = DeliveryMeter(seat.metrics)
        hosts = Hosts()
        resolver = make_resolver(
            config.dns.servers,
            timeout_s=config.dns.timeout_s,
            cache_bytes=config.dns.cache_bytes,
            workers=self.shards,
        )
        local = LocalDeliverer(disk=disk, hostname=config.hostname, programs=programs)
        other = Deliverer(
            remote=config.remote,
            hostname=config.hostname,
            resolver=resolver,
            resolve=hosts.addresses,
            routing=self.loaded.settings[0].routing,
            processes=self.shards,
            tls=self._tls,
            is_us=Ours(
                config.hostname, [parse_endpoint(text) for listen in config.listen for text in listen.address]
            ),
            log=log,
            meter=meter,
        )
        mail, _, bodies = stores(os.path.join(self.state, QUEUE), self.hall.version)
        shard = Shard(
            os.path.join(self.state, SOCKET),
            self.number,
            self.shards,
            reader=Reader(mail, bodies, disk),
            deliverer=Deliveries(
                local,
                other,
                self.loaded.settings[0].routing,
                AsUser(os.path.join(self.state, ERRANDS), disk) if user_pairs(config) else None,
            ),
            log=log,
            loop=loop,
            meter=meter,
        )
        measured: Measured | None = cast("Measured", resolver) if hasattr(resolver, "measure") else None
        if measured is not None:
            measured.measure(seat.metrics)
        shard.start()

        def publish() -> None:
            meter.publish_jobs(shard.jobs)
            other.publish()
            if measured is not None:
                measured.publish()

        def close() -> None:
            resolver.close()
            hosts.close()
            disk.close()
            programs.close()

        return ShardRunning(shard, log, publish, close)


class ShardRunning:
    """See shapes.Running."""

    def __init__(
        self, shard: Shard, log: LogWriter, publish: Callable[[], None], close: Callable[[], None]
    ) -> None:
        self._shard = shard
        self._close = close
        self._flusher = Flusher(log, publish)

    async def replace(self, files: Mapping[str, bytes]) -> None:
        return None

    async def drain(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._shard.drain()

    async def close(self) -> None:
        await self._shard.close()
        self._flusher.close()
        self._close()


class Flusher:
    """Writes the log's lines out and publishes numbers, where some have to be looked up, twice a second."""

    def __init__(self, log: LogWriter, publish: Callable[[], None] | None = None) -> None:
        self._log = log
        self._publish = publish
        self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._write()
        self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def close(self) -> None:
        self._timer.cancel()
        self._write()

    def _write(self) -> None:
        if self._publish is not None:
            self._publish()
        self._log.flush()


async def open_sink(
    state: str, hall: Hall, identity: int, budget: Budget, metrics: Sheet | None = None
) -> QueueSink:
    """The sink of one worker; raises ConfigError when there is no segment to be had."""
    loop = asyncio.get_running_loop()
    remote = Remote(os.path.join(state, SOCKET), identity, hall.progress, loop=loop, patience_s=START_S)
    remote.connect()
    writer: Writer[object] = Writer(progress=hall.progress, worker=identity)
    meter = None if metrics is None else JournalMeter(metrics, MAIL)
    journal = Journal(
        remote, loop=loop, clock=time.monotonic, writer=writer, synced=remote.synced, meter=meter  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        await journal.start()
    except TemporaryError as error:
        raise ConfigError(f"the queue can't be used: {error}") from None
    remote.be_patient_no_more()
    answer_soon()
    return QueueSink(
        remote=remote, journal=journal, disk=ThreadDisk(), budget=budget, wall=time.time, meter=meter
    )


def processes(
    loaded: Loaded, hall: Hall, workers: int, log: Callable[[], LogWriter], logs: Sequence[int], maildir: str
) -> list[Aside]:
    """The queue's processes for a configuration; none where nothing is queued, and no mail is left from before."""
    if not uses_queue(loaded) and not has_mail(loaded.config.state):
        return []
    shards = max(1, min(SHARDS_MOST, workers))
    found: list[Aside] = [DispatcherAside("queue", loaded, hall, shards, log, logs)]
    found += [
        ShardAside(number, loaded, hall, shards, log, logs, maildir if number == 0 else "")
        for number in range(shards)
    ]
    return found


def uses_queue(loaded: Loaded) -> bool:
    """Whether any recipient is queued."""
    config = loaded.config
    return config.deliver.queue or any(accept.queue for accept in config.accept)


def runs_programs(loaded: Loaded) -> bool:
    """Whether some mail is given to a program of somebody else's, which may be set-uid."""
    config = loaded.config
    places = [config.deliver.default, *(one.deliver for one in config.accept)]
    places += [one.deliver for one in config.route]
    return any(runs_program(place) for place in places)


def uses_direct(loaded: Loaded) -> bool:
    """Whether any recipient is handed over before the 250."""
    config = loaded.config
    return not config.deliver.queue or any(accept.queue is False for accept in config.accept)


def has_mail(state: str) -> bool:
    """Whether an earlier life left a queue."""
    try:
        names = os.listdir(os.path.join(state, QUEUE))
    except OSError:
        return False
    return any(name.startswith("mail-") for name in names)
