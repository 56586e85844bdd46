"""A message as the journal keeps it: envelope, who the client was, prefix, body; docs/queue.md has the layout.

    pieces = encode(message)         bytes objects, the body's own among them: nothing is copied
    message = decode(payload)        which is _payload.pyx's

Rank 5: pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from fastsmtp._glance import put_together
from fastsmtp.message import Envelope
from fastsmtp.policy.facts import Facts, Origin, TlsFacts

LAYOUT = 1

_SMTPUTF8, _EXTENDED, _SPOOLED, _TLS, _RESUMED = 1, 2, 4, 8, 16

# version, flags, origin, 0, port, bits of the key; recipients, prefix; body, accepted, declared
_FIXED = struct.Struct("<BBBxHHIIQQQ")
_BODY = struct.Struct("<QQI")
_CUT = struct.Struct("<II")


class BodyReference(NamedTuple):
    """A body in a file of its own."""

    number: int
    epoch: int
    crc: int


class Origins:
    """What the session knew of the client: enough for XCLIENT, XFORWARD, the PROXY protocol, routes and reports.

    address, name   the client's; name "" when not known
    helo            as it was given
    listener, local_address   where it came in
    tls             TlsFacts or None
    """

    __slots__ = (
        "address",
        "helo",
        "is_extended",
        "listener",
        "local_address",
        "name",
        "origin",
        "port",
        "tls",
    )

    def __init__(
        self,
        address: str,
        port: int = 0,
        origin: Origin = Origin.SOCKET,
        name: str = "",
        helo: bytes = b"",
        is_extended: bool = False,
        listener: str = "",
        local_address: str = "",
        tls: TlsFacts | None = None,
    ) -> None:
        self.address = address
        self.port = port
        self.origin = origin
        self.name = name
        self.helo = helo
        self.is_extended = is_extended
        self.listener = listener
        self.local_address = local_address
        self.tls = tls


def origins_of(facts: Facts) -> Origins:
    """What of a session's facts goes with its messages."""
    client = facts.client
    origins = Origins.__new__(Origins)
    origins.address = client.address.text
    origins.port = client.port
    origins.origin = client.origin
    origins.name = client.name
    origins.helo = facts.helo
    origins.is_extended = facts.is_extended
    origins.listener = facts.listener
    origins.local_address = facts.local_address
    origins.tls = facts.tls
    return origins


class QueuedMessage:
    """One message.

    id           as the client heard it
    accepted_ms  milliseconds since 1970
    prefix       the header fields that we add, CRLF
    body         its chunks, or where it is
    body_bytes   its length
    cuts         header fields in a body file that whoever reads it leaves out: (offset, length), rising
    """

    __slots__ = ("accepted_ms", "body", "body_bytes", "cuts", "envelope", "id", "origins", "prefix")

    def __init__(
        self,
        id: str,
        accepted_ms: int,
        envelope: Envelope,
        origins: Origins,
        prefix: bytes,
        body: Sequence[bytes] | BodyReference,
        body_bytes: int,
        cuts: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.cuts = tuple(cuts)
        self.id = id
        self.accepted_ms = accepted_ms
        self.envelope = envelope
        self.origins = origins
        self.prefix = prefix
        self.body = body
        self.body_bytes = body_bytes


def encode(message: QueuedMessage) -> list[bytes]:
    """The payload in pieces; raises ValueError for a string of 64 KiB or more, which no session lets in."""
    envelope, origins, tls = message.envelope, message.origins, message.origins.tls
    flags = (_SMTPUTF8 if envelope.is_smtputf8 else 0) | (_EXTENDED if origins.is_extended else 0)
    if isinstance(message.body, BodyReference):
        flags |= _SPOOLED
        body: Sequence[bytes] = (_BODY.pack(*message.body),)
    else:
        body = message.body
    tls_words: tuple[str, str, str] = ("", "", "")
    bits = 0
    if tls is not None:
        flags |= _TLS | (_RESUMED if tls.is_resumed else 0)
        tls_words = (tls.protocol, tls.cipher, tls.server_name)
        bits = tls.bits
    cuts = b"".join([_CUT.pack(*cut) for cut in message.cuts]) if message.cuts else b""
    try:
        fixed = _FIXED.pack(
            LAYOUT, flags, origins.origin, origins.port, bits, len(envelope.recipients),
            len(message.prefix), message.body_bytes, message.accepted_ms, envelope.size_bytes,
        )  # fmt: skip
    except struct.error as error:
        raise ValueError(f"a message that doesn't fit into its record: {error}") from None
    strings = (
        message.id, envelope.sender, envelope.sender_domain, envelope.body, envelope.ret, envelope.envid,
        origins.address, origins.name, origins.helo, origins.listener, origins.local_address, *tls_words, cuts,
    )  # fmt: skip
    recipients: list[tuple[bytes | str, ...]] = [
        (
            one.address, one.domain, one.orcpt, b",".join(one.notify) if one.notify else b"", one.deliver,
            one.pass_client,
        )
        for one in envelope.recipients
    ]  # fmt: skip
    return [put_together(fixed, strings, recipients), message.prefix, *body]
