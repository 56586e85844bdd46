"""What the answers of several lists come to: tags, a score, and the list that refuses.  For addresses and domains.

What a list does not answer counts for nothing here.

Rank 4: pure.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from fastsmtp.config.zones import Zone, oddity
from fastsmtp.policy.decision import Asked, Decision, Effect, ListFailed, Tag, passed
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.questions import TXT, A, Question, is_failed, text_of

_ASKED = {what: Asked(what) for what in ("", "mail", "helo", "ptr")}

UNLISTED: dict[str, Decision] = {what: passed(effect) for what, effect in _ASKED.items()}
"""What nearly every question to lists ends with: all have answered, and none has a record."""


def usable(zones: tuple[Zone, ...], facts: Facts) -> tuple[Zone, ...]:
    """Those that are not in quarantine."""
    bad = facts.bad_lists
    return tuple(zone for zone in zones if zone.name not in bad) if bad else zones


def questions(labels: bytes, zones: tuple[Zone, ...]) -> tuple[Question, ...]:
    """Each zone about these labels, a reversed address or a domain."""
    before = labels + b"."
    return tuple([Question(before + zone.name, A) for zone in zones])


def ask_reason(labels: bytes, zone: Zone) -> Generator[tuple[Question, ...], tuple[Any, ...], str]:
    """What the list says of the labels in words, where the reply shall have it; else ""."""
    if not zone.has_reason:
        return ""
    (texts,) = yield (Question(labels + b"." + zone.name, TXT),)
    return text_of(texts)


class Listings:
    """The answers, weighed.

    effects    tags, which lists failed, and that they were asked
    rejects    the list that refuses: the first with action "reject", else the heaviest where the sum is enough
    defers     the first list with action "defer"; None where one rejects
    has_skip   a list of good clients ends all checks: what the lists behind it say is not looked at
    has_failed a list that might have refused gave no answer
    """

    __slots__ = ("defers", "effects", "has_failed", "has_skip", "rejects")

    def __init__(
        self, zones: tuple[Zone, ...], answers: tuple[Any, ...], what: str, score: int, needed: int
    ) -> None:
        """what: "mail", "helo" or "ptr" for lists of domains, "" for addresses;  score: what there is already."""
        self.effects: list[Effect] = [_ASKED[what]]
        self.rejects: Zone | None = None
        self.defers: Zone | None = None
        self.has_skip = False
        self.has_failed = False
        worst: Zone | None = None
        for zone, answer in zip(zones, answers, strict=True):
            if is_failed(answer):
                self.effects.append(ListFailed(zone.text))
                self.has_failed = self.has_failed or not (zone.is_observed or zone.action == "tag")
                continue
            if not answer.records:
                continue
            found = zone.answers.find(answer.records)
            if not found:
                if oddity(answer.records):
                    self.effects.append(ListFailed(zone.text))
                continue
            self.effects.append(_tag(zone, f"{found},{what}" if what else found))
            if zone.is_observed:
                continue
            if zone.skips:
                self.has_skip = True
                return
            if zone.action == "reject":
                self.rejects = self.rejects or zone
            elif zone.action == "defer":
                self.defers = self.defers or zone
            elif zone.action == "score":
                score += zone.score
                if worst is None or zone.score > worst.score:
                    worst = zone
        if self.rejects is None and score >= needed:
            self.rejects = worst
        if self.rejects is not None:
            self.defers = None


def _tag(zone: Zone, found: str) -> Tag:
    name = "dnswl" if zone.is_white else "rhsbl" if zone.is_domains else "dnsbl"
    score = zone.score if zone.action == "score" else 0
    return Tag(name, f"{zone.text}({found})", score, zone=zone.text, is_observed=zone.is_observed)
