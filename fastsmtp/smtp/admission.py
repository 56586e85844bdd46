"""From accept to the greeting: who the client is, by which settings it is served, and whether it may come in.

The PROXY header, the rule of tcpserver's file with the look-up of the client's
name, CLIENT and CONNECT, TLS where it comes first, the greeting and its delay.
XCLIENT goes the same way again, for the client behind a front.  Bytes and time
are the connection's.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastsmtp import reply
from fastsmtp._session import Event, Session
from fastsmtp.address import Address
from fastsmtp.policy.decision import PASSED, Decision, Verdict
from fastsmtp.policy.facts import NO_ENVIRONMENT, NO_RATES, Client, Facts, Origin, Phase
from fastsmtp.policy.limits import count_connections
from fastsmtp.policy.runner import Round
from fastsmtp.smtp import ends, proxy, xclient
from fastsmtp.smtp.conversation import Conversation
from fastsmtp.smtp.life import NEVER, PROXY_S, Life
from fastsmtp.smtp.pause import Wait
from fastsmtp.smtp.raising import Raising

if TYPE_CHECKING:
    import asyncio

    from fastsmtp.smtp.connection import Connection

# An enumeration's members cost a look-up each time.
_CLIENT, _CONNECT = Phase.CLIENT, Phase.CONNECT
_DECIDING = Life.DECIDING
_SOCKET = Origin.SOCKET
_PASS = Verdict.PASS


class Admission:
    """The way of one client to its greeting.

    The connection forgets it with the greeting, so that an idle one doesn't hold it; XCLIENT makes another.
    """

    __slots__ = ("_connection", "_proxy", "_timer", "_waiting")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # What has come of the PROXY header.
        self._proxy = b""
        # The end of the greeting delay.
        self._timer: asyncio.TimerHandle | None = None
        # What CONNECT still waits for while the handshake is made.
        self._waiting: Callable[[], Awaitable[Decision | None]] | None = None

    def begin(self) -> None:
        """Accepted: the client is who is connected, or whom its PROXY header names."""
        connection = self._connection
        raw = connection.raw
        try:
            peer = raw.get_extra_info("peername")
            address = Address(peer[0])
        except (TypeError, ValueError, IndexError):
            # The client was gone before we looked.
            raw.abort()
            return
        settings = connection.profile.settings
        if settings.proxy_from and address in settings.proxy_from:
            connection.life = Life.PROXY
            connection.patience_s = PROXY_S
            connection.window = connection.profile.service.window[: proxy.needed(b"")]
            return
        self._meet(Client(address, peer[1]), connection.listener.local_address(raw))

    def give_up(self) -> None:
        """The connection ends before its greeting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- the PROXY header ------------------------------------------------------------------------

    def read_proxy(self, size: int) -> None:
        """So many bytes have come into the window."""
        connection = self._connection
        service = connection.profile.service
        self._proxy += service.window[:size]
        wanted = proxy.needed(self._proxy)
        if wanted > 0:
            connection.window = service.window[:wanted]
            return
        header = proxy.parse(self._proxy) if wanted == 0 else None
        connection.window = service.command_window
        if header is None:
            self.refuse_proxy("malformed header")
            return
        self._proxy = b""
        if header.client is None:
            # LOCAL and UNKNOWN: the proxy's own connection, a health check.
            peer = connection.raw.get_extra_info("peername")
            self._meet(Client(Address(peer[0]), peer[1]), connection.listener.local_address(connection.raw))
        else:
            self._meet(Client(header.client, header.client_port, Origin.PROXY), header.local)

    def refuse_proxy(self, reason: str) -> None:
        connection = self._connection
        peer = connection.raw.get_extra_info("peername") or ("",)
        profile = connection.profile
        profile.meter.connection_refused("proxy")
        profile.log.line("proxy_refused", id=connection.session_id, client=str(peer[0]), reason=reason)
        connection.raw.abort()

    # --- the client is known ---------------------------------------------------------------------

    def _meet(self, client: Client, local_address: str) -> None:
        """Make the session, find the client's rule, and ask policy about the connection."""
        connection = self._connection
        profile = connection.profile
        settings = profile.settings
        session_id = connection.session_id
        may_xclient = bool(settings.xclient_from) and client.address in settings.xclient_from
        session = Session(profile.xclient_terms if may_xclient else profile.terms, session_id.encode())
        facts = Facts(session_id, settings.listen.name, local_address, client)
        if client.origin is _SOCKET:
            facts.local_port = connection.listener.port
        connection.session = session
        connection.conversation = Conversation(profile, session, facts)
        connection.life = _DECIDING
        connection.patience_s = NEVER
        facts.bad_lists = profile.service.lists.bad
        if settings.rules is None or not self._must_ask_name(facts) or self._is_one_too_many(facts):
            if self._follow_rule(facts):
                self._connect(facts)
        elif profile.is_implicit:
            # As in _connect(): the handshake comes first.
            self._waiting = self._introduce_by_name
            self._secure()
        else:
            connection.spawn(self._connect_by_name(facts))

    def _connect(self, facts: Facts) -> None:
        """Ask policy about the connection; its settings are known."""
        connection = self._connection
        decision = self._introduce(facts)
        if type(decision) is Decision:
            self._admitted(decision)
            return
        profile = connection.profile
        # The batch leaves now, and runs while the greeting is held back, or the handshake is made.
        inquiry = profile.inquire(decision)  # type: ignore[arg-type]
        if inquiry.decision is not None:
            self._admitted(inquiry.decision)
        elif profile.plan.speaks_at is not _CONNECT:
            # Whatever comes of it is spoken later, so nobody waits for it here.
            conversation = connection.conversation
            conversation.apply(decision.take_effects(), _CONNECT)  # type: ignore[union-attr]
            conversation.pending = inquiry
            self._admitted(PASSED)
        elif profile.is_implicit:
            # The ClientHello must meet the handshake and nobody else: the decision waits until it is done.
            self._waiting = inquiry.wait
            self._secure()
        else:
            connection.spawn(self._admit_later(inquiry.wait))

    def _introduce(self, facts: Facts) -> Decision | Round:
        """Run CLIENT, count the connection, run CONNECT."""
        connection = self._connection
        profile = connection.profile
        ends.grant(profile, connection.conversation)
        connection.count()
        return profile.plan.run(_CONNECT, facts)

    # --- the rules of tcpserver ------------------------------------------------------------------

    def _must_ask_name(self, facts: Facts) -> bool:
        """Only the client's name, which nobody has told us, says which rule is its own."""
        profile = self._connection.profile
        rules = profile.settings.rules
        client = facts.client
        return (
            profile.base.namer is not None
            and not client.name
            and rules is not None
            and rules.needs_name(client.address)
        )

    def _is_one_too_many(self, facts: Facts) -> bool:
        """Who waits for his name to be found is a connection already: counted, and not asked for beyond the limits."""
        connection = self._connection
        connection.count()
        said = count_connections(facts, connection.profile.settings)
        return said is not None and said.reply is not None

    def _follow_rule(self, facts: Facts) -> bool:
        """From here on the settings are those of the client's rule; False when it denies, and the end has begun."""
        connection = self._connection
        base = connection.profile.base
        rules = base.settings.rules
        if rules is None:
            return True
        client = facts.client
        rule = rules.find(client.address, client.name)
        if rule is not None and rule.is_denied:
            connection.conversation.has_logged = True
            base.log.line(
                "rule_denied",
                id=facts.session_id,
                client=client.address.text,
                listener=facts.listener,
                name=client.name or None,
                rule=rule.place,
            )
            connection.raw.close()
            return False
        client.environment = NO_ENVIRONMENT if rule is None else rule.variables
        profile = base if rule is None else base.under(rule.variables)
        if profile is not connection.profile:
            connection.profile = profile
            connection.conversation.use(profile)
            session = connection.session
            session.terms = profile.xclient_terms if session.terms.is_xclient_allowed else profile.terms
        return True

    async def _ask_name(self, facts: Facts) -> None:
        connection = self._connection
        namer = connection.profile.base.namer
        if namer is not None:
            decision = await connection.profile.settle(namer.run(_CLIENT, facts))
            connection.conversation.apply(decision.effects, _CLIENT)

    async def _connect_by_name(self, facts: Facts) -> None:
        await self._ask_name(facts)
        if self._connection.life is _DECIDING and self._follow_rule(facts):
            self._connect(facts)

    async def _introduce_by_name(self) -> Decision | None:
        """The same behind a handshake, where the greeting waits for all of it."""
        facts = self._connection.conversation.facts
        await self._ask_name(facts)
        if not self._follow_rule(facts):
            return None
        return await self._connection.profile.settle(self._introduce(facts))

    # --- TLS that comes first --------------------------------------------------------------------

    def _secure(self) -> None:
        Raising(self._connection, self._secured).at_once()

    def _secured(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            self._hold_greeting()
            return
        connection = self._connection
        connection.life = _DECIDING
        connection.spawn(self._admit_later(waiting))

    # --- the greeting ----------------------------------------------------------------------------

    async def _admit_later(self, wait: Callable[[], Awaitable[Decision | None]]) -> None:
        decision = await wait()
        if decision is not None:
            self._admitted(decision)

    def _admitted(self, decision: Decision) -> None:
        """CONNECT has decided, or may decide later."""
        connection = self._connection
        conversation = connection.conversation
        if decision.effects:
            conversation.apply(decision.effects, _CONNECT)
        facts = conversation.facts
        # What was counted for it is no use any more, and an idle connection shall hold almost nothing.
        facts.client.rates = NO_RATES
        needs_handshake = connection.profile.is_implicit and facts.tls is None
        if decision.verdict is not _PASS:
            if needs_handshake:
                # Nothing can be said before the handshake, and a handshake is what we can't afford.
                self._log_refusal(decision)
                connection.raw.close()
            else:
                self._refuse(decision)
        elif needs_handshake:
            self._secure()
        else:
            self._hold_greeting()

    def _hold_greeting(self) -> None:
        """Greet, or wait for what is left of the greeting delay: it began at accept."""
        connection = self._connection
        profile = connection.profile
        facts = connection.conversation.facts
        delay_s = ends.greeting_delay_s(profile, facts.client)
        if not delay_s:
            self._greet()
            return
        facts.has_waited = True
        left_s = connection.accepted_s + delay_s - profile.now()
        if left_s > 0.0:
            connection.life = Life.DELAY
            self._timer = profile.service.loop.call_later(left_s, connection.guarded, self._delay_over)
        else:
            self._delay_over()

    def spoke_early(self) -> None:
        """The client didn't wait for its greeting."""
        self._connection.conversation.facts.is_early = True
        self._delay_over()

    def _delay_over(self) -> None:
        self.give_up()
        connection = self._connection
        connection.life = _DECIDING
        decision = connection.profile.plan.run(Phase.GREETING, connection.conversation.facts)
        if type(decision) is Decision:
            self._greeting_decided(decision)
        else:
            connection.spawn(connection.decide_later(decision, self._greeting_decided))  # type: ignore[arg-type]

    def _greeting_decided(self, decision: Decision) -> None:
        self._connection.conversation.apply(decision.effects, Phase.GREETING)
        if decision.verdict is not _PASS:
            self._refuse(decision)
        else:
            self._greet()

    def _greet(self) -> None:
        connection = self._connection
        profile = connection.profile
        profile.meter.sessions.inc()
        connection.session.greet(profile.service.banner(profile))
        connection.talk()

    def _refuse(self, decision: Decision) -> None:
        self._log_refusal(decision)
        connection = self._connection
        ends.refuse_greeting(connection.session, decision)
        connection.talk()

    def _log_refusal(self, decision: Decision) -> None:
        connection = self._connection
        connection.conversation.log_refusal(decision)
        connection.profile.meter.connection_refused(decision.stage)

    # --- XCLIENT ---------------------------------------------------------------------------------

    def again(self, event: Event) -> Wait:
        """A trusted front tells who the client is: everything starts over with that client."""
        connection = self._connection
        conversation = connection.conversation
        told = xclient.read(event.attributes, conversation.facts.client)
        if told is None:
            connection.session.reply(reply.SYNTAX_ERROR)
            return None
        facts = conversation.facts
        conversation.start_over()
        connection.uncount()
        if told.local_address:
            facts.local_address = told.local_address
            facts.local_port = 0
        connection.profile.log.line(
            "xclient",
            id=facts.session_id,
            client=facts.client.address.text,
            listener=facts.listener,
            found=told.client.address.text,
            what=told.client.name or None,
        )
        facts.client = told.client
        return self._reintroduce(told.helo)

    async def _reintroduce(self, helo: bytes) -> None:
        connection = self._connection
        session = connection.session
        conversation = connection.conversation
        facts = conversation.facts
        if self._must_ask_name(facts):
            await self._ask_name(facts)
        if not self._follow_rule(facts):
            return
        profile = connection.profile
        decision = await profile.settle(self._introduce(facts))
        conversation.apply(decision.effects, _CONNECT)
        facts.helo = helo
        if decision.reply is None:
            session.restart()
            session.reply(profile.service.banner(profile))
        else:
            conversation.log_refusal(decision)
            session.reply(decision.reply)
            session.close()
