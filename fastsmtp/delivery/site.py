"""One destination site in this process: its servers, the connections to them, the mail that waits, and how it does.

All that share a set of servers are one site, whatever their domains: connections, concurrency, rate and back-off
are kept for it.  Mail waits in queues by what a connection must be like (Need): from which source, how safe.

- The first connections are few; each message that is taken allows one more, each that is put off one less.
- A server that doesn't answer is passed over for a while; the next one in the list is tried at once.
- When none can be reached, or all is put off, the site pauses: what waits is deferred, nothing is tried until the
  pause is over, then one connection tries.  Each pause is twice as long as the last.

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fastsmtp import errors, reply
from fastsmtp._transaction import Transaction
from fastsmtp.config.outgoing import Remote
from fastsmtp.config.routes import Route
from fastsmtp.delivery.identity import Identity
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.lane import Lane, Pending
from fastsmtp.delivery.link import NEVER_S, Link
from fastsmtp.delivery.mx import Host
from fastsmtp.delivery.outcome import Hop, Outcome, Retry
from fastsmtp.delivery.rate import Rate
from fastsmtp.delivery.source import SourceState
from fastsmtp.log import Log

# For how long a server that could not be reached, or broke off, comes behind the others, in seconds.
PASS_OVER_S = 120.0
# For how long a server that lost or refused commands behind the end of a message gets none there, in seconds.
STEP_S = 3600.0
# Messages put off, or connections broken off, one after the other, after which a site pauses.
PUT_OFF_MAX = 10
# How often what waits for a rate is looked at, at least, in seconds.
RATE_TICK_S = 0.5


class Need(NamedTuple):
    """What a connection must be like to carry a message.

    tells   how the next hop learns who the client was; who  its identity where the connection is that client's alone
    """

    source: SourceState
    tls: str
    ca: str
    tells: str = "none"
    who: object = None


class Target(NamedTuple):
    """One address of a server, or a Unix socket."""

    host: str
    address: str
    port: int
    path: str = ""


class Dialer(Protocol):
    """What a site asks of the process that it is in."""

    remote: Remote
    log: Log | None

    def now(self) -> float: ...
    def targets(self, site: Site) -> Sequence[Target]:
        """The addresses in the order in which they are to be tried."""

    async def dial(
        self, site: Site, need: Need, target: Target, route: Route, identity: Identity | None = None
    ) -> Lane:
        """A connection that has greeted, safe as it must be.  Raises TemporaryError."""

    def make_room(self, source: SourceState) -> None:
        """All connections from it are used up: one that is idle goes, whatever its site."""

    def is_wanted(self, source: SourceState) -> bool:
        """Whether mail waits anywhere for a connection from it."""

    def say_defect(self, error: Exception) -> None:
        """Log an error of ours."""

    def keep(self, lane: Lane) -> None:
        """Remember what is worth it of a connection that ends."""

    def elsewhere(self, site: Site, pending: Pending, error: errors.SourceUnusable) -> None:
        """Its source can't be used: another one, or the answer to who waits."""


class Waiting:
    """What waits for one kind of connection, the idle connections of that kind, and how many are being made."""

    __slots__ = ("connecting", "idle", "pending")

    def __init__(self) -> None:
        self.pending: deque[Pending] = deque()
        self.idle: list[Lane] = []
        self.connecting = 0

    def empty(self) -> deque[Pending]:
        """All that waits, which is nobody's any more: who is told may bring the next at once."""
        found, self.pending = self.pending, deque()
        return found


