"""The variables that tcpserver's rules and a process's environment carry, laid over a listener's Settings.

The variables are those of qmail-smtpd and its patches.  What they say holds for one client's connection, so a
rule comes to a Settings of its own, and clients of one rule share it (smtp/profile.py keeps them).

    RELAYCLIENT   set: may relay; the value is appended to each recipient
    DATABYTES     a message's limit in bytes; 0: none
    DENYMAIL      SPAM, NOBOUNCE, DNSCHECK, or anything: policy.denymail; DENYMAIL_TLD beside it: "legacy"
    TARPITCOUNT, TARPITDELAY   policy.tarpit.after_recipients and delay_s;  NOTARPIT  set: no tarpit
    MFCHECK       0: no look at the sender's domain; else there is one
    RBLSMTPD      "": no DNS list is asked; "-text": 553 with this text; "text": 451
    SIGNATURES    0: no signature is looked for (ours)

A number is read as qmail reads it: leading digits, and 0 where there are none.

Rank 2: pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fastsmtp.config.denymail import denymail_of
from fastsmtp.config.rules import DELAY_MOST_S
from fastsmtp.records import replace
from fastsmtp.typed import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastsmtp.config.settings import Settings

Change = Callable[["Settings", str], "Settings"]

# What no limit may pass: what C can hold, as config/toml.py has it.
_MOST: Final = 2**53


def apply(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """The same settings with what the variables say laid over them; settings itself when they say nothing.

    Pure: the same arguments give equal settings, and nothing that a variable can hold raises.
    """
    if environment:
        for name, change in _CHANGES:
            value = environment.get(name)
            if value is not None:
                settings = change(settings, value)
        denied = denymail_of(environment)
        if denied is not None:
            policy = replace(settings.policy, denymail=denied[0], denymail_tld=denied[1])
            settings = replace(settings, policy=policy)
    return settings


def relevant(environment: Mapping[str, str]) -> tuple[str | None, ...]:
    """What apply() would read of it: equal tuples come to equal settings."""
    return tuple([environment.get(name) for name in KNOWN])


def number(text: str) -> int:
    """Leading decimal digits; 0 where there are none."""
    found = re.match(r"[0-9]{1,20}", text)
    return min(int(found[0]), _MOST) if found else 0


def _relay_client(settings: Settings, value: str) -> Settings:
    return replace(settings, relay_suffix=value.encode("utf-8", "surrogateescape"))


def _databytes(settings: Settings, value: str) -> Settings:
    return replace(settings, limits=replace(settings.limits, message_bytes=number(value)))


def _mfcheck(settings: Settings, value: str) -> Settings:
    rule = replace(settings.policy.mfcheck, mode="enforce" if number(value) else "off")
    return replace(settings, policy=replace(settings.policy, mfcheck=rule))


def _tarpitcount(settings: Settings, value: str) -> Settings:
    rule = replace(settings.policy.tarpit, after_recipients=number(value))
    return replace(settings, policy=replace(settings.policy, tarpit=rule))


def _tarpitdelay(settings: Settings, value: str) -> Settings:
    rule = replace(settings.policy.tarpit, delay_s=min(float(number(value)), DELAY_MOST_S))
    return replace(settings, policy=replace(settings.policy, tarpit=rule))


def _notarpit(settings: Settings, value: str) -> Settings:
    return _tarpitcount(settings, "0")


def _rblsmtpd(settings: Settings, value: str) -> Settings:
    """The rule has the last word on lists of addresses: it knows the client by name."""
    return replace(settings, lists=(), rblsmtpd=value)


def _signatures(settings: Settings, value: str) -> Settings:
    return settings if number(value) else replace(settings, signatures=None)


# In the order in which they lie over each other.
_CHANGES: Final[tuple[tuple[str, Change], ...]] = (
    ("RELAYCLIENT", _relay_client),
    ("DATABYTES", _databytes),
    ("TARPITCOUNT", _tarpitcount),
    ("TARPITDELAY", _tarpitdelay),
    ("NOTARPIT", _notarpit),
    ("MFCHECK", _mfcheck),
    ("RBLSMTPD", _rblsmtpd),
    ("SIGNATURES", _signatures),
)
KNOWN: Final = (*(name for name, _ in _CHANGES), "DENYMAIL", "DENYMAIL_TLD")
"""The variables that change what we do; the others (QMAILQUEUE among them) are for qmail-queue."""
