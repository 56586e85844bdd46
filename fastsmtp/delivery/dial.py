"""Making connections: an address, our own one bound, the greeting, TLS as it must be.

A host whose rule is verified or required never hears a word of mail in clear.  Where TLS is only welcome, a
handshake that fails is remembered for the host, and for a while it is spoken to in clear (RFC 7435 section 4.3).

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastsmtp import errors
from fastsmtp.config.routes import Route
from fastsmtp.delivery.dialogue import Dialogue
from fastsmtp.delivery.identity import Identity
from fastsmtp.delivery.lane import Lane, Pending
from fastsmtp.delivery.mx import Host, in_order
from fastsmtp.delivery.outcome import Hop
from fastsmtp.delivery.site import Need, Site, Target
from fastsmtp.delivery.source import SourceState
from fastsmtp.delivery.starttls import OutgoingTls, RuleFor, TlsRule
from fastsmtp.log import log_defect

if TYPE_CHECKING:
    from fastsmtp.delivery.deliverer import Deliverer

# No route for a family: the other one comes first for so many seconds.
NO_ROUTE_S = 300.0
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class Dialer:
    """Makes the connections of a Deliverer's sites; see site.Dialer."""

    def __init__(self, deliverer: Deliverer, tls: OutgoingTls, rule_for: RuleFor) -> None:
        self.remote = deliverer.remote
        self.log = deliverer.log
        self.meter = deliverer.meter
        self.tls = tls
        self._deliverer = deliverer
        self._rule_for = rule_for
        self._no_ipv6_until_s = 0.0
        self._rules: dict[Lane, tuple[TlsRule, str]] = {}

    def now(self) -> float:
        return self._deliverer.now()

    def elsewhere(self, site: Site, pending: Pending, error: errors.SourceUnusable) -> None:
        self._deliverer.elsewhere(site, pending, error)

    def say_defect(self, error: Exception) -> None:
        if self.log is not None:
            log_defect(self.log, error, what="delivery")

    def make_room(self, source: SourceState) -> None:
        self._deliverer.make_room(source)

    def is_wanted(self, source: SourceState) -> bool:
        return self._deliverer.is_wanted(source)

    def keep(self, lane: Lane) -> None:
        if self.meter is not None:
            self.meter.ended(lane.hop.source, lane.served)
        rule = self._rules.pop(lane, None)
        if rule is not None and lane.transport is not None:
            self.tls.keep_session(lane.transport, *rule)
        if lane.hop.source:
            self._deliverer.freed(lane)

    def targets(self, site: Site) -> Sequence[Target]:
        """By preference, equal ones shuffled; those that have just failed come last."""
        if site.path:
            return (Target("", site.path, 0, site.path),)
        hosts: Sequence[Host] = site.hosts
        if len(hosts) > 1:
            chance = self._deliverer.chance
            hosts = sorted(hosts, key=lambda host: (host.preference, chance.random()))
        pairs = in_order(hosts, prefers_ipv4=self._no_ipv6_until_s > self.now())
        targets = [Target(host.name, address, site.port) for host, address in pairs]
        if site.passed_over:
            now = self.now()
            targets.sort(key=lambda target: site.passed_over.get(target.address, 0.0) > now)
        return targets

    async def dial(
        self, site: Site, need: Need, target: Target, route: Route, identity: Identity | None = None
    ) -> Lane:
        """A connection that has greeted, safe as it must be.  Raises TemporaryError, SourceUnusable."""
        meter = self.meter
        try:
            lane = await self._dial(site, need, target, route, identity)
        except errors.TemporaryError as error:
            if meter is not None:
                meter.not_opened(need.source.name, error)
            raise
        if meter is not None:
            meter.opened(need.source.name, lane.hop.tls)
        return lane

    async def _dial(
        self, site: Site, need: Need, target: Target, route: Route, identity: Identity | None
    ) -> Lane:
        host = target.host or target.address
        rule = TlsRule("off") if target.path else self._rule_for(route, host)
        if rule.mode == "opportunistic" and self.tls.has_failed(host, self.now()):
            rule = TlsRule("off")
        try:
            return await self._session(site, need, target, identity, rule, host)
        except errors.NextHopInsecure as error:
            if self.meter is not None:
                self.meter.tls_failed()
            if rule.mode != "opportunistic":
                self._say(site, target, host, str(error), "deferred")
                raise
            is_clear = self.tls.note_failure(host, str(error), self.now())
            self._say(site, target, host, str(error), "in clear" if is_clear else "deferred")
            if not is_clear:
                raise
        return await self._session(site, need, target, identity, TlsRule("off"), host)

    def _say(self, site: Site, target: Target, host: str, reason: str, what: str) -> None:
        if self.log is not None:
            self.log.line(
                "next_hop_tls_failed", remote=f"{host} [{target.address}]", reason=reason, what=what
            )

    async def _session(
        self, site: Site, need: Need, target: Target, identity: Identity | None, rule: TlsRule, host: str
    ) -> Lane:
        remote = self.remote
        loop = asyncio.get_running_loop()
        dialogue = Dialogue(need.source.helo, is_lmtp=site.is_lmtp)
        hop = Hop(
            target.host, "" if target.path else target.address, target.port, target.path, need.source.name
        )
        lane = Lane(dialogue, loop, site, remote, hop)
        await self._connect(lane, need, target)
        try:
            if need.tells == "proxy" and identity is not None:
                await lane.write(identity.proxy, loop.time() + remote.command_s)
            async with asyncio.timeout(remote.greeting_s):
                await lane.run(dialogue.greeted(), loop.time() + remote.greeting_s)
            async with asyncio.timeout(remote.command_s):
                await lane.run(dialogue.hello(), loop.time() + remote.command_s)
            lane.may_speak = False
            if lane.error is not None:
                raise lane.error
            if rule.mode != "off":
                hop = await self._secure(lane, rule, host, hop)
            if need.tells == "xclient" and identity is not None:
                async with asyncio.timeout(remote.command_s):
                    await lane.run(dialogue.identify(identity), loop.time() + remote.command_s)
            if lane.error is not None:
                raise lane.error
        except TimeoutError:
            lane.fail(errors.NextHopDown("did not answer in time"))
            raise errors.NextHopDown("did not answer in time") from None
        except BaseException:
            lane.fail(errors.NextHopDown("given up by us"))
            raise
        lane.ready(hop)
        if hop.tls:
            self._rules[lane] = (rule, host)
        return lane

    async def _connect(self, lane: Lane, need: Need, target: Target) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.remote.connect_s):
                if target.path:
                    await loop.create_unix_connection(lambda: lane, target.path)
                    return
                source = need.source
                sock = source.socket_for(target.address)
                if source.reason:
                    source.reason = ""
                    if self.log is not None:
                        self.log.line("source_restored", source=source.name)
                try:
                    await connect(sock, (target.address, target.port), loop)
                    await loop.create_connection(lambda: lane, sock=sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise errors.NextHopDown(f"{target.address}: no connection in time") from None
        except OSError as error:
            if error.errno in _NO_ROUTE and ":" in target.address:
                self._no_ipv6_until_s = self.now() + NO_ROUTE_S
            raise errors.NextHopDown(f"{target.address}: {errors.system_words(error)}") from error

    async def _secure(self, lane: Lane, rule: TlsRule, host: str, hop: Hop) -> Hop:
        """STARTTLS where it is offered; what the connection is then.  Raises NextHopInsecure."""
        remote = self.remote
        dialogue = lane.dialogue
        loop = asyncio.get_running_loop()
        if b"STARTTLS" not in dialogue.extensions:
            if rule.is_mandatory:
                raise errors.NextHopWithoutTls("does not offer STARTTLS")
            return hop
        async with asyncio.timeout(remote.command_s):
            refusal = await lane.run(dialogue.upgrade(), loop.time() + remote.command_s)
        if refusal is not None:
            if rule.is_mandatory:
                raise errors.NextHopInsecure(f"refuses STARTTLS: {refusal.code} {refusal.lines[0]}")
            return hop
        raw = lane.transport
        if raw is None or lane.error is not None:
            raise lane.error or errors.NextHopDown("the connection was lost")
        transport = await self.tls.start(raw, lane, rule, host, remote.handshake_s)
        lane.start_over(transport)
        async with asyncio.timeout(remote.command_s):
            await lane.run(dialogue.hello(), loop.time() + remote.command_s)
        cipher = transport.get_extra_info("cipher") or ("", "", 0)
        ssl_object = transport.get_extra_info("ssl_object")
        protocol = "" if ssl_object is None else ssl_object.version() or ""
        return hop._replace(tls=protocol, cipher=cipher[0], is_verified=rule.mode == "verified")


async def connect(sock: socket.socket, place: tuple[str, int], loop: asyncio.AbstractEventLoop) -> None:
    """Connect a socket that doesn't block to an address in figures.  Raises OSError.

    loop.sock_connect has even such an address looked up by a thread: twice the price of a connection.
    """
    error = sock.connect_ex(place)
    if error in (errno.EINPROGRESS, errno.EINTR):
        writable = loop.create_future()
        descriptor = sock.fileno()
        loop.add_writer(descriptor, _set, writable)
        try:
            await writable
        finally:
            loop.remove_writer(descriptor)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
