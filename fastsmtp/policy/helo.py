"""The name in HELO or EHLO.

RFC 5321 section 4.1.4 says that a server MUST NOT refuse for a name that does not fit the address; it may by
section 7.9 (local policy).  So the default is to observe.

Rank 4: pure.
"""

from __future__ import annotations

import re

from fastsmtp import reply
from fastsmtp.address import Address
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, Tag, passed, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.questions import AAAA, MX, A, Question, is_failed, records
from fastsmtp.policy.stage import Asking

SYNTAX, BARE, OURS, LITERAL, UNRESOLVABLE = "syntax", "bare", "ours", "literal", "unresolvable"

# RFC 1123 section 2.1, and "_", which is no host name but in the names of hosts that send honest mail.
_HOST = re.compile(
    rb"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?"
)
_NUMBER = re.compile(rb"(?:.*\.)?[0-9]+\.?")
_REPLIES = {
    SYNTAX: reply.HELO_NO_NAME,
    BARE: reply.HELO_BARE_NAME,
    OURS: reply.HELO_IS_OURS,
    LITERAL: reply.HELO_LIES,
    UNRESOLVABLE: reply.HELO_UNRESOLVABLE,
}


def check_name(facts: Facts, settings: Settings) -> Decision | None:
    """HELO: what the name itself says; no question is needed."""
    finding = look_at(facts, settings)
    return _judged(finding, settings) if finding else None


def look_at(facts: Facts, settings: Settings) -> str:
    """The finding, "" for none."""
    name = facts.helo
    if name.startswith(b"["):
        address = parse_literal(name)
        if address is None:
            return SYNTAX
        if address == facts.client.address:
            return ""
        return OURS if address.text == facts.local_address else LITERAL
    if not _HOST.fullmatch(name) or _NUMBER.fullmatch(name):
        return SYNTAX
    bare = name.removesuffix(b".")
    if bare == settings.hostname.lower().encode():
        return OURS
    return "" if b"." in bare else BARE


def check_existence(facts: Facts, settings: Settings) -> Asking | None:
    """HELO: does a name that looks right exist?  An address will do, or an MX."""
    if facts.helo.startswith(b"[") or look_at(facts, settings):
        return None
    return _ask(facts.helo.removesuffix(b"."), settings)


def _ask(name: bytes, settings: Settings) -> Asking:
    answers = yield (Question(name, A), Question(name, AAAA))
    if any(records(answer) for answer in answers) or any(is_failed(answer) for answer in answers):
        return None
    (exchanges,) = yield (Question(name, MX),)
    if records(exchanges) or is_failed(exchanges):
        return None
    return _judged(UNRESOLVABLE, settings)


def _judged(finding: str, settings: Settings) -> Decision:
    rule = settings.policy.helo
    if finding in rule.refuse:
        return reject(_REPLIES[finding], Tag("helo", finding))
    return passed(Tag("helo", finding, rule.score))


def parse_literal(name: bytes) -> Address | None:
    """The address of a literal in lower case (RFC 5321 section 4.1.3); None when it is none."""
    if not name.endswith(b"]"):
        return None
    text = name[1:-1].decode("ascii", "replace")
    is_ipv6 = text.startswith("ipv6:")
    number = text.removeprefix("ipv6:")
    if (":" in number) is not is_ipv6 or "%" in number:
        return None
    try:
        return Address(number)
    except ValueError:
        return None
