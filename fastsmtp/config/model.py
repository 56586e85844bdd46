"""What an operator may write: one frozen dataclass a TOML table, attribute names = TOML names.

Each default stands here and nowhere else, with its unit, its range and where it
comes from; the reader (toml.py), the example (example.py) and
docs/configuration.md are all made from these classes.  [policy] is in rules.py, and what sends mail out
in outgoing.py.

A value that only the machine knows (its name, its state directory) has the
default "" here, and `shown` says in words what "" becomes; resolve.py fills it in.

Rank 2, and cheap to import: no msgspec, no look at the machine.
"""

from __future__ import annotations

from fastsmtp.config.about import about
from fastsmtp.config.outgoing import Remote, Route, Source
from fastsmtp.config.rules import Policy
from fastsmtp.records import dataclass, field
from fastsmtp.typed import Final

ANY_DOMAIN: Final = "*"
"""In Accept.domain: every domain.  For the trial and for programs; a file can't say it: an open relay."""

NOBODY: Final = "none"
"""Accept.pass_client: the next hop is told of nobody but us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerName:
    """[tls.names."NAME"]: another certificate for who asks for NAME or *.NAME (SNI, RFC 6066 section 3)."""

    name: str = field(metadata=about("the table's own key", form="server_name"))
    certificate: str = field(
        metadata=about("certificate chain, PEM", form="path", example='"/etc/fastsmtp/mx2.pem"')
    )
    key: str = field(
        default="",
        metadata=about(
            "its key, PEM", form="path", shown="in the certificate's file", example='"/etc/fastsmtp/mx2.key"'
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates and protocol versions; a [[listen]] may have a table of its own."""

    certificate: str = field(
        default="",
        metadata=about(
            "certificate chain, PEM; re-read when it changes",
            form="path",
            shown="a self-made one under state, for opportunistic TLS; `check` says so",
            example='"/etc/fastsmtp/cert.pem"',
        ),
    )
    key: str = field(
        default="",
        metadata=about(
            "its key, PEM; read by the master, before privileges are dropped; nobody else may read it",
            form="path",
            shown="in the certificate's file",
            example='"/etc/fastsmtp/key.pem"',
        ),
    )
    minimum: str = field(
        default="1.2",
        metadata=about(
            "oldest TLS version", choices=("1.2", "1.3"), precedent="RFC 8996, RFC 9325 section 3.1.1"
        ),
    )
    ciphers: str = field(
        default="",
        metadata=about(
            "for TLS 1.2, in OpenSSL's words; what is not safe is left out, with a warning",
            form="ciphers",
            shown="forward secrecy only, AEAD first",
            example='"ECDHE+AESGCM"',
            precedent="RFC 9325 section 4.2",
        ),
    )
    client_ca: str = field(
        default="",
        metadata=about(
            "authorities of the client certificates that relay.certificates names, PEM; re-read when it changes "
            '(docs/tls.md); "" for none',
            form="optional_path",
            shown="none",
            example='"/etc/fastsmtp/clientca.pem"',
        ),
    )
    client_crl: str = field(
        default="",
        metadata=about(
            "revocation lists, PEM; one of each authority, or its certificates grant nothing; re-read when it "
            'changes; "" for none',
            form="optional_path",
            shown="none",
            example='"/etc/fastsmtp/clientcrl.pem"',
        ),
    )
    names: tuple[ServerName, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client, one session and one message may cost; a [[listen]] may have a table of its own."""

    message_bytes: int = field(
        default=52_428_800,
        metadata=about(
            "a message as sent; 0: no limit",
            unit="bytes",
            low=0,
            precedent="RFC 1870; Gmail and Exim's default take 50 MB",
        ),
    )
    recipients: int = field(
        default=1_000,
        metadata=about(
            "a message", low=1, precedent="Postfix smtpd_recipient_limit; RFC 5321 4.5.3.1.8 asks for 100"
        ),
    )
    connections: int = field(
        default=20_000,
        metadata=about("all workers together; lowered, with a warning, to what open files allow", low=1),
    )
    connections_per_client: int = field(
        default=50,
        metadata=about(
            "all workers together; per IPv4 address, per IPv6 /64; not relay clients; 0: no limit",
            low=0,
            precedent="Postfix smtpd_client_connection_count_limit",
        ),
    )
    connections_per_client_per_min: int = field(
        default=0, metadata=about("0: no limit; so the next three", low=0)
    )
    messages_per_client_per_min: int = field(default=0, metadata=about("0: no limit", low=0))
    recipients_per_client_per_min: int = field(default=0, metadata=about("0: no limit", low=0))
    handshakes_per_client_per_min: int = field(
        default=0, metadata=about("TLS handshakes; 0: no limit", low=0)
    )
    errors: int = field(
        default=20,
        metadata=about(
            "4xx and 5xx replies a session, then 421", low=1, precedent="Postfix smtpd_hard_error_limit"
        ),
    )
    commands: int = field(
        default=100,
        metadata=about(
            "NOOP, RSET, VRFY, EHLO and the like since the last message, then 421; 0: no limit",
            low=0,
            precedent="Postfix smtpd_junk_command_limit",
        ),
    )
    minimum_bytes_per_s: int = field(
        default=100,
        metadata=about(
            "averaged over 30 s, in DATA and BDAT; 0: off",
            unit="bytes/s",
            low=0,
            precedent="Postfix smtpd_min_data_rate has 500",
        ),
    )
    transaction_s: float = field(
        default=3_600.0, metadata=about("from MAIL to the reply to the message", unit="s", low=0.01)
    )
    session_s: float = field(default=7_200.0, metadata=about("from greeting to close", unit="s", low=0.01))
    command_s: float = field(
        default=300.0,
        metadata=about(
            "waiting for the next command line; control/timeoutsmtpd",
            unit="s",
            low=1.0,
            precedent="RFC 5321 section 4.5.3.2.7",
        ),
    )
    body_memory_bytes: int = field(
        default=67_108_864,
        metadata=about("a worker; beyond it bodies go to files at once", unit="bytes", low=0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Who may send anywhere."""

    networks: tuple[str, ...] = field(
        default=("127.0.0.0/8", "::1/128"),
        metadata=about(
            "may send anywhere; no DNS checks, no greeting delay, no per-client limits",
            form="network",
            precedent="Postfix mynetworks_style = host",
        ),
    )
    certificates: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "so may these client certificates of tls.client_ca: an e-mail address in it (SAN, or emailAddress of "
            "the subject; any case), or sha256: and its fingerprint",
            form="certificate",
            example='["joe@example.org", "/etc/fastsmtp/tlsclients"]',
        ),
    )
    certificates_from: tuple[str, ...] = field(
        default=("0.0.0.0/0", "::/0"),
        metadata=about("only these clients are asked for one", form="network"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """[[listen]]: where we take connections, and what is different there.

    limits, policy, tls_table: None means the global table; else a complete table of the listener's own
    ([listen.limits], [listen.policy], [listen.tls] laid over the global one).  In TOML `tls` is a word, or a
    table with that word as `mode` (docs/decisions/0010).
    """

    name: str = field(
        default="",
        metadata=about(
            "for logs and [[route]] listener", form="word", shown="listen1, listen2 ...", example='"mx"'
        ),
    )
    address: tuple[str, ...] = field(
        default=("127.0.0.1:2525",),
        metadata=about(
            "HOST:PORT; port 0: any free one", fewest=1, form="endpoint", example='["0.0.0.0:25", "[::]:25"]'
        ),
    )
    tls: str = field(
        default="starttls",
        metadata=about(
            "required: STARTTLS before MAIL; implicit: TLS from the first byte",
            choices=("off", "starttls", "required", "implicit"),
            precedent="RFC 3207; RFC 8314 section 3.3",
        ),
    )
    greeting_delay_s: float = field(
        default=0.0,
        metadata=about(
            "0: off; 1.0 catches early talkers; not for relay clients, exempt clients, or those with a pass",
            unit="s",
            low=0,
            high=60,
            precedent="Postfix postscreen_greet_wait has 6 s; RFC 5321 4.5.3.2.1 lets clients wait 5 minutes",
        ),
    )
    greeting_pass_h: float = field(
        default=24.0,
        metadata=about(
            "a client that waited and delivered gets a pass for so long",
            unit="h",
            low=0,
            precedent="Postfix postscreen_greet_ttl",
        ),
    )
    bare_newline: str = field(
        default="reject",
        metadata=about(
            "normalize: a line end inside the text, never an end of data",
            choices=("reject", "normalize"),
            precedent="RFC 5321 section 2.3.8; Postfix smtpd_forbid_bare_newline",
        ),
    )
    proxy_from: tuple[str, ...] = field(
        default=(), metadata=about("these must speak the PROXY protocol; nobody else may", form="network")
    )
    xclient_from: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "these may use XCLIENT; loopback addresses taken from PROXY or XCLIENT never relay",
            form="network",
        ),
    )
    policy: Policy | None = None
    limits: Limits | None = None
    tls_table: Tls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """[[accept]]: what we take mail for, and where it goes."""

    domain: tuple[str, ...] = field(
        metadata=about(
            'exact; ".example.org" for every sub-domain; or a file of domains',
            fewest=1,
            form="domain",
            example='["example.org", ".example.org"]',
        )
    )
    recipients: str = field(
        default="",
        metadata=about(
            "any; ask (the next hop, at RCPT; remembered); or a file of addresses",
            form="recipients",
            shown="ask behind the queue for smtp and lmtp, else any",
            example='"ask"',
        ),
    )
    deliver: str = field(
        default="",
        metadata=about(
            "where its mail goes",
            form="dest",
            shown="by [[route]], else deliver.default",
            example='"lmtp://127.0.0.1:24"',
        ),
    )
    queue: bool | None = field(
        default=None, metadata=about("false: hand over before the 250", shown="deliver.queue")
    )
    pass_client: str = field(
        default=NOBODY,
        metadata=about(
            "tell the next hop who the client was", choices=("none", "xclient", "xforward", "proxy")
        ),
    )
    user: str = field(
        default="",
        metadata=about(
            "a Maildir is written, a program is run as this account; not of another DEST (docs/delivery.md)",
            form="account",
            shown="queue_user",
            example='"joe"',
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Where mail goes when nothing else says."""

    default: str = field(
        default="refuse",
        metadata=about(
            "for what no [[route]] fits: what relay clients send elsewhere, and an [[accept]] without its own",
            form="dest",
        ),
    )
    queue: bool = field(default=True, metadata=about("false: hand over before the 250 (--no-queue)"))
    user: str = field(
        default="",
        metadata=about(
            "the account for default, where that is maildir: or pipe: (docs/delivery.md)",
            form="account",
            shown="queue_user",
            example='"joe"',
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """How long mail that can't be delivered is tried again, and who is told (docs/queue.md)."""

    retry_min_s: float = field(
        default=300.0,
        metadata=about(
            "before the second attempt; doubled for each one after it",
            unit="s",
            low=0.1,
            high=86_400,
            precedent="Postfix minimal_backoff_time; RFC 5321 4.5.4.1 asks for two attempts in the first hour",
        ),
    )
    retry_max_s: float = field(
        default=4_000.0,
        metadata=about(
            "between two attempts at most",
            unit="s",
            low=0.1,
            high=86_400,
            precedent="Postfix maximal_backoff_time; RFC 5321 4.5.4.1: later, every two or three hours",
        ),
    )
    lifetime_h: float = field(
        default=120.0,
        metadata=about(
            "in the queue, then the sender is told that it failed; 0: after the first attempt",
            unit="h",
            low=0,
            precedent="RFC 5321 4.5.4.1: at least 4 to 5 days; Postfix maximal_queue_lifetime",
        ),
    )
    delay_warning_h: float = field(
        default=0.0,
        metadata=about(
            "in the queue, then the sender is told of the delay, once; 0: none",
            unit="h",
            low=0,
            precedent="Postfix delay_warning_time",
        ),
    )
    free_bytes: int = field(
        default=1_073_741_824,
        metadata=about("below this: 452 at MAIL; 0: no mark", unit="bytes", low=0),
    )
    double_bounce: str = field(
        default="postmaster",
        metadata=about(
            "what becomes of a failure that can't be told to the sender, as there is none: postmaster gets it, or "
            "nobody",
            choices=("postmaster", "drop"),
            precedent="qmail's doublebounceto",
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """Who answers the questions of the checks."""

    servers: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "addresses, with or without port",
            form="dns_server",
            shown="resolv.conf",
            example='["127.0.0.1", "[::1]:53"]',
        ),
    )
    timeout_s: float = field(
        default=5.0, metadata=about("for all questions of a phase", unit="s", low=0.1, high=60)
    )
    cache_bytes: int = field(
        default=67_108_864, metadata=about("all workers together", unit="bytes", low=65_536)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One line per event that matters (docs/logs.md)."""

    format: str = field(default="logfmt", metadata=about("of a line", choices=("logfmt", "json")))
    to: str = field(default="stderr", metadata=about("stderr, syslog or a file", form="log_target"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Numbers for Prometheus (docs/metrics.md), shown by a process of their own."""

    listen: str = field(
        default="",
        metadata=about(
            "HOST:PORT or unix:PATH; everybody who gets there may read",
            form="metrics_listen",
            shown="nowhere",
            example='"127.0.0.1:9425"',
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration: the top of the file, and its tables."""

    hostname: str = field(
        default="",
        metadata=about(
            "greeting, Received, default HELO name; `check` warns if it has no dot",
            form="hostname",
            shown="the system's full name",
            example='"mx.example.org"',
            precedent="RFC 5321 section 2.3.5",
        ),
    )
    postmaster: str = field(
        default="",
        metadata=about(
            "<postmaster> without a domain; double bounces",
            form="mailbox",
            shown="postmaster@HOSTNAME",
            example='"postmaster@example.org"',
            precedent="RFC 5321 section 4.5.1",
        ),
    )
    state: str = field(
        default="",
        metadata=about(
            "self-made certificate, spooled bodies, the trial's mail",
            form="path",
            shown="$STATE_DIRECTORY; as root /var/lib/fastsmtp; else $XDG_STATE_HOME/fastsmtp",
            example='"/var/lib/fastsmtp"',
        ),
    )
    user: str = field(
        default="fastsmtp",
        metadata=about(
            "workers run as this account, when started as root; without it no start on a port below 1024 "
            "or off loopback",
            form="word",
        ),
    )
    queue_user: str = field(
        default="fastsmtpq",
        metadata=about(
            "delivery and the queue's files, when started as root; SMTP workers can add mail and not read it",
            form="word",
        ),
    )
    workers: int = field(default=0, metadata=about("SMTP workers; 0: one per core", low=0, high=1_024))
    qmail: str = field(
        default="",
        metadata=about(
            "a qmail home: what its control files say holds where neither a flag nor this file says otherwise "
            "(docs/qmail.md)",
            form="path",
            shown="none",
            example='"/var/qmail"',
        ),
    )
    tcprules: str = field(
        default="",
        metadata=about(
            "rules of tcpserver, text or cdb: who is denied, and the variables of each client; re-read when it "
            "changes",
            form="path",
            shown="none; with a qmail home /etc/tcp.smtp.cdb when it is there",
            example='"/etc/tcp.smtp.cdb"',
        ),
    )
    compatible: bool | None = field(
        default=None,
        metadata=about("qmail's reply codes where they differ from ours", shown="true with a qmail home"),
    )
    greeting: str = field(
        default="",
        metadata=about(
            "what stands behind the greeting's 220; its first word should be hostname",
            form="text",
            shown="hostname",
            example='"mx.example.org no junk mail"',
            precedent="RFC 5321 section 4.2",
        ),
    )
    localiphost: str = field(
        default="",
        metadata=about(
            "the domain that our own address in brackets stands for, in user@[192.0.2.1]",
            form="hostname",
            shown="none; with a qmail home control/localiphost, else control/me",
            example='"example.org"',
        ),
    )
    listen: tuple[Listen, ...] = (Listen(),)
    tls: Tls = Tls()
    limits: Limits = Limits()
    relay: Relay = Relay()
    accept: tuple[Accept, ...] = ()
    deliver: Deliver = Deliver()
    remote: Remote = Remote()
    source: tuple[Source, ...] = ()
    route: tuple[Route, ...] = ()
    queue: Queue = Queue()
    dns: Dns = Dns()
    policy: Policy = Policy()
    log: Log = Log()
    metrics: Metrics = Metrics()
