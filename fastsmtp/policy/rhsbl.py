"""Lists of domains (RFC 5782 section 4): the envelope sender's, the one in HELO, the confirmed reverse name.

Only domain names are asked for, never an address: lists take that for misuse and answer "refused".  When
compatible, a list of senders that doesn't answer defers (451), as mfcheck does; else it counts for nothing.

Rank 4: pure.
"""

from __future__ import annotations

import re

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import defer, passed, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.listing import UNLISTED, Listings, ask_reason, questions, usable
from fastsmtp.policy.questions import is_unlisted
from fastsmtp.policy.reverse_dns import find_name
from fastsmtp.policy.stage import Asking, Opinion

# At least two labels, and the last one no number: else it is an address.
_DOMAIN = re.compile(rb"(?:[a-z0-9_-]+\.)+[a-z0-9-]*[a-z][a-z0-9-]*")
_WHAT = {"mail": "sender", "helo": "HELO", "ptr": "reverse name"}


def ask_of_sender(facts: Facts, settings: Settings) -> Asking | None:
    """MAIL: the domain of the envelope sender; none for the null sender and literals."""
    path = facts.sender
    # The session has parsed it: what is left to tell apart are addresses, and names that a list can't know.
    if path is None or path.is_utf8 or b"." not in path.domain or not _DOMAIN.fullmatch(path.domain):
        return None
    return _ask("mail", path.domain, facts, settings)


def ask_of_helo(facts: Facts, settings: Settings) -> Asking | None:
    """HELO: the name given."""
    return _ask("helo", facts.helo, facts, settings) if _DOMAIN.fullmatch(facts.helo) else None


def ask_of_reverse_name(facts: Facts, settings: Settings) -> Asking:
    """CONNECT: the client's reverse name, when it leads back to its address."""
    found = yield from find_name(facts)
    if found.name:
        return (yield from _ask("ptr", found.name, facts, settings))
    return None


def _ask(what: str, domain: bytes, facts: Facts, settings: Settings) -> Asking:
    if facts.client.may_relay:
        # Even where relay clients meet the checks (compatible mode).
        return None
    zones = usable(settings.rhsbl[what], facts)
    if not zones:
        return None
    answers = yield questions(domain, zones)
    if is_unlisted(answers):
        return UNLISTED[what]
    said = Listings(zones, answers, what, facts.score, settings.policy.reject_score)
    zone = said.rejects or said.defers
    if zone is None:
        if said.has_failed and what == "mail" and settings.is_compatible:
            return defer(reply.SENDER_UNKNOWN_YET, *said.effects)
        return passed(*said.effects)
    reason = yield from ask_reason(domain, zone)
    text = domain.decode("ascii", "replace")
    refusal = reply.domain_listed(_WHAT[what], text, zone.text, reason)
    opinion: Opinion = reject(refusal, *said.effects)
    return opinion if said.rejects else defer(refusal.softened(), *said.effects)
