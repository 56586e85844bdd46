"""Raising a connection to TLS: may this client have a handshake, and what came of it.

For STARTTLS and for implicit TLS.  How the records get from the transport to the
connection is start_tls.py's business; nothing here sees a byte.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastsmtp import reply
from fastsmtp.policy.decision import Decision
from fastsmtp.policy.facts import Phase
from fastsmtp.smtp import ends
from fastsmtp.smtp.life import HANDSHAKE_S, STRESSED_HANDSHAKE_S, Life
from fastsmtp.smtp.pause import Wait
from fastsmtp.smtp.start_tls import Failed, Outcome, Raised, Upgrade

if TYPE_CHECKING:
    from fastsmtp.smtp.connection import Connection


class Raising:
    """One handshake; `then` goes on when TLS stands, with a session that has started over."""

    __slots__ = ("_connection", "_then")

    def __init__(self, connection: Connection, then: Callable[[], None]) -> None:
        self._connection = connection
        self._then = then

    def on_command(self) -> Wait:
        """STARTTLS."""
        return self._ask(self._command_decided)

    def at_once(self) -> None:
        """Implicit TLS: call it inside a callback of the transport, before it reads again."""
        if self._ask(self._implicit_decided) is not None:
            # The ClientHello would be read in clear meanwhile, and could not be given back.
            raise TypeError("a STARTTLS stage asks no questions on a listener with implicit TLS")

    def _ask(self, then: Callable[[Decision], None]) -> Wait:
        connection = self._connection
        decision = ends.ask_handshake(connection.profile, connection.conversation.facts)
        if type(decision) is Decision:
            then(decision)
            return None
        return connection.decide_later(decision, then)  # type: ignore[arg-type]

    def _command_decided(self, decision: Decision) -> None:
        connection = self._connection
        conversation = connection.conversation
        conversation.apply(decision.effects, Phase.STARTTLS)
        if decision.reply is not None:
            conversation.log_refusal(decision)
            connection.session.reply(decision.reply)
            return
        conversation.restart()
        # Reading stops here, before anything is scheduled: what the client sends now is its handshake.
        connection.session.reply(reply.START_TLS)
        self._shake()

    def _implicit_decided(self, decision: Decision) -> None:
        connection = self._connection
        connection.conversation.apply(decision.effects, Phase.STARTTLS)
        if decision.reply is not None:
            connection.conversation.log_refusal(decision)
            connection.profile.meter.connection_refused(decision.stage)
            connection.raw.close()
            return
        self._shake()

    def _shake(self) -> None:
        connection = self._connection
        profile = connection.profile
        service = profile.service
        connection.lend()
        Upgrade(
            service.loop,
            connection.raw,
            connection,  # type: ignore[arg-type]  # one of listener.Accepted, which is a BufferedProtocol
            profile.engine(profile.tls, connection.conversation.facts),  # type: ignore[arg-type]
            timeout_s=STRESSED_HANDSHAKE_S if service.is_stressed else HANDSHAKE_S,
            done=self._over,
        )

    def _over(self, outcome: Outcome) -> None:
        connection = self._connection
        if connection.life is Life.CLOSED:
            return
        if isinstance(outcome, Failed):
            ends.handshake_failed(connection.profile, connection.conversation, outcome.reason)
            connection.ended()
            return
        connection.guarded(self._raised, outcome)

    def _raised(self, outcome: Raised) -> None:
        """TLS stands: the session starts over (RFC 3207 section 4.2), or begins."""
        connection = self._connection
        connection.take_back(outcome.transport)
        profile = connection.profile
        profile.raised(connection.conversation.facts, profile.tls.handshake(outcome.ssl_object))  # type: ignore[union-attr]
        connection.session.restart(is_tls=True)
        self._then()
