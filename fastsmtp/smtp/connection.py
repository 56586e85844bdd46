"""One client's socket: bytes between the transport and the session, and all that is about time and flow.

The only file that sees both a socket and a session.  It reads into the
worker's one buffer, writes the replies of a pipelined group at once, stops
reading while something is waited for, keeps the deadlines, and closes so that
the last reply arrives.  What is answered to a command is the conversation's
and the policy's business.

Rank 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastsmtp import reply
from fastsmtp._session import QUIT, STARTTLS, XCLIENT, Event, Session
from fastsmtp.address import Address
from fastsmtp.policy.decision import PASSED, Decision, Token, Verdict
from fastsmtp.policy.facts import (
    NO_ENVIRONMENT,
    NO_RATES,
    Client,
    Facts,
    Origin,
    Phase,
)
from fastsmtp.policy.limits import count_connections
from fastsmtp.policy.runner import Round
from fastsmtp.smtp import proxy, xclient
from fastsmtp.smtp.conversation import HANDLERS, Conversation
from fastsmtp.smtp.life import (
    HANDSHAKE_S,
    LINGER_BYTES,
    LINGER_S,
    NEVER,
    PROXY_S,
    RATE_WINDOW_S,
    STRESSED_HANDSHAKE_S,
    Life,
)
from fastsmtp.smtp.pause import Coming, Pause, Wait
from fastsmtp.smtp.start_tls import Failed, Outcome, Raised, Upgrade

if TYPE_CHECKING:
    from fastsmtp.smtp.listener import Listener
    from fastsmtp.tls import ServerTls

_TALKING = Life.TALKING


class Connection(asyncio.BufferedProtocol):
    """The protocol object of one connection.

    bytes_in         octets read so far
    life             where it is
    since_s          when the wait that is on now began; as exact as the service's tick
    patience_s       how long this wait may last; NEVER when it is ours and not the client's
    ends_s           when the session must be over
    """

    __slots__ = (
        "__weakref__", "_accepted_s", "_body_mark", "_buffer", "_commands", "_conversation", "_counted",
        "_is_busy", "_has_quit", "_is_eof", "_is_in_body", "_is_reading", "_is_write_paused", "_listener",
        "_pause", "_profile", "_proxy", "_raw", "_service", "_session", "_session_id", "_task", "_timer",
        "_transport", "_waiting", "_window", "bytes_in", "ends_s", "life", "patience_s",
        "since_s",
    )  # fmt: skip

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._profile = listener.profile
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._raw: asyncio.Transport = None  # type: ignore[assignment]
        self._session: Session = None  # type: ignore[assignment]
        self._conversation: Conversation = None  # type: ignore[assignment]
        self._session_id = ""
        self._counted: bytes | None = None
        self._is_busy = False
        self._has_quit = False
        self._is_eof = False
        self._is_in_body = False
        self._is_reading = True
        self._is_write_paused = False
        self._proxy = b""
        self.bytes_in = 0
        self._body_mark = 0
        self._commands = 0
        self._accepted_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause: Pause | None = None
        self._waiting: Callable[[], Awaitable[Decision | None]] | None = None
        self._service = service = listener.service
        self._buffer = service.buffer
        self._window = service.command_window
        self.ends_s = NEVER
        self.patience_s = NEVER
        self.since_s = 0.0
        self.life = Life.DECIDING

    # --- the beginning ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._raw = transport  # type: ignore[assignment]
        service = self._service
        self._session_id = service.ids.next()
        self._accepted_s = self.since_s = now = service.now()
        self.ends_s = now + self._profile.settings.limits.session_s
        self._listener.opened(self)
        try:
            peer = transport.get_extra_info("peername")
            address = Address(peer[0])
        except (TypeError, ValueError, IndexError):
            # The client was gone before we looked.
            self._raw.abort()
            return
        settings = self._profile.settings
        if settings.proxy_from and address in settings.proxy_from:
            self.life = Life.PROXY
            self.patience_s = PROXY_S
            self._window = service.window[: proxy.needed(b"")]
            return
        self._guarded(self._begin, Client(address, peer[1]), self._listener.local_address(transport))

    def _begin(self, client: Client, local_address: str) -> None:
        """The client is known: make the session, find its rule, and ask policy about the connection."""
        profile = self._profile
        settings = profile.settings
        may_xclient = bool(settings.xclient_from) and client.address in settings.xclient_from
        self._session = Session(
            profile.xclient_terms if may_xclient else profile.terms, self._session_id.encode()
        )
        facts = Facts(self._session_id, profile.settings.listen.name, local_address, client)
        if client.origin is Origin.SOCKET:
            facts.local_port = self._listener.port
        self._conversation = Conversation(profile, self._session, facts)
        self.life = Life.DECIDING
        self.patience_s = NEVER
        facts.bad_lists = self._service.lists.bad
        if settings.rules is None or not self._must_ask_name(facts) or self._is_one_too_many(facts):
            if self._follow_rule(facts):
                self._meet(facts)
        elif self._is_implicit:
            # As below: the handshake comes first.
            self._waiting = self._introduce_by_name
            self._before_handshake()
        else:
            self._spawn(self._meet_by_name(facts))

    def _meet(self, facts: Facts) -> None:
        """Ask policy about the connection; its settings are known."""
        profile = self._profile
        decision = self._introduce(facts)
        if type(decision) is Decision:
            self._admitted(decision)
            return
        # The batch leaves now, and runs while the greeting is held back, or the handshake is made.
        inquiry = profile.inquire(decision)  # type: ignore[arg-type]
        if inquiry.decision is not None:
            self._admitted(inquiry.decision)
        elif profile.plan.speaks_at is not Phase.CONNECT:
            # Whatever comes of it is spoken later, so nobody waits for it here.
            self._conversation.apply(decision.take_effects(), Phase.CONNECT)  # type: ignore[union-attr]
            self._conversation.pending = inquiry
            self._admitted(PASSED)
        elif self._is_implicit:
            # The ClientHello must meet the handshake and nobody else: the decision waits until it is done.
            self._waiting = inquiry.wait
            self._before_handshake()
        else:
            self._spawn(self._admit_later(inquiry.wait))

    # --- the rules of tcpserver ------------------------------------------------------------------

    def _must_ask_name(self, facts: Facts) -> bool:
        """Only the client's name, which nobody has told us, says which rule is its own."""
        rules = self._profile.settings.rules
        client = facts.client
        return (
            self._profile.base.namer is not None
            and not client.name
            and rules is not None
            and rules.needs_name(client.address)
        )

    def _is_one_too_many(self, facts: Facts) -> bool:
        """Who waits for his name to be found is a connection already: counted, and not asked for beyond the limits."""
        self._count(facts)
        said = count_connections(facts, self._profile.settings)
        return said is not None and said.reply is not None

    def _follow_rule(self, facts: Facts) -> bool:
        """From here on the settings are those of the client's rule; False when it denies, and the end has begun."""
        base = self._profile.base
        rules = base.settings.rules
        if rules is None:
            return True
        client = facts.client
        rule = rules.find(client.address, client.name)
        if rule is not None and rule.is_denied:
            self._conversation.has_logged = True
            base.log.line(
                "rule_denied",
                id=facts.session_id,
                client=client.address.text,
                listener=facts.listener,
                name=client.name or None,
                rule=rule.place,
            )
            self._raw.close()
            return False
        client.environment = NO_ENVIRONMENT if rule is None else rule.variables
        profile = base if rule is None else base.under(rule.variables)
        if profile is not self._profile:
            self._profile = profile
            self._conversation.use(profile)
            session = self._session
            session.terms = profile.xclient_terms if session.terms.is_xclient_allowed else profile.terms
        return True

    async def _ask_name(self, facts: Facts) -> None:
        namer = self._profile.base.namer
        if namer is not None:
            decision = await self._profile.settle(namer.run(Phase.CLIENT, facts))
            self._conversation.apply(decision.effects, Phase.CLIENT)

    async def _meet_by_name(self, facts: Facts) -> None:
        await self._ask_name(facts)
        if self.life is Life.DECIDING and self._follow_rule(facts):
            self._meet(facts)

    async def _introduce_by_name(self) -> Decision | None:
        """The same behind a handshake, where the greeting waits for all of it."""
        facts = self._conversation.facts
        await self._ask_name(facts)
        if not self._follow_rule(facts):
            return None
        return await self._profile.settle(self._introduce(facts))

    # --- counting, and the greeting --------------------------------------------------------------

    def _introduce(self, facts: Facts) -> Decision | Round:
        """Run CLIENT, count the connection, run CONNECT."""
        plan = self._profile.plan
        granted = plan.run(Phase.CLIENT, facts)
        if type(granted) is not Decision:
            raise TypeError("a CLIENT stage asks no questions: what it grants is needed at once")
        self._conversation.apply(granted.effects, Phase.CLIENT)
        self._count(facts)
        return plan.run(Phase.CONNECT, facts)

    def _count(self, facts: Facts) -> None:
        """Count this connection for its client, or only in all for a relay client; fill in the facts."""
        self._uncount()
        profile = self._profile
        counters = profile.counters
        client = facts.client
        key = client.address.key
        if client.may_relay:
            counters.connect_uncounted()
            self._counted = b""
        else:
            client.connections = counters.connect(key, self._accepted_s)
            self._counted = key
            client.has_pass = counters.has_pass(key, self._accepted_s)
            if profile.counts_connections:
                profile.note_rate(client, Token.CONNECTIONS)
        facts.connections = counters.connections()

    @property
    def _is_implicit(self) -> bool:
        return self._profile.settings.listen.tls == "implicit" and self._profile.tls is not None

    def _uncount(self) -> None:
        if self._counted:
            self._profile.counters.disconnect(self._counted)
        elif self._counted is not None:
            self._profile.counters.disconnect_uncounted()
        self._counted = None

    def _admitted(self, decision: Decision) -> None:
        """CONNECT has decided, or may decide later."""
        profile = self._profile
        self._conversation.apply(decision.effects, Phase.CONNECT)
        # What was counted for it is no use any more, and an idle connection shall hold almost nothing.
        self._conversation.facts.client.rates = NO_RATES
        needs_handshake = self._is_implicit and self._conversation.facts.tls is None
        if decision.verdict is not Verdict.PASS:
            self._conversation.log_refusal(decision)
            profile.meter.connection_refused(decision.stage)
            if needs_handshake:
                # Nothing can be said before the handshake, and a handshake is what we can't afford.
                self._raw.close()
            else:
                self._refuse_greeting(decision)
        elif needs_handshake:
            self._before_handshake()
        else:
            self._hold_greeting()

    def _refuse_greeting(self, decision: Decision) -> None:
        self.life = Life.TALKING
        self._session.greet(decision.reply.as_greeting())  # type: ignore[union-attr]
        if decision.verdict is Verdict.DROP:
            self._session.close()
        self._await_command()
        self._pump()

    def _hold_greeting(self) -> None:
        """Greet, or wait for what is left of the greeting delay: it began at accept."""
        facts = self._conversation.facts
        delay_s = self._profile.settings.listen.greeting_delay_s
        client = facts.client
        if delay_s and not (client.skips_checks or client.may_relay or client.has_pass):
            facts.has_waited = True
            left_s = self._accepted_s + delay_s - self._profile.now()
            if left_s > 0.0:
                self.life = Life.DELAY
                self._timer = self._service.loop.call_later(left_s, self._guarded, self._delay_over)
                return
            self._delay_over()
            return
        self._greet()

    def _delay_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.life = Life.DECIDING
        self._decide(Phase.GREETING, self._greeting_decided)

    def _greeting_decided(self, decision: Decision) -> None:
        self._conversation.apply(decision.effects, Phase.GREETING)
        if decision.verdict is not Verdict.PASS:
            self._conversation.log_refusal(decision)
            self._profile.meter.connection_refused(decision.stage)
            self._refuse_greeting(decision)
        else:
            self._greet()

    def _greet(self) -> None:
        self.life = Life.TALKING
        self._profile.meter.sessions.inc()
        self._session.greet(self._profile.service.banner(self._profile))
        self._await_command()
        self._pump()

    def _decide(self, phase: Phase, then: Callable[[Decision], None]) -> None:
        """Ask policy; then() is called now, or when the questions are answered."""
        decision = self._profile.plan.run(phase, self._conversation.facts)
        if type(decision) is Decision:
            then(decision)
        else:
            self._spawn(self._decide_later(decision, then))  # type: ignore[arg-type]

    async def _admit_later(self, wait: Callable[[], Awaitable[Decision | None]]) -> None:
        decision = await wait()
        if decision is not None:
            self._admitted(decision)

    async def _decide_later(self, waiting: Round, then: Callable[[Decision], None]) -> None:
        then(await self._profile.settle(waiting))

    # --- bytes in --------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._window

    def buffer_updated(self, size: int) -> None:
        self.bytes_in += size
        if self.life is not _TALKING:
            self._guarded(self._other_input, size)
            return
        session = self._session
        session.feed(self._buffer, size)
        if self._is_busy or self._is_write_paused:
            # Not its turn: keep what came, and let the kernel hold back the rest.
            session.hold()
            self._pause_reading()
            return
        self._pump()
        session.hold()

    def _other_input(self, size: int) -> None:
        life = self.life
        if life is Life.LINGER:
            if self.bytes_in - self._body_mark > LINGER_BYTES:
                self._transport.abort()
        elif life is Life.PROXY:
            self._read_proxy(size)
        elif life is not Life.CLOSED:
            session = self._session
            session.feed(self._buffer, size)
            session.hold()
            self._pause_reading()
            if life is Life.DELAY:
                self._conversation.facts.is_early = True
                self._delay_over()

    def _read_proxy(self, size: int) -> None:
        service = self._service
        self._proxy += bytes(self._buffer[:size])
        wanted = proxy.needed(self._proxy)
        if wanted > 0:
            self._window = service.window[:wanted]
            return
        header = proxy.parse(self._proxy) if wanted == 0 else None
        self._window = service.command_window
        if header is None:
            self._refuse_proxy("malformed header")
            return
        self._proxy = b""
        if header.client is None:
            # LOCAL and UNKNOWN: the proxy's own connection, a health check.
            peer = self._raw.get_extra_info("peername")
            self._begin(Client(Address(peer[0]), peer[1]), self._listener.local_address(self._raw))
        else:
            self._begin(Client(header.client, header.client_port, Origin.PROXY), header.local)

    def _refuse_proxy(self, reason: str) -> None:
        peer = self._raw.get_extra_info("peername") or ("",)
        self._profile.meter.connection_refused("proxy")
        self._profile.log.line("proxy_refused", id=self._session_id, client=str(peer[0]), reason=reason)
        self._raw.abort()

    def eof_received(self) -> bool:
        """The client has shut down its side.  What it sent before is still answered."""
        self._is_eof = True
        if self.life is Life.TALKING and (self._is_busy or self._is_write_paused):
            # The loop closes for us unless told not to.  Under TLS it does so in any case, and complains.
            return self._transport is self._raw
        if self.life is Life.LINGER or self._raw is None:
            return False
        self._flush()
        return False

    # --- events and bytes out --------------------------------------------------------------------

    def _pump(self) -> None:
        """Pull events until there is no more input, or one has to be waited for; then write once."""
        session = self._session
        conversation = self._conversation
        try:
            while True:
                event = session.next_event()
                if event is None:
                    if not session.is_full:
                        break
                    self._flush()
                    if self._is_write_paused:
                        return
                    continue
                kind = event.kind
                if kind == STARTTLS:
                    wait = self._starttls(event)
                elif kind == XCLIENT:
                    wait = self._xclient(event)
                else:
                    if kind == QUIT:
                        self._has_quit = True
                    wait = HANDLERS[kind](conversation, event)
                if wait is not None:
                    if type(wait) is Pause:
                        self._hold_back(wait)
                    elif type(wait) is Coming:
                        if self._take(wait):
                            continue
                    else:
                        self._spawn(wait)  # type: ignore[arg-type]
                    break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is our defect: 451, logged, and the others live on
            conversation.failed(error)
        if self.life is not _TALKING:
            # A handshake has begun; what was to be said in clear is said.
            return
        output = session.take()
        if output:
            self._transport.write(output)
        if session.is_closing:
            self._finish()
        elif session.is_body is not self._is_in_body or self._is_busy or self.patience_s is NEVER:
            self._turn()
        elif session.commands != self._commands:
            # A wait is for a whole command line, not for a read.
            self._commands = session.commands
            self.since_s = self._service.tick_s

    def _flush(self) -> None:
        if self._session is not None:
            output = self._session.take()
            if output:
                self._transport.write(output)

    def _spawn(self, wait: Coroutine[Any, Any, Pause | None]) -> None:
        """Await something on this connection's behalf; nothing is pulled meanwhile."""
        self._is_busy = True
        self._task = self._service.loop.create_task(self._waited(wait))

    async def _waited(self, wait: Coroutine[Any, Any, Pause | None]) -> None:
        pause: Pause | None = None
        try:
            pause = await wait
        except asyncio.CancelledError as error:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            # Not this wait was cancelled, but something that a sink waited for.
            self._conversation.failed(error)
        except Exception as error:  # noqa: BLE001 - as in _pump()
            self._conversation.failed(error)
        if self._task is not asyncio.current_task():
            # What came of this wait waits for something itself.
            return
        self._task = None
        if pause is not None and self.life is _TALKING:
            self._hold_back(pause)
            return
        self._is_busy = False
        self._go_on()

    def _take(self, coming: Coming) -> bool:
        """An answer that comes by itself; True: it has come."""
        promise = coming.promise
        if promise.value is not None:
            coming.then(promise.value)
            return True
        self._is_busy = True

        def kept(answer: reply.Reply | Exception) -> None:
            try:
                coming.then(answer)
            except Exception as error:  # noqa: BLE001 - as in _pump()
                self._conversation.failed(error)
            self._is_busy = False
            self._go_on()

        promise.then(kept)
        return False

    def _hold_back(self, pause: Pause) -> None:
        """Let the pause pass; replies that are there already leave, and the tick ends it."""
        self._is_busy = True
        self._pause = pause
        self._commands = -1
        self.since_s = self._service.now()
        self.patience_s = pause.seconds

    @property
    def is_held_back(self) -> bool:
        return self._pause is not None

    def end_pause(self) -> None:
        """Say what was held back, and go on."""
        pause, self._pause = self._pause, None
        if pause is None or self.life is not _TALKING:
            return
        try:
            pause.then()
        except Exception as error:  # noqa: BLE001 - as in _pump()
            self._conversation.failed(error)
        self._is_busy = False
        self._go_on()

    def _go_on(self) -> None:
        """The wait is over: pull what came meanwhile, then read on."""
        if self.life is not Life.TALKING:
            return
        if self._is_write_paused:
            self._flush()
            return
        self._pump()
        if self.life is Life.TALKING and not self._is_busy and not self._is_write_paused:
            if self._is_eof:
                self._transport.close()
            else:
                self._resume_reading()

    def _guarded(self, function: Callable[..., None], *arguments: object) -> None:
        """Run what is ours outside the pump; an exception is our defect, and nobody else's trouble."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - as in _pump()
            if self._conversation is None:
                self._service.log_failure("connection", error)
                self._raw.abort()
                return
            self._conversation.failed(error)
            self._flush()
            self._finish()

    def pause_writing(self) -> None:
        """The client doesn't read its replies: stop taking its commands."""
        self._is_write_paused = True
        self._pause_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if not self._is_busy:
            self._go_on()

    def _pause_reading(self) -> None:
        """Hold the client back.  Under TLS both: the raw transport, so that the kernel keeps what the client sends
        (the TLS layer alone would go on reading up to 256 kB), and the TLS one for records that were read before.
        """
        if self._is_reading and not self._raw.is_closing():
            self._is_reading = False
            self._raw.pause_reading()
            if self._transport is not self._raw:
                self._transport.pause_reading()

    def holds_back(self) -> bool:
        """Under TLS: something is waited for, so what has come is not even decrypted."""
        if self.life is not _TALKING or not (self._is_busy or self._is_write_paused):
            return False
        self._pause_reading()
        return True

    def _resume_reading(self) -> None:
        if not self._is_reading and not self._raw.is_closing():
            self._is_reading = True
            self._raw.resume_reading()
            if self._transport is not self._raw:
                self._transport.resume_reading()

    # --- XCLIENT and TLS -------------------------------------------------------------------------

    def _xclient(self, event: Event) -> Wait:
        """A trusted front tells who the client is: everything starts over with that client."""
        conversation = self._conversation
        told = xclient.read(event.attributes, conversation.facts.client)
        if told is None:
            self._session.reply(reply.SYNTAX_ERROR)
            return None
        facts = conversation.facts
        conversation.start_over()
        self._uncount()
        if told.local_address:
            facts.local_address = told.local_address
            facts.local_port = 0
        self._profile.log.line(
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
        session = self._session
        conversation = self._conversation
        facts = conversation.facts
        if self._must_ask_name(facts):
            await self._ask_name(facts)
        if not self._follow_rule(facts):
            return
        profile = self._profile
        decision = await profile.settle(self._introduce(facts))
        conversation.apply(decision.effects, Phase.CONNECT)
        facts.helo = helo
        if decision.reply is None:
            session.restart()
            session.reply(profile.service.banner(profile))
        else:
            conversation.log_refusal(decision)
            session.reply(decision.reply)
            session.close()

    def _starttls(self, event: Event) -> Wait:
        return self._allow_handshake(self._starttls_decided)

    def _allow_handshake(self, then: Callable[[Decision], None]) -> Wait:
        """Ask policy whether this client may have a handshake now."""
        profile = self._profile
        facts = self._conversation.facts
        if profile.counts_handshakes:
            profile.note_rate(facts.client, Token.HANDSHAKES)
        decision = profile.plan.run(Phase.STARTTLS, facts)
        if type(decision) is Decision:
            then(decision)
            return None
        return self._decide_later(decision, then)  # type: ignore[arg-type]

    def _starttls_decided(self, decision: Decision) -> None:
        conversation = self._conversation
        conversation.apply(decision.effects, Phase.STARTTLS)
        if decision.reply is not None:
            conversation.log_refusal(decision)
            self._session.reply(decision.reply)
            return
        conversation.restart()
        # Reading stops here, before anything is scheduled: what the client sends now is its handshake.
        self._session.reply(reply.START_TLS)
        self._handshake()

    def _before_handshake(self) -> None:
        if self._allow_handshake(self._implicit_decided) is not None:
            # The ClientHello would be read in clear meanwhile, and could not be given back.
            raise TypeError("a STARTTLS stage asks no questions on a listener with implicit TLS")

    def _implicit_decided(self, decision: Decision) -> None:
        self._conversation.apply(decision.effects, Phase.STARTTLS)
        if decision.reply is not None:
            self._conversation.log_refusal(decision)
            self._profile.meter.connection_refused(decision.stage)
            self._raw.close()
            return
        self._handshake()

    def _handshake(self) -> None:
        """Raise the connection to TLS; called inside a callback of the transport, before it reads again."""
        service = self._service
        tls: ServerTls = self._profile.tls  # type: ignore[assignment]
        timeout_s = STRESSED_HANDSHAKE_S if service.is_stressed else HANDSHAKE_S
        self._flush()
        self.life = Life.HANDSHAKE
        self.patience_s = NEVER
        self._is_reading = False
        context = self._profile.engine(tls, self._conversation.facts)
        Upgrade(service.loop, self._raw, self, context, timeout_s=timeout_s, done=self._handshake_over)

    def _handshake_over(self, outcome: Outcome) -> None:
        if self.life is Life.CLOSED:
            return
        self._is_reading = True
        if isinstance(outcome, Failed):
            facts = self._conversation.facts
            self._conversation.has_logged = True
            self._profile.meter.handshake("")
            self._profile.log.line(
                "tls_failed",
                id=facts.session_id,
                client=facts.client.address.text,
                listener=facts.listener,
                reason=outcome.reason,
            )
            self._ended()
            return
        self._guarded(self._raised, outcome)

    def _raised(self, outcome: Raised) -> None:
        """TLS stands: the session starts over (RFC 3207 section 4.2), or begins."""
        profile = self._profile
        self._transport = outcome.transport
        facts = self._conversation.facts
        agreed = profile.tls.handshake(outcome.ssl_object)  # type: ignore[union-attr]
        profile.meter.handshake(agreed.protocol)
        profile.raised(facts, agreed)
        self._session.restart(is_tls=True)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self.life = Life.DECIDING
            self._spawn(self._admit_later(waiting))
        elif self._is_implicit:
            self._hold_greeting()
        else:
            self.life = Life.TALKING
            self._await_command()

    # --- time ------------------------------------------------------------------------------------

    def _await_command(self) -> None:
        self._commands = self._session.commands
        self._is_in_body = False
        self._window = self._service.command_window
        self.since_s = self._service.tick_s
        self.patience_s = self._profile.settings.limits.command_s

    def _turn(self) -> None:
        """A wait of another kind begins: for a command, for body bytes at a rate, or one of our own."""
        if self._pause is not None:
            # _hold_back() has said for how long.
            return
        if self._is_busy:
            # What we wait for has a deadline of its own.
            self.patience_s = NEVER
            self._commands = -1
        elif self._session.is_body:
            self._is_in_body = True
            self._window = self._service.window
            self._body_mark = self.bytes_in
            self.since_s = self._service.tick_s
            self.patience_s = RATE_WINDOW_S
        else:
            self._await_command()

    def expired(self, now: float) -> None:
        """Called by the tick when the client has used up our patience, or its session's or transaction's time."""
        life = self.life
        if life is Life.LINGER or life is Life.CLOSED:
            self._raw.abort()
        elif life is Life.PROXY:
            self._refuse_proxy("no header in time")
        elif life is not Life.TALKING:
            self._raw.abort()
        elif now >= self.ends_s:
            self._time_out(reply.SESSION_TOO_LONG, "limits.session_s")
        elif self.is_transaction_over(now):
            self._time_out(reply.TRANSACTION_TOO_LONG, "limits.transaction_s")
        elif self._pause is not None:
            self.end_pause()
        elif self._is_in_body:
            self._check_rate(now)
        else:
            self._time_out(reply.IDLE_TOO_LONG, "limits.command_s")

    def is_idle_since(self, now: float) -> float:
        """Seconds that this connection has waited for a command; 0.0 when it waits for something else."""
        if self.life is not Life.TALKING or self._is_busy or self._is_in_body:
            return 0.0
        return now - self.since_s

    def is_transaction_over(self, now: float) -> bool:
        conversation = self._conversation
        if conversation is None or conversation.is_committing or conversation.facts.envelope is None:
            return False
        return now >= conversation.began_s + self._profile.settings.limits.transaction_s

    def _check_rate(self, now: float) -> None:
        arrived = self.bytes_in - self._body_mark
        if arrived < self._profile.settings.limits.minimum_bytes_per_s * RATE_WINDOW_S:
            self._time_out(reply.TOO_SLOW, "limits.minimum_bytes_per_s")
            return
        self._body_mark = self.bytes_in
        self.since_s = now

    def _time_out(self, last: reply.Reply, limit: str) -> None:
        if self._profile.settings.is_compatible:
            last = reply.QMAIL_DIALOGUE.get(last, last)
        facts = self._conversation.facts
        self._conversation.has_logged = True
        self._profile.meter.timed_out(limit)
        self._profile.log.line(
            "too_slow" if last is reply.TOO_SLOW else "timeout",
            id=facts.session_id,
            client=facts.client.address.text,
            listener=facts.listener,
            code=last.code,
            enhanced=last.enhanced,
            limit=limit,
            helo=facts.helo,
        )
        self.say_goodbye(last)

    # --- the end ---------------------------------------------------------------------------------

    def say_goodbye(self, last: reply.Reply) -> None:
        """Tell the client why, and close: the transaction is dropped, unless the sink has it already."""
        if self.life is Life.DELAY:
            if self._timer is not None:
                self._timer.cancel()
            self.life = Life.TALKING
        if self.life is not Life.TALKING:
            self._raw.abort()
            return
        self._pause = None
        self._conversation.give_up()
        self._session.close(last)
        self._flush()
        self._finish()

    def abort(self) -> None:
        """Close without a word."""
        self._raw.abort()

    @property
    def is_idle(self) -> bool:
        """Nothing is open: a draining server may send this client away."""
        if self.life is not Life.TALKING:
            return self.life is not Life.LINGER
        return not self._is_busy and not self._is_in_body and self._conversation.facts.envelope is None

    def is_fresh(self, since_s: float) -> bool:
        """Accepted after since_s, and no message yet."""
        conversation = self._conversation
        return self._accepted_s > since_s and (conversation is None or not conversation.facts.messages)

    def has_just_spoken(self, since_s: float) -> bool:
        """It sent a message, and its last command came after since_s: most likely its QUIT comes next."""
        conversation = self._conversation
        return conversation is not None and conversation.facts.messages > 0 and self.since_s > since_s

    def _finish(self) -> None:
        """The last reply is written.  Shut our side, drop what still comes, close: else a reset eats the reply."""
        if self.life >= Life.LINGER:
            return
        transport = self._transport
        self.life = Life.LINGER
        self.since_s = self._service.now()
        self.patience_s = LINGER_S
        if self._is_eof or transport.is_closing():
            transport.close()
        elif self._has_quit:
            # The client has said all it wanted, and waits for our close.
            transport.close()
        elif transport is not self._raw:
            # Under TLS closing sends close_notify and reads on until the client's; Upgrade bounds it.
            self._resume_reading()
            transport.close()
        else:
            self._body_mark = self.bytes_in
            self._resume_reading()
            transport.write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended()

    def _ended(self) -> None:
        """The connection is gone.  May be called twice: a failed handshake ends it, and then perhaps the loop does."""
        if self.life is Life.CLOSED:
            return
        self.life = Life.CLOSED
        self._is_reading = False
        self._pause = None
        # The TLS layer keeps our bound methods: with this the two are no cycle, and go now, not with some
        # collection a thousand connections later.
        self._transport = self._raw
        self._listener.closed(self)
        self._uncount()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        conversation = self._conversation
        if conversation is None:
            return
        if self._task is not None and not conversation.is_committing:
            self._task.cancel()
        conversation.give_up()
        if not conversation.has_logged:
            facts = conversation.facts
            self._profile.log.line(
                "disconnect",
                id=facts.session_id,
                client=facts.client.address.text,
                listener=facts.listener,
                helo=facts.helo,
                commands=self._session.commands,
                bytes_in=self.bytes_in,
            )
