"""[policy]: what an operator may write of rules, one frozen record a table; as model.py has the rest.

Rank 2, and as cheap to import.
"""

from __future__ import annotations

from fastsmtp.config.about import about
from fastsmtp.config.denymail import LEGACY, MODERN, WORDS
from fastsmtp.records import dataclass, field
from fastsmtp.typed import Final

DELAY_MOST_S: Final = 225.0
"""No reply is held back longer.  A client waits 5 minutes for one (RFC 5321 section 4.5.3.2); up to 60 s of them are
dns.timeout_s."""

_RULE_MODE: Final = about(
    "observe: count and log, never act; policy.mode can only make it milder",
    choices=("enforce", "observe", "off"),
)
_ANSWERS: Final = about(
    'what counts as listed: an address, a range "127.0.0.2-127.0.0.11", a bit mask "&0.0.0.6" (any of these bits), '
    "each in 127.0.0.0/8 but 127.255.255.0/24",
    form="answer",
    shown="any in 127.0.0.0/8 but 127.255.255.0/24",
    example='["127.0.0.2-127.0.0.11"]',
    precedent="RFC 5782 section 2.3",
)
_ACTION: Final = about(
    "what a listing does: add its score; refuse (5xx) or defer (4xx) whatever the score; only be told to the next hop",
    choices=("score", "reject", "defer", "tag"),
)
_TESTED: Final = about(
    "false: the list has no test points, so only its silence and a wildcard are noticed",
    precedent="RFC 5782 section 5",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Clients by address, whatever the checks say; relay networks come first, then allow."""

    allow: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "addresses, CIDR; skip all checks, as policy.exempt",
            form="network",
            example='"/etc/fastsmtp/allow"',
        ),
    )
    deny: tuple[str, ...] = field(
        default=(), metadata=about("addresses, CIDR; 550 5.7.1, for postmaster too", form="network")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dnsbl:
    """[[policy.dnsbl]]: a list of bad addresses (RFC 5782); the scores of all lists add up."""

    zone: str = field(metadata=about("its domain", form="zone", example='"zen.spamhaus.org"'))
    answers: tuple[str, ...] = field(default=(), metadata=_ANSWERS)
    score: int = field(default=10, metadata=about("for a listing", low=-1_000, high=1_000))
    action: str = field(default="score", metadata=_ACTION)
    reason: bool = field(
        default=False,
        metadata=about("the list's TXT text in the reply; one more question, only when refused"),
    )
    tested: bool = field(default=True, metadata=_TESTED)
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dnswl:
    """[[policy.dnswl]]: a list of good addresses, of the same kind."""

    zone: str = field(metadata=about("its domain", form="zone", example='"list.dnswl.org"'))
    answers: tuple[str, ...] = field(default=(), metadata=_ANSWERS)
    score: int = field(default=-5, metadata=about("for a listing", low=-1_000, high=1_000))
    skip: bool = field(default=False, metadata=about("true: who is listed skips all checks"))
    tested: bool = field(default=True, metadata=_TESTED)
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhsbl:
    """[[policy.rhsbl]]: a list of bad domains (RFC 5782 section 4)."""

    zone: str = field(metadata=about("its domain", form="zone", example='"dbl.spamhaus.org"'))
    answers: tuple[str, ...] = field(default=(), metadata={**_ANSWERS, "example": '["127.0.1.2-127.0.1.6"]'})
    of: tuple[str, ...] = field(
        default=("mail", "helo", "ptr"),
        metadata=about(
            "domains that are looked up: of the envelope sender, of HELO, the confirmed reverse name",
            fewest=1,
            choices=("mail", "helo", "ptr"),
        ),
    )
    score: int = field(default=10, metadata=about("for a listing", low=-1_000, high=1_000))
    action: str = field(default="score", metadata=_ACTION)
    reason: bool = field(
        default=False,
        metadata=about("the list's TXT text in the reply; one more question, only when refused"),
    )
    tested: bool = field(default=True, metadata=_TESTED)
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mfcheck:
    """Can the envelope sender be answered: does its domain have an MX, or else an address?"""

    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeloRule:
    """The name in HELO or EHLO (RFC 5321 section 4.1.4: refusing for it needs a local decision)."""

    mode: str = field(default="observe", metadata=_RULE_MODE)
    refuse: tuple[str, ...] = field(
        default=("syntax", "bare", "ours", "literal", "unresolvable"),
        metadata=about(
            "findings that refuse: no name; no dot in it; our own name or address; another address than the "
            "client's; a name that does not exist. Others are a tag",
            choices=("syntax", "bare", "ours", "literal", "unresolvable"),
        ),
    )
    score: int = field(
        default=0, metadata=about("for a finding that does not refuse", low=-1_000, high=1_000)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReverseDns:
    """The client's reverse name: is there one, does it lead back, does it look like a machine made it?"""

    mode: str = field(default="observe", metadata=_RULE_MODE)
    refuse: tuple[str, ...] = field(
        default=("none", "unconfirmed"),
        metadata=about(
            "findings that refuse: no name; a name that does not lead back; a name made of the address. Others "
            "are a tag",
            choices=("none", "unconfirmed", "generic"),
            precedent="Postfix reject_unknown_client_hostname",
        ),
    )
    score: int = field(
        default=0, metadata=about("for a finding that does not refuse", low=-1_000, high=1_000)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tarpit:
    """Slow answers to many recipients; not for relay clients."""

    after_recipients: int = field(
        default=0,
        metadata=about(
            "this recipient of a message, and each one after it, is slow; 0: off",
            low=0,
            precedent="qmail's tarpitcount",
        ),
    )
    delay_s: float = field(
        default=5.0,
        metadata=about(
            "before the reply", unit="s", low=0, high=DELAY_MOST_S, precedent="qmail's tarpitdelay"
        ),
    )
    step_s: float = field(
        default=0.0,
        metadata=about(
            f"added for each recipient beyond; no reply waits longer than {DELAY_MOST_S:.0f} s",
            unit="s",
            low=0,
            high=DELAY_MOST_S,
            precedent="RFC 5321 section 4.5.3.2: clients wait 5 minutes",
        ),
    )
    count_rejected: bool = field(
        default=True,
        metadata=about("refused recipients count too, and are slow; else only accepted ones"),
    )
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequireTls:
    """[[policy.require_tls]]: senders whose mail is taken only over TLS (530 5.7.0)."""

    sender: tuple[str, ...] = field(
        metadata=about(
            "user@host, @host, user@, @.host for every host below it; or a file of these",
            fewest=1,
            form="address_pattern",
            example='"@bank.example"',
        )
    )
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class P0fMatch:
    """[[policy.p0f.match]]: what a system costs; the first that fits counts."""

    os: str = field(
        metadata=about(
            'the system as p0f names it, "*" for any text; "" for one that it doesn\'t know',
            example='"Windows *"',
        )
    )
    score: int = field(default=0, metadata=about("for such a client", low=-1_000, high=1_000))
    delay_s: float = field(
        default=0.0,
        metadata=about("before the reply to each RCPT", unit="s", low=0, high=DELAY_MOST_S),
    )
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class P0f:
    """Which system the client runs, as p0f 3 tells from its packets; asked when it connects."""

    socket: str = field(
        default="",
        metadata=about(
            "p0f's (p0f -s); workers must be able to open it",
            form="path",
            shown="none, not asked",
            example='"/run/p0f.sock"',
        ),
    )
    timeout_s: float = field(
        default=0.5, metadata=about("then nothing is known, and nothing happens", unit="s", low=0.01, high=10)
    )
    header: bool = field(
        default=False, metadata=about("X-P0F-OS and X-P0F-Link for the next hop; foreign copies are removed")
    )
    mode: str = field(default="enforce", metadata=_RULE_MODE)
    match: tuple[P0fMatch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureRule:
    """How the first line of a part must not begin (docs/signatures.md); found while the message streams in."""

    file: str = field(
        default="",
        metadata=about(
            "one signature a line; qmail's control/signatures is one; re-read when it changes",
            form="path",
            shown="none",
            example='"/etc/fastsmtp/signatures"',
        ),
    )
    decoded: bool = field(
        default=False, metadata=about("look behind base64 and quoted-printable, and at 8-bit parts, too")
    )
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonStage:
    """[[policy.python]]: a stage of your own (docs/stages.md)."""

    stage: str = field(
        metadata=about("MODULE:FUNCTION", form="python_stage", example='"mysite.rules:no_printers"')
    )
    at: str = field(
        default="rcpt",
        metadata=about("when it runs", choices=("connect", "helo", "mail", "rcpt", "data", "end")),
    )
    on_error: str = field(
        default="defer",
        metadata=about("what its failure means: 451, or no opinion", choices=("defer", "pass")),
    )
    mode: str = field(default="enforce", metadata=_RULE_MODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What holds for every rule; a [[listen]] may have a table of its own."""

    mode: str = field(
        default="enforce",
        metadata=about(
            "for every rule at once; a rule's own mode can only be milder",
            choices=("enforce", "observe", "off"),
        ),
    )
    soft_reject: bool = field(
        default=False,
        metadata=about(
            "every 5xx of a rule becomes 4xx: for the first days", precedent="Postfix soft_bounce"
        ),
    )
    exempt: tuple[str, ...] = field(
        default=(),
        metadata=about("clients besides the relay networks that skip all checks", form="network"),
    )
    reject_score: int = field(
        default=8, metadata=about("scores that add up to this refuse: 550 5.7.1", low=1, high=1_000_000)
    )
    reject_at: str = field(
        default="rcpt",
        metadata=about(
            "when a rejection that is already known is spoken",
            choices=("connect", "helo", "mail", "rcpt"),
            precedent="Postfix smtpd_delay_reject",
        ),
    )
    header: str = field(
        default="X-Fastsmtp-Policy",
        metadata=about(
            'score and tags for the next hop; foreign copies are removed; "" for none', form="header_name"
        ),
    )
    badmailfrom: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "envelope senders that are refused: user@host, @host, user@, .host for every host below it; or a file "
            "of these",
            form="address_pattern",
            example='["spam@example.net", "@example.com", "info@"]',
        ),
    )
    badmailfrom_mode: str = field(default="enforce", metadata=_RULE_MODE)
    badrcptto: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "recipients that are refused as if they did not exist; the same forms",
            form="address_pattern",
            example='"/etc/fastsmtp/badrcptto"',
        ),
    )
    badrcptto_mode: str = field(default="enforce", metadata=_RULE_MODE)
    denymail: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "SPAM: no mail at all; NOBOUNCE: no null sender; DNSCHECK: the sender's domain must be in the DNS; "
            "SANITY and each of the others: the sender must look like an address of the Internet",
            choices=WORDS,
            example='["NOBOUNCE", "DNSCHECK"]',
        ),
    )
    denymail_tld: str = field(
        default=MODERN,
        metadata=about(
            "what its last label may be: any that could be a top-level domain, or 2 or 3 characters",
            choices=(MODERN, LEGACY),
        ),
    )
    denymail_literals: bool = field(
        default=False, metadata=about("true: an address literal, a@[192.0.2.1], looks like one")
    )
    denymail_mode: str = field(default="enforce", metadata=_RULE_MODE)
    clients: Clients = Clients()
    dnsbl: tuple[Dnsbl, ...] = ()
    dnswl: tuple[Dnswl, ...] = ()
    rhsbl: tuple[Rhsbl, ...] = ()
    mfcheck: Mfcheck = Mfcheck()
    helo: HeloRule = HeloRule()
    reverse_dns: ReverseDns = ReverseDns()
    tarpit: Tarpit = Tarpit()
    require_tls: tuple[RequireTls, ...] = ()
    p0f: P0f = P0f()
    signatures: SignatureRule = SignatureRule()
    python: tuple[PythonStage, ...] = ()
