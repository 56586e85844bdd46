"""Early talkers, and the pass for a client that waited and delivered (postscreen's idea).

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, GrantPass, drop, passed
from fastsmtp.policy.facts import Facts

_EARLY = drop(reply.EARLY_TALKER)


def refuse_early_talker(facts: Facts, settings: Settings) -> Decision | None:
    """GREETING: a client must wait for the greeting (RFC 5321 section 4.3.1); zombies don't."""
    return _EARLY if facts.is_early else None


def grant_pass(facts: Facts, settings: Settings) -> Decision | None:
    """END: who waited for the greeting and delivers is not held again for greeting_pass_h."""
    hours = settings.listen.greeting_pass_h
    if not facts.has_waited or facts.is_early or not hours:
        return None
    return passed(GrantPass(hours * 3600.0))
