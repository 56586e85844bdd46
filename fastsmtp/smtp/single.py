"""One SMTP session over two descriptors, without an event loop: what Connection is to a server, for `fastsmtp smtpd`.

The same session, conversation and policy; only the waiting is different.  A wait of a handler is driven by
hand (alone.py), and only a question to a name server or a next hop brings a loop in.

Rank 8.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp._session import QUIT, STARTTLS, Event, Session
from fastsmtp.errors import ConfigError
from fastsmtp.policy.decision import Decision, Verdict
from fastsmtp.policy.facts import Client, Facts, Phase
from fastsmtp.policy.relay import asks_certificate
from fastsmtp.smtp import ends
from fastsmtp.smtp.conversation import HANDLERS, Conversation
from fastsmtp.smtp.life import HANDSHAKE_S, LINGER_BYTES, LINGER_S, RATE_WINDOW_S
from fastsmtp.smtp.pause import Pause, rest
from fastsmtp.smtp.wire import BODY_READ_BYTES, READ_BYTES, Gone, Late, Stopped, TlsFailed, Wire
from fastsmtp.typed import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from fastsmtp.smtp.alone import Alone, LaterTls, SoleProfile

ENDED: Final = 0
"""Exit status: the session came to its end, by QUIT or by our own last word."""

LOST: Final = 1
"""The client went without QUIT, was silent too long, or we were told to stop; qmail-smtpd's status as well."""


