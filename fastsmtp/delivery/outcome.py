"""What became of a message at a next hop: a closed set.

    remote   who said so, for reports: a host name or "host [address]"; "" where there was nobody
    source   the name of the source address that was used, "" for none

Rank 6: pure; imports only reply.
"""

from __future__ import annotations

from fastsmtp.records import dataclass
from fastsmtp.reply import Reply


@dataclass(frozen=True, slots=True)
class Delivered:
    """The next hop took it.  said is its text, without codes."""

    said: str
    remote: str = ""
    source: str = ""


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


@dataclass(frozen=True, slots=True)
class Failed:
    """The next hop refused it for good."""

    reply: Reply
    reason: str
    remote: str = ""
    source: str = ""


Outcome = Delivered | Retry | Failed
