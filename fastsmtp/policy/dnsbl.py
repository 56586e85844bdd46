"""Lists of addresses: DNSBL and DNSWL (RFC 5782), one weighted sum over all of them.

What a list does not answer counts for nothing: nobody is refused, or let in, because a list failed.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.config.zones import Zone, oddity
from fastsmtp.policy.decision import Effect, Grant, ListFailed, Tag, passed, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.questions import TXT, A, Question, is_failed, is_unlisted, reverse_labels, text_of
from fastsmtp.policy.stage import Asking


def ask_lists(facts: Facts, settings: Settings) -> Asking:
    """CONNECT: ask every list at once about the client's address.

    The sum, with the score so far, refuses from policy.reject_score on: 550 5.7.1, which names the list that
    counted most.  A dnswl with skip ends all checks of the session,
    but for a client that the operator himself denies.
    """
    labels = reverse_labels(facts.client.address)
    zones = settings.lists
    if facts.bad_lists:
        zones = tuple(zone for zone in zones if zone.name not in facts.bad_lists)
        if not zones:
            return None
    answers = yield tuple([Question(b"%b.%b" % (labels, zone.name), A) for zone in zones])
    if is_unlisted(answers):
        return None
    effects: list[Effect] = []
    score = facts.score
    worst: Zone | None = None
    for zone, answer in zip(zones, answers, strict=True):
        if is_failed(answer):
            effects.append(ListFailed(zone.text))
            continue
        if not answer.records:
            continue
        found = zone.answers.find(answer.records)
        if not found:
            if oddity(answer.records):
                effects.append(ListFailed(zone.text))
            continue
        effects.append(
            Tag(
                "dnswl" if zone.is_white else "dnsbl",
                f"{zone.text}({found})",
                zone.score,
                zone=zone.text,
                is_observed=zone.is_observed,
            )
        )
        if zone.is_observed:
            continue
        if zone.skips and facts.client.address not in settings.deny:
            return passed(Grant(may_relay=facts.client.may_relay, skips_checks=True), *effects)
        score += zone.score
        if worst is None or zone.score > worst.score:
            worst = zone
    if score >= settings.policy.reject_score and worst is not None:
        reason = ""
        if worst.has_reason:
            (texts,) = yield (Question(b"%b.%b" % (labels, worst.name), TXT),)
            reason = text_of(texts)
        return reject(reply.client_listed(facts.client.address.literal, worst.text, reason), *effects)
    return passed(*effects) if effects else None
