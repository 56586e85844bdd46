"""Which hosts take a domain's mail (RFC 5321 section 5.1), sans-IO: questions out, hosts or an outcome back.

    script = find_hosts(b"example.org", is_us=..., shuffle=...)
    questions = next(script); questions = script.send(answers) ...; StopIteration.value is the Found

What the DNS says for good (no such domain, a null MX, we are the best exchange
ourselves) is Failed; what it can't say now is Retry.  CNAMEs are followed by
the resolver; an address is never rewritten for one.

Rank 6: pure.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from fastsmtp import reply
from fastsmtp._dns import Answer, Mx, Question, Status
from fastsmtp.config.names import parse_domain_name
from fastsmtp.delivery.outcome import Failed, Outcome, Retry
from fastsmtp.resolver import AAAA, MX, A

# How long an answer is used at least and at most, in seconds: a ttl of 0 must not mean a look-up a message.
TTL_S = (5.0, 3_600.0)
# Exchanges whose addresses are looked up; a set of more than 4096 bytes has hundreds.
HOSTS_MAX = 64

IsUs = Callable[[str, Sequence[str]], bool]
Shuffle = Callable[[list[bytes]], None]


class Host(NamedTuple):
    """One server of a site.  name "" for an address literal; addresses as text, each family in the DNS's order."""

    name: str
    preference: int
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]


class Found(NamedTuple):
    """hosts in the order in which they are to be tried, and how long that holds."""

    hosts: tuple[Host, ...]
    ttl_s: float


Script = Generator[tuple[Question, ...], Sequence[Answer], Found | Outcome]


def find_hosts(domain: bytes, *, is_us: IsUs, shuffle: Shuffle) -> Script:
    """The hosts of a domain, lower-case, or of an address literal in its brackets.

    is_us(name, addresses)   whether that is ourselves: such a host and all behind it are left out
    shuffle                  puts hosts of the same preference into a random order, in place
    """
    if domain.startswith(b"["):
        return _literal(domain, is_us)
    try:
        name = parse_domain_name(domain.decode()).encode()
    except ValueError:
        return Failed(reply.DOMAIN_UNKNOWN, f"{_shown(domain)} is no domain")
    (exchanges,) = yield (Question(name, MX),)
    if exchanges.is_failed:
        if exchanges.status == Status.BADNAME:
            return Failed(reply.DOMAIN_UNKNOWN, f"{_shown(domain)} is no domain")
        return Retry(reply.DNS_FAILED, f"MX of {_shown(domain)}: {exchanges.reason}")
    if exchanges.status == Status.NXDOMAIN:
        return Failed(reply.DOMAIN_UNKNOWN, f"{_shown(domain)} does not exist")
    records: list[Mx] = [record for record in exchanges.records if record.exchange]
    if exchanges.records and not records:
        # RFC 7505 section 3: the only record is "0 ."; beside others it means nothing.
        return Failed(reply.NULL_MX, f"{_shown(domain)} takes no mail (null MX)")
    implicit = not records
    if implicit:
        records = [Mx(0, name)]
    return (yield from _addresses(domain, records, exchanges.ttl, is_us, shuffle, implicit=implicit))


def _addresses(
    domain: bytes, records: list[Mx], ttl_s: float, is_us: IsUs, shuffle: Shuffle, *, implicit: bool
) -> Script:
    """Level by level, until there are enough: where we are one of a level, it and all behind it are left out."""
    hosts: list[Host] = []
    failure = ""
    asked = 0
    for preference in sorted({record.preference for record in records}):
        names = list(dict.fromkeys(record.exchange for record in records if record.preference == preference))
        shuffle(names)
        answers = yield tuple([Question(name, kind) for name in names for kind in (A, AAAA)])
        level = []
        has_us = False
        for at, name in enumerate(names):
            four, six = answers[2 * at], answers[2 * at + 1]
            for answer in (four, six):
                if answer.is_failed:
                    failure = f"{name.decode()}: {answer.reason}"
                elif answer.records:
                    ttl_s = min(ttl_s, answer.ttl)
            host = Host(name.decode(), preference, _texts(socket.AF_INET, four), _texts(socket.AF_INET6, six))
            has_us = has_us or is_us(host.name, (*host.ipv4, *host.ipv6))
            if host.ipv4 or host.ipv6:
                level.append(host)
        if has_us:
            if not hosts and not failure:
                return Failed(reply.BEST_MX_IS_US, f"mail for {_shown(domain)} would come back to us")
            break
        hosts += level
        asked += len(names)
        if len(hosts) >= HOSTS_MAX or asked >= 4 * HOSTS_MAX:
            break
    if hosts:
        return Found(tuple(hosts), min(max(ttl_s, TTL_S[0]), TTL_S[1]))
    if failure:
        return Retry(reply.DNS_FAILED, f"no server of {_shown(domain)} can be looked up: {failure}")
    what = "it has neither MX nor address" if implicit else "none of its servers has an address"
    return Failed(reply.NO_ROUTE, f"{_shown(domain)}: {what}")


def _literal(domain: bytes, is_us: IsUs) -> Found | Outcome:
    """RFC 5321 section 4.1.3: the address itself."""
    text = domain[1:-1].decode("utf-8", "replace")
    is_six = text.startswith("ipv6:")
    address = text.removeprefix("ipv6:")
    try:
        packed = socket.inet_pton(socket.AF_INET6 if is_six else socket.AF_INET, address)
    except (OSError, ValueError):
        return Failed(reply.DOMAIN_UNKNOWN, f"{_shown(domain)} is no address")
    address = socket.inet_ntop(socket.AF_INET6 if is_six else socket.AF_INET, packed)
    if is_us("", (address,)):
        return Failed(reply.BEST_MX_IS_US, f"mail for {_shown(domain)} would come back to us")
    host = Host("", 0, () if is_six else (address,), (address,) if is_six else ())
    return Found((host,), TTL_S[1])


def _texts(family: int, answer: Answer) -> tuple[str, ...]:
    return tuple(socket.inet_ntop(family, packed) for packed in answer.records)


def _shown(domain: bytes) -> str:
    return domain.decode("utf-8", "replace")


def in_order(hosts: Sequence[Host], *, prefers_ipv4: bool) -> list[tuple[Host, str]]:
    """Every address, host by host; within a host the families take turns, so that neither is final alone.

    IPv6 first, as RFC 6724 has it where both are usable.
    """
    pairs: list[tuple[Host, str]] = []
    for host in hosts:
        first, second = (host.ipv4, host.ipv6) if prefers_ipv4 else (host.ipv6, host.ipv4)
        for at in range(max(len(first), len(second))):
            pairs += [(host, family[at]) for family in (first, second) if at < len(family)]
    return pairs
