"""Connections to next hops: opened, kept, reused, bounded in number and age.

One timer a pool looks at all deadlines, and only while there are connections.

Not here: TLS towards the next hop.  Its place is Pool._open, between EHLO and
the first transaction.

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from fastsmtp import errors
from fastsmtp._parser import NextHopReply
from fastsmtp.address import Address
from fastsmtp.delivery.dialogue import Dialogue
from fastsmtp.delivery.identity import Identity
from fastsmtp.delivery.link import NEVER_S, Link
from fastsmtp.records import dataclass

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class NextHop:
    """One place to hand mail over to.

    kind         smtp | lmtp | lmtp+unix
    host, port   of smtp and lmtp
    path         of lmtp+unix
    tells        how it learns who our client was: none | xclient | xforward | proxy
    """

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""
    tells: str = "none"

    @property
    def is_lmtp(self) -> bool:
        return self.kind != "smtp"

    def __str__(self) -> str:
        if self.path:
            return f"{self.kind}:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how many.  All times in seconds.

    Our client waits 5 minutes for RCPT's answer and 10 for the dot's (RFC 5321 section 4.5.3.2.3 and
    .6), and the answer is the next hop's: so what we wait for in all stays below that.

    connect_s      one address (Postfix's smtp_connect_timeout is 30 s)
    recipient_s    from RCPT to its answer, with connecting, greeting and MAIL; of 300
    data_s         DATA to 354 (RFC 5321 section 4.5.3.2.4: 2 minutes)
    block_s        one piece of the body to be taken (4.5.3.2.5: 3 minutes)
    message_s      from our client's dot to its answer; of 600
    reset_s        RSET to its answer, before a connection goes back to the pool
    idle_s         kept unused for so long; servers hang up after 300 s, busy ones after 10
    age_s          kept at all, so that load moves on (Postfix's smtp_connection_reuse_time_limit is 300 s)
    connections    open ones to one next hop, a worker; Postfix's smtpd has 100 processes in all
    kept           unused ones to one next hop
    tick_s         how often the deadlines are looked at
    """

    connect_s: float = 30.0
    recipient_s: float = 240.0
    data_s: float = 120.0
    block_s: float = 180.0
    message_s: float = 540.0
    reset_s: float = 30.0
    idle_s: float = 30.0
    age_s: float = 300.0
    connections: int = 100
    kept: int = 20
    tick_s: float = 1.0


