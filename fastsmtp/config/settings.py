"""Settings: the configuration compiled for one listener, as connections and stages read it.

config/model.py says what an operator may write; this is what it comes to, with
every look-up ready: networks as Networks, domains as a table, recipient files
as sets.  Frozen; a connection keeps the Settings that it got at accept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from fastsmtp.address import Networks
from fastsmtp.config.cdb import Cdb, is_cdb
from fastsmtp.config.dest import is_next_hop, parse_dest
from fastsmtp.config.environment import apply
from fastsmtp.config.forms import check_network
from fastsmtp.config.lists import Lists, checked, parse_recipients, parse_signatures
from fastsmtp.config.model import ANY_DOMAIN, NOBODY, Config, Deliver, Limits, Listen, Tls
from fastsmtp.config.model import (
    Accept as AcceptRule,
)
from fastsmtp.config.names import (
    parse_accept_domain,
    parse_certificate,
    parse_domain_name,
    parse_host_name,
    parse_mailbox_key,
    parse_sender,
    spellings,
)
from fastsmtp.config.outgoing import Route as RouteRule
from fastsmtp.config.patterns import NO_PATTERNS, AddressPatterns, parse_pattern, parse_patterns
from fastsmtp.config.routes import Route, RouteTable, Routing, Rule, Source
from fastsmtp.config.rules import Dnsbl, Dnswl, Policy, Rhsbl, SignatureRule
from fastsmtp.config.systems import NO_SYSTEMS, Systems
from fastsmtp.config.zones import Answers, Zone
from fastsmtp.errors import ConfigError
from fastsmtp.records import dataclass, field
from fastsmtp.typed import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastsmtp._signatures import Signatures
    from fastsmtp.config.tcprules import Rules


NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Accept:
    """What one [[accept]] says of a domain.

    deliver     DEST; "": by the routes
    recipients  None: any; else the set of keys (Path.key) that exist
    asks        whether the next hop is asked at RCPT (recipients = "ask"); without the queue it always is
    is_queued   made durable before the 250; False: handed over before it
    user        who writes the Maildir or runs the program of deliver; "": the delivery processes themselves
    """

    deliver: str
    recipients: frozenset[bytes] | None
    pass_client: str = NOBODY
    asks: bool = False
    is_queued: bool = True
    user: str = ""


class AcceptTable:
    """Domain -> Accept.  Exact names first, then the longest ".suffix".

    asks   some Accept asks its next hop
    """

    __slots__ = ("_cdbs", "_exact", "_suffixes", "asks", "everything")

    def __init__(
        self,
        rules: Iterable[tuple[Iterable[str], Accept]] = (),
        *,
        everything: Accept | None = None,
        cdbs: Iterable[tuple[Cdb, Accept]] = (),
    ) -> None:
        """rules: (domains, accept) in the configuration's order, the first to name a domain wins.

        Domains are lower-case A-labels; ".example.org" is every sub-domain.  everything is for the
        trial, which accepts any domain.  cdbs have domains as keys (qmail's morercpthosts.cdb); they are asked
        key by key, so that `fastsmtp smtpd` need not read a hundred thousand names for one recipient.
        """
        self._cdbs = tuple(cdbs)
        self._exact: dict[bytes, Accept] = {}
        self._suffixes: dict[bytes, Accept] = {}
        self.everything = everything
        self.asks = everything is not None and everything.asks
        for domains, accept in rules:
            self.asks = self.asks or accept.asks
            for domain in domains:
                table = self._suffixes if domain.startswith(".") else self._exact
                table.setdefault(domain.encode(), accept)

    def find(self, domain: bytes) -> Accept | None:
        """The Accept of a lower-case domain, or None when it is not ours."""
        accept = self._exact.get(domain)
        if accept is not None:
            return accept
        if self._cdbs:
            return self._find_in_all(domain)
        if self._suffixes:
            at = domain.find(b".")
            while at != -1:
                accept = self._suffixes.get(domain[at:])
                if accept is not None:
                    return accept
                at = domain.find(b".", at + 1)
        return self.everything

    def _find_in_all(self, domain: bytes) -> Accept | None:
        """The same with cdbs.  ValueError when one is damaged: nobody can say then whose the domain is."""
        if not domain.isascii():
            try:
                domain = parse_domain_name(domain.decode()).encode()
            except ValueError:
                return self.everything
        at = 0
        while at != -1:
            part = domain[at:]
            accept = self._suffixes.get(part) if at else None
            if accept is not None:
                return accept
            for cdb, found in self._cdbs:
                if cdb.get(part) is not None:
                    return found
            at = domain.find(b".", at + 1)
        return self.everything


@dataclass(frozen=True, slots=True)
class Settings:
    """One listener's settings.

    hostname    greeting, Received
    postmaster  key form (bytes) of the address that <postmaster> without a domain stands for
    relay       clients that may send anywhere
    routing     where a recipient's mail goes, by accept and [[route]]
    exempt      clients that skip checks (policy.exempt, policy.clients.allow)
    deny        clients that are refused (policy.clients.deny)
    lists       DNS lists of addresses, dnswl first;  rhsbl  those of domains, by what is looked up:
                "mail", "helo", "ptr"
    certificates  client certificates that may relay, each as names.parse_certificate has it; asked for are the
                clients of certificates_from, on listeners whose tls has a client_ca
    badmailfrom, badrcptto   the patterns of both;  require_tls  those of its rules, by mode: "enforce", "observe"
    systems     [[policy.p0f.match]]
    signatures  of policy.signatures.file; None where there are none, or the rule is off
    tls         certificates and versions of this listener; whether TLS is offered says listen.tls
    is_compatible   qmail's reply codes where they differ from ours
    relay_suffix    RELAYCLIENT: None where it isn't set; else clients may relay, and each recipient ends with it
    rblsmtpd        RBLSMTPD, None where it isn't set: "-text" refuses, "text" defers, "" does neither
    rules           of tcpserver, asked when a client is known; None where there are none
    greeting        behind the 220; hostname where the configuration says nothing else
    localiphost     the domain that our own address in brackets stands for; "" for none
    """

    hostname: str
    postmaster: bytes
    listen: Listen
    limits: Limits
    policy: Policy
    deliver: Deliver
    relay: Networks
    exempt: Networks
    proxy_from: Networks
    xclient_from: Networks
    accept: AcceptTable
    routing: Routing
    deny: Networks = field(default_factory=Networks)
    certificates: frozenset[bytes] = frozenset()
    certificates_from: Networks = field(default_factory=Networks)
    lists: tuple[Zone, ...] = ()
    rhsbl: Mapping[str, tuple[Zone, ...]] = field(default_factory=dict)
    badmailfrom: AddressPatterns = NO_PATTERNS
    badrcptto: AddressPatterns = NO_PATTERNS
    require_tls: Mapping[str, AddressPatterns] = field(default_factory=dict)
    systems: Systems = NO_SYSTEMS
    signatures: Signatures | None = None
    tls: Tls = field(default_factory=Tls)
    is_compatible: bool = False
    relay_suffix: bytes | None = None
    rblsmtpd: str | None = None
    rules: Rules | None = None
    greeting: str = ""
    localiphost: str = ""


def list_paths(config: Config) -> tuple[str, ...]:
    """The files that the configuration's lists name, each once: what Lists must hold."""
    paths: dict[str, None] = {}
    for texts in _lists(config):
        paths.update((text, None) for text in texts if text.startswith("/"))
    for accept in config.accept:
        if accept.recipients.startswith("/"):
            paths[accept.recipients] = None
    for policy in _policies(config):
        if policy.signatures.file:
            paths[policy.signatures.file] = None
    if config.tcprules:
        paths[config.tcprules] = None
    return tuple(paths)


def _policies(config: Config) -> Iterator[Policy]:
    yield config.policy
    for listen in config.listen:
        if listen.policy is not None:
            yield listen.policy


def _lists(config: Config) -> Iterable[tuple[str, ...]]:
    yield config.relay.networks
    yield config.relay.certificates
    yield config.relay.certificates_from
    for policy in _policies(config):
        yield policy.exempt
        yield policy.clients.allow
        yield policy.clients.deny
        yield policy.badmailfrom
        yield policy.badrcptto
        for rule in policy.require_tls:
            yield rule.sender
    for listen in config.listen:
        yield listen.proxy_from
        yield listen.xclient_from
    for accept in config.accept:
        yield accept.domain
    for route in config.route:
        yield route.sender
        yield route.destination


def compile_settings(
    config: Config,
    lists: Lists,
    environment: Mapping[str, str] = NOTHING,
    warnings: list[str] | None = None,
) -> tuple[Settings, ...]:
    """One Settings a listener, in the order of config.listen.

    config has been through resolve.py; lists holds every path of list_paths(config).
    environment  variables of the process, laid over all (environment.apply)
    warnings     gets what is no fault: lines of a qmail home that mean nothing, rules that fit nobody
    ConfigError with every bad line of the lists, file and line each.
    """
    compiler = _Compiler(lists)
    rules = compiler.rules(config.tcprules)
    relay = compiler.networks(config.relay.networks)
    certificates = compiler.certificates(config.relay.certificates)
    certificates_from = compiler.networks(config.relay.certificates_from)
    accept = compiler.accept_table(config)
    named: dict[str, set[str]] = {}
    for user, deliver in _places(config):
        named.setdefault(deliver, set()).add(user)
    routing = Routing(accept, compiler.route_table(config), named)
    postmaster = parse_mailbox_key(config.postmaster)
    settings = tuple(
        Settings(
            hostname=config.hostname,
            postmaster=postmaster,
            listen=listen,
            limits=listen.limits or config.limits,
            policy=policy,
            deliver=config.deliver,
            relay=relay,
            exempt=compiler.networks((*policy.exempt, *policy.clients.allow)),
            deny=compiler.networks(policy.clients.deny),
            certificates=certificates,
            certificates_from=certificates_from,
            lists=compile_zones((*policy.dnswl, *policy.dnsbl)),
            rhsbl={
                what: compile_zones([one for one in policy.rhsbl if what in one.of])
                for what in ("mail", "helo", "ptr")
            },
            proxy_from=compiler.networks(listen.proxy_from),
            xclient_from=compiler.networks(listen.xclient_from),
            accept=accept,
            routing=routing,
            badmailfrom=compiler.patterns(policy.badmailfrom),
            badrcptto=compiler.patterns(policy.badrcptto),
            require_tls={
                mode: compiler.patterns(
                    tuple(text for rule in policy.require_tls if rule.mode == mode for text in rule.sender)
                )
                for mode in ("enforce", "observe")
            },
            systems=Systems(rule for rule in policy.p0f.match if rule.mode != "off"),
            signatures=compiler.signatures(policy.signatures),
            tls=listen.tls_table or config.tls,
            is_compatible=bool(config.qmail) if config.compatible is None else config.compatible,
            greeting=config.greeting or config.hostname,
            localiphost=config.localiphost and parse_host_name(config.localiphost),
            rules=rules,
        )
        for listen in config.listen
        for policy in (listen.policy or config.policy,)
    )
    if warnings is not None:
        warnings.extend(dict.fromkeys(compiler.warnings))
    if compiler.faults:
        raise ConfigError(*dict.fromkeys(compiler.faults))
    return tuple(apply(one, environment) for one in settings)


def compile_zones(rules: Iterable[Dnsbl | Dnswl | Rhsbl]) -> tuple[Zone, ...]:
    """The lists that are to be asked; what is wrong with one has been reported by the reader."""
    return tuple(
        Zone(
            name=name.encode(),
            text=name,
            answers=Answers(rule.answers),
            score=rule.score,
            action="score" if isinstance(rule, Dnswl) else rule.action,
            is_observed=rule.mode == "observe",
            has_reason=not isinstance(rule, Dnswl) and rule.reason,
            is_tested=rule.tested,
            skips=isinstance(rule, Dnswl) and rule.skip,
            is_white=isinstance(rule, Dnswl),
            is_domains=isinstance(rule, Rhsbl),
        )
        for rule in rules
        if rule.mode != "off" and rule.zone
        for name in (parse_domain_name(rule.zone),)
    )


def compile_sources(config: Config) -> dict[str, Source]:
    """Every [[source]] by its name."""
    return {
        source.name: Source(
            name=source.name,
            ipv4=source.ipv4,
            ipv6=source.ipv6,
            helo=parse_host_name(source.helo or config.hostname),
            connections=source.connections,
            messages_per_s=source.messages_per_s,
            may_pass_on=source.on_bind_failure == "next",
        )
        for source in config.source
    }


def user_of(config: Config, rule: RouteRule) -> str:
    """As whom a [[route]] delivers; one without a place of its own as deliver.default does."""
    return rule.user or ("" if rule.deliver else config.deliver.user)


def user_pairs(config: Config) -> tuple[tuple[str, str], ...]:
    """Each (account, DEST) that is delivered to as somebody, once."""
    return tuple(dict.fromkeys((user, deliver) for user, deliver in _places(config) if user))


def _places(config: Config) -> list[tuple[str, str]]:
    """(account or "", DEST) of every table."""
    pairs = [(one.user, one.deliver) for one in config.accept]
    pairs += [(user_of(config, one), one.deliver or config.deliver.default) for one in config.route]
    pairs.append((config.deliver.user, config.deliver.default))
    return pairs


class _Compiler:
    """Look-ups made from texts and files; each file is parsed once, its faults are collected."""

    def __init__(self, lists: Lists) -> None:
        self.files = lists.files
        self.lenient = lists.lenient
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.recipients: dict[str, frozenset[bytes]] = {}
        self.signature_files: dict[str, Signatures] = {}
        self.pattern_files: dict[str, set[bytes]] = {}

    def texts(self, texts: tuple[str, ...], check: Callable[[str], object]) -> Iterator[str]:
        """The entries, those of files in place of their paths."""
        for text in texts:
            if text.startswith("/"):
                yield from checked(text, self.files[text], check, self.faults_of(text))
            else:
                yield text

    def faults_of(self, path: str) -> list[str]:
        """Where bad lines of a file are told.  A damaged cdb is a fault anywhere: half of it is gone."""
        return self.warnings if path in self.lenient and not is_cdb(self.files[path]) else self.faults

    def rules(self, path: str) -> Rules | None:
        if not path:
            return None
        from fastsmtp.config.tcprules import parse_rules

        rules = parse_rules(path, self.files[path], self.faults)
        self.warnings.extend(rules.warnings)
        return rules

    def networks(self, texts: tuple[str, ...]) -> Networks:
        return Networks(self.texts(texts, check_network))

    def certificates(self, texts: tuple[str, ...]) -> frozenset[bytes]:
        return frozenset(map(parse_certificate, self.texts(texts, parse_certificate)))

    def accept_table(self, config: Config) -> AcceptTable:
        rules = []
        cdbs = []
        everything = None
        for rule in config.accept:
            is_queued = config.deliver.queue if rule.queue is None else rule.queue
            accept = Accept(
                rule.deliver,
                self.recipient_keys(rule.recipients),
                rule.pass_client,
                asks=is_queued and rule.recipients in ("", "ask") and self.may_ask(config, rule),
                is_queued=is_queued,
                user=rule.user,
            )
            if ANY_DOMAIN in rule.domain:
                everything = everything or accept
            texts = [text for text in rule.domain if not (text.startswith("/") and is_cdb(self.files[text]))]
            rules.append((self.domains(tuple(texts)), accept))
            for path in rule.domain:
                if path not in texts:
                    try:
                        cdbs.append((Cdb(self.files[path]), accept))
                    except ValueError as error:
                        self.faults.append(f"{path}: {error}")
        return AcceptTable(rules, everything=everything, cdbs=cdbs)

    def route_table(self, config: Config) -> RouteTable:
        sources = compile_sources(config)
        rules = []
        for rule in config.route:
            deliver = rule.deliver or config.deliver.default
            weights = tuple((sources[name], weight) for name, weight in rule.sources if name in sources)
            rules.append(
                Rule(
                    Route(
                        deliver, parse_dest(deliver), rule.tls, rule.ca, weights, user=user_of(config, rule)
                    ),
                    senders=self.senders(rule.sender) if rule.sender else None,
                    destinations=frozenset(name.encode() for name in self.domains(rule.destination))
                    if rule.destination
                    else None,
                    listeners=frozenset(rule.listener) if rule.listener else None,
                )
            )
        default = config.deliver.default
        return RouteTable(rules, Route(default, parse_dest(default), user=config.deliver.user))

    def senders(self, texts: tuple[str, ...]) -> frozenset[bytes]:
        keys: set[bytes] = set()
        for text in self.texts(texts, parse_sender):
            local, _, domain = parse_sender(text).rpartition("@")
            keys.update(f"{local}@{name}".encode() if domain else b"" for name in spellings(domain))
        return frozenset(keys)

    def may_ask(self, config: Config, rule: AcceptRule) -> bool:
        """Whether mail for the rule's domains can go to something that can be asked about a recipient."""
        if rule.deliver:
            return is_next_hop(rule.deliver)
        return any(map(is_next_hop, (config.deliver.default, *(route.deliver for route in config.route))))

    def domains(self, texts: tuple[str, ...]) -> list[str]:
        return [
            spelling
            for text in self.texts(texts, parse_accept_domain)
            if text != ANY_DOMAIN
            for spelling in spellings(parse_accept_domain(text))
        ]

    def patterns(self, texts: tuple[str, ...]) -> AddressPatterns:
        keys: set[bytes] = set()
        for text in texts:
            if not text.startswith("/"):
                keys.update(parse_pattern(text))
                continue
            if text not in self.pattern_files:
                self.pattern_files[text] = parse_patterns(text, self.files[text], self.faults_of(text))
            keys |= self.pattern_files[text]
        return AddressPatterns(keys) if keys else NO_PATTERNS

    def signatures(self, rule: SignatureRule) -> Signatures | None:
        if not rule.file:
            return None
        if rule.file not in self.signature_files:
            data = self.files[rule.file]
            self.signature_files[rule.file] = parse_signatures(rule.file, data, self.faults_of(rule.file))
        found = self.signature_files[rule.file]
        return found if len(found) and rule.mode != "off" else None

    def recipient_keys(self, recipients: str) -> frozenset[bytes] | None:
        if recipients in ("", "any", "ask"):
            return None
        if recipients not in self.recipients:
            self.recipients[recipients] = parse_recipients(recipients, self.files[recipients], self.faults)
        return self.recipients[recipients]
