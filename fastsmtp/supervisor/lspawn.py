"""lspawn: the process that keeps root, so that mail is delivered as the account that its destination names.

As qmail-lspawn it does as little as it can: it takes an errand from a delivery process (delivery/errand.py),
looks its key up among those of the configuration, and forks a child that becomes the account before it looks at
anything else (delivery/carrier.py).  It reads no message, opens no file, and starts no program.

    who may ask    processes of queue_user, by the kernel's word (SO_PEERCRED); for what the configuration names
    children       CHILDREN at a time, each for several messages of one account and DEST; killed KILL_S after a
                   program's time, counted from when it takes no more of them
    its end        children deliver and answer without it; only the time is nobody's to keep then

Rank 9: processes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from fastsmtp import reply
from fastsmtp.config.dest import runs_program
from fastsmtp.config.load import Loaded
from fastsmtp.config.settings import user_pairs
from fastsmtp.delivery.carrier import IDLE_S, Carrier, Stay, check_handed, environment_of, serve
from fastsmtp.delivery.errand import DESCRIPTORS, ERRAND_BYTES, answer, key_of, read_errand
from fastsmtp.delivery.outcome import Retry
from fastsmtp.delivery.pipe import ANSWER_S
from fastsmtp.errors import ConfigError
from fastsmtp.log import LogWriter
from fastsmtp.metrics import Sheet
from fastsmtp.supervisor import privilege
from fastsmtp.supervisor.child import fork
from fastsmtp.supervisor.meters import ErrandMeter
from fastsmtp.supervisor.privilege import Person
from fastsmtp.supervisor.queue import Flusher, Hall, account_of
from fastsmtp.supervisor.shapes import Aside, Seat

NAME: Final = "lspawn"

CHILDREN: Final = 64
"""Four delivery processes send ten errands of one destination at a time."""

REQUEST_S: Final = 10.0
"""From a connection to its errand: both are sent at once."""

KILL_S: Final = 30.0
"""What a child gets beyond the time of its program: it ends that itself."""

KEEP_S: Final = 60.0
"""For so long from its fork a child takes further errands of its account and DEST (delivery/carrier.py)."""

CAPABILITIES: Final = (privilege.CAP_SETUID, privilege.CAP_SETGID, privilege.CAP_KILL)
"""To become somebody, and to end who has; of all else that root may do it needs nothing."""

SWEEP_S: Final = 0.5

_CREDENTIALS: Final = struct.Struct("3i")


class Pair:
    """An account and the DEST that it delivers to."""

    __slots__ = ("deliver", "environment", "person", "runs_programs")

    def __init__(self, person: Person, deliver: str, environment: Mapping[str, str]) -> None:
        self.person = person
        self.deliver = deliver
        self.environment = environment
        self.runs_programs = runs_program(deliver)


class LspawnAside:
    """See shapes.Aside."""

    name = NAME
    user = "root"
    order = 1
    """Before the delivery processes, and after them at the end."""
    keeps_root = True

    def __init__(self, loaded: Loaded, hall: Hall, log: Callable[[], LogWriter], logs: Sequence[int]) -> None:
        self._loaded = loaded
        self._hall = hall
        self._make_log = log
        self._logs = logs
        self.pairs = user_pairs(loaded.config)
        self.runs_programs = any(runs_program(deliver) for _, deliver in self.pairs)
        self.people: dict[str, Person] = {}
        for user in {user for user, _ in self.pairs}:
            # Who is gone by now is told of in own().
            with suppress(ConfigError):
                self.people[user] = privilege.person_for(user)

    @property
    def descriptors(self) -> Sequence[int]:
        return (*self._logs, self._hall.errands.fileno())

    def is_same(self, other: Aside) -> bool:
        if not isinstance(other, LspawnAside):
            return False
        config, theirs = self._loaded.config, other._loaded.config
        return (self.pairs, self.people, config.hostname, config.queue_user, config.state, config.log) == (
            other.pairs, other.people, theirs.hostname, theirs.queue_user, theirs.state, theirs.log,
        )  # fmt: skip

    def own(self, account: tuple[int, int] | None) -> None:
        config = self._loaded.config
        for user, _ in self.pairs:
            self.people[user] = privilege.person_for(user)
        try:
            self._hall.own_errands(config.state, account_of(config.queue_user))
        except OSError as error:
            raise ConfigError(f"state: no socket in {config.state}: {error.strerror}") from None

    def prepare(self) -> None:
        """What a child imports only where it needs it, and perhaps can't read."""
        import shlex  # noqa: F401

    def release(self) -> None:
        return None

    async def start(self, seat: Seat) -> Lspawn:
        privilege.keep_capabilities(CAPABILITIES, runs_programs=self.runs_programs)
        privilege.withhold_shared_memory()
        config = self._loaded.config
        pairs = {}
        for user, deliver in self.pairs:
            person = self.people[user]
            pairs[key_of(user, deliver)] = Pair(person, deliver, environment_of(person.name, person.home))
        lspawn = Lspawn(
            self._hall.errands,
            pairs,
            caller=account_of(config.queue_user)[0],
            hostname=config.hostname,
            version=self._hall.version,
            log=self._make_log(),
            metrics=seat.metrics,
        )
        lspawn.begin()
        return lspawn