class Site:
    """See the module's text.

    name          for logs: a domain, or a place
    key           what the Deliverer knows it by; None when it is forgotten
    hosts         its servers; of a place with a path none
    is_lmtp       what is spoken there
    window        connections that may be open now
    paused_until_s, reason   nothing is tried before; why
    """

    def __init__(
        self,
        dialer: Dialer,
        name: str,
        hosts: Sequence[Host],
        *,
        port: int = 25,
        path: str = "",
        is_lmtp: bool = False,
    ) -> None:
        remote = dialer.remote
        self.name = name
        self.key: object = None
        self.hosts = tuple(hosts)
        self.port = port
        self.path = path
        self.is_lmtp = is_lmtp
        self.window = min(remote.connections_at_first, remote.connections)
        self.paused_until_s = 0.0
        self.pause_s = 0.0
        self.reason = ""
        self.last: Retry | None = None
        self.passed_over: dict[str, float] = {}
        self._in_step_until_s: dict[str, float] = {}
        self.used_s = 0.0
        self._dialer = dialer
        self._remote = remote
        self._rate = Rate(remote.messages_per_s)
        self._waiting: dict[Need, Waiting] = {}
        self._needs: dict[Link, Need] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._put_off = 0
        self._is_settling = False
        self._late: list[Need] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    # --- mail in ------------------------------------------------------------------------------------

    def put(self, need: Need, pending: Pending, now: float) -> None:
        """One more message; it is settled later, or at once while the site pauses."""
        self.used_s = now
        if self.paused_until_s > now:
            pending.finish(self._paused(pending))
            return
        waiting = self._waiting.get(need)
        if waiting is None:
            waiting = self._waiting[need] = Waiting()
        waiting.pending.append(pending)
        if self._is_settling:
            self._late.append(need)
        else:
            self._pump(need, waiting)

    def _paused(self, pending: Pending) -> Retry:
        left_s = max(0.0, self.paused_until_s - self._dialer.now())
        reason = f"{self.reason}; tried again in {left_s:.0f} s"
        last = self.last
        answer = reply.SITE_PAUSED if last is None else last.reply
        remote = "" if last is None else last.remote
        return Retry(answer, reason, False, remote, pending.source.name, None if last is None else last.hop)

    def _pump(self, need: Need, waiting: Waiting, spare: int = 0) -> None:
        """Set idle connections to work; open another one where that is allowed.

        spare   connections that will take one each as soon as we return
        """
        while waiting.pending and waiting.idle:
            lane = waiting.idle.pop()
            lane.deadline_s = NEVER_S
            before = len(waiting.pending)
            lane.go()
            if len(waiting.pending) == before:
                break  # it must not take what waits now
        if not waiting.pending:
            return
        while (
            len(waiting.pending) - spare > waiting.connecting
            and self.open_count < self._limit
            and not need.source.is_full
            and not self._is_closed
            and not self._wait_s(need)
        ):
            waiting.connecting += 1
            need.source.open_count += 1
            task = asyncio.get_running_loop().create_task(self._open(need, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if need.source.is_full and waiting.pending and not waiting.connecting:
            self._dialer.make_room(need.source)
        if waiting.pending and self.open_count >= self._limit and not self._wait_s(need):
            self._make_room()

    @property
    def open_count(self) -> int:
        count = len(self._needs)
        for waiting in self._waiting.values():
            count += waiting.connecting
        return count

    @property
    def _limit(self) -> int:
        """One that tries after a pause; else the window."""
        return 1 if self.pause_s else self.window

    def _make_room(self) -> None:
        """All connections are used up: one that is idle goes, since it can't carry what waits."""
        for waiting in self._waiting.values():
            if waiting.idle:
                waiting.idle[0].quit()
                return

    def let_go(self, source: SourceState) -> bool:
        """Close an idle connection from this source; False when there is none."""
        for need, waiting in self._waiting.items():
            if need.source is source and waiting.idle:
                waiting.idle[0].quit()
                return True
        return False

    def _is_wanted(self, need: Need) -> bool:
        """Whether mail waits here that wants another kind of connection."""
        return any(waiting.pending and other != need for other, waiting in self._waiting.items())

    def waits_for(self, source: SourceState) -> bool:
        return any(waiting.pending and need.source is source for need, waiting in self._waiting.items())

    # --- what lanes ask -----------------------------------------------------------------------------

    def next_for(self, lane: Lane) -> Pending | None:
        need = self._needs.get(lane)
        if need is None:
            return None
        waiting = self._waiting[need]
        pending = waiting.pending
        if not pending:
            return None
        is_limited = bool(self._rate.per_s or need.source.rate.per_s)
        if is_limited and not self._has_token(need):
            return None
        at = 0
        if pending[0].avoid:
            address = lane.hop.address
            for at, one in enumerate(pending):  # noqa: B007
                if address not in one.avoid:
                    break
            else:
                return None
        if at == 0:
            found = pending.popleft()
        else:
            found = pending[at]
            del pending[at]
        if is_limited:
            self._rate.take()
            need.source.rate.take()
        return found

    def may_go_ahead(self, lane: Lane) -> bool:
        return lane.hop.address not in self._in_step_until_s

    def put_back(self, lane: Lane, pending: Pending) -> None:
        need = self._needs.get(lane)
        if need is not None:
            self._waiting[need].pending.appendleft(pending)

    def say_defect(self, error: Exception) -> None:
        self._dialer.say_defect(error)

    def rest(self, lane: Lane) -> None:
        need = self._needs.get(lane)
        if need is None:
            return
        now = self._dialer.now()
        if self._is_closed or need.who is not None or not self._remote.idle_s:
            lane.quit()
            return
        if need.source.is_full and self._dialer.is_wanted(need.source):
            lane.quit()  # another site waits for it
            return
        if len(self._waiting) > 1 and self.open_count >= self._limit and self._is_wanted(need):
            lane.quit()  # mail that wants another kind of connection waits for it
            return
        lane.deadline_s = min(now + self._remote.idle_s, lane.born_s + self._remote.age_s)
        self._waiting[need].idle.append(lane)

    def done(self, lane: Lane, pending: Pending, transaction: Transaction) -> None:
        """Settle what is decided; what it had no room for goes out in another transaction."""
        outcomes = transaction.outcomes
        refusal = transaction.mail_refusal
        if refusal is not None and refusal.code < 500 and self._moves(lane, pending, outcomes[0]):
            self._feel(is_good=False)
            return
        if transaction.again:
            rest = pending.part(transaction.again)
            need = self._needs.get(lane)
            if need is not None:
                self._waiting[need].pending.appendleft(rest)
        # Who is told may bring the next message at once: that is this connection's, and needs no other one.
        self._is_settling = True
        try:
            _settle(pending, outcomes)
        finally:
            self._is_settling = False
        if refusal is not None and refusal.code < 500:
            first = outcomes[0]
            self.last = first if type(first) is Retry else self.last
            self._feel(is_good=False)
        else:
            # What is said of recipients or a message (greylisting, full mailboxes) is nothing against the site.
            self._feel(is_good=True, grows=type(outcomes[-1]) is not Retry)
        need = self._needs.get(lane)
        if need is not None:
            waiting = self._waiting[need]
            spare = lane.current is None
            if len(waiting.pending) > spare:
                self._pump(need, waiting, spare)
        if self._late:
            late, self._late = self._late, []
            for other in dict.fromkeys(late):
                if other != need and other in self._waiting:
                    self._pump(other, self._waiting[other])

    def _moves(self, lane: Lane, pending: Pending, outcome: object) -> bool:
        """MAIL was put off: another server may take it now."""
        if type(outcome) is not Retry:
            return False
        others = {target.address for target in self._dialer.targets(self) if target.host != lane.hop.host}
        if not others - pending.avoid or pending.failures >= self._remote.addresses:
            return False
        own = {target.address for target in self._dialer.targets(self) if target.host == lane.hop.host}
        pending.avoid |= own | {lane.hop.address}
        pending.failures += 1
        pending.last = outcome
        need = self._needs.get(lane)
        if need is None:
            return False
        waiting = self._waiting[need]
        waiting.pending.append(pending)
        asyncio.get_running_loop().call_soon(self._pump, need, waiting)
        return True

    def lost(self, link: Link) -> None:
        """A connection has ended: what was under way on it goes to another one, or is settled."""
        need = self._needs.pop(link, None)
        if need is None or not isinstance(link, Lane):
            return  # it never was ready: who opened it knows
        need.source.open_count -= 1
        waiting = self._waiting[need]
        if link in waiting.idle:
            waiting.idle.remove(link)
        self._dialer.keep(link)
        error = link.error or errors.NextHopDown("the connection was lost")
        retry = Retry(reply.of_error(error), str(error), False, link.remote, link.hop.source, link.hop)
        under_way = link.given_up()
        for number, (pending, transaction) in enumerate(reversed(under_way)):
            is_first = number == len(under_way) - 1
            self._broken(link, waiting, pending, transaction, retry, is_first=is_first)
        if not self._is_closed and any(one.pending for one in self._waiting.values()):
            asyncio.get_running_loop().call_soon(self._pump_all)

    def _pump_all(self) -> None:
        """A connection has ended: there may be room for whatever waits."""
        for need, waiting in list(self._waiting.items()):
            if waiting.pending and not self._is_closed:
                self._pump(need, waiting)

    def _broken(
        self,
        link: Lane,
        waiting: Waiting,
        pending: Pending,
        transaction: Transaction,
        retry: Retry,
        *,
        is_first: bool,
    ) -> None:
        """One message whose connection ended."""
        outcomes = transaction.outcomes
        undecided = [at for at, outcome in enumerate(outcomes) if outcome is None]
        _settle(pending, outcomes)
        if not undecided:
            return
        rest = pending if len(undecided) == len(outcomes) else pending.part(undecided)
        if transaction.is_doubtful:
            rest.finish(Retry(retry.reply, retry.reason, True, retry.remote, retry.source, retry.hop))
            self._feel(is_good=False)
            return
        rest.last = retry
        if transaction.is_ahead and (
            not transaction.heard or isinstance(link.error, errors.NextHopOutOfStep)
        ):
            if is_first and not self._is_closed:
                self._note_lost_step(link.hop, retry.reason)
        elif not is_first:
            pass  # its commands had only gone ahead: nothing against this server
        elif link.is_reused and not link.has_expired and (not transaction.heard or transaction.is_dismissed):
            # A kept connection that was dead all the time, with the next one that may be so, too; or one that has
            # carried as many messages as the server wants.
            rest.failures += 1
        else:
            rest.failures += 1
            rest.avoid |= {link.hop.address}
            self.passed_over[link.hop.address] = self._dialer.now() + PASS_OVER_S
            self._feel(is_good=False)
        if rest.failures > self._remote.addresses or self._is_closed:
            rest.finish(retry)
            return
        waiting.pending.appendleft(rest)

    def _note_lost_step(self, hop: Hop, reason: str) -> None:
        """A server did not read what came behind the end of a message: it gets each message by itself."""
        self._in_step_until_s[hop.address] = self._dialer.now() + STEP_S
        if self._dialer.log is not None:
            self._dialer.log.line(
                "next_hop_out_of_step", remote=str(hop), reason=reason, delay_s=round(STEP_S)
            )

    # --- connections --------------------------------------------------------------------------------

    async def _open(self, need: Need, waiting: Waiting) -> None:
        """One more connection: the first address that works."""
        lane = None
        try:
            lane = await self._dialled(need, waiting)
        except errors.SourceUnusable as error:
            waiting.connecting -= 1
            need.source.open_count -= 1
            for pending in waiting.empty():
                self._dialer.elsewhere(self, pending, error)
            return
        except Exception as error:  # noqa: BLE001 - ours: nobody may wait for ever because of it
            waiting.connecting -= 1
            need.source.open_count -= 1
            self._dialer.say_defect(error)
            for pending in waiting.empty():
                pending.finish(Retry(reply.OUR_DEFECT, repr(error)))
            return
        except BaseException:
            waiting.connecting -= 1
            need.source.open_count -= 1
            raise
        waiting.connecting -= 1
        if lane is None:
            need.source.open_count -= 1
            self._pump(need, waiting)
            return
        if lane.error is not None:
            need.source.open_count -= 1
            self._pump(need, waiting)
            return
        self._needs[lane] = need
        lane.go()
        self._pump(need, waiting)

    async def _dialled(self, need: Need, waiting: Waiting) -> Lane | None:
        """A connection; None when nothing waits any more, or what waited was settled because there is none."""
        failed: Retry | None = None
        insecure: Retry | None = None
        unfit = False
        tried = 0
        if not waiting.pending:
            return None
        first = waiting.pending[0]
        for target in self._dialer.targets(self):
            if not waiting.pending:
                return None
            if target.address in first.avoid:
                continue
            if not target.path and not need.source.has_family(target.address):
                unfit = True
                continue
            if tried >= self._remote.addresses:
                break
            tried += 1
            try:
                lane = await self._dialer.dial(self, need, target, first.route, first.identity)
            except errors.SourceUnusable:
                raise
            except errors.NextHopInsecure as error:
                hop = Hop(target.host, target.address, target.port, target.path, need.source.name)
                insecure = Retry(reply.of_error(error), str(error), False, str(hop), need.source.name, hop)
            except errors.TemporaryError as error:
                hop = Hop(target.host, target.address, target.port, target.path, need.source.name)
                failed = Retry(reply.of_error(error), str(error), False, str(hop), need.source.name, hop)
                self.passed_over[target.address] = self._dialer.now() + PASS_OVER_S
            else:
                self.passed_over.pop(target.address, None)
                return lane
        if first.avoid:
            # Only what this one message has not been to was tried: nothing against the site.
            if first in waiting.pending:
                waiting.pending.remove(first)
                first.finish(insecure or failed or first.last or self._paused(first))
            return None
        if insecure is not None:
            # They answer, and others may have mail for them: nothing against the site.  It is also what is to
            # be mended, where another server of the site could not be reached at all.
            for pending in waiting.empty():
                pending.finish(insecure)
            return None
        if failed is None:
            if unfit:
                raise errors.SourceUnfit(f"source {need.source.name} has no address of the servers' family")
            failed = Retry(reply.NEXT_HOP_DOWN, "has no address", False, self.name)
        self._none(need, waiting, failed)
        return None

    def _none(self, need: Need, waiting: Waiting, failed: Retry) -> None:
        """No address could be connected to."""
        self.last = failed
        self.window = max(1, self.window // 2)
        others = waiting.connecting - 1
        if (others or need in self._needs.values()) and not self.pause_s:
            # Others are open and work, or may yet: what waits is theirs.
            self.window = max(1, min(self.window, len(self._needs) + others))
            return
        gone = waiting.empty()
        if not self._needs and self.paused_until_s <= self._dialer.now():
            self.pause(failed.reason)
        for one in gone:
            one.finish(failed)

    def pause(self, reason: str) -> None:
        """Leave the site alone; what waits is deferred."""
        remote = self._remote
        self.pause_s = min(remote.pause_max_s, 2.0 * self.pause_s) if self.pause_s else remote.pause_s
        self.paused_until_s = self._dialer.now() + self.pause_s
        self.reason = reason
        self._put_off = 0
        if self._dialer.log is not None:
            self._dialer.log.line("site_paused", what=self.name, reason=reason, delay_s=round(self.pause_s))
        for waiting in list(self._waiting.values()):
            for pending in waiting.empty():
                pending.finish(pending.last or self._paused(pending))

    def _feel(self, *, is_good: bool, grows: bool = True) -> None:
        """What a transaction says of the site: whether it works, and whether it may be asked for more."""
        if is_good:
            self._put_off = 0
            if self.pause_s:
                self.pause_s = 0.0
                if self._dialer.log is not None:
                    self._dialer.log.line("site_resumed", what=self.name)
            if not grows:
                self.window = max(1, self.window - 1)
            elif self.window < self._remote.connections:
                self.window += 1
            return
        self._put_off += 1
        self.window = max(1, self.window - 1)
        if self._put_off >= PUT_OFF_MAX or self.pause_s:
            reason = "puts everything off" if self.last is None else self.last.reason
            self.pause(reason)

    # --- rate -----------------------------------------------------------------------------------------

    def _wait_s(self, need: Need) -> float:
        """Seconds until the next message may go; a timer is set for then."""
        now = self._dialer.now()
        wait_s = max(self._rate.wait_s(now), need.source.rate.wait_s(now))
        if wait_s and self._timer is None:
            # Not longer: the next one to wait may wait for less.
            self._timer = asyncio.get_running_loop().call_later(min(wait_s, RATE_TICK_S), self._go_on)
        return wait_s

    def _has_token(self, need: Need) -> bool:
        return not self._wait_s(need)

    def _go_on(self) -> None:
        self._timer = None
        self._pump_all()

    def go_on(self) -> None:
        """Something else has become free: a source's connection."""
        if self._timer is None:
            self._go_on()

    # --- time -------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look at the deadlines."""
        for link in [link for link in self._needs if link.deadline_s <= now]:
            # One that ends may have put another one of them to work, or ended it.
            need = self._needs.get(link)
            if need is None or link.deadline_s > now:
                continue
            if link in self._waiting[need].idle:
                link.quit()
            else:
                link.expire()
        for address in [address for address, until_s in self.passed_over.items() if until_s <= now]:
            del self.passed_over[address]
        for address in [address for address, until_s in self._in_step_until_s.items() if until_s <= now]:
            del self._in_step_until_s[address]
        for need in [need for need, waiting in self._waiting.items() if _is_empty(waiting)]:
            if need not in self._needs.values():
                del self._waiting[need]
        # Nothing should wait without a reason; if it does, no longer than until now.
        self._pump_all()

    @property
    def is_unused(self) -> bool:
        return not self._needs and not self._waiting and not self._tasks

    @property
    def waiting_count(self) -> int:
        return sum(len(waiting.pending) for waiting in self._waiting.values())

    async def close(self) -> list[Link]:
        """Say goodbye where nothing is under way, and drop the rest; the connections, which end in a moment."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._waiting.values():
            waiting.empty()
        links = list(self._needs)
        for link in links:
            if isinstance(link, Lane) and link.current is None:
                link.quit()
            else:
                link.fail(errors.NextHopDown("given up by us"))
        return links


def _is_empty(waiting: Waiting) -> bool:
    return not waiting.pending and not waiting.idle and not waiting.connecting


def _settle(pending: Pending, outcomes: Sequence[Outcome | Damaged | None]) -> None:
    """Say what is decided to who waits for it."""
    if len(outcomes) == 1:
        if outcomes[0] is not None:
            pending.settle(pending.places, (outcomes[0],))
        return
    places, decided = [], []
    for place, outcome in zip(pending.places, outcomes, strict=True):
        if outcome is not None:
            places.append(place)
            decided.append(outcome)
    if places:
        pending.settle(places, decided)
