"""What stages ask the DNS, and how they read what comes back.

A question is fastsmtp._dns.Question; its answer is an Answer, or stage.Failed where nobody could ask.

Rank 4: pure.
"""

from __future__ import annotations

from typing import Any

from fastsmtp._dns import Answer, Question
from fastsmtp.address import Address

__all__ = [
    "AAAA",
    "MX",
    "PTR",
    "TXT",
    "A",
    "Question",
    "is_failed",
    "is_unlisted",
    "records",
    "reverse_labels",
    "text_of",
]

# RFC 1035 section 3.2.2, RFC 3596 section 2.1.
A, PTR, MX, TXT, AAAA = 1, 12, 15, 16, 28


def is_failed(answer: Any) -> bool:
    """Nothing is known: neither that there is something, nor that there is nothing."""
    return type(answer) is not Answer or answer.is_failed


def is_unlisted(answers: tuple[Any, ...]) -> bool:
    """Every list has answered, and none has a record: how nearly every question to lists ends."""
    for answer in answers:  # noqa: SIM110 - all() over a generator costs twice as much
        if type(answer) is not Answer or answer.records or answer.is_failed:
            return False
    return True


def records(answer: Any) -> tuple[Any, ...]:
    """The records; () where there are none, or nothing is known."""
    return answer.records if type(answer) is Answer else ()


def reverse_labels(address: Address) -> bytes:
    """The address as the labels of in-addr.arpa, ip6.arpa and DNS lists (RFC 5782 sections 2.1 and 2.4)."""
    packed = address.packed
    if address.is_ipv4:
        return b"%d.%d.%d.%d" % (packed[15], packed[14], packed[13], packed[12])
    return ".".join(reversed(packed.hex())).encode()


def reverse_name(address: Address) -> bytes:
    """The name whose PTR is the address's reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5)."""
    return reverse_labels(address) + (b".in-addr.arpa" if address.is_ipv4 else b".ip6.arpa")


def text_of(answer: Any) -> str:
    """The first TXT record as printable text, "" for none."""
    for strings in records(answer):
        text: str = b"".join(strings).decode("ascii", "replace")
        return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)
    return ""
