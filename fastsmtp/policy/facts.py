"""What policy may know, as closed types.

The connection fills them in as the session goes; stages only read.  Whatever a
stage needs (time, counts, whether a client is known) is here as a fact, so a
stage is a pure function and a recorded session can be judged again.

Rank 4: pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType

from fastsmtp.policy.decision import Decision, Held, Tag
from fastsmtp.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsmtp._body import HeaderFacts
    from fastsmtp._parser import Path
    from fastsmtp._signatures import SignatureHit
    from fastsmtp.address import Address
    from fastsmtp.fingerprint import Fingerprint
    from fastsmtp.message import Envelope

NO_LISTS: frozenset[bytes] = frozenset()
NO_TAGS: Mapping[str, str] = MappingProxyType({})
NO_ENVIRONMENT: Mapping[str, str] = MappingProxyType({})


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


class CertificateFacts:
    """The certificate that a client has shown.

    reason       "" when it holds; else why not, as it goes on behind "your certificate"
    fingerprint  "sha256:" and 64 hex digits
    addresses    e-mail addresses in it, lower-case; none unless it holds
    """

    __slots__ = ("addresses", "fingerprint", "reason")

    def __init__(self, reason: str, fingerprint: str, addresses: tuple[bytes, ...] = ()) -> None:
        self.reason = reason
        self.fingerprint = fingerprint
        self.addresses = addresses


class TlsFacts:
    """What the handshake agreed on.  protocol "TLSv1.3", cipher by OpenSSL's name, bits of its key.

    is_asked     the client was asked for a certificate
    certificate  CertificateFacts or None: it has shown none
    """

    __slots__ = ("bits", "certificate", "cipher", "is_asked", "is_resumed", "protocol", "server_name")

    def __init__(
        self,
        protocol: str,
        cipher: str,
        bits: int,
        server_name: str = "",
        is_resumed: bool = False,
        is_asked: bool = False,
        certificate: CertificateFacts | None = None,
    ) -> None:
        self.protocol = protocol
        self.cipher = cipher
        self.bits = bits
        self.server_name = server_name
        self.is_resumed = is_resumed
        self.is_asked = is_asked
        self.certificate = certificate


NO_RATES = (0, 0, 0, 0)


class Client:
    """Who talks to us.

    address      fastsmtp.address.Address
    port         TCP port, 0 when not known
    origin       where the address comes from
    name         reverse name that leads back to the address, "" when not known (DNS, XCLIENT NAME)
    may_relay, skips_checks   granted in the connect phase, or in HELO for a certificate
    certificate  what of its certificate may relay, as relay.certificates has it; "" for none
    has_pass     waited and delivered within greeting_pass_h
    connections  open ones of this client, this one included, all workers together
    rates        events in the last minute by decision.Token, before the one under decision; 0 where no limit asks
    fingerprint  what p0f knows of it (fastsmtp.fingerprint.Fingerprint), or None
    environment  variables of the rules file and of the process (RELAYCLIENT, DENYMAIL ...), for qmail-queue's child too
    """

    __slots__ = (
        "address",
        "certificate",
        "connections",
        "environment",
        "fingerprint",
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
        self.certificate = ""
        self.has_pass = False
        self.connections = 0
        self.fingerprint: Fingerprint | None = None
        # One for all clients until a limit asks: an idle connection shall hold almost nothing.
        self.rates: Sequence[int] = NO_RATES
        self.environment: Mapping[str, str] = NO_ENVIRONMENT


class Facts:
    """All that is known of one session so far.

    session_id     str
    listener       the [[listen]] name
    local_address  the address that the client connected to (after PROXY: what the proxy says)
    local_port     its port, 0 when not known (PROXY, XCLIENT)
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
    signature      SignatureHit or None, in END
    messages       messages accepted in this session so far
    refused        recipients refused since the last of them
    score, tags    what the stages of earlier phases said; observed_score is that of rules that only observe
    held           refusals that are known and not spoken yet (policy.reject_at), in order
    bad_lists      zones in quarantine: not asked
    """

    __slots__ = (
        "_notes", "bad_lists", "client", "connections", "declared_bytes", "envelope", "has_waited", "header", "held",
        "helo", "is_early", "is_extended", "listener", "local_address", "local_port", "messages", "observed_score",
        "recipient", "refused", "score", "sender", "session_id", "signature", "size_bytes", "tags", "tls",
    )  # fmt: skip

    def __init__(self, session_id: str, listener: str, local_address: str, client: Client) -> None:
        self.session_id = session_id
        self.listener = listener
        self.local_address = local_address
        self.local_port = 0
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
        self.signature: SignatureHit | None = None
        self.messages = 0
        self.refused = 0
        self.score = 0
        self.observed_score = 0
        self.tags: Mapping[str, str] = NO_TAGS
        self.held: tuple[Decision, ...] = ()
        self.bad_lists: frozenset[bytes] = NO_LISTS
        self._notes: list[tuple[Phase, Tag | Held]] | None = None

    def note(self, phase: Phase, effect: Tag | Held) -> None:
        """Remember what a stage of this phase said, for the phases that come."""
        if self._notes is None:
            self._notes = []
        self._notes.append((phase, effect))
        self._add(effect)

    def forget(self, phase: Phase) -> None:
        """This phase is about to run again, or is over: what it and the phases behind it said is gone."""
        if self._notes is None:
            return
        kept = [(said, effect) for said, effect in self._notes if said < phase]
        self._notes = kept or None
        self.score = self.observed_score = 0
        self.tags = NO_TAGS
        self.held = ()
        for _, effect in kept:
            self._add(effect)

    def _add(self, effect: Tag | Held) -> None:
        if type(effect) is Tag:
            said = self.tags.get(effect.name)
            value = effect.value if said is None else f"{said},{effect.value}"
            self.tags = {**self.tags, effect.name: value}
            if effect.is_observed:
                self.observed_score += effect.score
            else:
                self.score += effect.score
        elif type(effect) is Held:
            self.held = (*self.held, effect.decision)