class _Errand:
    """One connection, from its call to its end.

    pid, pidfd   of the child; 0 and -1 before there is one, pidfd also where the kernel has none
    """

    __slots__ = ("deadline_s", "is_killed", "pair", "pid", "pidfd", "sock")

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self.sock = sock
        self.deadline_s = deadline_s
        self.pid = 0
        self.pidfd = -1
        self.pair: Pair | None = None
        self.is_killed = False


class Lspawn:
    """See shapes.Running.

    sock       where delivery processes call; listening
    pairs      by key; nothing else is delivered to, and as nobody else
    caller     the uid of those who may call
    """

    def __init__(
        self,
        sock: socket.socket,
        pairs: Mapping[bytes, Pair],
        *,
        caller: int,
        hostname: str,
        version: str,
        log: LogWriter,
        metrics: Sheet,
        answer_s: float = ANSWER_S,
        kill_s: float = KILL_S,
        keep_s: float = KEEP_S,
        idle_s: float = IDLE_S,
        children: int = CHILDREN,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sock = sock
        self._pairs = pairs
        self._caller = caller
        self._hostname = hostname
        self._version = version
        self._log = log
        self._meter = ErrandMeter(metrics)
        self._answer_s = answer_s
        self._kill_s = kill_s
        self._keep_s = keep_s
        self._idle_s = idle_s
        # Its other end is ours only: children see us close it, or die, and go when they have answered.
        self._stay, self._staying = os.pipe2(os.O_CLOEXEC)
        self._children = children
        self._now = now
        self._loop = asyncio.get_running_loop()
        # Once for all children: nothing of the server's reaches a program.
        os.environ.clear()
        privilege.prepare_to_become()
        self._errands: set[_Errand] = set()
        self._is_taking = False
        self._is_leaving = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._flusher = Flusher(log)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def begin(self) -> None:
        """Take calls."""
        self._take()

    async def replace(self, files: Mapping[str, bytes]) -> None:
        return None

    async def drain(self, timeout_s: float) -> None:
        self._is_leaving = True
        self._take_no_more()
        self._call_off()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()

    async def close(self) -> None:
        """Kill who still delivers: it will be tried again."""
        self._is_leaving = True
        self._take_no_more()
        self._call_off()
        self._sweeper.cancel()
        for errand in list(self._errands):
            if errand.pid:
                self._kill(errand)
            self._forget(errand)
        os.close(self._stay)
        self._flusher.close()

    def _call_off(self) -> None:
        """Children that wait for another errand go now, the others when they have answered."""
        if self._staying >= 0:
            os.close(self._staying)
            self._staying = -1

    # --- calls -------------------------------------------------------------------------------------

    def _take(self) -> None:
        if not self._is_taking and not self._is_leaving and len(self._errands) < self._children:
            self._is_taking = True
            self._loop.add_reader(self._sock.fileno(), self._called)

    def _take_no_more(self) -> None:
        if self._is_taking:
            self._is_taking = False
            self._loop.remove_reader(self._sock.fileno())

    def _called(self) -> None:
        """Who calls while all children are busy waits in the socket's backlog."""
        while len(self._errands) < self._children:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            pid, uid, _ = _CREDENTIALS.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if uid != self._caller:
                self._refused(f"a process of uid {uid}", pid)
                sock.close()
                continue
            sock.setblocking(False)
            errand = _Errand(sock, self._now() + REQUEST_S)
            self._errands.add(errand)
            self._is_idle.clear()
            self._loop.add_reader(sock.fileno(), self._asked, errand)
        self._take_no_more()

    def _asked(self, errand: _Errand) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(
                errand.sock, ERRAND_BYTES + 1, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet, descriptors = b"", []
        self._loop.remove_reader(errand.sock.fileno())
        try:
            if packet and not _has_gone(errand.sock):
                self._begin(errand, packet, descriptors)
        except ValueError as error:
            self._refused(str(error))
        finally:
            for fd in descriptors:
                os.close(fd)
            if not errand.pid:
                self._forget(errand)

    def _begin(self, errand: _Errand, packet: bytes, descriptors: Sequence[int]) -> None:
        """Fork who delivers; ValueError for an errand that isn't one of ours."""
        key = read_errand(packet)
        pair = self._pairs.get(key)
        if pair is None:
            raise ValueError("a destination and account that the configuration doesn't have")
        check_handed(descriptors)
        errand.pair = pair
        # Those that stay are half of them at most: the others are there for whoever calls.
        keep_s = self._keep_s if len(self._errands) <= self._children // 2 else 0.0
        self._log.flush()
        try:
            errand.pid = fork(
                [errand.sock.fileno(), self._stay, *descriptors],
                lambda: self._live(pair, key, errand.sock, descriptors, keep_s),
            )
        except OSError as error:
            self._failed(pair, f"no process: {error.strerror}")
            return
        self._meter.begun.inc()
        self._meter.children.inc()
        errand.deadline_s = self._now() + keep_s + self._answer_s + self._kill_s
        # Without pidfd_open (Linux before 5.3) the sweep looks for those that have ended.
        with suppress(AttributeError, OSError):
            errand.pidfd = os.pidfd_open(errand.pid)
            self._loop.add_reader(errand.pidfd, self._ended, errand)

    # --- the child ---------------------------------------------------------------------------------

    def _live(
        self, pair: Pair, key: bytes, sock: socket.socket, descriptors: Sequence[int], keep_s: float
    ) -> int:
        """The child: be the account, then look at what is to be delivered."""
        until_s = time.monotonic() + keep_s
        # What is there already is nothing to collect, and looking at it would copy our memory.
        gc.freeze()
        person = pair.person
        try:
            privilege.become_person(person, runs_programs=pair.runs_programs)
        except OSError as error:
            reason = f"cannot become {person.name}: {error.strerror}"
            sock.send(answer(Retry(reply.STORAGE_FAILED, reason)))
            return 1
        os.environ.update(pair.environment)
        try:
            os.chdir(person.home)
        except OSError:
            os.chdir("/")
        carrier = Carrier(
            pair.deliver, person.name, person.home,
            hostname=self._hostname, version=self._version, answer_s=self._answer_s,
        )  # fmt: skip
        serve(sock, key, carrier.carry, descriptors, Stay(self._stay, until_s, idle_s=self._idle_s))
        return 0

    # --- its end -----------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        now = self._now()
        for errand in list(self._errands):
            if now >= errand.deadline_s:
                if errand.pid:
                    self._kill(errand)
                else:
                    self._refused("a call without an errand")
                    self._loop.remove_reader(errand.sock.fileno())
                    self._forget(errand)
            if errand.pid and errand.pidfd < 0:
                self._ended(errand)

    def _kill(self, errand: _Errand) -> None:
        """It, and all that it has started, as far as that stayed in its session."""
        errand.is_killed = True
        with suppress(ProcessLookupError):
            os.kill(errand.pid, signal.SIGKILL)
        for pid in _session(errand.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ended(self, errand: _Errand) -> None:
        try:
            pid, status = os.waitpid(errand.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = errand.pid, 0
        if not pid:
            return
        self._meter.children.dec()
        code = os.waitstatus_to_exitcode(status)
        if code and errand.pair is not None:
            name = errand.pair.person.name
            if errand.is_killed:
                reason = "took too long and was killed"
            else:
                reason = f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
            self._failed(errand.pair, reason, pid)
            # Whoever was answered by the child has gone, or reads that first.
            failed = reply.PROGRAM_TIMED_OUT if errand.is_killed else reply.STORAGE_FAILED
            with suppress(OSError):
                errand.sock.send(answer(Retry(failed, f"as {name}: {reason}", may_have_arrived=True)))
        self._forget(errand)

    def _refused(self, reason: str, pid: int | None = None) -> None:
        self._meter.refused.inc()
        self._log.line("lspawn_refused", pid=pid, reason=reason)

    def _failed(self, pair: Pair, reason: str, pid: int | None = None) -> None:
        self._meter.failed.inc()
        self._log.line("lspawn_failed", what=pair.person.name, pid=pid, reason=reason)

    def _forget(self, errand: _Errand) -> None:
        self._errands.discard(errand)
        if errand.pidfd >= 0:
            self._loop.remove_reader(errand.pidfd)
            os.close(errand.pidfd)
            errand.pidfd = -1
        with suppress(ValueError):
            self._loop.remove_reader(errand.sock.fileno())
        errand.sock.close()
        if not self._errands:
            self._is_idle.set()
        self._take()


def _session(leader: int) -> list[int]:
    """The processes of a session but its leader, as far as /proc shows them."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != leader:
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(name)) == leader:
                    found.append(int(name))
    return found


def _has_gone(sock: socket.socket) -> bool:
    """Whether nobody waits for the answer any more: what is asked then is asked again later, by somebody else."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
