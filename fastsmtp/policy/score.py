"""What earlier phases said, put into force: refusals that were held (policy.reject_at), and the sum of the scores.

RFC 5321 section 4.5.1 wants postmaster to be reachable from everywhere, so that who is refused wrongly can say
so; only "extreme cases" may be blocked, narrowly.  So neither a held refusal nor the score refuses a recipient
that is our postmaster - but a client that the operator himself denies.  With reject_at before rcpt the recipient
is not known yet, and nobody is spared.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts

DENY = "deny"
"""The stage whose refusals are for postmaster too."""

_SCORE = reject(reply.SCORE)
_HEADER_TOO_LONG = reject(reply.HEADER_TOO_LONG)


def speak_held(facts: Facts, settings: Settings) -> Decision | None:
    """HELO, MAIL or RCPT, by reject_at: the highest of the refusals that wait, the earliest among equals."""
    held = facts.held
    if not held:
        return None
    if facts.recipient is not None and is_for_postmaster(facts):
        held = tuple(decision for decision in held if decision.stage == DENY)
    return max(held, key=_height) if held else None


def check_score(facts: Facts, settings: Settings) -> Decision | None:
    """From reject_at on: the scores of all phases so far add up to policy.reject_score."""
    if facts.score < settings.policy.reject_score:
        return None
    return None if is_for_postmaster(facts) else _SCORE


def check_observed_score(facts: Facts, settings: Settings) -> Decision | None:
    """The same with what rules say that only observe; a stage that only observes itself."""
    needed = settings.policy.reject_score
    if facts.score >= needed or facts.score + facts.observed_score < needed:
        return None
    return None if is_for_postmaster(facts) else _SCORE


def refuse_long_header(facts: Facts, settings: Settings) -> Decision | None:
    """END: a header that could not be looked through may hold a field that claims to be ours."""
    header = facts.header
    return _HEADER_TOO_LONG if header is not None and header.is_cut else None


def is_for_postmaster(facts: Facts) -> bool:
    """At RCPT this recipient; at the end of a message all of them."""
    envelope = facts.envelope
    if facts.header is not None and envelope is not None:
        return all(one.address.rpartition(b"@")[0].lower() == b"postmaster" for one in envelope.recipients)
    path = facts.recipient
    return path is not None and path.mailbox.lower() == b"postmaster"


def _height(decision: Decision) -> int:
    return decision.verdict
