"""Can the envelope sender be answered?  Who can't be told of a failure should not send.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp._dns import Status
from fastsmtp._parser import Path
from fastsmtp.config.names import parse_domain_name
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Tag, defer, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.questions import AAAA, MX, A, Question, is_failed, records
from fastsmtp.policy.stage import Asking

# Exchanges whose addresses are looked up; who can't be reached by these is hardly reached by a sixth.
EXCHANGES_MAX = 5

_BRACKET = ord("[")
_NO_MAIL = reject(reply.SENDER_HAS_NO_MAIL, Tag("mfcheck", "none"))
_NULL_MX = reject(reply.SENDER_NULL_MX, Tag("mfcheck", "null-mx"))
_UNKNOWN = defer(reply.SENDER_UNKNOWN_YET, Tag("mfcheck", "failed"))


def check_sender(facts: Facts, settings: Settings) -> Asking | None:
    """MAIL: MX, then A and AAAA (RFC 5321 section 5.1), of the sender's domain.

    The null sender (RFC 5321 section 4.5.5) and address literals pass unasked.  When compatible, 553 5.7.1 and
    451 4.3.0.
    """
    path = facts.sender
    domain = path.domain if path is not None else b""
    return None if not domain or domain[0] == _BRACKET else _ask(domain)


def is_null(path: Path) -> bool:
    """The null sender, or the one of qmail's double bounces, "#@[]", which is meant to be as null."""
    return not path.address or path.address == b"#@[]"


def _ask(domain: bytes) -> Asking:
    if not domain.isascii():
        try:
            domain = parse_domain_name(domain.decode()).encode()
        except ValueError:
            # No such domain can be in the DNS (RFC 5891 section 5).
            return _NO_MAIL
    (exchanges,) = yield (Question(domain, MX),)
    if is_failed(exchanges):
        return _NO_MAIL if getattr(exchanges, "status", None) == Status.BADNAME else _UNKNOWN
    found = exchanges.records
    if not found:
        if exchanges.status == Status.NXDOMAIN:
            return _NO_MAIL
        found = ((0, domain),)
    best = found[0][1] if len(found) == 1 else min(entry for entry in found if entry[1])[1]
    if not best:
        # RFC 7505 section 3: the only record is "0 .".
        return _NULL_MX
    # The best exchange nearly always has an address: no need to ask for the others.
    ipv4, ipv6 = yield (Question(best, A), Question(best, AAAA))
    if records(ipv4) or records(ipv6):
        return None
    is_unsure = is_failed(ipv4) or is_failed(ipv6)
    others = [host for _, host in sorted(found) if host and host != best]
    if others:
        names = others[: EXCHANGES_MAX - 1]
        answers = yield tuple([Question(name, kind) for name in names for kind in (A, AAAA)])
        if any(records(answer) for answer in answers):
            return None
        is_unsure = is_unsure or len(others) >= EXCHANGES_MAX or any(is_failed(answer) for answer in answers)
    # An exchange that was not looked up may be the good one.
    return _UNKNOWN if is_unsure else _NO_MAIL
