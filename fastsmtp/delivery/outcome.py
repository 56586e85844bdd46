"""What became of a message at a next hop: a closed set.

    remote   who said so, for reports: a host name or "host [address]"; "" where there was nobody
    source   the name of the source address that was used, "" for none
    hop      the connection that it was said on, None where there was none

Rank 6: pure; imports only reply.
"""

from __future__ import annotations

from typing import NamedTuple

from fastsmtp.records import dataclass
from fastsmtp.reply import Reply


class Hop(NamedTuple):
    """One connection to a next hop.

    host, address, port   the host's name ("" for an address that stands for itself), what it was reached at
    path          of a Unix socket; then there is no address
    source        the name of our [[source]]; "" for the system's choice
    tls, cipher   "TLSv1.3" and OpenSSL's name; "" in clear
    is_verified   the certificate is one for the host's name, by a trusted signer
    """

    host: str = ""
    address: str = ""
    port: int = 0
    path: str = ""
    source: str = ""
    tls: str = ""
    cipher: str = ""
    is_verified: bool = False

    def __str__(self) -> str:
        """ "mx.example.org [192.0.2.1]", "[192.0.2.1]" or the socket's path."""
        if self.path:
            return self.path
        return f"{self.host} [{self.address}]" if self.host else f"[{self.address}]"


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next hop took it.  said is its text, without codes, enhanced its enhanced code or "".

    has_dsn   it has heard what reports the sender wants, and sends them itself (RFC 3461)
    """

    said: str
    remote: str = ""
    source: str = ""
    enhanced: str = ""
    hop: Hop | None = None
    has_dsn: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Not delivered for now.

    reason            for the log
    may_have_arrived  all was sent and no answer came: trying again may make a second copy
                      (RFC 5321 section 4.5.3.2.6, RFC 1047)
    """

    reply: Reply
    reason: str
    may_have_arrived: bool = False
    remote: str = ""
    source: str = ""
    hop: Hop | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The next hop refused it for good."""

    reply: Reply
    reason: str
    remote: str = ""
    source: str = ""
    hop: Hop | None = None


Outcome = Delivered | Retry | Failed


def without_address(outcome: Retry | Failed) -> str:
    """The reason, without the address at its beginning that `remote` has, too."""
    _, bracket, rest = outcome.remote.rpartition("[")
    address = rest.removesuffix("]") if bracket else outcome.remote
    return outcome.reason.removeprefix(f"{address}: ")
