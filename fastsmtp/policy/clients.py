"""Clients that the operator refuses by address.  Those that he allows skip all checks: relay.know_client.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts

_DENIED = reject(reply.CLIENT_DENIED)


def deny_client(facts: Facts, settings: Settings) -> Decision | None:
    """CONNECT: policy.clients.deny (550 5.7.1)."""
    return _DENIED if facts.client.address in settings.deny else None
