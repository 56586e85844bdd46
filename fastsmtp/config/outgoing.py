"""What an operator may write about mail that we send on: [remote], [[source]] and [[route]].

A part of model.py, under the same rules: one frozen dataclass a table, each default with its unit and
where it comes from.

Rank 2, and cheap to import.
"""

from __future__ import annotations

from fastsmtp.config.about import about
from fastsmtp.records import dataclass, field


class Weight(tuple[str, int]):
    """One entry of a [[route]]'s sources: which source, and its share.

    No NamedTuple: that is made by compiling text, which `fastsmtp smtpd` would do for each connection.
    """

    __slots__ = ()

    def __new__(cls, name: str, weight: int) -> Weight:
        return super().__new__(cls, (name, weight))

    @property
    def name(self) -> str:
        return self[0]

    @property
    def weight(self) -> int:
        return self[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """[[source]]: an address that we send from."""

    name: str = field(metadata=about("for [[route]] sources and logs", form="word", example='"a"'))
    ipv4: str = field(
        default="",
        metadata=about(
            "bound for IPv4 destinations",
            form="ipv4",
            shown="none: no IPv4 destination is tried",
            example='"192.0.2.10"',
        ),
    )
    ipv6: str = field(
        default="",
        metadata=about(
            "bound for IPv6 destinations",
            form="ipv6",
            shown="none: no IPv6 destination is tried",
            example='"2001:db8::10"',
        ),
    )
    helo: str = field(
        default="",
        metadata=about(
            "the name in EHLO; it should be the address's reverse name",
            form="hostname",
            shown="hostname",
            example='"out-a.example.org"',
        ),
    )
    connections: int = field(
        default=20, metadata=about("open ones from it, all delivery processes together", low=1)
    )
    messages_per_s: float = field(default=0.0, metadata=about("0: no limit", low=0))
    on_bind_failure: str = field(
        default="defer",
        metadata=about(
            "its address can't be used: its mail waits, or takes the route's next source",
            choices=("defer", "next"),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """[[route]]: where mail for elsewhere goes, from which address, and how; the first that fits wins."""

    sender: tuple[str, ...] = field(
        default=(),
        metadata=about(
            'an address, "@domain", "@.domain" for every sub-domain, "<>" for bounces; or a file of them',
            form="sender",
            shown="any",
            example='"@example.org"',
        ),
    )
    destination: tuple[str, ...] = field(
        default=(),
        metadata=about(
            'the recipient\'s domain; ".example.net" for every sub-domain; or a file of domains',
            form="destination",
            shown="any",
            example='".example.net"',
        ),
    )
    listener: tuple[str, ...] = field(
        default=(), metadata=about("name of the [[listen]] that it came in on", shown="any", example='"mx"')
    )
    sources: tuple[Weight, ...] = field(
        default=(),
        metadata=about(
            "name = weight, each a [[source]]",
            shown="the address that the system chooses",
            example="{ a = 1 }",
        ),
    )
    deliver: str = field(
        default="", metadata=about("where it goes", form="dest", shown="deliver.default", example='"mx"')
    )
    tls: str = field(
        default="opportunistic",
        metadata=about(
            "required: any certificate; verified: one for the host's name, and never in clear",
            choices=("off", "opportunistic", "required", "verified"),
            precedent="RFC 7435; Postfix smtp_tls_security_level = may",
        ),
    )
    ca: str = field(
        default="",
        metadata=about(
            "PEM file of those who may sign, for verified",
            form="path",
            shown="the system's",
            example='"/etc/fastsmtp/ca.pem"',
        ),
    )
    user: str = field(
        default="",
        metadata=about(
            "the account for a deliver that is maildir: or pipe: (docs/delivery.md)",
            form="account",
            shown="queue_user; deliver.user without a deliver",
            example='"joe"',
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """Sending to other servers: limits for each destination site, time-outs, our side of TLS."""

    connections: int = field(
        default=20,
        metadata=about(
            "open ones to one site", low=1, precedent="Postfix default_destination_concurrency_limit"
        ),
    )
    connections_at_first: int = field(
        default=5,
        metadata=about(
            "to a site that we don't know yet; one more for each that works",
            low=1,
            precedent="Postfix initial_destination_concurrency",
        ),
    )
    messages_per_s: float = field(default=0.0, metadata=about("to one site; 0: no limit", low=0))
    messages_per_connection: int = field(default=100, metadata=about("then a new one", low=1))
    recipients: int = field(
        default=100, metadata=about("of one message at once", low=1, precedent="RFC 5321 4.5.3.1.8")
    )
    addresses: int = field(
        default=10,
        metadata=about(
            "of a site, tried in one attempt", low=1, precedent="Postfix smtp_mx_address_limit has 5"
        ),
    )
    idle_s: float = field(
        default=5.0,
        metadata=about(
            "a connection is kept without mail",
            unit="s",
            low=0,
            precedent="Postfix smtp_connection_cache_time_limit has 2 s",
        ),
    )
    age_s: float = field(
        default=300.0,
        metadata=about(
            "a connection is kept at all",
            unit="s",
            low=1,
            precedent="Postfix smtp_connection_reuse_time_limit",
        ),
    )
    pause_s: float = field(
        default=30.0,
        metadata=about(
            "a site none of whose servers can be reached is left alone; twice as long each time",
            unit="s",
            low=1,
        ),
    )
    pause_max_s: float = field(
        default=1_800.0,
        metadata=about("at most", unit="s", low=1, precedent="qmail's tcpto: 64 to 97 minutes"),
    )
    connect_s: float = field(
        default=30.0,
        metadata=about(
            "for one address", unit="s", low=0.1, precedent="Postfix smtp_connect_timeout; qmail has 60 s"
        ),
    )
    greeting_s: float = field(
        default=300.0, metadata=about("for the greeting", unit="s", low=0.1, precedent="RFC 5321 4.5.3.2.1")
    )
    handshake_s: float = field(default=60.0, metadata=about("for TLS", unit="s", low=0.1))
    command_s: float = field(
        default=300.0,
        metadata=about(
            "for the answers to EHLO, MAIL and RCPT", unit="s", low=0.1, precedent="RFC 5321 4.5.3.2.2 and 3"
        ),
    )
    data_s: float = field(
        default=120.0,
        metadata=about("for the answer to DATA", unit="s", low=0.1, precedent="RFC 5321 4.5.3.2.4"),
    )
    block_s: float = field(
        default=180.0,
        metadata=about(
            "for a piece of the message to be taken", unit="s", low=0.1, precedent="RFC 5321 4.5.3.2.5"
        ),
    )
    message_s: float = field(
        default=600.0,
        metadata=about("for the answer to the message", unit="s", low=0.1, precedent="RFC 5321 4.5.3.2.6"),
    )
    tls_minimum: str = field(
        default="1.2", metadata=about("oldest TLS version", choices=("1.2", "1.3"), precedent="RFC 8996")
    )
    ciphers: str = field(
        default="",
        metadata=about(
            "of TLS 1.2, as OpenSSL writes them",
            form="ciphers",
            shown="the system's",
            example='"ECDHE+AESGCM"',
        ),
    )
    certificate: str = field(
        default="",
        metadata=about(
            "certificate chain that we show to servers that ask, PEM",
            form="path",
            shown="none",
            example='"/etc/fastsmtp/client.pem"',
        ),
    )
    key: str = field(
        default="",
        metadata=about(
            "its key, PEM",
            form="path",
            shown="in the certificate's file",
            example='"/etc/fastsmtp/client.key"',
        ),
    )
    on_tls_failure: str = field(
        default="clear",
        metadata=about(
            "when an opportunistic handshake fails: go on in clear with this host, or wait",
            choices=("clear", "defer"),
        ),
    )
    tls_failure_h: float = field(
        default=24.0, metadata=about("so long in clear; then TLS is tried again", unit="h", low=0)
    )
