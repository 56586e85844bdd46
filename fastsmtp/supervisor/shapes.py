"""What the master runs, as it sees it: a Plan in the master, its Asides, a Running in each process.

The master knows nothing of SMTP, TLS or configuration; plan.py does, and a test
brings a plan of its own.  A Plan is made in the master, before the fork, from
one loaded configuration: whatever needs root or must be equal in all workers
(TLS contexts, lists) is part of it.

Rank 9: processes.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from fastsmtp._counters import Region
from fastsmtp.log import Log
from fastsmtp.metrics import Board, Sheet
from fastsmtp.records import dataclass


@dataclass(frozen=True, slots=True)
class Listener:
    """One [[listen]]: its name, and where; port 0 is any free one."""

    name: str
    addresses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """What a worker is given.

    number       0, 1, ... within its generation; for names in logs
    identity     a small number that no other live worker has, of this generation or another
    region       its counters
    metrics      its part of the metrics
    board        the metrics of all processes, for who shows them
    sockets      (index of the Listener, listening socket): at least one for each address
    descriptors  how many files it may open
    """

    number: int
    identity: int
    region: Region
    metrics: Sheet
    board: Board
    sockets: Sequence[tuple[int, socket.socket]]
    descriptors: int


class Running(Protocol):
    """A worker that serves, or what runs beside the workers."""

    async def replace(self, files: Mapping[str, bytes]) -> None:
        """From now on work with these contents of watched files; they have been checked."""

    async def drain(self, timeout_s: float) -> None:
        """Take no more connections, let transactions end; returns when all is done or the time is up."""

    async def close(self) -> None:
        """Let go of everything now."""


class Starter(Protocol):
    """What a new process brings to life.

    It may have runs_programs: True where it starts programs of others, which may be set-uid (privilege.become).
    """

    async def start(self, seat: Seat) -> Running:
        """Begin to work.  ConfigError or OSError: it can't."""


class Aside(Starter, Protocol):
    """A process beside the workers: the metrics, the queue, a shard of delivery ...

    name         what it is called in logs and the process list; never two live processes of one name
    user         account that it runs as when we are root
    order        those of lower order start first and stop last; those of the same one together
    descriptors  that it keeps open (a log file, what `own` opened)
    keeps_root   True where it stays root, if we are; it need not be there

    `start` runs on an event loop as that of a worker does; the seat has number 0 and no sockets.  It
    returns within START_S (the process counts as ready then), and what takes longer goes on after it.  The
    heartbeat is the loop's own: who blocks the loop for three seconds is killed.  `Running.drain` has
    DRAIN_S and need not end before the work is done: then `close` follows.
    """

    @property
    def name(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def descriptors(self) -> Sequence[int]: ...

    def is_same(self, other: Aside) -> bool:
        """Whether the process that runs for us does just what one of `other`, of our name, would do."""

    def own(self, account: tuple[int, int] | None) -> None:
        """In the master, before each fork: make what it needs of us.  ConfigError or OSError: it can't be."""

    def prepare(self) -> None:
        """In its process, before it becomes its account: import what that account perhaps can't.  As own()."""

    def release(self) -> None:
        """In the master, once: its process has ended and none will follow; close what `own` opened."""


class MasterLog(Log, Protocol):
    """A log that can be closed, when a reload brings another."""

    def close(self) -> None: ...


class Plan(Starter, Protocol):
    """A loaded and checked configuration.

    workers      how many
    user         account of the workers when we are root
    state        state directory
    listeners    where to listen
    watched      files whose change is to be noticed
    coming       files that may come and go, and then the configuration is loaded anew
    warnings     what the operator should know of it; logged after a reload
    descriptors  that workers keep open (a log file)
    asides       what runs beside the workers; each name once
    log          where the master's own lines go
    """

    @property
    def workers(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def listeners(self) -> Sequence[Listener]: ...
    @property
    def watched(self) -> Sequence[str]: ...
    @property
    def coming(self) -> Collection[str]: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    @property
    def descriptors(self) -> Sequence[int]: ...
    @property
    def asides(self) -> Sequence[Aside]: ...
    @property
    def log(self) -> MasterLog: ...

    def kind(self, path: str) -> str:
        """What a watched file is: "cert" or "lists", as in the names of log events.

        "configuration": a change of it is one of the configuration, which is loaded anew.
        """

    def own(self, account: tuple[int, int] | None) -> None:
        """Make what workers of this account (uid, gid; None: ours) will write to, before the fork."""

    def check(self, files: Mapping[str, bytes]) -> None:
        """Raise ConfigError if these contents can't be used.  Called in a child of its own."""

    def replace(self, files: Mapping[str, bytes]) -> bool:
        """Use these contents for workers to come.  False: those that run can't take them, replace them."""

    def renew(self) -> Plan:
        """The same configuration with fresh secrets (ticket keys)."""
