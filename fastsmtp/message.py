"""A message: envelope, prefix header block, body as received.

The same three parts in memory, spool file, journal and every transport.  The
body's one form is the wire form after unstuffing (CRLF line ends), unaltered.
What we add, even what is known only at the body's end, stands in the prefix.

Rank 1: pure.
"""

from __future__ import annotations

from collections.abc import Sequence


class Recipient:
    """One accepted recipient and what the client asked about it.

    address  bytes between the angle brackets without a source route; <postmaster> got its domain
    domain   bytes, lower-case; an address literal with its brackets
    notify   RFC 3461 NOTIFY, upper-case words, () when not given
    orcpt    RFC 3461 ORCPT as sent (xtext), b"" when not given
    deliver  where it goes (the DEST of its [[accept]] or of the relay default)
    pass_client  how the next hop is told who the client was: "none", "xclient", "xforward", "proxy"
    is_queued    made durable before the 250; False: handed over before it
    """

    __slots__ = ("address", "deliver", "domain", "is_queued", "notify", "orcpt", "pass_client")

    def __init__(
        self,
        address: bytes,
        domain: bytes,
        notify: tuple[bytes, ...] = (),
        orcpt: bytes = b"",
        deliver: str = "",
        pass_client: str = "none",
        is_queued: bool = True,
    ) -> None:
        self.is_queued = is_queued
        self.address = address
        self.domain = domain
        self.notify = notify
        self.orcpt = orcpt
        self.deliver = deliver
        self.pass_client = pass_client

    def __repr__(self) -> str:
        return f"Recipient({self.address!r})"


class Envelope:
    """Who sends, to whom, and what the MAIL command declared.

    sender         reverse path without brackets; b"" is the null path (RFC 5321 section 4.5.5)
    sender_domain  bytes, lower-case; b"" for the null path
    size_bytes     SIZE= as declared (RFC 1870), 0 when not
    body           b"7BIT", b"8BITMIME" or b"" (RFC 6152)
    is_smtputf8    SMTPUTF8 was given (RFC 6531)
    ret, envid     RFC 3461, b"" when not given
    recipients     the accepted ones, in order
    """

    __slots__ = ("body", "envid", "is_smtputf8", "recipients", "ret", "sender", "sender_domain", "size_bytes")

    def __init__(
        self,
        sender: bytes,
        sender_domain: bytes,
        size_bytes: int = 0,
        body: bytes = b"",
        is_smtputf8: bool = False,
        ret: bytes = b"",
        envid: bytes = b"",
        recipients: Sequence[Recipient] = (),
    ) -> None:
        self.sender = sender
        self.sender_domain = sender_domain
        self.size_bytes = size_bytes
        self.body = body
        self.is_smtputf8 = is_smtputf8
        self.ret = ret
        self.envid = envid
        self.recipients: list[Recipient] = list(recipients) if recipients else []
