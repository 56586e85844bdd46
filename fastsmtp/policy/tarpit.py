"""Slow answers to who names many recipients: policy.tarpit.

The delay is an effect of a decision that passes; nothing waits here.

Rank 4: pure.
"""

from __future__ import annotations

from functools import lru_cache

from fastsmtp.config.rules import DELAY_MOST_S
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, Delay, Tag, passed
from fastsmtp.policy.facts import Facts


def slow_recipient(facts: Facts, settings: Settings) -> Decision | None:
    """RCPT: from the recipient number after_recipients of a message on, that one included; not for relay clients.

    With count_rejected the recipients that were refused since the last message count too, and a refusal is
    as slow; without it only what is accepted counts, and only that is slow.
    """
    rule = settings.policy.tarpit
    envelope = facts.envelope
    if envelope is None or facts.client.may_relay or not rule.after_recipients:
        return None
    number = len(envelope.recipients) + 1
    if rule.count_rejected:
        number += facts.refused
    beyond = number - rule.after_recipients
    if beyond < 0:
        return None
    delay_s = min(rule.delay_s + rule.step_s * beyond, DELAY_MOST_S)
    return _slow(delay_s, rule.count_rejected, number if not beyond else 0) if delay_s > 0.0 else None


@lru_cache(maxsize=1024)
def _slow(delay_s: float, is_for_refused: bool, first: int) -> Decision:
    """first: the number of the first recipient that is slow, at that one; else 0."""
    delay = Delay(delay_s, is_for_refused=is_for_refused)
    return passed(delay, Tag("tarpit", str(first))) if first else passed(delay)
