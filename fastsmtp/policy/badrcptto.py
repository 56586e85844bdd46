"""Recipients that the operator refuses: policy.badrcptto, qmail's control/badrcptto.

Relay control has spoken before: to who may not relay, a listed recipient that isn't ours sounds like any other.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts

_BAD = reject(reply.UNKNOWN_RECIPIENT)
_QMAIL_BAD = reject(reply.DENIED)


def refuse_recipient(facts: Facts, settings: Settings) -> Decision | None:
    """RCPT: as one that does not exist, 550 5.1.1; when compatible 553 5.7.1.  Not for relay clients."""
    path = facts.recipient
    if path is None or path not in settings.badrcptto:
        return None
    if facts.client.may_relay:
        return None
    return _QMAIL_BAD if settings.is_compatible else _BAD
