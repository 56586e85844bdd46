"""Lists of addresses: DNSBL and DNSWL (RFC 5782), one weighted sum over all of them.

What a list does not answer counts for nothing: nobody is refused, or let in, because a list failed.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Grant, defer, passed, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.listing import UNLISTED, Listings, ask_reason, questions, usable
from fastsmtp.policy.questions import is_unlisted, reverse_labels
from fastsmtp.policy.stage import Asking


def ask_lists(facts: Facts, settings: Settings) -> Asking:
    """CONNECT: ask every list at once about the client's address.

    The sum, with the score so far, refuses from policy.reject_score on: 550 5.7.1, which names the list that
    counted most; so does a list with action "reject", and one with "defer" says 450 4.7.1.  A dnswl with skip
    ends all checks of the session, but for a client that the operator himself denies.
    """
    labels = reverse_labels(facts.client.address)
    zones = usable(settings.lists, facts)
    if not zones:
        return None
    answers = yield questions(labels, zones)
    if is_unlisted(answers):
        return UNLISTED[""]
    said = Listings(zones, answers, "", facts.score, settings.policy.reject_score)
    client = facts.client
    if said.has_skip and client.address not in settings.deny:
        return passed(Grant(may_relay=client.may_relay, skips_checks=True), *said.effects)
    zone = said.rejects or said.defers
    if zone is None:
        return passed(*said.effects)
    reason = yield from ask_reason(labels, zone)
    refusal = reply.client_listed(client.address.literal, zone.text, reason)
    return reject(refusal, *said.effects) if said.rejects else defer(refusal.softened(), *said.effects)
