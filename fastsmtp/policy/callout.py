"""recipients = "ask": the next hop is asked at RCPT whether it knows a recipient, so that nobody hears of it later.

Rank 4: pure.
"""

from __future__ import annotations

from typing import NamedTuple

from fastsmtp import reply
from fastsmtp.config.dest import is_next_hop
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, defer, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.relay import place_of
from fastsmtp.policy.stage import Asking
from fastsmtp.reply import Reply


class Callout(NamedTuple):
    """The question: would this next hop take mail for this address?

    deliver   its DEST: smtp://..., lmtp://... or lmtp+unix:...
    address   as the next hop will hear it, without brackets
    """

    deliver: str
    address: bytes


class Heard(NamedTuple):
    """The answer: None when the next hop takes mail for it, else its refusal, 4xx or 5xx."""

    refusal: Reply | None


def ask_next_hop(facts: Facts, settings: Settings) -> Asking | None:
    """RCPT: refuse what the next hop refuses; 451 4.4.1 when it says nothing.

    postmaster is asked about like everybody else: who takes mail for it must have one (RFC 5321 section 4.5.1).
    A client whose refusal is held already costs the next hop nothing.
    """
    path = facts.recipient
    if path is None or facts.held:
        return None
    domain = path.domain or settings.postmaster.rpartition(b"@")[2]
    accept = settings.accept.find(domain)
    if accept is None or not accept.asks:
        return None
    deliver = place_of(facts, settings, domain, accept)
    if not is_next_hop(deliver):
        return None
    return _asking(Callout(deliver, path.address if path.domain else settings.postmaster))


def asked_of(address: bytes, settings: Settings) -> Callout | None:
    """The question about an address, for whoever wants to try what the answer is; senders of routes don't count."""
    domain = address.rpartition(b"@")[2]
    accept = settings.accept.find(domain)
    if accept is None or not accept.asks:
        return None
    deliver = accept.deliver or settings.routing.routes.find(b"", domain, settings.listen.name).deliver
    return Callout(deliver, address) if is_next_hop(deliver) else None


def _asking(question: Callout) -> Asking:
    (answer,) = yield (question,)
    if type(answer) is not Heard:
        return defer(reply.NEXT_HOP_DOWN)
    return _refused(answer.refusal)


def _refused(refusal: Reply | None) -> Decision | None:
    if refusal is None:
        return None
    return reject(refusal) if refusal.is_permanent else defer(refusal)
