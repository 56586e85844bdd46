"""What policy may know, as closed types.

The connection fills them in as the session goes; stages only read.  Whatever a
stage needs (time, counts, whether a client is known) is here as a fact, so a
stage is a pure function and a recorded session can be judged again.

Rank 4: pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from fastsmtp._body import HeaderFacts
from fastsmtp._parser import Path
from fastsmtp.address import Address
from fastsmtp.message import Envelope


class Phase(IntEnum):
    """When a stage runs.

    CLIENT and CONNECT run when the client is known: after PROXY, and again after XCLIENT.  CLIENT only
    grants; what it grants is a fact for CONNECT.  GREETING runs when the greeting delay is over.
    STARTTLS runs before a handshake, on an implicit TLS listener too.
    """

    CLIENT = 0
    CONNECT = 1
    GREETING = 2
    HELO = 3
    STARTTLS = 4
    MAIL = 5
    RCPT = 6
    DATA = 7
    END = 8


class Origin(IntEnum):
    """Where the client's address comes from."""

    SOCKET = 0
    PROXY = 1
    XCLIENT = 2


class TlsFacts:
    """What the handshake agreed on.  protocol "TLSv1.3", cipher by OpenSSL's name, bits of its key."""

    __slots__ = ("bits", "cipher", "is_resumed", "protocol", "server_name")

    def __init__(
        self, protocol: str, cipher: str, bits: int, server_name: str = "", is_resumed: bool = False
    ) -> None:
        self.protocol = protocol
        self.cipher = cipher
        self.bits = bits
        self.server_name = server_name
        self.is_resumed = is_resumed


NO_RATES = (0, 0, 0, 0)


class Client:
    """Who talks to us.

    address      fastsmtp.address.Address
    port         TCP port, 0 when not known
    origin       where the address comes from
    name         reverse name, "" when not known (XCLIENT NAME, later DNS)
    may_relay, skips_checks   granted in the connect phase
    has_pass     waited and delivered within greeting_pass_h
    connections  open ones of this client, this one included, all workers together
    rates        events in the last minute by decision.Token, before the one under decision; 0 where no limit asks
    """

    __slots__ = (
        "address",
        "connections",
        "has_pass",
        "may_relay",
        "name",
        "origin",
        "port",
        "rates",
        "skips_checks",
    )

    def __init__(self, address: Address, port: int = 0, origin: Origin = Origin.SOCKET) -> None:
        self.address = address
        self.port = port
        self.origin = origin
        self.name = ""
        self.may_relay = False
        self.skips_checks = False
        self.has_pass = False
        self.connections = 0
        # One for all clients until a limit asks: an idle connection shall hold almost nothing.
        self.rates: Sequence[int] = NO_RATES


class Facts:
    """All that is known of one session so far.

    session_id     str
    listener       the [[listen]] name
    local_address  the address that the client connected to (after PROXY: what the proxy says)
    client         Client
    connections    open connections of the whole server, this one included
    is_early       the client spoke before the greeting
    has_waited     a greeting delay was held, and the client waited
    helo, is_extended   the name given in HELO or EHLO
    tls            TlsFacts or None
    envelope       of the open transaction, or None; recipients are the accepted ones so far
    sender         Path under decision in MAIL, and of the open transaction
    recipient      Path under decision in RCPT, or None
    declared_bytes SIZE= of the MAIL under decision
    size_bytes     of the body, in END
    header         HeaderFacts, in END
    messages       messages accepted in this session so far
    score, tags    what earlier stages said
    """

    __slots__ = (
        "client", "connections", "declared_bytes", "envelope", "has_waited", "header", "helo", "is_early",
        "is_extended", "listener", "local_address", "messages", "recipient", "score", "sender", "session_id",
        "size_bytes", "tags", "tls",
    )  # fmt: skip

    def __init__(self, session_id: str, listener: str, local_address: str, client: Client) -> None:
        self.session_id = session_id
        self.listener = listener
        self.local_address = local_address
        self.client = client
        self.connections = 0
        self.is_early = False
        self.has_waited = False
        self.helo = b""
        self.is_extended = False
        self.tls: TlsFacts | None = None
        self.envelope: Envelope | None = None
        self.sender: Path | None = None
        self.recipient: Path | None = None
        self.declared_bytes = 0
        self.size_bytes = 0
        self.header: HeaderFacts | None = None
        self.messages = 0
        self.score = 0
        self.tags: dict[str, str] = {}
