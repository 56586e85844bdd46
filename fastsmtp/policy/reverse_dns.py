"""The client's reverse name: is there one, does it lead back, does it look like a machine made it?

A name that leads back is the client's name from here on: in Received, in the log, and for lists of domains.

Rank 4: pure.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from fastsmtp import reply
from fastsmtp.address import Address
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, Effect, Name, Tag, passed, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.questions import AAAA, PTR, A, Question, is_failed, records, reverse_name
from fastsmtp.policy.stage import Asking
from fastsmtp.records import dataclass

NONE, UNCONFIRMED, GENERIC = "none", "unconfirmed", "generic"

# Names that are tried; a client that has more gains nothing by it.
NAMES_MAX = 5

# What may stand in Received and in a log: RFC 1123 section 2.1, and "_", which is in many a reverse name.
_HOST = re.compile(
    rb"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_WORDS = re.compile(
    rb"(?:^|[.-])(?:a?dsl|vdsl|cable|dhcp|dial(?:up|in)?|dyn(?:amic)?(?:ip)?|dip|pool|ppp(?:oe)?|res(?:idential)?|"
    rb"client|customer|cust|broadband|wlan|mobile|hsia|unassigned)[0-9]*(?=[.-])"
)
_REPLIES = {
    NONE: reply.NO_REVERSE_NAME,
    UNCONFIRMED: reply.REVERSE_UNCONFIRMED,
    GENERIC: reply.REVERSE_GENERIC,
}


@dataclass(frozen=True, slots=True)
class Found:
    """name: the one that leads back, b"" for none; is_known: False when a question failed and we can't tell."""

    name: bytes
    is_known: bool
    is_there: bool


def find_name(facts: Facts) -> Generator[tuple[Any, ...], tuple[Any, ...], Found]:
    """Ask for the reverse name, and whether it leads back to the client's address."""
    address = facts.client.address
    (pointers,) = yield (Question(reverse_name(address), PTR),)
    if is_failed(pointers):
        return Found(b"", is_known=False, is_there=False)
    names = [name for name in pointers.records[:NAMES_MAX] if _HOST.fullmatch(name.lower())]
    if not names:
        return Found(b"", is_known=True, is_there=bool(pointers.records))
    kind, packed = (A, address.packed[12:]) if address.is_ipv4 else (AAAA, address.packed)
    answers = yield tuple([Question(name, kind) for name in names])
    for name, answer in zip(names, answers, strict=True):
        if packed in records(answer):
            return Found(name.lower(), is_known=True, is_there=True)
    return Found(b"", is_known=not any(is_failed(answer) for answer in answers), is_there=True)


def know_name(facts: Facts, settings: Settings) -> Asking:
    """Before CONNECT, for who must know the name at once (tcpserver's rules); no opinion on it."""
    found = yield from find_name(facts)
    return passed(Name(found.name.decode())) if found.name else None


def check_reverse_name(facts: Facts, settings: Settings) -> Asking:
    """CONNECT: no name, or one that doesn't lead back (550 5.7.25, RFC 7372 section 3.3), or a generic one."""
    found = yield from find_name(facts)
    rule = settings.policy.reverse_dns
    effects: list[Effect] = []
    if found.name:
        effects.append(Name(found.name.decode()))
        if not is_generic(found.name, facts.client.address):
            return passed(*effects)
        finding = GENERIC
    elif not found.is_known:
        return None
    else:
        finding = UNCONFIRMED if found.is_there else NONE
    return judged(finding, rule.refuse, rule.score, effects)


def judged(finding: str, refuse: tuple[str, ...], score: int, effects: list[Effect]) -> Decision:
    if finding in refuse:
        return reject(_REPLIES[finding], *effects, Tag("rdns", finding))
    return passed(*effects, Tag("rdns", finding, score))


def is_generic(name: bytes, address: Address) -> bool:
    """The name is made of the address, or has one of the words and a number that providers give their lines."""
    labels = name.rpartition(b".")[0].rpartition(b".")[0]
    if address.is_ipv4:
        octets = address.packed[12:]
        numbers = [int(digits) for digits in re.findall(rb"\d{1,3}(?!\d)", labels)]
        left = list(numbers)
        found = 0
        for octet in octets:
            if octet in left:
                left.remove(octet)
                found += 1
        if found >= 3 or octets.hex().encode() in labels or b"%d%03d%03d%03d" % tuple(octets) in labels:
            return True
    else:
        nibbles = address.packed.hex().encode()
        packed = re.sub(rb"[^0-9a-f]", b"", labels)
        if nibbles[-12:] in packed or nibbles[:12] in packed:
            return True
    return bool(re.search(rb"\d", labels)) and bool(_WORDS.search(b"%b." % labels))