class _Over(Exception):
    """The session is over; the exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Single:
    """One session.

    is_implicit  TLS comes before the greeting
    """

    def __init__(
        self,
        alone: Alone,
        profile: SoleProfile,
        client: Client,
        local_address: str,
        wire: Wire,
        *,
        is_implicit: bool,
    ) -> None:
        self._alone = alone
        self._profile = profile
        self._wire = wire
        self._is_implicit = is_implicit
        self._tls: LaterTls | None = profile.tls  # type: ignore[assignment]
        id = alone.ids.next()
        self._session = Session(profile.terms, id.encode())
        settings = profile.settings
        self._facts = Facts(id, settings.listen.name, local_address, client)
        self._facts.bad_lists = alone.lists.bad
        self._conversation = Conversation(profile, self._session, self._facts)
        self._began_s = profile.now()
        self._ends_s = self._began_s + settings.limits.session_s
        self._command_s = settings.limits.command_s
        self._has_quit = False
        # Of the body's rate: when the window ends, and what had come when it began.
        self._window_s = 0.0
        self._mark = 0

    def serve(self) -> int:
        """The whole session; its exit status.  Everything that it needed is closed then."""
        self._wire.begin()
        try:
            return self._serve()
        finally:
            self._wire.end()
            ends.gone(self._profile, self._conversation, self._wire.bytes_in)
            self._alone.close()

    def _serve(self) -> int:
        try:
            self._begin()
            self._talk()
        except _Over as over:
            return over.status
        except Gone:
            return LOST
        except Late:
            # A reply that nobody took; every other time-out has been spoken of.
            return LOST
        except Stopped:
            return self._say_goodbye(reply.SHUTTING_DOWN)
        return ENDED

    # --- the beginning ---------------------------------------------------------------------------

    def _begin(self) -> None:
        """Admission, TLS where it comes first, greeting: the order of Admission."""
        decision = self._introduce()
        conversation = self._conversation
        conversation.apply(decision.effects, Phase.CONNECT)
        if decision.verdict is not Verdict.PASS:
            conversation.log_refusal(decision)
            if self._is_implicit:
                raise _Over(ENDED)
            self._refuse_greeting(decision)
            return
        if self._is_implicit:
            refusal = self._handshake_allowed()
            if refusal is not None or not self._handshake():
                raise _Over(LOST)
        self._hold_greeting()

    def _introduce(self) -> Decision:
        """CLIENT, then CONNECT with what that granted."""
        profile, facts = self._profile, self._facts
        ends.grant(profile, self._conversation)
        facts.connections = facts.client.connections = 1
        return profile.decided(profile.plan.run(Phase.CONNECT, facts))

    def _hold_greeting(self) -> None:
        facts = self._facts
        delay_s = ends.greeting_delay_s(self._profile, facts.client)
        if delay_s:
            facts.has_waited = True
            facts.is_early = self._wire.wait(self._began_s + delay_s)
            decision = self._profile.decided(self._profile.plan.run(Phase.GREETING, facts))
            self._conversation.apply(decision.effects, Phase.GREETING)
            if decision.verdict is not Verdict.PASS:
                self._conversation.log_refusal(decision)
                self._refuse_greeting(decision)
                return
        self._session.greet(self._alone.banner(self._profile))
        self._pump()

    def _refuse_greeting(self, decision: Decision) -> None:
        ends.refuse_greeting(self._session, decision)
        self._pump()

    # --- the dialogue ----------------------------------------------------------------------------

    def _talk(self) -> None:
        """Read and answer until one side ends it."""
        session = self._session
        while not session.is_closing:
            data = self._read()
            if not data:
                raise _Over(ENDED if self._has_quit else LOST)
            session.feed(data)
            self._pump()
            session.hold()
        self._finish()

    def _pump(self) -> None:
        """Answer all that came; the replies of a pipelined group leave in one write."""
        session = self._session
        try:
            while True:
                event = session.next_event()
                if event is not None:
                    self._handle(event)
                elif session.is_full:
                    self._flush()
                else:
                    break
        except (Gone, Late, Stopped, _Over):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is our defect: 451, logged
            self._conversation.failed(error)
        self._flush()

    def _handle(self, event: Event) -> None:
        kind = event.kind
        if kind == STARTTLS:
            self._starttls()
            return
        if kind == QUIT:
            self._has_quit = True
        wait = HANDLERS[kind](self._conversation, event)
        if wait is None:
            return
        # It may be long: what was answered before it must not wait for it.
        self._flush()
        pause = wait if isinstance(wait, Pause) else self._alone.run(rest(wait))
        if pause is not None:
            self._wire.pause(self._alone.now() + pause.seconds)
            pause.then()

    def _flush(self) -> None:
        output = self._session.take()
        if output:
            self._wire.write(output, self._alone.now() + self._command_s)

    # --- time ------------------------------------------------------------------------------------

    def _read(self) -> bytes:
        """What the client says next, within the time that it has for it."""
        if self._session.is_body:
            return self._read_body()
        deadline_s = self._alone.now() + self._command_s
        try:
            return self._wire.read(READ_BYTES, min(deadline_s, self._limit_s()))
        except Late:
            self._time_out(reply.IDLE_TOO_LONG, "limits.command_s")

    def _read_body(self) -> bytes:
        """At a rate: so many bytes in each window."""
        wire = self._wire
        least = self._profile.settings.limits.minimum_bytes_per_s * RATE_WINDOW_S
        if self._alone.now() >= self._window_s:
            self._window_s = self._alone.now() + RATE_WINDOW_S
            self._mark = wire.bytes_in
        while True:
            try:
                return wire.read(BODY_READ_BYTES, min(self._window_s, self._limit_s()))
            except Late:
                if wire.bytes_in - self._mark < least:
                    self._time_out(reply.TOO_SLOW, "limits.minimum_bytes_per_s")
                self._check_limits()
                self._window_s = self._alone.now() + RATE_WINDOW_S
                self._mark = wire.bytes_in

    def _limit_s(self) -> float:
        """When the session, or the transaction that is open, must be over."""
        if self._facts.envelope is None:
            return self._ends_s
        return min(self._ends_s, self._conversation.began_s + self._profile.settings.limits.transaction_s)

    def _check_limits(self) -> None:
        now = self._alone.now()
        if now >= self._ends_s:
            self._time_out(reply.SESSION_TOO_LONG, "limits.session_s")
        if now >= self._limit_s():
            self._time_out(reply.TRANSACTION_TOO_LONG, "limits.transaction_s")

    def _time_out(self, last: reply.Reply, limit: str) -> NoReturn:
        if limit == "limits.command_s":
            self._check_limits()
        raise _Over(self._say_goodbye(ends.timed_out(self._profile, self._conversation, last, limit)))

    # --- TLS -------------------------------------------------------------------------------------

    def _starttls(self) -> None:
        refusal = self._handshake_allowed()
        if refusal is not None:
            self._session.reply(refusal)
            return
        self._conversation.restart()
        self._session.reply(reply.START_TLS)
        self._flush()
        if not self._handshake():
            raise _Over(LOST)
        # What came in clear behind STARTTLS is forgotten with all else (RFC 3207 section 4.2).
        self._session.restart(is_tls=True)

    def _handshake_allowed(self) -> reply.Reply | None:
        """Why there is no handshake, or None: policy's refusal, or a certificate that can't be used."""
        profile, facts = self._profile, self._facts
        decision = profile.decided(ends.ask_handshake(profile, facts))
        self._conversation.apply(decision.effects, Phase.STARTTLS)
        if decision.reply is not None:
            self._conversation.log_refusal(decision)
            return decision.reply
        try:
            self._tls.load(asks=asks_certificate(facts, profile.settings))  # type: ignore[union-attr]
        except ConfigError as error:
            self._alone.log_failure("tls", error)
            return reply.TLS_OFF
        return None

    def _handshake(self) -> bool:
        """Raise the connection to TLS; False when that failed, and nothing more can be said."""
        profile, facts = self._profile, self._facts
        assert self._tls is not None
        tls = self._tls.load(asks=asks_certificate(facts, profile.settings))
        try:
            found = self._wire.start_tls(profile.engine(tls, facts), self._alone.now() + HANDSHAKE_S)
        except (TlsFailed, Late) as error:
            ends.handshake_failed(profile, self._conversation, str(error) or "no handshake in time")
            return False
        profile.raised(facts, tls.handshake(found))
        if self._is_implicit:
            self._session.restart(is_tls=True)
        return True

    # --- the end ---------------------------------------------------------------------------------

    def _say_goodbye(self, last: reply.Reply) -> int:
        """Tell the client why, and close: the transaction is dropped."""
        self._conversation.give_up()
        self._session.close(last)
        try:
            self._flush()
        except (Gone, Late):
            return LOST
        self._finish()
        return LOST

    def _finish(self) -> None:
        if not self._has_quit:
            self._wire.finish(self._alone.now() + LINGER_S, LINGER_BYTES)
