"""A message as the journal keeps it: envelope, who the client was, prefix, body; docs/queue.md has the layout.

    pieces = encode(message)         bytes objects, the body's own among them: nothing is copied
    message = decode(payload)

Rank 5: pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from fastsmtp import errors
from fastsmtp._glance import put_together
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy.facts import Facts, Origin, TlsFacts

LAYOUT = 1

_SMTPUTF8, _EXTENDED, _SPOOLED, _TLS, _RESUMED = 1, 2, 4, 8, 16

# version, flags, origin, 0, port, bits of the key; recipients, prefix; body, accepted, declared
_FIXED = struct.Struct("<BBBxHHIIQQQ")
_STRINGS = struct.Struct("<15H")
_RECIPIENT = struct.Struct("<6H")
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
        *,
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
    return Origins(
        address=client.address.text, port=client.port, origin=client.origin, name=client.name, helo=facts.helo,
        is_extended=facts.is_extended, listener=facts.listener, local_address=facts.local_address, tls=facts.tls,
    )  # fmt: skip


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


def decode(payload: bytes) -> QueuedMessage:
    """The message of a record; its body is one chunk, or a reference.

    Raises errors.QueueTooNew for a later layout, errors.QueueDamaged for what is no message.
    """
    if payload and payload[0] > LAYOUT:
        raise errors.QueueTooNew(
            f"a message in layout {payload[0]}, written by a later fastsmtp; this one reads layouts up to {LAYOUT}"
        )
    try:
        return _decode(payload)
    except (struct.error, ValueError) as error:
        raise errors.QueueDamaged(f"no message: {error}") from None


def _decode(payload: bytes) -> QueuedMessage:
    (
        layout, flags, origin, port, bits, recipients, prefix_bytes, body_bytes, accepted_ms, declared,
    ) = _FIXED.unpack_from(payload)  # fmt: skip
    if not layout or flags >= 32:
        raise ValueError("neither layout nor flags are known")
    at = _FIXED.size
    strings, at = _strings(payload, at, _STRINGS)
    id, sender, sender_domain, body_kind, ret, envid = strings[:6]
    address, name, helo, listener, local_address, protocol, cipher, server_name, cuts = strings[6:]
    found = []
    for _ in range(recipients):
        words, at = _strings(payload, at, _RECIPIENT)
        found.append(
            Recipient(
                words[0], words[1], tuple(words[3].split(b",")) if words[3] else (), words[2],
                words[4].decode(), words[5].decode(),
            )
        )  # fmt: skip
    prefix = payload[at : at + prefix_bytes]
    rest = payload[at + prefix_bytes :]
    if len(prefix) != prefix_bytes or len(rest) != (_BODY.size if flags & _SPOOLED else body_bytes):
        raise ValueError("its parts are not as long as they say")
    body: Sequence[bytes] | BodyReference
    body = BodyReference(*_BODY.unpack(rest)) if flags & _SPOOLED else (rest,) if rest else ()
    tls = None
    if flags & _TLS:
        tls = TlsFacts(protocol.decode(), cipher.decode(), bits, server_name.decode(), bool(flags & _RESUMED))
    elif protocol or cipher or server_name or bits or flags & _RESUMED:
        raise ValueError("it knows of TLS, and there was none")
    envelope = Envelope(
        sender, sender_domain, declared, body_kind, bool(flags & _SMTPUTF8), ret, envid, found
    )
    origins = Origins(
        address=address.decode(), port=port, origin=Origin(origin), name=name.decode(), helo=helo,
        is_extended=bool(flags & _EXTENDED), listener=listener.decode(), local_address=local_address.decode(),
        tls=tls,
    )  # fmt: skip
    return QueuedMessage(
        id.decode(), accepted_ms, envelope, origins, prefix, body, body_bytes, tuple(_CUT.iter_unpack(cuts))
    )


def _strings(payload: bytes, at: int, lengths: struct.Struct) -> tuple[list[bytes], int]:
    found = []
    end = at + lengths.size
    for length in lengths.unpack_from(payload, at):
        at, end = end, end + length
        found.append(payload[at:end])
    if end > len(payload):
        raise ValueError("it ends within its strings")
    return found, end
