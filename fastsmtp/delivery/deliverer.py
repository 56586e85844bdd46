"""Delivery to other servers, out of the queue: by MX, SMTP and LMTP.

    deliverer = Deliverer(remote=config.remote, hostname=..., resolver=..., routing=...)
    outcomes = await deliverer.deliver(stored, recipients, dest)

One a process; every limit of a site is kept in it.  It never raises for what
the world does: that is a Retry.  put() is the same without a coroutine.

What is where: mx.py finds servers, source.py chooses our address, site.py
keeps queues and limits, dial.py makes connections, lane.py carries mail.

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, cast

from fastsmtp import errors, reply
from fastsmtp.address import Address
from fastsmtp.config.dest import Dest
from fastsmtp.config.outgoing import Remote
from fastsmtp.config.routes import Route, RouteTable, Routing
from fastsmtp.config.settings import AcceptTable
from fastsmtp.delivery.dial import Dialer
from fastsmtp.delivery.identity import Identity
from fastsmtp.delivery.job import Damaged, Stored
from fastsmtp.delivery.lane import Lane, Pending
from fastsmtp.delivery.link import Link
from fastsmtp.delivery.meters import DeliveryMeter
from fastsmtp.delivery.mx import TTL_S, Found, Host, IsUs, find_hosts
from fastsmtp.delivery.outcome import Hop, Outcome, Retry
from fastsmtp.delivery.site import Need, Site
from fastsmtp.delivery.source import REST_S, Sources, SourceState
from fastsmtp.delivery.starttls import OutgoingTls, RuleFor, rule_of_route
from fastsmtp.log import Log
from fastsmtp.message import Recipient
from fastsmtp.resolver import Asker

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]
Done = Callable[[Sequence[Outcome | Damaged]], object]

KINDS = frozenset({"mx", "smtp", "lmtp", "lmtp+unix"})
"""The destinations that are delivered here."""

_FIRST = (0,)

# Routes whose Needs are kept ready.
ROUTES_MAX = 10_000

# For the goodbyes at the end, in seconds.
GOODBYE_S = 1.0

# How often deadlines are looked at, in seconds.
TICK_S = 1.0
# A site that nothing was sent to for so long is forgotten, in seconds, unless it pauses; a big list has many.
FORGET_S = 60.0
# How long a Unix socket is a place without being looked at again: it has no addresses.
PATH_S = 600.0
# How long what the DNS said for good, or could not say, is an answer for the next message as well, in seconds.
FAULT_S = 5.0
# Addresses of a configured host name are asked for anew after so many seconds.
HOST_S = 60.0


class _Known(NamedTuple):
    """What is known of a domain or place: its site, or why there is none."""

    until_s: float
    site: Site | None
    outcome: Outcome | None


class _Batch:
    """One deliver(): an outcome a recipient, and who is told when all are there."""

    __slots__ = ("_done", "_left", "outcomes")

    def __init__(self, count: int, done: Done) -> None:
        self.outcomes: list[Outcome | Damaged | None] = [None] * count
        self._left = count
        self._done: Done | None = done

    def settle(self, places: Sequence[int], outcomes: Sequence[Outcome | Damaged]) -> None:
        mine = self.outcomes
        for place, outcome in zip(places, outcomes, strict=True):
            if mine[place] is None:
                self._left -= 1
                mine[place] = outcome
        if not self._left and self._done is not None:
            done, self._done = self._done, None
            done(cast("list[Outcome | Damaged]", mine))


class _One:
    """The same for a single recipient."""

    __slots__ = ("_done",)

    def __init__(self, done: Done) -> None:
        self._done: Done | None = done

    def settle(self, places: Sequence[int], outcomes: Sequence[Outcome | Damaged]) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcomes)


class Deliverer:
    """See the module's text.

    remote     limits and time-outs
    hostname   for EHLO, where a source has no name of its own
    resolver   for names that mail brings along
    resolve    host name of the configuration -> its addresses; raises TemporaryError
    routing    the routes of now; without them a dest stands for itself
    is_us      whether a server of a domain is ourselves
    processes  that share the limits of a source
    port       of servers found by MX
    rule_for   which TLS a host must have
    meter      counts connections, sources and sites
    chance     for shuffling and choosing; seeded by the kernel, after the fork, when not given
    tick_s     how often deadlines are looked at
    """

    def __init__(
        self,
        *,
        remote: Remote,
        hostname: str,
        resolver: Asker,
        resolve: Resolve | None = None,
        routing: Routing | None = None,
        is_us: IsUs | None = None,
        processes: int = 1,
        port: int = 25,
        rule_for: RuleFor = rule_of_route,
        tls: OutgoingTls | None = None,
        log: Log | None = None,
        meter: DeliveryMeter | None = None,
        chance: random.Random | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        self.remote = remote
        self.log = log
        self.meter = meter
        self.routing = routing or Routing(AcceptTable(), RouteTable())
        self.chance = chance or random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311 - no secret
        self.sources = Sources(hostname, self.chance.random, processes)
        self.port = port
        self._tick_s = tick_s
        self._dialer = Dialer(self, tls or OutgoingTls(remote), rule_for)
        self._resolver = resolver
        self._resolve = resolve
        self._is_us = is_us or _nobody
        self._known: dict[object, _Known] = {}
        self._asking: dict[object, asyncio.Future[_Known]] = {}
        self._sites: dict[object, Site] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._futures: set[asyncio.Future[list[Outcome]]] = set()
        self._needs: dict[tuple[int, SourceState], Need] = {}
        self._routes: list[Route] = []
        self._clock: Callable[[], float] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    # --- mail in --------------------------------------------------------------------------------------

    async def deliver(
        self, stored: Stored, recipients: Sequence[Recipient], dest: str | Route
    ) -> list[Outcome]:
        """One outcome a recipient, in order.  Cancelled by close(): then nothing is known.

        dest   where the configuration at RCPT sent them; asked anew of the routes.  Or a route, as it is.
        """
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

        def done(outcomes: Sequence[Outcome | Damaged]) -> None:
            if not future.done():
                future.set_result([_readable(outcome) for outcome in outcomes])

        self._futures.add(future)
        try:
            self.put(stored, recipients, dest, done)
            return await future
        finally:
            self._futures.discard(future)

    def put(self, stored: Stored, recipients: Sequence[Recipient], dest: str | Route, done: Done) -> None:
        """The same without a coroutine: done(outcomes) is called once, perhaps from within."""
        now = self.now()
        batch: _Batch | _One
        if len(recipients) == 1:
            batch = _One(done)
            recipient = recipients[0]
            route = dest if isinstance(dest, Route) else self._route(stored, recipient, dest)
            known = self._known.get(_key(route, recipient.domain))
            if known is not None and known.until_s > now and known.site is not None:
                self._put_one(known.site, batch, stored, recipients, _FIRST, route, now)
                return
        else:
            batch = _Batch(len(recipients), done)
        wanted: dict[tuple[Route, bytes], list[int]] = {}
        for place, recipient in enumerate(recipients):
            route = dest if isinstance(dest, Route) else self._route(stored, recipient, dest)
            domain = recipient.domain if route.dest.kind == "mx" else b""
            wanted.setdefault((route, domain), []).append(place)
        found: list[tuple[Route, list[int], _Known]] = []
        for (route, domain), places in wanted.items():
            known = self._known.get(_key(route, domain))
            if known is None or known.until_s <= now:
                self._spawn(self._find_first(batch, stored, recipients, wanted))
                return
            found.append((route, places, known))
        self._hand_out(batch, stored, recipients, found, now)

    def _route(self, stored: Stored, recipient: Recipient, dest: str) -> Route:
        return self.routing.find(stored.envelope.sender, recipient.domain, stored.origins.listener, dest)

    async def _find_first(
        self,
        batch: _Batch | _One,
        stored: Stored,
        recipients: Sequence[Recipient],
        wanted: dict[tuple[Route, bytes], list[int]],
    ) -> None:
        try:
            found = await asyncio.gather(*(self._find(route, domain) for route, domain in wanted))
        except Exception as error:  # noqa: BLE001 - ours: nobody may wait for ever because of it
            self._dialer.say_defect(error)
            everyone = range(len(recipients))
            batch.settle(everyone, [Retry(reply.OUR_DEFECT, repr(error)) for _ in everyone])
            return
        known = [
            (route, places, entry) for ((route, _), places), entry in zip(wanted.items(), found, strict=True)
        ]
        self._hand_out(batch, stored, recipients, known, self.now())

    def _hand_out(
        self,
        batch: _Batch | _One,
        stored: Stored,
        recipients: Sequence[Recipient],
        known: Sequence[tuple[Route, list[int], _Known]],
        now: float,
    ) -> None:
        """To the sites: those of one site and route together, at most remote.recipients at once."""
        if len(known) > 1:
            together: dict[tuple[int, Route], tuple[list[int], _Known]] = {}
            for route, places, entry in known:
                together.setdefault((id(entry.site or entry), route), ([], entry))[0].extend(places)
            known = [(route, places, entry) for (_, route), (places, entry) in together.items()]
        most = self.remote.recipients
        for route, places, entry in known:
            if entry.site is None:
                if entry.outcome is not None:
                    batch.settle(places, [entry.outcome] * len(places))
                continue
            for at in range(0, len(places), most):
                part = places[at : at + most]
                self._put_one(entry.site, batch, stored, [recipients[i] for i in part], part, route, now)

    def _put_one(
        self,
        site: Site,
        batch: _Batch | _One,
        stored: Stored,
        recipients: Sequence[Recipient],
        places: Sequence[int],
        route: Route,
        now: float,
    ) -> None:
        source = self.sources.choose(route, now)
        identity = None if route.pass_client == "none" else Identity.of(stored.origins)
        if source is None:
            batch.settle(places, [Retry(reply.SOURCE_UNUSABLE, _no_source(route))] * len(places))
            return
        pending = Pending(stored, recipients, places, batch.settle, source, route, identity)
        self._send(site, pending, now)

    def _send(self, site: Site, pending: Pending, now: float) -> None:
        source, route = pending.source, pending.route
        if source.bad_until_s > now:
            self.elsewhere(site, pending, errors.SourceUnusable(source.reason))
            return
        who: object = None
        if pending.identity is not None and not pending.forwards:
            who = tuple(pending.identity.attributes.values())
        if who is None:
            need = self._needs.get((id(route), source))
            if need is None:
                need = Need(source, route.tls, route.ca, route.pass_client)
                if len(self._routes) >= ROUTES_MAX:
                    self._routes.clear()
                    self._needs.clear()
                self._routes.append(route)  # kept, so that no other one gets its id
                self._needs[id(route), source] = need
        else:
            need = Need(source, route.tls, route.ca, route.pass_client, who)
        if site.key is None:
            # Forgotten between the look-up and now: nobody would look at its deadlines.
            site.key = site
            self._sites[site] = site
        site.put(need, pending, now)
        if self._timer is None and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    # --- what a site asks -----------------------------------------------------------------------------

    def now(self) -> float:
        """The loop's clock; the loop is that of the first call."""
        if self._clock is None:
            self._clock = asyncio.get_running_loop().time
        return self._clock()

    def elsewhere(self, site: Site, pending: Pending, error: errors.SourceUnusable) -> None:
        """Its source can't be used: another one of the route's where that is allowed, or a later attempt."""
        now = self.now()
        source = pending.source
        if source.bad_until_s <= now and not isinstance(error, errors.SourceUnfit):
            source.bad_until_s = now + REST_S
            source.reason = str(error)
            if self.meter is not None:
                self.meter.source_failed(source.name)
            if self.log is not None:
                self.log.line("source_failed", source=source.name, reason=str(error), delay_s=round(REST_S))
        if source.source is not None and source.source.may_pass_on:
            pending.tried += (source,)
            other = self.sources.choose(pending.route, now, pending.tried)
            if other is not None:
                pending.source = other
                self._send(site, pending, now)
                return
        pending.finish(Retry(reply.SOURCE_UNUSABLE, f"source {source.name}: {error}", source=source.name))

    # --- sites ----------------------------------------------------------------------------------------

    async def _find(self, route: Route, domain: bytes) -> _Known:
        """The site of a domain or place, asked for once at a time."""
        key = _key(route, domain)
        entry = self._known.get(key)
        if entry is not None and entry.until_s > self.now():
            return entry
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.get_running_loop().create_future()
            self._asking[key] = asking
            try:
                entry = await self._look_up(route.dest, domain)
                self._known[key] = entry
                asking.set_result(entry)
            except Exception as error:
                # Ours: who asked the same hears of it too, or would wait for ever.
                asking.set_exception(error)
                asking.exception()
                raise
            except BaseException:
                asking.cancel()
                raise
            finally:
                del self._asking[key]
            return entry
        return await asyncio.shield(asking)

    async def _look_up(self, dest: Dest, domain: bytes) -> _Known:
        if dest.kind == "mx":
            return await self._look_up_mx(domain)
        if dest.path:
            return self._site_of(dest, (), self.now() + PATH_S)
        try:
            addresses = await self._addresses(dest.host)
        except errors.TemporaryError as error:
            failure = Retry(reply.of_error(error), str(error), False, dest.host)
            return _Known(self.now() + FAULT_S, None, failure)
        host = Host(
            dest.host if dest.host not in addresses else "",
            0,
            tuple(one for one in addresses if ":" not in one),
            tuple(one for one in addresses if ":" in one),
        )
        return self._site_of(dest, (host,), self.now() + HOST_S)

    async def _addresses(self, host: str) -> tuple[str, ...]:
        try:
            return (Address(host).text,)
        except ValueError:
            if self._resolve is None:
                raise errors.HostUnknown(f"{host}: nobody to ask") from None
            return await self._resolve(host)

    async def _look_up_mx(self, domain: bytes) -> _Known:
        script = find_hosts(domain, is_us=self._is_us, shuffle=self.chance.shuffle)
        found: Found | Outcome
        try:
            questions = next(script)
            while True:
                questions = script.send(await self._resolver.ask(questions))
        except StopIteration as stop:
            found = stop.value
        now = self.now()
        if not isinstance(found, Found):
            if self.meter is not None:
                self.meter.no_servers(found)
            return _Known(now + FAULT_S, None, found)
        names = tuple(sorted(host.name or host.ipv4 + host.ipv6 for host in found.hosts))
        site = self._sites.get(names)
        if site is None:
            name = domain.decode("utf-8", "replace")
            site = self._sites[names] = Site(self._dialer, name, found.hosts, port=self.port)
            site.key = names
        site.hosts = found.hosts
        return _Known(now + min(found.ttl_s, TTL_S[1]), site, None)

    def _site_of(self, dest: Dest, hosts: tuple[Host, ...], until_s: float) -> _Known:
        """The site of a place of the configuration."""
        site = self._sites.get(dest)
        if site is None:
            site = self._sites[dest] = Site(
                self._dialer, str(dest), hosts, port=dest.port, path=dest.path, is_lmtp=dest.kind != "smtp"
            )
            site.key = dest
        site.hosts = hosts
        return _Known(until_s, site, None)

    async def probe(self, route: Route) -> list[tuple[Hop, str]]:
        """Connect to each address of a route's place, from each of its sources, and say goodbye.

        Each connection, with what is wrong or "".  Not for mx.  Raises TemporaryError when the place's name
        can't be looked up.
        """
        known = await self._look_up(route.dest, b"")
        if known.site is None:
            raise errors.NextHopDown("" if not isinstance(known.outcome, Retry) else known.outcome.reason)
        site = known.site
        found = []
        states = [self.sources.of(source) for source, _ in route.sources] or [self.sources.default]
        for state in states:
            for target in self._dialer.targets(site):
                if not target.path and not state.has_family(target.address):
                    continue
                hop = Hop(
                    target.host, "" if target.path else target.address, target.port, target.path, state.name
                )
                need = Need(state, route.tls, route.ca)
                try:
                    lane = await self._dialer.dial(site, need, target, route)
                except errors.TemporaryError as error:
                    found.append((hop, str(error)))
                else:
                    found.append((lane.hop, ""))
                    lane.quit()
                    await self._goodbye([lane])
        return found

    def wake(self) -> None:
        """Sites that pause are asked again with the next message; where they fail again, they pause for longer."""
        now = self.now()
        for site in self._sites.values():
            site.paused_until_s = min(site.paused_until_s, now)

    # --- time -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = None
        now = self.now()
        gone = set()
        for key, site in list(self._sites.items()):
            site.tick(now)
            if site.is_unused and max(site.used_s, site.paused_until_s + site.pause_s) + FORGET_S < now:
                gone.add(key)
        if gone:
            sites = {self._sites.pop(key) for key in gone}
            for site in sites:
                site.key = None
            self._known = {place: entry for place, entry in self._known.items() if entry.site not in sites}
        if len(self._known) > 10_000:
            self._known = {place: entry for place, entry in self._known.items() if entry.until_s > now}
        if self._sites and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def freed(self, lane: Lane) -> None:
        """A source with a limit has room: others wait for it."""
        for site in self._sites.values():
            if site.waiting_count:
                site.go_on()

    def make_room(self, source: SourceState) -> None:
        """Close an idle connection from a source that has no more."""
        for site in self._sites.values():
            if site.let_go(source):
                return

    def is_wanted(self, source: SourceState) -> bool:
        """Whether mail waits anywhere for a connection from it."""
        return any(site.waits_for(source) for site in self._sites.values())

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give everything back.  Who still waits in deliver() is cancelled: then nothing is known."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for future in list(self._futures):
            future.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        links = [link for site in list(self._sites.values()) for link in await site.close()]
        await self._goodbye(links)

    async def _goodbye(self, links: Sequence[Link]) -> None:
        """Until they have ended: TLS says goodbye too, and a loop that is closed meanwhile complains."""
        end_s = self.now() + GOODBYE_S
        while self.now() < end_s and not all(link.is_gone for link in links):
            await asyncio.sleep(0.005)
        for link in links:
            link.abort()
        await asyncio.sleep(0)

    def publish(self) -> None:
        """Copy what is kept here into the metrics."""
        if self.meter is None:
            return
        now = asyncio.get_running_loop().time() if self._clock is None else self._clock()
        paused = sum(site.paused_until_s > now for site in self._sites.values())
        self.meter.publish_sites(len(self._sites), paused)
        for source in (self.sources.default, *self.sources.known()):
            self.meter.publish_source(source, now)

    @property
    def site_count(self) -> int:
        """Sites that are remembered."""
        return len(self._sites)

    @property
    def open_count(self) -> int:
        """Connections, those that are being made included."""
        return sum(site.open_count for site in self._sites.values())


def _key(route: Route, domain: bytes) -> object:
    """What is asked about: a domain, or a place by its DEST."""
    return domain if route.deliver == "mx" else route.deliver


def _no_source(route: Route) -> str:
    names = ", ".join(source.name for source, _ in route.sources)
    return f"none of the sources {names} can be used"


def _readable(outcome: Outcome | Damaged) -> Outcome:
    """For callers that know no damage: such a message is as one that can't be read now."""
    return Retry(reply.STORAGE_FAILED, outcome.reason) if isinstance(outcome, Damaged) else outcome


def _nobody(name: str, addresses: Sequence[str]) -> bool:
    return False
