"""What the message itself says: its declared size, and how often it has been received already.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts

# RFC 5321 section 6.3: a large rejection threshold, normally at least 100 Received lines.
HOPS_MAX = 100

_LOOP = reject(reply.MAIL_LOOP)
_TOO_BIG = reject(reply.TOO_BIG)


def check_declared_size(facts: Facts, settings: Settings) -> Decision | None:
    """MAIL: SIZE= over the limit (RFC 1870 section 6.1).  The session itself counts what really comes."""
    allowed = settings.limits.message_bytes
    return _TOO_BIG if allowed and facts.declared_bytes > allowed else None


def stop_loop(facts: Facts, settings: Settings) -> Decision | None:
    """END: too many Received fields mean a loop (RFC 5321 section 6.3)."""
    header = facts.header
    return _LOOP if header is not None and header.hops > HOPS_MAX else None
