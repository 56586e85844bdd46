"""The words of policy.denymail, and what the value of the variable DENYMAIL comes to in them."""

from __future__ import annotations

from collections.abc import Mapping

from fastsmtp.typed import Final

SPAM: Final = "SPAM"
NOBOUNCE: Final = "NOBOUNCE"
DNSCHECK: Final = "DNSCHECK"
SANITY: Final = "SANITY"

WORDS: Final = (SPAM, NOBOUNCE, DNSCHECK, SANITY)

MODERN: Final = "modern"
LEGACY: Final = "legacy"


def parse_denymail(value: str) -> tuple[str, ...]:
    """One word, or several with commas between; whatever else it is set to asks for the sanity rules.

    The words are compared with their case, as the antispam patch has it; even an empty value counts as set.
    """
    words = tuple(word for word in (part.strip() for part in value.split(",")) if word in WORDS)
    return words or (SANITY,)


def denymail_of(variables: Mapping[str, str]) -> tuple[tuple[str, ...], str] | None:
    """(policy.denymail, policy.denymail_tld) of a connection's variables; None when DENYMAIL is not set."""
    value = variables.get("DENYMAIL")
    if value is None:
        return None
    return parse_denymail(value), LEGACY if variables.get("DENYMAIL_TLD") == LEGACY else MODERN
