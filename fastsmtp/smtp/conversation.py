"""One client's conversation: events of the session to policy, sink and log, and their answers back.

Sees no socket.  A handler answers at once and returns None, or returns a
coroutine that the connection awaits before it pulls the next event, or a
Pause that it lets pass.  Whatever is decided here was decided by a stage or by
the sink; this file only carries.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from fastsmtp import _session, reply
from fastsmtp._body import HeaderScanner
from fastsmtp._event import Event
from fastsmtp._parser import Path, parse_mailbox
from fastsmtp._session import Session
from fastsmtp.address import Address
from fastsmtp.config.rules import DELAY_MOST_S
from fastsmtp.errors import TemporaryError
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy import header
from fastsmtp.policy.decision import (
    Decision,
    Delay,
    Effect,
    Held,
    Route,
    TakeToken,
    Token,
    Verdict,
    held_back_s,
)
from fastsmtp.policy.facts import Facts, Phase
from fastsmtp.policy.runner import Round
from fastsmtp.promise import Promise
from fastsmtp.reply import Reply
from fastsmtp.smtp import session_log
from fastsmtp.smtp.effects import CARRIED_OUT
from fastsmtp.smtp.pause import Coming, Pause, Wait, rest
from fastsmtp.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsmtp._signatures import SignatureScanner
    from fastsmtp.sink import Transaction
    from fastsmtp.smtp.inquiry import Inquiry
    from fastsmtp.smtp.profile import Profile

# An enumeration's members cost a look-up each time.
_HELO, _MAIL, _RCPT, _DATA, _END = Phase.HELO, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.END
_MESSAGES, _RECIPIENTS = int(Token.MESSAGES), int(Token.RECIPIENTS)


class Conversation:
    """The state of one session above the wire.

    facts        what policy knows; this class fills it
    transaction  the sink's, open from the first accepted recipient to commit's answer
    is_committing   the message is with the sink and its answer is on the way: a lost client doesn't stop it
    began_s      when the last MAIL came, monotonic seconds
    has_logged   at least one line tells of this session
    pending      what CONNECT asked, while the session goes on; HELO, MAIL and RCPT wait for it
    profile      the settings that it goes on under
    headers      fields that stages add to the message, each with its CRLF; None: none so far
    route        of the recipient that was decided last
    pass_s       for how long the client needs no greeting delay, once this message is accepted; 0: no pass
    """

    __slots__ = (
        "_is_slow", "_plan", "_received_head", "_scanner", "_signatures", "began_s", "facts", "has_logged",
        "headers", "is_committing", "pass_s", "pending", "profile", "route", "session", "transaction",
    )  # fmt: skip

    def __init__(self, profile: Profile, session: Session, facts: Facts) -> None:
        self.profile = profile
        self._plan = profile.plan
        self.session = session
        self.facts = facts
        self.transaction: Transaction | None = None
        self.is_committing = False
        self.has_logged = False
        self.pending: Inquiry | None = None
        self._scanner: HeaderScanner | None = None
        self._signatures: SignatureScanner | None = None
        self.headers: list[bytes] | None = None
        self._is_slow = False
        self.route: Route | None = None
        self.pass_s = 0.0
        self.began_s = 0.0
        self._received_head = ""

    def use(self, profile: Profile) -> None:
        """Go on under these settings: the client is known now, or is another."""
        self.profile = profile
        self._plan = profile.plan

    # --- the events ------------------------------------------------------------------------------

    def helo(self, event: Event) -> Wait:
        if self.pending is not None:
            return self._catch_up(event, self.helo)
        facts = self.facts
        facts.helo = event.name
        facts.is_extended = event.is_extended
        facts.forget(_HELO)
        self._received_head = ""
        decision = self._plan.run(_HELO, facts)
        if type(decision) is Decision:
            return self._helo_decided(event, decision)
        return self._ask(decision, event, self._helo_decided)  # type: ignore[arg-type]

    def _helo_decided(self, event: Event, decision: Decision) -> Wait:
        return self._answer(decision, reply.OK, _HELO)

    def mail(self, event: Event) -> Wait:
        if self.pending is not None:
            return self._catch_up(event, self.mail)
        facts = self.facts
        profile = self.profile
        facts.forget(_MAIL)
        facts.bad_lists = profile.service.lists.bad
        facts.sender = self._named(event.path) if profile.localiphost else event.path
        facts.declared_bytes = event.size_bytes
        self.began_s = profile.now()
        if profile.counts_messages:
            profile.note_rate(facts.client, _MESSAGES)
        decision = self._plan.run(_MAIL, facts)
        if type(decision) is Decision:
            return self._mail_decided(event, decision)
        return self._ask(decision, event, self._mail_decided)  # type: ignore[arg-type]

    def _mail_decided(self, event: Event, decision: Decision) -> Wait:
        path = self.facts.sender
        if decision.reply is None:
            refusal = self.profile.refusal
            if refusal is not None and (answer := refusal()) is not None:
                self._log_refusal(answer, "sink")
                self.session.reply(answer)
                return None
            self.facts.envelope = Envelope(
                path.address,  # type: ignore[union-attr]
                path.domain,  # type: ignore[union-attr]
                event.size_bytes,
                event.body,
                event.is_smtputf8,
                event.ret,
                event.envid,
            )
            if not decision.effects:
                self.session.reply(reply.SENDER_OK)
                return None
        return self._answer(decision, reply.SENDER_OK, _MAIL)

    def rcpt(self, event: Event) -> Wait:
        if self.pending is not None:
            return self._catch_up(event, self.rcpt)
        facts = self.facts
        profile = self.profile
        facts.recipient = self._named(event.path) if profile.localiphost else event.path
        if profile.counts_recipients:
            profile.note_rate(facts.client, _RECIPIENTS)
        decision = self._plan.run(_RCPT, facts)
        if type(decision) is Decision:
            return self._rcpt_decided(event, decision)
        return self._ask(decision, event, self._rcpt_decided)  # type: ignore[arg-type]

    def _named(self, path: Path) -> Path:
        """The same address; where its domain is our own address in brackets, with the name that this stands for."""
        host = self.profile.localiphost
        if path.domain[:1] != b"[":
            return path
        literal = path.domain[1:-1].removeprefix(b"ipv6:").decode("ascii", "replace")
        try:
            is_ours = Address(literal) == Address(self.facts.local_address)
        except ValueError:
            is_ours = False
        found = parse_mailbox(path.local + b"@" + host, is_utf8_allowed=True) if is_ours else path
        return path if isinstance(found, int) else found

    def _rcpt_decided(self, event: Event, decision: Decision) -> Wait:
        if decision.reply is not None:
            self.facts.refused += 1
            self._count_recipient(decision.reply)
            return self._answer(decision, reply.RECIPIENT_OK, _RCPT)
        delay_s = self.apply(decision.effects, _RCPT) if decision.effects else 0.0
        facts = self.facts
        route = self.route
        envelope = facts.envelope
        if route is None or envelope is None:
            raise RuntimeError("a recipient passed without a route")
        path = facts.recipient
        address, domain = path.address, path.domain  # type: ignore[union-attr]
        if not domain:
            # <postmaster> gets our own domain: no transport can do without one.
            address = self.profile.settings.postmaster
            domain = address.rpartition(b"@")[2]
        if route.suffix:
            address += route.suffix
            domain = address.rpartition(b"@")[2].lower()
        recipient = Recipient(
            address, domain, event.notify, event.orcpt, route.deliver, route.pass_client, route.is_queued
        )
        transaction = self.transaction
        if transaction is None:
            self.transaction = transaction = self.profile.sink.open(envelope, facts)
        answer = transaction.add(recipient)
        if answer is None or type(answer) is Reply:
            if not delay_s:
                self._rcpt_answered(recipient, answer)
                return None
            return self._rcpt_held_back(recipient, answer, decision)
        return self._rcpt_later(recipient, answer, decision)  # type: ignore[arg-type]

    async def _rcpt_later(
        self, recipient: Recipient, answer: Awaitable[Reply | None], decision: Decision
    ) -> Pause | None:
        return self._rcpt_held_back(recipient, await self._asked(answer), decision)

    def _rcpt_held_back(self, recipient: Recipient, answer: Reply | None, decision: Decision) -> Pause | None:
        """The sink has spoken too: now it is known whether it is a refusal that might have to wait."""
        delay_s = held_back_s(decision.effects, is_refused=answer is not None)
        if delay_s:
            return self._pause(delay_s, partial(self._rcpt_answered, recipient, answer))
        self._rcpt_answered(recipient, answer)
        return None

    def _rcpt_answered(self, recipient: Recipient, answer: Reply | None) -> None:
        if answer is None:
            self.facts.envelope.recipients.append(recipient)  # type: ignore[union-attr]
            self.session.reply(reply.RECIPIENT_OK)
        else:
            self.facts.refused += 1
            self._count_recipient(answer)
            self._log_refusal(answer, "sink")
            self.session.reply(answer)

    def _count_recipient(self, refusal: Reply) -> None:
        meter = self.profile.meter
        (meter.rcpt_refused if refusal.is_permanent else meter.rcpt_deferred).inc()

    def _count_message(self, refusal: Reply) -> None:
        meter = self.profile.meter
        (meter.refused if refusal.is_permanent else meter.deferred).inc()

    def data(self, event: Event) -> Wait:
        decision = self._plan.run(_DATA, self.facts)
        if type(decision) is Decision:
            return self._data_decided(event, decision)
        return self._ask(decision, event, self._data_decided)  # type: ignore[arg-type]

    def _data_decided(self, event: Event, decision: Decision) -> Wait:
        positive = reply.OK if event.is_chunked else reply.START_DATA
        if decision.reply is not None:
            # The transaction stays: the client may try again, or name more recipients (RFC 5321 section 4.1.1.4).
            return self._answer(decision, positive, _DATA)
        delay_s = self.apply(decision.effects, _DATA) if decision.effects else 0.0
        transaction = self.transaction
        if transaction is None:
            # The sink refused the message at an earlier DATA, and its recipients with it.
            self.session.reply(reply.NO_VALID_RECIPIENTS)
            return None
        self._scanner = HeaderScanner()
        signatures = self.profile.settings.signatures
        if signatures is not None and not self.facts.client.skips_checks:
            is_decoding = self.profile.settings.policy.signatures.decoded
            from fastsmtp._signatures import SignatureScanner

            self._signatures = SignatureScanner(signatures, is_decoding=is_decoding)
        answer = transaction.begin(self.facts)
        if answer is None and not delay_s:
            self.session.reply(positive)
            return None
        return self._data_later(answer, positive, delay_s)

    async def _data_later(
        self, answer: Reply | Awaitable[Reply | None] | None, positive: Reply, delay_s: float
    ) -> Pause | None:
        if answer is not None and type(answer) is not Reply:
            answer = await self._asked(answer)  # type: ignore[arg-type]
        if delay_s:
            return self._pause(delay_s, partial(self._data_answered, answer, positive))  # type: ignore[arg-type]
        self._data_answered(answer, positive)  # type: ignore[arg-type]
        return None

    def _data_answered(self, answer: Reply | None, positive: Reply) -> None:
        if answer is not None:
            self._log_refusal(answer, "sink")
            self._abort()
        self.session.reply(positive if answer is None else answer)

    def body(self, event: Event) -> Wait:
        chunk = event.chunk
        self._scanner.feed(chunk)  # type: ignore[union-attr]
        if self._signatures is not None:
            self._signatures.feed(chunk)
        wait = self.transaction.write(chunk)  # type: ignore[union-attr]
        return None if wait is None else self._written(wait)

    async def _written(self, wait: Awaitable[None]) -> Pause | None:
        await wait
        return None

    def end(self, event: Event) -> Wait:
        facts = self.facts
        facts.size_bytes = event.size_bytes
        facts.header = self._scanner.finish()  # type: ignore[union-attr]
        self._scanner = None
        if self._signatures is not None:
            facts.signature = self._signatures.finish()
            self._signatures = None
        decision = self._plan.run(_END, facts)
        if type(decision) is Decision:
            return self._end_decided(event, decision)
        return self._ask(decision, event, self._end_decided)  # type: ignore[arg-type]

    def _end_decided(self, event: Event, decision: Decision) -> Wait:
        if decision.reply is not None:
            return self._refuse_message(decision)
        delay_s = self.apply(decision.effects, _END) if decision.effects else 0.0
        profile = self.profile
        facts = self.facts
        transaction = self.transaction
        if transaction is None:
            raise RuntimeError("the end of a message without a transaction")
        head = self._received_head
        if not head:
            self._received_head = head = profile.received.head(facts)
        prefix = profile.received.field(head, facts, f"{facts.session_id}.{facts.messages + 1}")
        if self.headers is not None:
            prefix = b"".join((prefix, *self.headers))
        if (facts.tags or facts.score) and profile.settings.policy.header:
            prefix += header.write(profile.settings.policy.header, facts)
        if not facts.client.may_relay:
            for name in profile.foreign:
                if facts.header.has(name):  # type: ignore[union-attr]
                    # Who is outside can't speak in our name.
                    transaction.cut(header.foreign(profile.foreign, facts.header))  # type: ignore[arg-type]
                    break
        answer = transaction.commit(prefix)
        if type(answer) is Reply and not delay_s:
            self.transaction = None
            self._committed(answer)
            return None
        self.is_committing = True
        if type(answer) is Promise and not delay_s:
            return Coming(answer, self._promised)
        return self._commit_later(answer, delay_s)

    def _promised(self, answer: Reply | Exception) -> None:
        self.is_committing = False
        if isinstance(answer, TemporaryError):
            answer = self._world_failed(answer)
        elif isinstance(answer, Exception):
            raise answer
        self.transaction = None
        self._committed(answer)

    def _refuse_message(self, decision: Decision) -> Wait:
        """Policy says no to the whole message; the log still knows whose it was."""
        self._abort()
        if decision.reply is not None:
            self._count_message(decision.reply)
        wait = self._answer(decision, reply.OK, _END)
        self._forget()
        return wait

    async def _commit_later(self, answer: Reply | Awaitable[Reply], delay_s: float) -> Pause | None:
        try:
            if type(answer) is not Reply:
                answer = await self._asked(answer)  # type: ignore[arg-type]
        finally:
            # The answer is known, or the sink has failed and given the message up.
            self.is_committing = False
        self.transaction = None
        return self._committed(answer, delay_s)  # type: ignore[arg-type]

    def _committed(self, answer: Reply, delay_s: float = 0.0) -> Pause | None:
        facts = self.facts
        if answer.is_positive:
            facts.messages += 1
            facts.refused = 0
            profile = self.profile
            if self.pass_s:
                profile.grant_pass(facts.client, self.pass_s)
            self.has_logged = True
            took_s = profile.now() - self.began_s
            meter = profile.meter
            meter.accepted.inc()
            meter.recipients.add(len(facts.envelope.recipients))  # type: ignore[union-attr]
            meter.bytes.add(facts.size_bytes)
            meter.seconds.observe(took_s)
            session_log.message(profile.log, facts, answer.code, took_s)
        else:
            self._count_message(answer)
            self._log_refusal(answer, "sink")
        # What has become of the message is known and logged, even if the client is gone before it hears of it.
        pause = self._pause(delay_s, partial(self._say, answer)) if delay_s else None
        self._forget()
        if pause is None:
            self.session.reply(answer)
        return pause

    def reset(self, event: Event) -> Wait:
        self._abort()
        self._forget()
        return None

    def violation(self, event: Event) -> Wait:
        profile = self.profile
        self.has_logged = True
        profile.meter.violation(event.violation)
        session_log.violation(profile.log, self.facts, event.reply, event.violation)
        if event.is_fatal:
            self.give_up()
        return None

    def quit(self, event: Event) -> Wait:
        self.give_up()
        return None

    # --- what they share -------------------------------------------------------------------------

    def _ask(self, first: Round, event: Event, then: Callable[[Event, Decision], Wait]) -> Wait:
        """then() with the decision: now, when all answers are known, else as a wait."""
        inquiry = self.profile.inquire(first)
        if inquiry.decision is not None:
            return then(event, inquiry.decision)
        return self._decide_later(inquiry, event, then)

    async def _decide_later(
        self, inquiry: Inquiry, event: Event, then: Callable[[Event, Decision], Wait]
    ) -> Pause | None:
        return await rest(then(event, await inquiry.wait()))

    def _catch_up(self, event: Event, handler: Callable[[Event], Wait]) -> Wait:
        """What CONNECT asked must be answered before a command is decided; then the command's turn comes."""
        decision = self.pending.decision  # type: ignore[union-attr]
        if decision is None:
            return self._catch_up_later(event, handler)
        self.pending = None
        self._received_head = ""
        if decision.verdict is Verdict.DROP:
            return self._answer(decision, reply.OK, Phase.CONNECT)
        self.apply(decision.effects, Phase.CONNECT)
        if decision.reply is not None:
            # A defect of ours on the way to the answers: it waits as a refusal of a rule does.
            self.facts.note(Phase.CONNECT, Held(decision))
        return handler(event)

    async def _catch_up_later(self, event: Event, handler: Callable[[Event], Wait]) -> Pause | None:
        pending = self.pending
        if pending is not None:
            await pending.wait()
        return await rest(self._catch_up(event, handler))

    def _answer(self, decision: Decision, positive: Reply, phase: Phase) -> Wait:
        """The decision's own reply, or the positive one; held back where an effect says so."""
        delay_s = 0.0
        if decision.effects:
            delay_s = self.apply(decision.effects, phase)
            if delay_s and decision.reply is not None:
                delay_s = held_back_s(decision.effects, is_refused=True)
        if decision.reply is not None:
            # Told now, while it is known whose it was, even if the client is gone before it hears of it.
            self._log_refusal(decision.reply, decision.stage)
        if delay_s:
            return self._pause(delay_s, partial(self._answer_now, decision, positive))
        self._answer_now(decision, positive)
        return None

    def _pause(self, delay_s: float, then: Callable[[], None]) -> Pause:
        """Hold the reply back; the log tells of the first one of a message."""
        self.profile.meter.held_back.inc()
        if not self._is_slow:
            self._is_slow = self.has_logged = True
            session_log.held_back(self.profile.log, self.facts, delay_s)
        return Pause(delay_s, then)

    def _say(self, answer: Reply) -> None:
        self.session.reply(answer)

    def _answer_now(self, decision: Decision, positive: Reply) -> None:
        refusal = decision.reply
        if refusal is None:
            self.session.reply(positive)
            return
        self.session.reply(refusal)
        if decision.verdict is Verdict.DROP:
            self.give_up()
            self.session.close()

    def apply(self, effects: tuple[Effect, ...], phase: Phase) -> float:
        """Carry the effects out; returns for how many seconds a positive reply is held back.

        Here those that nearly every message has, the others in effects.py.
        """
        delay_s = 0.0
        for effect in effects:
            kind = type(effect)
            if kind is Route:
                self.route = effect  # type: ignore[assignment]
            elif kind is TakeToken:
                profile = self.profile
                profile.counters.take(self.facts.client.address.key, effect.token, profile.service.tick_s)  # type: ignore[attr-defined]
            elif kind is Delay:
                delay_s = max(delay_s, min(effect.seconds, DELAY_MOST_S))  # type: ignore[attr-defined]
            else:
                CARRIED_OUT[kind](self, effect, phase)
        return delay_s

    async def _asked(self, awaitable: Awaitable[Any]) -> Any:
        """The sink's answer; the world's failures are answers as well."""
        try:
            return await awaitable
        except TemporaryError as error:
            return self._world_failed(error)

    def _world_failed(self, error: TemporaryError) -> Reply:
        """What the client is told of a failure outside; the transaction is given up."""
        self.has_logged = True
        session_log.sink_failed(self.profile.log, self.facts, error)
        self._abort()
        return reply.of_error(error)

    def _log_refusal(self, refusal: Reply, stage: str) -> None:
        self.has_logged = True
        session_log.refusal(self.profile.log, self.facts, refusal, stage)

    def log_refusal(self, decision: Decision) -> None:
        """For the phases before the first command."""
        if decision.reply is not None:
            self._log_refusal(decision.reply, decision.stage)

    def _abort(self) -> None:
        transaction = self.transaction
        if transaction is not None:
            self.transaction = None
            transaction.abort()

    def _forget(self) -> None:
        """The transaction is over; what it taught is gone (RFC 5321 section 4.1.1.5)."""
        facts = self.facts
        facts.envelope = None
        facts.sender = None
        facts.recipient = None
        facts.header = None
        facts.signature = None
        self._scanner = None
        self.headers = None
        self._is_slow = False
        self.route = None
        self.pass_s = 0.0

    def give_up(self) -> None:
        """The client is gone or goes: what it has not finished is dropped, but never a message that the sink has."""
        if not self.is_committing:
            self._abort()
            self._forget()

    def restart(self) -> None:
        """After a TLS handshake or XCLIENT the session starts over (RFC 3207 section 4.2)."""
        self.give_up()
        facts = self.facts
        facts.helo = b""
        facts.is_extended = False
        facts.forget(_HELO)

    def start_over(self) -> None:
        """Somebody else is the client now (XCLIENT): nothing that was found counts any more."""
        self.restart()
        self.pending = None
        self.facts.refused = 0
        self.facts.forget(Phase.CLIENT)

    def failed(self, error: BaseException) -> None:
        """An exception came out of a handler or a wait.

        The world's failures have a reply of their own.  Any other is our defect: the client gets
        451 4.3.0 with the id, the log gets the rest.
        """
        session = self.session
        if isinstance(error, TemporaryError):
            answer = self._world_failed(error)
        else:
            answer = reply.OUR_DEFECT
            self.has_logged = True
            session_log.defect(self.profile.log, self.facts, error)
        self._abort()
        if session.is_open:
            session.reply(answer)
        else:
            # In the middle of a body there is no event to answer, and the rest of it must not be read as commands.
            session.close(answer)


def _unexpected(self: Conversation, event: Event) -> Wait:
    raise RuntimeError(f"an event that nobody handles: {event.kind}")


# By event kind: the method that has the event's name; STARTTLS and XCLIENT are the connection's.
HANDLERS: tuple[Callable[[Conversation, Event], Wait], ...] = tuple(
    getattr(Conversation, name.lower(), _unexpected) for name in _session.EVENT_NAMES
)
