"""Settings: the configuration compiled for one listener, as connections and stages read it.

config/model.py says what an operator may write; this is what it comes to, with
every look-up ready: networks as Networks, domains as a table, recipient files
as sets.  Frozen; a connection keeps the Settings that it got at accept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastsmtp.address import Networks
from fastsmtp.config.model import Deliver, Limits, Listen, Policy


@dataclass(frozen=True, slots=True)
class Accept:
    """What one [[accept]] says of a domain.

    deliver     DEST
    recipients  None: any; else the set of keys (Path.key) that exist
    """

    deliver: str
    recipients: frozenset[bytes] | None
    pass_client: str = "none"


class AcceptTable:
    """Domain -> Accept.  Exact names first, then the longest ".suffix"."""

    __slots__ = ("_exact", "_suffixes", "everything")

    def __init__(
        self, rules: Iterable[tuple[Iterable[str], Accept]] = (), *, everything: Accept | None = None
    ) -> None:
        """rules: (domains, accept) in the configuration's order, the first to name a domain wins.

        Domains are lower-case A-labels; ".example.org" is every sub-domain.  everything is for the
        trial, which accepts any domain.
        """
        self._exact: dict[bytes, Accept] = {}
        self._suffixes: dict[bytes, Accept] = {}
        self.everything = everything
        for domains, accept in rules:
            for domain in domains:
                table = self._suffixes if domain.startswith(".") else self._exact
                table.setdefault(domain.encode(), accept)

    def find(self, domain: bytes) -> Accept | None:
        """The Accept of a lower-case domain, or None when it is not ours."""
        accept = self._exact.get(domain)
        if accept is not None:
            return accept
        if self._suffixes:
            at = domain.find(b".")
            while at != -1:
                accept = self._suffixes.get(domain[at:])
                if accept is not None:
                    return accept
                at = domain.find(b".", at + 1)
        return self.everything


@dataclass(frozen=True, slots=True)
class Settings:
    """One listener's settings.

    hostname    greeting, Received
    postmaster  key form (bytes) of the address that <postmaster> without a domain stands for
    relay       clients that may send anywhere
    exempt      clients that skip checks (policy.exempt)
    """

    hostname: str
    postmaster: bytes
    listen: Listen
    limits: Limits
    policy: Policy
    deliver: Deliver
    relay: Networks
    exempt: Networks
    proxy_from: Networks
    xclient_from: Networks
    accept: AcceptTable
