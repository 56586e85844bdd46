"""Workers as the master keeps them: one record a process, one generation a configuration."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from fastsmtp.supervisor.backoff import Backoff
from fastsmtp.supervisor.channel import Channel
from fastsmtp.supervisor.heartbeat import Pulse
from fastsmtp.supervisor.shapes import Plan
from fastsmtp.supervisor.sockets import Bound


class State(IntEnum):
    """Of a worker."""

    STARTING = 0
    SERVING = 1
    LEAVING = 2


@dataclass(slots=True)
class Worker:
    """One process.

    region      index of its counters
    failure     what it said when it could not start
    deadline_s  when a leaving one is killed; 0: never
    """

    pid: int
    number: int
    region: int
    channel: Channel
    pulse: Pulse
    born_s: float
    state: State = State.STARTING
    failure: str = ""
    deadline_s: float = 0.0
    is_deaf: bool = False

    def kill(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            # Dead already; it is reaped in the next turn.
            return


@dataclass(slots=True)
class Generation:
    """All workers of one loaded configuration.

    bound     the sockets of each listener
    seats     for each worker its (index of the listener, descriptor)
    workers   those that live, by pid
    due       seat -> when its worker is to be forked
    has_served   all seats were ready at some time
    """

    plan: Plan
    bound: Sequence[Sequence[Bound]]
    seats: Sequence[Sequence[tuple[int, int]]]
    born_s: float
    reason: str
    workers: dict[int, Worker] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)
    backoffs: dict[int, Backoff] = field(default_factory=dict)
    has_served: bool = False

    def is_ready(self) -> bool:
        """Every seat has a worker that serves."""
        serving = {worker.number for worker in self.workers.values() if worker.state is State.SERVING}
        return len(serving) == len(self.seats)
