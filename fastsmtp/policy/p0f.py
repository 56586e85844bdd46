"""What p0f knows of the client's system: [policy.p0f].  A sign and never a verdict: scores, and slow answers.

It is asked when the client connects, beside the questions to the DNS; without an answer in time nothing is known,
and nothing happens.  A client that XCLIENT names has never sent this host a packet, so p0f is not asked about it.

Rank 4: pure.
"""

from __future__ import annotations

from functools import lru_cache

from fastsmtp.config.settings import Settings
from fastsmtp.fingerprint import Fingerprint, P0fQuestion
from fastsmtp.policy.decision import AddHeader, Decision, Delay, Effect, Fingerprinted, Tag, passed
from fastsmtp.policy.facts import Facts, Origin
from fastsmtp.policy.stage import Asking

OS_FIELD = "X-P0F-OS"
LINK_FIELD = "X-P0F-Link"


def ask_about_client(facts: Facts, settings: Settings) -> Asking | None:
    """CONNECT: the fingerprint becomes a fact; the first [[policy.p0f.match]] that fits is a tag with its score."""
    return None if facts.client.origin is Origin.XCLIENT else _ask(facts, settings)


def _ask(facts: Facts, settings: Settings) -> Asking:
    rule = settings.policy.p0f
    (answer,) = yield (P0fQuestion(rule.socket, facts.client.address, rule.timeout_s),)
    if type(answer) is not Fingerprint:
        return None
    effects: list[Effect] = [Fingerprinted(answer)]
    match = settings.systems.find(answer.os)
    if match is not None:
        word = answer.os.replace(" ", "_")
        effects.append(Tag("p0f", word, match.score, is_observed=match.mode == "observe"))
    return passed(*effects)


def slow_recipient(facts: Facts, settings: Settings) -> Decision | None:
    """RCPT: the delay of the match, for each recipient; not for relay clients."""
    client = facts.client
    if client.fingerprint is None or client.may_relay:
        return None
    match = settings.systems.find(client.fingerprint.os)
    if match is None or not match.delay_s or match.mode == "observe":
        return None
    return _slow(match.delay_s)


def add_fields(facts: Facts, settings: Settings) -> Decision | None:
    """END, with header = true: what p0f knows, for the next hop."""
    fingerprint = facts.client.fingerprint
    return None if fingerprint is None else _fields(fingerprint.os, fingerprint.link)


@lru_cache(maxsize=1024)
def _fields(os: str, link: str) -> Decision | None:
    fields = [AddHeader(name, value) for name, value in ((OS_FIELD, os), (LINK_FIELD, link)) if value]
    return passed(*fields) if fields else None


@lru_cache(maxsize=64)
def _slow(delay_s: float) -> Decision:
    return passed(Delay(delay_s))
