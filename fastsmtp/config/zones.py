"""DNS lists as the stages read them: which answers of a list are a listing (RFC 5782 section 2.3).

Whatever the configuration says, an address outside 127.0.0.0/8 is never a listing (a list that was
given up and whose domain somebody sells answers so), and neither is 127.255.255.0/24, by which lists
say that they refuse the question.
"""

from __future__ import annotations

from _socket import AF_INET, inet_ntop, inet_pton
from collections.abc import Iterable
from functools import lru_cache

from fastsmtp.records import dataclass
from fastsmtp.typed import Final

_LOOPBACK: Final = 127
_REFUSAL: Final = 0x7FFFFF
"""127.255.255.0/24 without its last octet."""

MOST_REMEMBERED: Final = 256

REFUSED: Final = "refused"
FOREIGN: Final = "foreign"


class Answers:
    """The answers that count as listed.

    ranges  (first, last), both inclusive;  masks  any common bit counts.  Neither: every answer counts
    """

    __slots__ = ("_found", "masks", "ranges")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Raises ValueError for what parse_answers refuses."""
        parsed = [parse_answers(text) for text in texts]
        self.ranges = tuple((first, last) for first, last in parsed if last >= 0)
        self.masks = tuple(first for first, last in parsed if last < 0)
        self._found: dict[tuple[bytes, ...], str] = {}

    def find(self, records: tuple[bytes, ...]) -> str:
        """The first record that is a listing, as text; "" for none.  records are packed IPv4 addresses."""
        # A list says the same few things over and over.
        found = self._found.get(records)
        if found is None:
            found = self._look(records)
            if len(self._found) < MOST_REMEMBERED:
                self._found[records] = found
        return found

    def _look(self, records: tuple[bytes, ...]) -> str:
        for packed in records:
            number = int.from_bytes(packed)
            if number >> 24 == _LOOPBACK and number >> 8 != _REFUSAL and self._counts(number):
                return inet_ntop(AF_INET, packed)
        return ""

    def _counts(self, number: int) -> bool:
        for first, last in self.ranges:
            if first <= number <= last:
                return True
        for mask in self.masks:
            if number & mask:
                return True
        return not self.ranges and not self.masks


@lru_cache(maxsize=256)
def oddity(records: tuple[bytes, ...]) -> str:
    """What is wrong with a list that answers so: REFUSED, FOREIGN, or "" """
    for packed in records:
        number = int.from_bytes(packed)
        if number >> 24 != _LOOPBACK:
            return FOREIGN
        if number >> 8 == _REFUSAL:
            return REFUSED
    return ""


def parse_answers(text: str) -> tuple[int, int]:
    """(first, last) of "127.0.0.2", "127.0.0.2-127.0.0.11" or "127.0.0.2-11"; (mask, -1) of "&0.0.0.6".

    ValueError with one clause.
    """
    if text.startswith("&"):
        mask = _number(text[1:], text)
        if not 0 < mask < 1 << 24:
            raise ValueError(f"{text!r}: a bit mask is &0.0.0.1 to &0.255.255.255")
        return mask, -1
    low, dash, high = text.partition("-")
    first = _number(low, text)
    last = first
    if dash:
        last = first & ~0xFF | int(high) if high.isdecimal() and int(high) < 256 else _number(high, text)
    if first >> 24 != _LOOPBACK or last >> 24 != _LOOPBACK or first > last:
        raise ValueError(f"{text!r}: no range in 127.0.0.0/8")
    if first >> 8 == _REFUSAL or last >> 8 == _REFUSAL:
        raise ValueError(f"{text!r}: 127.255.255.0/24 is how a list refuses a question, never a listing")
    return first, last


def _number(text: str, whole: str) -> int:
    try:
        return int.from_bytes(inet_pton(AF_INET, text))
    except OSError:
        raise ValueError(f"{whole!r} is neither an address, a range nor a bit mask") from None


@dataclass(frozen=True, slots=True)
class Zone:
    """One list, ready to be asked.

    name         its domain, bytes;  text  the same as str
    score        for a listing
    action       what a listing does: "score", "reject", "defer" or "tag"
    is_observed  its listings are counted and logged, and nothing else
    has_reason   its TXT text goes into the reply
    is_tested    it has the test points of RFC 5782
    is_domains   a list of domains (rhsbl), not of addresses
    is_white     a list of good addresses (dnswl);  skips  who is listed there skips all checks
    """

    name: bytes
    text: str
    answers: Answers
    score: int
    is_observed: bool = False
    has_reason: bool = False
    is_tested: bool = True
    skips: bool = False
    is_white: bool = False
    is_domains: bool = False
    action: str = "score"
