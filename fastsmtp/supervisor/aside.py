"""The processes beside the workers: who is to run, who runs, and what becomes of one that ends.

Each name has a post.  A post has one process at most: where a reload brings another
aside of that name, the one that runs drains, and its successor starts when it has
exited.  The master calls; nothing here waits.

    first start  by order, and no worker is forked before all are ready; whoever fails stops the server
    later        each by itself; one that dies is replaced with the back-off of workers
    stop         when the last worker has gone, in reverse order, DRAIN_S for all of them together

Rank 9.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Final

from fastsmtp.errors import ConfigError
from fastsmtp.records import dataclass, field
from fastsmtp.supervisor import privilege
from fastsmtp.supervisor.backoff import Backoff
from fastsmtp.supervisor.channel import Channel
from fastsmtp.supervisor.child import fork
from fastsmtp.supervisor.generation import GRACE_S, START_S, Child, StartFailed, State, described, ending
from fastsmtp.supervisor.heartbeat import Pulse
from fastsmtp.supervisor.regions import Regions
from fastsmtp.supervisor.shapes import Aside, MasterLog
from fastsmtp.supervisor.sockets import Address
from fastsmtp.supervisor.worker import DRAIN_S, START_FAILED, live

LEAST_DRAIN_S: Final = 1.0
"""What the last of them gets to end in, when those before it have used up the time."""


@dataclass(slots=True)
class _Post:
    """The place of one name.

    aside    who is to run; None: nobody any more
    running  whose process `child` is; another than `aside` where a reload brought a new one
    due_s    when to fork, while no process lives
    """

    aside: Aside | None
    due_s: float
    running: Aside | None = None
    child: Child | None = None
    backoff: Backoff = field(default_factory=Backoff)

    def is_ready(self) -> bool:
        return self.child is not None and self.child.state is State.SERVING


class Asides:
    """All of them.

    log          where lines go now
    descriptors  how many files each may open
    """

    def __init__(
        self,
        regions: Regions,
        poll: select.poll,
        now: Callable[[], float],
        log: Callable[[], MasterLog],
    ) -> None:
        self._regions = regions
        self._poll = poll
        self._now = now
        self._log = log
        self._posts: dict[str, _Post] = {}
        self._addresses: Sequence[Address] = ()
        self._descriptors = 0
        self._warned: set[str] = set()
        self._began_s = now()
        self._end_s = 0.0
        self._is_stopping = False
        self._has_served = False

    # --- what the master asks ----------------------------------------------------------------------

    def begin(self, asides: Sequence[Aside], addresses: Sequence[Address], descriptors: int) -> None:
        """The first start.

        addresses    where the server listens: whether an account may be missing depends on them
        descriptors  how many files a process may open
        """
        self._began_s = self._now()
        self._descriptors = descriptors
        self.change(asides, addresses)

    def change(self, asides: Sequence[Aside], addresses: Sequence[Address]) -> None:
        """These are wanted from now on."""
        now = self._now()
        self._addresses = addresses
        coming = {aside.name: aside for aside in asides}
        for name, post in list(self._posts.items()):
            old, post.aside = post.aside, coming.pop(name, None)
            is_same = old is not None and post.aside is not None and old.is_same(post.aside)
            if old is not post.aside and old is not post.running:
                self._released(name, post, old)
            if is_same:
                # The process goes on; should it die, the new one's is the next.
                continue
            post.backoff, post.due_s = Backoff(), now
            if post.child is not None and post.child.state is not State.LEAVING:
                self._dismiss(name, post.child, DRAIN_S)
        for name, aside in coming.items():
            self._posts[name] = _Post(aside, now)

    def turn(self) -> None:
        """Hear them, end the silent, fork who is due.  StartFailed: not all could start."""
        self._hear()
        self._judge()
        if not self._is_stopping:
            self._fill()
            self._look_at_start()

    def reaped(self, pid: int, status: int) -> bool:
        """Whether this dead process, with an exit code as of waitstatus_to_exitcode, was one of ours.  StartFailed."""
        for name, post in list(self._posts.items()):
            if post.child is not None and post.child.pid == pid:
                self._ended(name, post, post.child, status)
                return True
        return False

    def is_ready(self) -> bool:
        """All of them have been ready at some time."""
        return self._has_served

    def children(self) -> list[Child]:
        """The processes that live."""
        return [post.child for post in self._posts.values() if post.child is not None]

    def stop(self) -> None:
        """From now on nobody is replaced."""
        self._is_stopping = True

    def hurry(self) -> None:
        """All end at once."""
        self._is_stopping = True
        for child in self.children():
            child.hurry(self._now() + GRACE_S)

    def end(self) -> None:
        """The workers have gone: those of the highest order that live may go.  To be called again and again."""
        now = self._now()
        self._end_s = self._end_s or now + DRAIN_S
        living = [(name, post.running, post.child) for name, post in self._posts.items()]
        last = max((running.order for _, running, _ in living if running is not None), default=0)
        for name, running, child in living:
            if running is None or child is None or running.order != last or child.state is State.LEAVING:
                continue
            self._dismiss(name, child, max(LEAST_DRAIN_S, self._end_s - now))

    # --- processes ---------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Fork who is due; at the first start those of an order wait until all of lower ones are ready."""
        now = self._now()
        unready = [(name, post, post.aside) for name, post in self._posts.items() if not post.is_ready()]
        first = min((aside.order for _, _, aside in unready if aside is not None), default=0)
        for name, post, aside in unready:
            if aside is None or post.child is not None or now < post.due_s:
                continue
            if self._has_served or aside.order == first:
                try:
                    self._fork(name, post, aside)
                except (ConfigError, OSError) as error:
                    self._not_forked(name, post, error)

    def _fork(self, name: str, post: _Post, aside: Aside) -> None:
        """ConfigError, OSError: it can't be done now."""
        now = self._now()
        account, warning = (
            (None, "")
            if getattr(aside, "keeps_root", False)
            else privilege.account_for(aside.user, self._addresses)
        )
        if warning and aside.user not in self._warned:
            self._warned.add(aside.user)
            self._log().line("notice", what=name, reason=warning)
        aside.own(None if account is None else (account.uid, account.gid))
        index = self._regions.take_aside()
        if index is None:
            raise ConfigError("too many workers of earlier configurations still finish their sessions")
        try:
            ours, theirs = Channel.pair()
        except OSError:
            self._regions.give_back(index, is_in_order=True)
            raise
        region, descriptors = self._regions.region(index), self._descriptors
        self._log().flush()

        def body() -> int:
            try:
                aside.prepare()
            except (ConfigError, OSError) as error:
                theirs.say("failed", str(error))
                return START_FAILED
            return live(
                aside, 0, index, region, self._regions.board,
                sockets=(), channel=theirs, account=account, descriptors=descriptors, is_beating=True,
            )  # fmt: skip

        try:
            pid = fork([theirs.fileno(), *aside.descriptors], body)
        except OSError:
            ours.close()
            self._regions.give_back(index, is_in_order=True)
            raise
        finally:
            theirs.close()
        post.running = aside
        post.child = Child(pid=pid, region=index, channel=ours, pulse=Pulse(now, START_S), born_s=now)
        self._poll.register(ours.fileno(), select.POLLIN)
        self._regions.meter.started(name)
        self._log().line("aside_start", what=name, pid=pid)

    def _not_forked(self, name: str, post: _Post, error: ConfigError | OSError) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        delay_s = max(1.0, post.backoff.after(0.0))
        post.due_s = self._now() + delay_s
        self._log().line("aside_exit", what=name, reason=reason, delay_s=delay_s)
        if not self._has_served:
            raise StartFailed(f"{name}: {reason}") from error

    def _hear(self) -> None:
        for name, post in self._posts.items():
            if post.child is not None:
                self._hear_one(name, post.child)

    def _hear_one(self, name: str, child: Child) -> None:
        for word, text in child.hear(self._poll):
            if word == "ready" and child.state is State.STARTING:
                child.state = State.SERVING
                self._log().line("aside_ready", what=name, pid=child.pid, took_ms=child.lived_ms(self._now()))
            elif word == "refused":
                self._log().line("lists_refused", what=name, reason=text)
            elif word == "leaving" and child.state is State.SERVING:
                child.state = State.LEAVING
                child.deadline_s = self._now() + DRAIN_S + GRACE_S

    def _judge(self) -> None:
        now = self._now()
        for name, post in self._posts.items():
            child = post.child
            if child is None:
                continue
            number = child.judge(self._regions.beat_s(child.region), now)
            if number is not None:
                self._regions.meter.stalled(name)
                took_ms = child.lived_ms(now)
                self._log().line(
                    "aside_stalled", what=name, pid=child.pid, signal=number.name, took_ms=took_ms
                )

    def _dismiss(self, name: str, child: Child, drain_s: float) -> None:
        self._log().line("drain", what=name, pid=child.pid)
        child.dismiss(drain_s, self._now() + drain_s + GRACE_S)

    def _ended(self, name: str, post: _Post, child: Child, status: int) -> None:
        """A process is dead: its successor is due, with a delay where it was not asked to go."""
        self._hear_one(name, child)
        child.forget(self._poll)
        self._regions.give_back(child.region, is_in_order=status == 0)
        self._regions.meter.ended(name, is_in_order=status == 0)
        now = self._now()
        running, post.running, post.child = post.running, None, None
        how = ending(status)
        was_asked = child.state is State.LEAVING
        if not was_asked and not self._is_stopping and post.aside is not None:
            delay_s = post.backoff.after(now - child.born_s)
            post.due_s = now + delay_s
            how["delay_s"] = delay_s
        reason = child.failure or ("asked" if was_asked and status == 0 else "died")
        self._log().line(
            "aside_exit", what=name, pid=child.pid, reason=reason, took_ms=child.lived_ms(now), **how
        )
        if running is not post.aside:
            self._released(name, post, running)
        if not self._has_served and not self._is_stopping:
            raise StartFailed(
                f"{name}: {child.failure or f'ended with {described(status)} before it was ready'}"
            )

    def _released(self, name: str, post: _Post, old: Aside | None) -> None:
        """old has no process and gets none; the post goes where nobody runs or is wanted there."""
        if old is not None:
            old.release()
        if post.aside is None and post.child is None:
            del self._posts[name]

    def _look_at_start(self) -> None:
        if self._has_served:
            return
        late = [name for name, post in self._posts.items() if not post.is_ready()]
        if not late:
            self._has_served = True
        elif self._now() - self._began_s > START_S:
            raise StartFailed(f"{', '.join(late)}: not ready within {START_S:g} s")
