"""Processes as the master keeps them: one record each; the workers of one configuration are a generation."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

from fastsmtp.records import dataclass, field
from fastsmtp.supervisor.backoff import Backoff
from fastsmtp.supervisor.channel import Channel
from fastsmtp.supervisor.heartbeat import Pulse
from fastsmtp.supervisor.shapes import Plan
from fastsmtp.supervisor.sockets import Bound

START_S: Final = 60.0
"""For a generation, or what runs beside it, to become ready."""

GRACE_S: Final = 2.0
"""From the end of a drain to SIGKILL."""


class StartFailed(Exception):
    """The first processes could not serve; the text says why."""


class State(IntEnum):
    """Of a process."""

    STARTING = 0
    SERVING = 1
    LEAVING = 2


@dataclass(slots=True, kw_only=True)
class Child:
    """One process.

    region      index of its counters
    failure     what it said when it could not start
    deadline_s  when a leaving one is killed; 0: never
    """

    pid: int
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

    def hear(self, poll: select.poll) -> Iterator[tuple[str, str]]:
        """What it says, (word, text); why it failed and the end of the line are noted here."""
        while not self.is_deaf and (heard := self.channel.hear()) is not None:
            word, text = heard
            if word == "failed":
                self.failure = text
            elif not word:
                # It is dead, or about to be: its end is seen by waitpid.
                self.is_deaf = True
                poll.unregister(self.channel.fileno())
            yield heard

    def forget(self, poll: select.poll) -> None:
        """It is dead, and all it said was heard."""
        if not self.is_deaf:
            poll.unregister(self.channel.fileno())
        self.channel.close()

    def lived_ms(self, now_s: float) -> int:
        return round((now_s - self.born_s) * 1000)

    def judge(self, beat_s: float, now_s: float) -> signal.Signals | None:
        """End it if it is late or silent; the signal that a silent one got."""
        if self.deadline_s and now_s >= self.deadline_s:
            self.kill(signal.SIGKILL)
        number = self.pulse.judge(beat_s, now_s)
        if number is not None:
            self.kill(number)
        return number

    def dismiss(self, drain_s: float, deadline_s: float) -> None:
        """Let it drain for drain_s; deadline_s is when it is killed."""
        if self.state is State.STARTING or not self.channel.say("drain", f"{drain_s:g}"):
            self.kill(signal.SIGTERM)
        self.state = State.LEAVING
        self.deadline_s = deadline_s

    def hurry(self, deadline_s: float) -> None:
        """Let it end now."""
        self.channel.say("close")
        self.deadline_s = deadline_s
        self.state = State.LEAVING


def ending(status: int) -> dict[str, object]:
    """How a process ended, for the log, by the exit code of waitstatus_to_exitcode."""
    return {"signal": signal.Signals(-status).name} if status < 0 else {"status": status}


def described(status: int) -> str:
    """The same in words."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


@dataclass(slots=True, kw_only=True)
class Worker(Child):
    """A worker; number is that of its seat."""

    number: int


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
