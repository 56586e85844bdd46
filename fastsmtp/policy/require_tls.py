"""Senders whose mail is taken only over TLS: [[policy.require_tls]].

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts

_NEED_TLS = reject(reply.NEED_TLS)


def check_tls(facts: Facts, settings: Settings) -> Decision | None:
    """MAIL: 530 5.7.0 in clear (RFC 3207 section 4); the client can say STARTTLS and come again."""
    return _judge("enforce", facts, settings)


def observe_tls(facts: Facts, settings: Settings) -> Decision | None:
    """The same with the rules that only observe."""
    return _judge("observe", facts, settings)


def _judge(mode: str, facts: Facts, settings: Settings) -> Decision | None:
    path = facts.sender
    if facts.tls is not None or path is None or path not in settings.require_tls[mode]:
        return None
    return _NEED_TLS
