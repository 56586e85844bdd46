"""The two ends of a session, where no command is answered: what both its drivers do there in the same way.

A driver has the socket and does the waiting: connection.py in a server's loop, single.py for `fastsmtp smtpd`.
The order of the beginning is theirs too, since it is made of waits.  Nothing here waits.

Rank 8.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.policy.decision import Decision, Token, Verdict
from fastsmtp.policy.facts import Phase
from fastsmtp.smtp import session_log
from fastsmtp.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsmtp._session import Session
    from fastsmtp.policy.facts import Client, Facts
    from fastsmtp.policy.runner import Round
    from fastsmtp.smtp.conversation import Conversation
    from fastsmtp.smtp.profile import Profile

# An enumeration's members cost a look-up each time.
_CLIENT = Phase.CLIENT


def grant(profile: Profile, conversation: Conversation) -> None:
    """Run CLIENT: what the client may do is a fact from here on."""
    granted = profile.plan.run(_CLIENT, conversation.facts)
    if type(granted) is not Decision:
        raise TypeError("a CLIENT stage asks no questions: what it grants is needed at once")
    if granted.effects:
        conversation.apply(granted.effects, _CLIENT)


def greeting_delay_s(profile: Profile, client: Client) -> float:
    """For how long after accept this client is not greeted."""
    delay_s = profile.settings.listen.greeting_delay_s
    return 0.0 if not delay_s or client.skips_checks or client.may_relay or client.has_pass else delay_s


def refuse_greeting(session: Session, decision: Decision) -> None:
    """The refusal stands in the greeting's place."""
    session.greet(decision.reply.as_greeting())  # type: ignore[union-attr]
    if decision.verdict is Verdict.DROP:
        session.close()


def ask_handshake(profile: Profile, facts: Facts) -> Decision | Round:
    """Run STARTTLS: whether this client may have a handshake now, implicit TLS too."""
    if profile.counts_handshakes:
        profile.note_rate(facts.client, Token.HANDSHAKES)
    return profile.plan.run(Phase.STARTTLS, facts)


def handshake_failed(profile: Profile, conversation: Conversation, reason: str) -> None:
    conversation.has_logged = True
    profile.meter.handshake("")
    session_log.tls_failed(profile.log, conversation.facts, reason)


def timed_out(profile: Profile, conversation: Conversation, last: reply.Reply, limit: str) -> reply.Reply:
    """The client has used up what `limit` gives it; returns the last word in the dialogue's own form."""
    if profile.settings.is_compatible:
        last = reply.QMAIL_DIALOGUE.get(last, last)
    conversation.has_logged = True
    profile.meter.timed_out(limit)
    session_log.timed_out(profile.log, conversation.facts, last, limit)
    return last


def gone(profile: Profile, conversation: Conversation, bytes_in: int) -> None:
    """The connection is no more: one line, if no other has told of this session."""
    conversation.give_up()
    if not conversation.has_logged:
        session_log.disconnect(profile.log, conversation.facts, conversation.session.commands, bytes_in)
