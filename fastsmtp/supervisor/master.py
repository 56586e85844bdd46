"""The master: binds, forks, watches, reaps, reloads, and nothing else.

No thread, no event loop: signals write a byte to a pipe, and one poll(2) waits
for that pipe, for what workers say, and for a quarter of a second at most.  A
turn does what has become due.  So a fork is always sound: there is nothing
that another thread could hold.

    start     check, fork what runs beside the workers, bind, fork these; all must get ready, or the server stops and
              says why
    SIGHUP    the configuration is tried in a child, then loaded; new workers are ready before old ones drain
    SIGTERM, SIGINT    drain, with a bound; a second one, or SIGQUIT: at once
    SIGUSR1, SIGUSR2   nothing: elsewhere they open the log anew, and by themselves they would end us
    a worker dies, or gives no sign of life: it is replaced, with a back-off
    a watched file changes: tried in a child, then sent to the workers

Rank 9.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final

from fastsmtp._counters import Counters
from fastsmtp.errors import ConfigError
from fastsmtp.queue.memory import memory_file
from fastsmtp.supervisor import privilege
from fastsmtp.supervisor.aside import Asides
from fastsmtp.supervisor.backoff import Backoff
from fastsmtp.supervisor.channel import Channel
from fastsmtp.supervisor.child import HANDLED, Trial, fork
from fastsmtp.supervisor.generation import (
    GRACE_S,
    START_S,
    Child,
    Generation,
    StartFailed,
    State,
    Worker,
    described,
    ending,
)
from fastsmtp.supervisor.heartbeat import LOOK_S, Pulse
from fastsmtp.supervisor.meters import WORKER
from fastsmtp.supervisor.notify import READY, STOPPING, Notifier
from fastsmtp.supervisor.privilege import Account
from fastsmtp.supervisor.regions import Regions
from fastsmtp.supervisor.shapes import Plan
from fastsmtp.supervisor.sockets import Address, Sockets, assign, handed_over, show
from fastsmtp.supervisor.statefile import PidFile
from fastsmtp.supervisor.watch import LOOK_S as WATCH_S
from fastsmtp.supervisor.watch import Watch
from fastsmtp.supervisor.worker import DRAIN_S, live

IDLE: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})
REGIONS: Final = 256
"""Regions of the counters: new and draining workers have their own.  An unused one costs nothing."""

RELOAD_DRAIN_S: Final = 600.0
"""For transactions of replaced workers: a client waits 10 minutes for its last reply (RFC 5321 4.5.3.2.6)."""

TRIAL_S: Final = 60.0

RENEW_S: Final = 23 * 3600.0
"""A generation of this age is replaced, so that no ticket key gets older than 24 hours."""


class Master:
    """Runs a plan until it is told to stop.  `run` is all that callers need.

    load      reads the configuration anew (SIGHUP); ConfigError on faults
    on_ready  called once, when all workers serve, with the addresses of each listener
    version   of the running program, for the log
    """

    def __init__(
        self,
        plan: Plan,
        load: Callable[[], Plan],
        *,
        environment: MutableMapping[str, str] | None = None,
        on_ready: Callable[[Plan, list[list[Address]]], None] = lambda plan, addresses: None,
        now: Callable[[], float] = time.monotonic,
        version: str = "",
    ) -> None:
        environment = os.environ if environment is None else environment
        self._load = load
        self._log = plan.log
        self._now = now
        self._version = version
        self._on_ready = on_ready
        self._notifier = Notifier(environment)
        self._sockets = Sockets(handed_over(environment, os.getpid()))
        self._regions = Regions(Counters(max(REGIONS, plan.workers * 4)))
        self._plan = plan
        self._poll = select.poll()
        self._asides = Asides(self._regions, self._poll, now, lambda: self._log)
        self._account: Account | None = None
        self._descriptors = 0
        self._current: Generation | None = None
        self._coming: Generation | None = None
        self._leaving: list[Generation] = []
        self._trial: tuple[Trial, Callable[[str], None]] | None = None
        self._reload_wanted = False
        self._watch = self._watch_coming = Watch(())
        self._watched_s = 0.0
        self._unusable: set[str] = set()
        self._stopping = ""
        self._stop_signals = 0
        self._started_s = now()

    # --- the course of things

    def run(self) -> int:
        """Serve until SIGTERM; the exit status.  ConfigError, StartFailed: it could not start."""
        pid_file = PidFile(self._plan.state)
        wake, self._wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._wake, False)
        try:
            self._prepare(wake)
            self._log.line("start", version=self._version, pid=os.getpid(), workers=self._plan.workers)
            self._watch = Watch(self._plan.watched, time.time_ns(), coming=self._plan.coming)
            self._asides.begin(self._plan.asides, _addresses(self._plan), self._descriptors)
            self._asides.turn()
            self._advance()
            while not (self._stopping and not self._children()):
                self._turn(wake)
            return 0
        finally:
            self._end()
            pid_file.remove()
            self._log.flush()

    def _prepare(self, wake: int) -> None:
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in HANDLED:
            # The handler does nothing: the byte in the pipe is the message.
            signal.signal(number, lambda number, frame: None)
        for number in IDLE:
            signal.signal(number, lambda number, frame: None)
        self._poll.register(wake, select.POLLIN)
        privilege.return_memory_early()
        self._descriptors = privilege.raise_descriptors()

    def _turn(self, wake: int) -> None:
        """One round of the loop."""
        self._poll.poll(LOOK_S * 1000)
        for number in _read_signals(wake):
            self._signalled(number)
        self._hear_workers()
        self._reap()
        self._judge()
        self._asides.turn()
        self._respawn()
        self._advance()
        self._hear_trial()
        self._look_at_files()
        self._log.flush()

    def _end(self) -> None:
        """Whatever happened, no child outlives us, and the signals are as they were."""
        for child in self._children():
            child.kill(signal.SIGKILL)
            os.waitpid(child.pid, 0)
        if self._trial is not None:
            trial, _ = self._trial
            trial.close()
            os.kill(trial.pid, signal.SIGKILL)
            os.waitpid(trial.pid, 0)
        self._sockets.close()
        signal.set_wakeup_fd(-1)
        for number in HANDLED | IDLE:
            signal.signal(number, signal.SIG_DFL)

    def _workers(self) -> list[Worker]:
        return [worker for generation in self._generations() for worker in generation.workers.values()]

    def _children(self) -> list[Child]:
        return [*self._workers(), *self._asides.children()]

    def _generations(self) -> list[Generation]:
        return [one for one in (self._current, self._coming) if one is not None] + self._leaving

    # --- signals

    def _signalled(self, number: int) -> None:
        if number in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
            self._stop(signal.Signals(number))
        elif number == signal.SIGHUP:
            self._reload_wanted = True

    def _stop(self, number: signal.Signals) -> None:
        self._stop_signals += 1
        is_first = not self._stopping
        if is_first:
            self._stopping = number.name
            self._notifier.send(STOPPING)
            self._log.line("stop", pid=os.getpid(), signal=number.name)
        if number == signal.SIGQUIT or self._stop_signals > 1:
            for worker in self._workers():
                worker.hurry(self._now() + GRACE_S)
            self._asides.hurry()
        elif is_first:
            self._asides.stop()
            for generation in self._generations():
                self._dismiss(generation, DRAIN_S)
        # Workers have their own copies until they drain; then new clients are refused at once.
        self._sockets.close()

    # --- workers

    def _generation(self, plan: Plan, reason: str) -> Generation:
        """Bind and fork a plan's workers.  ConfigError: it can't be, and nothing has changed."""
        bound = self._sockets.bind(plan.listeners, plan.workers)
        addresses = [one.actual for listener in bound for one in listener]
        if self._regions.free() < plan.workers:
            raise ConfigError("too many workers of earlier configurations still finish their sessions")
        account, warning = privilege.account_for(plan.user, addresses)
        if warning:
            self._log.line("notice", what="user", reason=warning)
        plan.own(None if account is None else (account.uid, account.gid))
        self._account = account
        # What earlier generations left in cycles is let go; what is there now stays out of the collector's way.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        generation = Generation(plan, bound, assign(bound, plan.workers), self._now(), reason)
        for number in range(plan.workers):
            self._start(generation, number, reason)
        return generation

    def _start(self, generation: Generation, number: int, reason: str) -> None:
        """Fork one worker into its seat."""
        now = self._now()
        index = self._regions.take()
        if index is None:
            generation.due[number] = now + 1.0
            return
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            self._regions.give_back(index, is_in_order=True)
            self._put_off(generation, number, error)
            return
        plan, seat = generation.plan, generation.seats[number]
        region = self._regions.region(index)
        account, descriptors = self._account, self._descriptors
        self._log.flush()

        def body() -> int:
            return live(
                plan, number, index, region, self._regions.board,
                sockets=seat, channel=theirs, account=account, descriptors=descriptors,
            )  # fmt: skip

        keep = [theirs.fileno(), *plan.descriptors, *(fd for _, fd in seat)]
        try:
            pid = fork(keep, body)
        except OSError as error:
            ours.close()
            self._regions.give_back(index, is_in_order=True)
            self._put_off(generation, number, error)
            return
        finally:
            theirs.close()
        generation.workers[pid] = Worker(
            pid=pid, number=number, region=index, channel=ours, pulse=Pulse(now), born_s=now
        )
        self._poll.register(ours.fileno(), select.POLLIN)
        self._regions.meter.started(WORKER)
        self._log.line("worker_start", worker=number, pid=pid, reason=reason)

    def _put_off(self, generation: Generation, number: int, error: OSError) -> None:
        """The system has no process or descriptor to spare: try again in a second."""
        generation.due[number] = self._now() + 1.0
        self._log.line("worker_exit", worker=number, reason=f"cannot fork: {error.strerror}", delay_s=1.0)

    def _hear_workers(self) -> None:
        for generation in self._generations():
            for worker in list(generation.workers.values()):
                self._hear(generation, worker)

    def _hear(self, generation: Generation, worker: Worker) -> None:
        for word, text in worker.hear(self._poll):
            self._heard(generation, worker, word, text)

    def _heard(self, generation: Generation, worker: Worker, word: str, text: str) -> None:
        if word == "ready" and worker.state is State.STARTING:
            worker.state = State.SERVING
            took_ms = worker.lived_ms(self._now())
            self._log.line("worker_ready", worker=worker.number, pid=worker.pid, took_ms=took_ms)
        elif word == "refused":
            self._log.line("lists_refused", what="worker", reason=text)
        elif word == "leaving" and worker.state is State.SERVING:
            worker.state = State.LEAVING
            worker.deadline_s = self._now() + DRAIN_S + GRACE_S
            if generation is self._current and not self._stopping:
                generation.due[worker.number] = self._now()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if self._asides.reaped(pid, code):
                continue
            for generation in self._generations():
                if pid in generation.workers:
                    self._ended(generation, generation.workers.pop(pid), code)
                    break
            # Others are trials, whose verdict comes by pipe, or strangers: we may be a container's process 1.

    def _ended(self, generation: Generation, worker: Worker, status: int) -> None:
        """A worker is dead: forget what it counted, and say who sits there next."""
        self._hear(generation, worker)
        worker.forget(self._poll)
        self._regions.give_back(worker.region, is_in_order=status == 0)
        self._regions.meter.ended(WORKER, is_in_order=status == 0)
        now = self._now()
        how = ending(status)
        is_replaced = (
            generation is self._current and worker.number not in generation.due and not self._stopping
        )
        is_replaced = is_replaced and not (
            worker.state is State.LEAVING and self._has_successor(generation, worker)
        )
        if is_replaced and generation.has_served:
            delay_s = generation.backoffs.setdefault(worker.number, Backoff()).after(now - worker.born_s)
            generation.due[worker.number] = now + delay_s
            how["delay_s"] = delay_s
        reason = worker.failure or ("asked" if worker.state is State.LEAVING and status == 0 else "died")
        self._log.line(
            "worker_exit",
            worker=worker.number,
            pid=worker.pid,
            reason=reason,
            took_ms=worker.lived_ms(now),
            **how,
        )
        if not generation.has_served and not self._stopping and worker.state is not State.LEAVING:
            self._not_started(
                generation, worker.failure or f"a worker ended with {described(status)} before it was ready"
            )

    def _has_successor(self, generation: Generation, worker: Worker) -> bool:
        return any(other.number == worker.number for other in generation.workers.values())

    def _not_started(self, generation: Generation, reason: str) -> None:
        """A new generation can't serve: the first one ends the server, a later one is given up."""
        if generation is self._current:
            raise StartFailed(reason)
        if generation is self._coming:
            self._give_up(reason)

    def _judge(self) -> None:
        """End the silent and the late."""
        now = self._now()
        for worker in self._workers():
            number = worker.judge(self._regions.beat_s(worker.region), now)
            if number is None:
                continue
            self._regions.meter.stalled(WORKER)
            self._log.line(
                "worker_stalled",
                worker=worker.number,
                pid=worker.pid,
                signal=number.name,
                took_ms=worker.lived_ms(now),
            )

    def _respawn(self) -> None:
        now = self._now()
        for generation in (self._current, self._coming):
            if generation is None or self._stopping:
                continue
            for number in [number for number, due_s in generation.due.items() if now >= due_s]:
                del generation.due[number]
                self._start(generation, number, "replacement")

    def _dismiss(self, generation: Generation, drain_s: float) -> None:
        """Let all its workers drain."""
        generation.due.clear()
        for worker in generation.workers.values():
            self._log.line("drain", worker=worker.number, pid=worker.pid)
            worker.dismiss(drain_s, self._now() + drain_s + GRACE_S)

    # --- generations

    def _advance(self) -> None:
        """Take a generation that became ready into service; begin a reload that is wanted."""
        now = self._now()
        if self._stopping:
            if not self._workers():
                self._asides.end()
        elif self._current is None and self._asides.is_ready():
            self._current = self._generation(self._plan, "start")
        current, coming = self._current, self._coming
        if current is not None and not current.has_served and not self._stopping:
            if current.is_ready():
                self._served(current)
            elif now - current.born_s > START_S:
                raise StartFailed(f"the workers were not ready within {START_S:g} s")
        if coming is not None and not self._stopping:
            if coming.is_ready():
                self._succeed(coming)
            elif now - coming.born_s > START_S:
                self._give_up(f"the new workers were not ready within {START_S:g} s")
        self._leaving = [one for one in self._leaving if one.workers]
        if self._stopping or self._trial is not None or self._coming is not None or current is None:
            return
        if self._reload_wanted and current.has_served:
            self._reload_wanted = False
            self._notifier.reloading()
            self._try(lambda: _check_loading(self._load), self._reload)
        elif current.has_served and now - current.born_s > RENEW_S:
            self._renew("tickets")

    def _served(self, generation: Generation) -> None:
        generation.has_served = True
        self._tell_addresses(generation, set())
        took_ms = round((self._now() - self._started_s) * 1000)
        self._log.line("ready", workers=len(generation.seats), took_ms=took_ms)
        self._log.flush()
        self._notifier.send(READY)
        self._on_ready(generation.plan, [[one.actual for one in listener] for listener in generation.bound])

    def _reload(self, faults: str) -> None:
        """The configuration was tried: load it here, and start its workers."""
        try:
            if faults:
                raise ConfigError(*faults.splitlines())
            since_ns = time.time_ns()
            plan = self._load()
        except (ConfigError, OSError) as error:
            self._refuse(str(error))
            return
        try:
            if os.path.realpath(plan.state) != os.path.realpath(self._plan.state):
                raise ConfigError("state: the state directory can't be changed while the server runs")
            self._coming = self._generation(plan, "reload")
            self._watch_coming = Watch(plan.watched, since_ns, coming=plan.coming)
        except (ConfigError, OSError) as error:
            plan.log.close()
            self._refuse(str(error))

    def _renew(self, reason: str) -> None:
        """The same configuration in new workers."""
        if self._coming is not None or self._current is None:
            return
        try:
            self._notifier.reloading()
            self._coming = self._generation(self._plan.renew(), reason)
            self._watch_coming = self._watch
        except (ConfigError, OSError) as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        self._regions.meter.reloads_refused.inc()
        for fault in reason.splitlines():
            self._log.line("reload_refused", reason=fault)
        self._notifier.send(READY)

    def _give_up(self, reason: str) -> None:
        """The coming generation is not to be."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        self._leaving.append(coming)
        if coming.plan.log is not self._log:
            coming.plan.log.close()
        for worker in coming.workers.values():
            worker.state = State.LEAVING
            worker.kill(signal.SIGKILL)
        self._keep_sockets()
        self._refuse(reason)

    def _succeed(self, coming: Generation) -> None:
        """The new workers serve: the old ones may go."""
        self._regions.meter.reloads.inc()
        old = self._current
        self._current, self._coming = coming, None
        coming.has_served = True
        self._plan = coming.plan
        if coming.plan.log is not self._log:
            self._log.close()
            self._log = coming.plan.log
        self._watch = self._watch_coming
        self._unusable.clear()
        self._asides.change(self._plan.asides, _addresses(self._plan))
        known = set() if old is None else {one.actual for listener in old.bound for one in listener}
        self._tell_addresses(coming, known)
        took_ms = round((self._now() - coming.born_s) * 1000)
        self._log.line("reload", reason=coming.reason, workers=len(coming.seats), took_ms=took_ms)
        if coming.reason == "reload":
            for warning in coming.plan.warnings:
                self._log.line("notice", what="configuration", reason=warning)
        if old is not None:
            self._leaving.append(old)
            self._dismiss(old, RELOAD_DRAIN_S)
        self._keep_sockets()
        self._notifier.send(READY)

    def _tell_addresses(self, generation: Generation, known: set[Address]) -> None:
        """A line for each address that is new."""
        for listener, bound in zip(generation.plan.listeners, generation.bound, strict=True):
            for one in bound:
                if one.actual not in known:
                    self._log.line("listening", listener=listener.name, address=show(*one.actual))

    def _keep_sockets(self) -> None:
        """Close the addresses that no configuration in force has; draining workers let go of theirs."""
        self._sockets.keep(
            one.key
            for generation in (self._current, self._coming)
            if generation is not None
            for listener in generation.bound
            for one in listener
        )

    # --- trials and files

    def _try(self, attempt: Callable[[], None], then: Callable[[str], None]) -> None:
        self._log.flush()
        try:
            trial = Trial(self._plan.descriptors, attempt, self._now() + TRIAL_S)
        except OSError as error:
            then(f"cannot fork to check it: {error.strerror}")
            return
        self._trial = trial, then
        self._poll.register(trial.fd, select.POLLIN)

    def _hear_trial(self) -> None:
        if self._trial is None:
            return
        trial, then = self._trial
        verdict = trial.read()
        if verdict is None and self._now() > trial.deadline_s:
            verdict = f"the check was not done within {TRIAL_S:g} s"
            os.kill(trial.pid, signal.SIGKILL)
        if verdict is None:
            return
        self._poll.unregister(trial.fd)
        trial.close()
        self._trial = None
        if not self._stopping:
            then(verdict)

    def _look_at_files(self) -> None:
        """What changed is read here (keys are root's), tried in a child, then handed on."""
        now = self._now()
        if (
            now - self._watched_s < WATCH_S
            or self._trial is not None
            or self._coming is not None
            or self._current is None
            or self._stopping
        ):
            return
        self._watched_s = now
        plan = self._plan
        changed = self._watch.changed()
        for path in list(changed):
            if plan.kind(path) == "configuration" or (path in plan.coming and not os.path.exists(path)):
                changed.remove(path)
                self._reload_wanted = True
                self._log.line("configuration_changed", file=path)
        if not changed:
            return
        # What was refused may fit now: a certificate and its key change one after the other.
        files: dict[str, bytes] = {}
        for path in {*changed, *self._unusable}:
            try:
                with open(path, "rb") as file:
                    files[path] = file.read()
            except OSError as error:
                self._log.line(f"{self._plan.kind(path)}_refused", file=path, reason=error.strerror)
        if files:
            self._try(lambda: plan.check(files), lambda faults: self._replace(files, faults))

    def _replace(self, files: Mapping[str, bytes], faults: str) -> None:
        """The new contents were tried: use them, here for workers to come and in those that run."""
        if faults:
            self._unusable.update(files)
            event = f"{self._plan.kind(min(files))}_refused"
            for fault in faults.splitlines():
                self._log.line(event, file=", ".join(sorted(files)), reason=fault)
            return
        self._unusable.difference_update(files)
        current = self._current
        if current is None:
            return
        if not self._plan.replace(files):
            self._renew("files")
            return
        for path in files:
            self._log.line(f"{self._plan.kind(path)}_reloaded", file=path)
        fds: dict[str, int] = {}
        try:
            for path, contents in files.items():
                fds[path] = memory_file(path, contents)
            for child in [*current.workers.values(), *self._asides.children()]:
                if child.state is not State.LEAVING and not child.channel.send_files(fds):
                    # It doesn't listen; its successor will know.
                    child.kill(signal.SIGTERM)
        except OSError:
            # No memory file to be had: workers to come have the new contents, so let others come.
            self._renew("files")
        finally:
            for fd in fds.values():
                os.close(fd)


def _addresses(plan: Plan) -> list[Address]:
    return [address for listener in plan.listeners for address in listener.addresses]


def _check_loading(load: Callable[[], Plan]) -> None:
    load()


def _read_signals(wake: int) -> list[int]:
    """The numbers that the handlers wrote since the last turn."""
    try:
        return list(os.read(wake, 4096))
    except BlockingIOError:
        return []
