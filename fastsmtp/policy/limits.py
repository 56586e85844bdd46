"""Limits that protect the server: connections, rates, recipients.

They hold in every policy.mode.  Relay clients are not counted per client; what
protects the server as a whole (connections in all, recipients a message) holds
for them too.  The counts are facts; taking a token is an effect.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, TakeToken, Token, defer, drop, passed
from fastsmtp.policy.facts import Facts

_TAKE_CONNECTION, _TAKE_MESSAGE, _TAKE_RECIPIENT, _TAKE_HANDSHAKE = (
    passed(TakeToken(token)) for token in Token
)
# An enumeration's members cost a look-up each time.
_CONNECTIONS, _MESSAGES, _RECIPIENTS, _HANDSHAKES = (int(token) for token in Token)
_OVERLOADED = drop(reply.OVERLOADED)
_TOO_MANY_CONNECTIONS = drop(reply.TOO_MANY_CONNECTIONS)
_CONNECTION_RATE = drop(reply.CONNECTION_RATE, TakeToken(Token.CONNECTIONS))
_HANDSHAKE_RATE = defer(reply.HANDSHAKE_RATE)
_MESSAGE_RATE = defer(reply.MESSAGE_RATE, TakeToken(Token.MESSAGES))
_RECIPIENT_RATE = defer(reply.RECIPIENT_RATE, TakeToken(Token.RECIPIENTS))
_TOO_MANY_RECIPIENTS = defer(reply.TOO_MANY_RECIPIENTS)


def count_connections(facts: Facts, settings: Settings) -> Decision | None:
    """CONNECT: connections in all (421 4.3.2), per client and per client and minute (421 4.7.0)."""
    limits = settings.limits
    if facts.connections > limits.connections:
        return _OVERLOADED
    client = facts.client
    if client.may_relay:
        return None
    if limits.connections_per_client and client.connections > limits.connections_per_client:
        return _TOO_MANY_CONNECTIONS
    allowed = limits.connections_per_client_per_min
    if not allowed:
        return None
    return _CONNECTION_RATE if client.rates[_CONNECTIONS] >= allowed else _TAKE_CONNECTION


def count_handshakes(facts: Facts, settings: Settings) -> Decision | None:
    """STARTTLS: a handshake costs ten messages' CPU, so a client gets only so many a minute (454 4.7.0)."""
    allowed = settings.limits.handshakes_per_client_per_min
    if not allowed or facts.client.may_relay:
        return None
    return _HANDSHAKE_RATE if facts.client.rates[_HANDSHAKES] >= allowed else _TAKE_HANDSHAKE


def count_messages(facts: Facts, settings: Settings) -> Decision | None:
    """MAIL: messages per client and minute (450 4.7.1)."""
    allowed = settings.limits.messages_per_client_per_min
    if not allowed or facts.client.may_relay:
        return None
    return _MESSAGE_RATE if facts.client.rates[_MESSAGES] >= allowed else _TAKE_MESSAGE


def count_recipients(facts: Facts, settings: Settings) -> Decision | None:
    """RCPT: recipients a message (452 4.5.3, RFC 5321 section 4.5.3.1.10) and per client and minute (452 4.7.1)."""
    limits = settings.limits
    if facts.envelope is not None and len(facts.envelope.recipients) >= limits.recipients:
        return _TOO_MANY_RECIPIENTS
    allowed = limits.recipients_per_client_per_min
    if not allowed or facts.client.may_relay:
        return None
    return _RECIPIENT_RATE if facts.client.rates[_RECIPIENTS] >= allowed else _TAKE_RECIPIENT
