"""Envelope senders that the operator refuses: policy.badmailfrom, qmail's control/badmailfrom.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts

_BAD = reject(reply.BAD_SENDER)


def refuse_sender(facts: Facts, settings: Settings) -> Decision | None:
    """MAIL: 550 5.7.1; when compatible 553 5.7.1."""
    path = facts.sender
    return _BAD if path is not None and path in settings.badmailfrom else None
