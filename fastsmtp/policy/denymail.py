"""DENYMAIL of qmail's antispam patch: policy.denymail.

In order: SPAM refuses every sender.  NOBOUNCE refuses the null sender, which else meets no further rule.  Then, for
any value, the sender must look like an address of the Internet.  DNSCHECK asks what mfcheck asks.

Rank 4: pure.
"""

from __future__ import annotations

import re
from functools import lru_cache

from fastsmtp import reply
from fastsmtp.config.denymail import DNSCHECK, LEGACY, NOBOUNCE, SPAM
from fastsmtp.config.names import parse_domain_name
from fastsmtp.config.settings import Settings
from fastsmtp.policy import mfcheck
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.stage import Asking

# RFC 5321 section 4.1.2 sub-domain.  A top-level domain has a letter in it (RFC 3696 section 2), and none has fewer
# than two characters; none ever had (IANA's root zone, 2026).
_TOP_LEVEL = re.compile(rb"(?=.{2,63}$)(?=.*[a-z])[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")

_SPAM = reject(reply.BAD_SENDER)
_NOBOUNCE = reject(reply.NO_BOUNCES)
_INSANE = reject(reply.SENDER_NO_ADDRESS)


def refuse_sender(facts: Facts, settings: Settings) -> Decision | None:
    """MAIL: all that needs no question.  550 5.7.1, or 5.1.7 for what looks like no address; compatible 553 5.7.1."""
    path = facts.sender
    if path is None:
        return None
    words = settings.policy.denymail
    if SPAM in words:
        return _SPAM
    if mfcheck.is_null(path):
        return _NOBOUNCE if NOBOUNCE in words else None
    policy = settings.policy
    finding = look_at(
        path.mailbox,
        path.domain,
        is_legacy=policy.denymail_tld == LEGACY,
        takes_literals=policy.denymail_literals,
    )
    return _INSANE if finding else None


def ask_about_sender(facts: Facts, settings: Settings) -> Asking | None:
    """MAIL, with DNSCHECK: is there such a domain?  Answers, and what a failure does, are mfcheck's."""
    return mfcheck.check_sender(facts, settings) if DNSCHECK in settings.policy.denymail else None


def look_at(local: bytes, domain: bytes, *, is_legacy: bool = False, takes_literals: bool = False) -> str:
    """What is wrong with a sender, "" for nothing; domain in lower case.

    is_legacy       the last label has 2 or 3 characters, as the patch has it
    takes_literals  an address literal is an address
    """
    if not local or not domain:
        return "no address"
    if local.endswith(b"!"):
        return "bang"
    return _look_at_domain(domain, is_legacy, takes_literals)


# Most mail comes from few domains.
@lru_cache(maxsize=4096)
def _look_at_domain(domain: bytes, is_legacy: bool, takes_literals: bool) -> str:
    if domain.startswith(b"["):
        return "" if takes_literals else "literal"
    if not domain.isascii():
        try:
            domain = parse_domain_name(domain.decode()).encode()
        except ValueError:
            return "no domain"
    labels = domain.split(b".")
    if len(labels) < 2:
        return "no dot"
    if b"" in labels:
        return "empty label"
    last = labels[-1]
    if is_legacy:
        return "" if len(last) in (2, 3) else "top-level domain"
    return "" if _TOP_LEVEL.fullmatch(last) else "top-level domain"