class Pool:
    """All connections of one worker to next hops.

    hostname   for EHLO
    resolve    host name -> addresses as text; never called for an address.  Raises TemporaryError
    """

    def __init__(self, *, hostname: str, resolve: Resolve, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._hostname = hostname
        self._resolve = resolve
        self._idle: dict[NextHop, list[Link]] = {}
        self._links: set[Link] = set()  # all, for their deadlines
        self._hops: dict[Link, NextHop] = {}  # those that have greeted
        self._open_count: dict[NextHop, int] = {}
        self._waiting: dict[NextHop, deque[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def take(
        self, hop: NextHop, identity: Identity | None, deadline_s: float, *, fresh: bool = False
    ) -> Link:
        """A connection that has greeted, kept or new.  Raises NextHopDown (NextHopBusy) and NextHopGarbled.

        fresh: a new one, because a kept one has just turned out dead.
        """
        while True:
            link = None if fresh else self._kept(hop, identity)
            if link is not None:
                return link
            idle = self._idle.get(hop)
            if idle and self._open_count[hop] >= self.limits.connections:
                idle[0].quit()  # kept for another client; there must be room for this one
            if self._open_count.get(hop, 0) < self.limits.connections:
                break
            await self._turn(hop, deadline_s)
        self._open_count[hop] = self._open_count.get(hop, 0) + 1
        try:
            return await self._connect(hop, identity, deadline_s)
        except BaseException:
            self._gone(hop)
            raise

    def give_back(self, link: Link) -> None:
        """The transaction is over, and none is open on the connection."""
        hop = self._hops.get(link)
        if hop is None:
            return
        now = self._now()
        if self._is_closed or hop.tells == "proxy" or now - link.born_s >= self.limits.age_s:
            # With a PROXY header a connection is one client's for good.
            link.quit()
            return
        link.is_reused = True
        idle = self._idle.setdefault(hop, [])
        if len(idle) >= self.limits.kept and not self._waiting.get(hop):
            link.quit()
            return
        link.deadline_s = now + self.limits.idle_s
        idle.append(link)
        self._next_turn(hop)

    def reset(self, link: Link) -> None:
        """End the open transaction with RSET; the connection is given back when that is answered."""

        def answered(replies: list[NextHopReply]) -> None:
            if len(replies) == 1 and replies[0].code == 250:
                self.give_back(link)
            else:
                self.drop(link)

        if link.error is None:
            link.ask_aside(b"RSET\r\n", self._now() + self.limits.reset_s, answered)

    def drop(self, link: Link) -> None:
        """Close at once; what isn't sent yet stays unsent."""
        link.fail(errors.NextHopDown("given up by us"))

    async def close(self) -> None:
        """Say goodbye on kept connections, and drop the others: their transactions have been aborted."""
        self._is_closed = True
        idle = {link for links in self._idle.values() for link in links}
        for link in list(self._links):
            if link in idle:
                link.quit()
            else:
                self.drop(link)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def open_count(self) -> int:
        return len(self._links)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _turn(self, hop: NextHop, deadline_s: float) -> None:
        """Wait until a connection was given back or closed, and it is worth looking again."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(hop, deque()).append(turn)
        try:
            async with asyncio.timeout_at(deadline_s):
                await turn
        except TimeoutError:
            raise errors.NextHopBusy(f"{self.limits.connections} connections are open") from None
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._next_turn(hop)  # it was ours, and we don't take it
            raise

    def _kept(self, hop: NextHop, identity: Identity | None) -> Link | None:
        """The kept connection that was used last and can stand for this client."""
        idle = self._idle.get(hop, [])
        for at in range(len(idle) - 1, -1, -1):
            if idle[at].dialogue.fits(identity):
                link = idle.pop(at)
                link.deadline_s = NEVER_S
                return link
        return None

    def _next_turn(self, hop: NextHop) -> None:
        waiting = self._waiting.get(hop)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        if not waiting:
            self._waiting.pop(hop, None)

    async def _connect(self, hop: NextHop, identity: Identity | None, deadline_s: float) -> Link:
        """Connect and greet, one address after the other."""
        if hop.path:
            return await self._open(hop, hop.path, identity, deadline_s)
        addresses: tuple[str, ...]
        try:
            addresses = (Address(hop.host).text,)
        except ValueError:
            addresses = await self._resolve(hop.host)
        failure: errors.TemporaryError = errors.NextHopDown("has no address")
        for address in addresses:
            try:
                return await self._open(hop, address, identity, deadline_s)
            except errors.TemporaryError as error:
                failure = error
        raise failure

    async def _open(self, hop: NextHop, address: str, identity: Identity | None, deadline_s: float) -> Link:
        loop = asyncio.get_running_loop()
        dialogue = Dialogue(self._hostname, is_lmtp=hop.is_lmtp)

        def make() -> Link:
            return Link(dialogue, loop, self._lost)

        try:
            async with asyncio.timeout_at(min(deadline_s, loop.time() + self.limits.connect_s)):
                if hop.path:
                    _, link = await loop.create_unix_connection(make, hop.path)
                else:
                    _, link = await loop.create_connection(make, address, hop.port)
        except TimeoutError:
            raise errors.NextHopDown(f"{address}: no connection in time") from None
        except OSError as error:
            raise errors.NextHopDown(f"{address}: {errors.system_words(error)}") from error
        self._links.add(link)
        self._keep_time(loop)
        try:
            if hop.tells == "proxy" and identity is not None:
                await link.write(identity.proxy, deadline_s)
            await link.run(dialogue.open(), deadline_s)
            if link.error is not None:
                raise link.error
        except BaseException:
            self.drop(link)
            raise
        link.may_speak = False
        self._hops[link] = hop
        return link

    def _lost(self, link: Link) -> None:
        self._links.discard(link)
        hop = self._hops.pop(link, None)
        if hop is None:
            return  # it never greeted: take() counts it out
        idle = self._idle.get(hop)
        if idle and link in idle:
            idle.remove(link)
        self._gone(hop)

    def _gone(self, hop: NextHop) -> None:
        """One connection less: who waits for room may open one."""
        self._open_count[hop] -= 1
        if not self._open_count[hop]:
            del self._open_count[hop]
        self._next_turn(hop)

    def _keep_time(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and self._links and not self._is_closed:
            self._timer = loop.call_later(self.limits.tick_s, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for link in [link for link in self._links if link.deadline_s <= now]:
            if link in self._hops and link in self._idle.get(self._hops[link], ()):
                link.quit()
            else:
                link.expire()
        self._keep_time(loop)
