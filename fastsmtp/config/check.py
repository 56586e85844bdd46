"""What can be wrong with values that are each right: checked offline, all faults at once.

Faults stop a start or a reload; warnings are said and lived with.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastsmtp.config.ciphers import choose
from fastsmtp.config.denymail import NOBOUNCE, SPAM
from fastsmtp.config.dest import NEXT_HOPS, OWNED, Dest, parse_dest
from fastsmtp.config.endpoint import is_ipv4, is_ipv6, is_loopback, parse_endpoint
from fastsmtp.config.host import Host
from fastsmtp.config.lines import Path
from fastsmtp.config.model import ANY_DOMAIN, NOBODY, Config, Listen, Tls
from fastsmtp.config.names import parse_host_name
from fastsmtp.config.rules import DELAY_MOST_S, Policy
from fastsmtp.config.settings import AcceptTable
from fastsmtp.config.toml import NO_CERTIFICATE, Built, fault_line
from fastsmtp.config.tree import Tree
from fastsmtp.records import dataclass
from fastsmtp.typed import Final

# Where syslog daemons listen; log_destination.py has the same.
SYSLOG_SOCKET: Final = "/dev/log"
# p0f 3's default of -S.
_P0F_CLIENTS: Final = 20


@dataclass(frozen=True, slots=True)
class Checked:
    """faults and warnings, one line each; files: certificates and keys that were looked at."""

    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    files: tuple[str, ...]


def check(
    config: Config,
    built: Built,
    tree: Tree,
    host: Host,
    table: AcceptTable | None,
    *,
    is_trial: bool,
    is_served: bool = True,
) -> Checked:
    """Judge a resolved configuration; what is faulty already (built.faulty) makes no second fault.

    table  what is accepted, lists and all; None when the lists have faults
    """
    checker = _Checker(config, built, tree, host, is_trial=is_trial)
    checker.names()
    checker.listeners()
    checker.account(is_served=is_served)
    if is_served:
        # Keys are for the master alone: who only looks at the configuration often may not read them.
        checker.certificates()
    checker.accepted()
    checker.destinations()
    checker.queue()
    checker.sources()
    checker.routes()
    if is_served:
        checker.users()
    checker.relayed()
    checker.signatures()
    checker.senders()
    checker.tarpit()
    checker.p0f()
    checker.log()
    checker.metrics()
    if table is not None:
        checker.postmaster(table)
    return Checked(tuple(checker.faults), tuple(checker.warnings), tuple(checker.files))


def key_mode_fault(path: str, bits: int, owner: int) -> str:
    """A fault for a private key's file that others than its owner can read or change; "" when it is well kept.

    Root's keys may be readable by one group, as Debian's ssl-cert has it (PostgreSQL has the same rule).
    So may those of a qmail home: `make cert` gave them to qmaild's account and the group qmail.
    """
    is_grouped = owner == 0 or path.endswith(("/control/servercert.pem", "/control/cert.pem"))
    allowed = 0o640 if is_grouped else 0o600
    if not bits & 0o077 & ~allowed:
        return ""
    return f"{path}: others can read or change this private key (mode {bits:04o}): chmod {allowed:o} {path}"


_PEM_WORDS = {"CERTIFICATE": "certificate", "X509 CRL": "revocation list"}


class _Checker:
    def __init__(self, config: Config, built: Built, tree: Tree, host: Host, *, is_trial: bool) -> None:
        self.config = config
        self.built = built
        self.tree = tree
        self.host = host
        self.is_trial = is_trial
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.files: dict[str, None] = {}

    def fault(self, path: Path, clause: str) -> None:
        self.faults.append(fault_line(self.tree, path, clause))

    def warn(self, path: Path, clause: str) -> None:
        self.warnings.append(fault_line(self.tree, path, clause))

    def is_sound(self, *path: str | int) -> bool:
        """True when the reader found nothing wrong at path or below it."""
        return not any(place[: len(path)] == path for place in self.built.faulty)

    def is_given(self, *path: str | int) -> bool:
        return self.built.provenance.get(path, "default") != "default"

    def names(self) -> None:
        hostname = self.config.hostname
        if "." not in hostname and self.is_sound("hostname"):
            self.warn(("hostname",), f"{hostname!r} has no dot: other servers may refuse its greeting")

    def endpoints(self) -> Iterator[tuple[Path, str, int]]:
        for index, listen in enumerate(self.config.listen):
            if self.is_sound("listen", index, "address"):
                for number, text in enumerate(listen.address):
                    yield ("listen", index, "address", number), *parse_endpoint(text)

    def listeners(self) -> None:
        if not self.config.listen and self.is_sound("listen"):
            self.fault(("listen",), "must not be empty")
        names: dict[str, int] = {}
        for index, listen in enumerate(self.config.listen):
            if names.setdefault(listen.name, index) != index:
                self.fault(("listen", index, "name"), f"{listen.name!r} is another listener's name")
        seen: set[tuple[str, int]] = set()
        for path, host, port in self.endpoints():
            if port and (host, port) in seen:
                self.fault(path, "is listened on already")
            seen.add((host, port))
            self.port(path, port)
        for index, listen in enumerate(self.config.listen):
            for name in ("proxy_from", "xclient_from"):
                if any(text.endswith("/0") for text in getattr(listen, name)):
                    self.warn(("listen", index, name), "lets anyone claim to be any client")

    def port(self, path: Path, port: int) -> None:
        """What the clients of a well-known port expect."""
        tls = self.config.listen[int(path[1])].tls
        if port == 465 and tls != "implicit":
            self.warn(path, 'clients of port 465 begin with TLS (RFC 8314 section 3.3): tls = "implicit"')
        elif port == 25 and tls == "implicit":
            self.warn(path, 'other servers don\'t begin with TLS on port 25: tls = "starttls"')
        elif port == 25 and tls == "required":
            self.warn(path, "a public server must not require TLS on port 25 (RFC 3207 section 4)")

    def account(self, *, is_served: bool) -> None:
        """Started as root we need accounts to run as; otherwise, and on loopback's high ports, we don't."""
        config = self.config
        names = ["user"]
        if is_served and (config.deliver.queue or any(one.queue for one in config.accept)):
            names.append("queue_user")
        if not self.host.is_root():
            return
        exposed = [path for path, host, port in self.endpoints() if 0 < port < 1024 or not is_loopback(host)]
        if not exposed:
            return
        place = self.tree.origin(exposed[0]) or "listen"
        for name in names:
            user = getattr(config, name)
            if self.is_sound(name) and not self.host.has_account(user):
                self.fault(
                    (name,),
                    f"there is no account {user!r}, which {place} needs; make it with: "
                    f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {user}",
                )

    def certificates(self) -> None:
        self.certificate(("tls",), self.config.tls)
        self.authorities(("tls",), self.config.tls, None)
        for index, listen in enumerate(self.config.listen):
            if listen.tls_table is not None:
                self.certificate(("listen", index, "tls"), listen.tls_table)
                self.authorities(("listen", index, "tls"), listen.tls_table, self.config.tls)
            tls = listen.tls_table or self.config.tls
            if listen.tls != "off" and not tls.certificate and not self.is_trial and self.is_sound("tls"):
                self.warn(
                    ("listen", index),
                    "no certificate is configured, so a self-made one is used",
                )
        self.client_certificates()

    def certificate(self, path: Path, tls: Tls) -> None:
        pairs = [(path, tls.certificate, tls.key)]
        # A listener's own table shows the global names where it has none itself.
        if path == ("tls",) or tls.names != self.config.tls.names:
            pairs += [((*path, "names", name.name), name.certificate, name.key) for name in tls.names]
        for place, certificate, key in pairs:
            if not self.is_sound(*place, "certificate") or not self.is_sound(*place, "key"):
                continue
            if key and not certificate:
                self.fault((*place, "key"), NO_CERTIFICATE)
            elif certificate and (place[0] == "tls" or certificate != self.config.tls.certificate):
                self.certificate_file((*place, "certificate"), certificate)
                self.key_file((*place, "key" if key else "certificate"), key or certificate)

    def authorities(self, path: Path, tls: Tls, overall: Tls | None) -> None:
        """What a table says of client certificates and ciphers; what it has from the global one was looked at."""
        for name, what in (("client_ca", "CERTIFICATE"), ("client_crl", "X509 CRL")):
            file = getattr(tls, name)
            if file and (overall is None or file != getattr(overall, name)) and self.is_sound(*path, name):
                self.certificate_file((*path, name), file, what)
        if tls.client_crl and not tls.client_ca and self.is_sound(*path, "client_ca"):
            self.fault((*path, "client_crl"), "is given without its client_ca")
        if tls.ciphers and (overall is None or tls.ciphers != overall.ciphers):
            warning = choose(tls.ciphers).warning(tls.ciphers)
            if warning:
                self.warn((*path, "ciphers"), warning)

    def client_certificates(self) -> None:
        """relay.certificates and client_ca need each other."""
        config = self.config
        asking = [
            listen
            for listen in config.listen
            if listen.tls != "off" and (listen.tls_table or config.tls).client_ca
        ]
        if config.relay.certificates and not asking and self.is_sound("tls"):
            self.warn(
                ("relay", "certificates"), "no listener's tls has a client_ca, so no client is asked for one"
            )
        if asking and not config.relay.certificates and self.is_sound("relay", "certificates"):
            place: Path = ("tls", "client_ca")
            if not config.tls.client_ca:
                place = ("listen", config.listen.index(asking[0]), "tls", "client_ca")
            self.warn(place, "there are no relay.certificates, so no client is asked for one")

    def certificate_file(self, path: Path, file: str, what: str = "CERTIFICATE") -> None:
        self.files[file] = None
        try:
            text = self.host.read(file)
        except OSError as error:
            self.fault(path, f"{file}: {error.strerror}")
            return
        if f"-----BEGIN {what}-----".encode() not in text:
            self.fault(path, f"{file}: no PEM {_PEM_WORDS[what]} in it")

    def key_file(self, path: Path, file: str) -> None:
        self.files[file] = None
        try:
            bits, owner = self.host.mode(file)
            text = self.host.read(file)
        except OSError as error:
            if path[-1] == "key":  # else it is the certificate's file, which has its fault
                self.fault(path, f"{file}: {error.strerror}")
            return
        clause = key_mode_fault(file, bits, owner)
        if clause:
            self.fault(path, clause)
        if b"PRIVATE KEY-----" not in text:
            self.fault(path, f"{file}: no PEM key in it")

    def accepted(self) -> None:
        """Each accepted domain once, and with a place for its mail."""
        seen: dict[str, int] = {}
        for index, accept in enumerate(self.config.accept):
            place = ("accept", index)
            is_homeless = (
                not accept.deliver and self.config.deliver.default == "refuse" and not self.config.route
            )
            if is_homeless and self.is_sound(*place, "deliver") and self.is_sound("deliver", "default"):
                self.fault(
                    place, "has no deliver, and deliver.default is refuse: its mail has no place to go"
                )
            for number, domain in enumerate(accept.domain):
                first = seen.setdefault(domain.lower(), index)
                if first != index:
                    self.warn(
                        (*place, "domain", number), f"{domain} stands in an earlier [[accept]], which wins"
                    )
            kind = self.dest(accept.deliver or self.config.deliver.default).kind
            kinds = {kind}
            if not accept.deliver:
                kinds |= {self.dest(route.deliver).kind for route in self.config.route if route.deliver}
            if accept.recipients == "ask" and kinds.isdisjoint(NEXT_HOPS):
                self.fault(
                    (*place, "recipients"),
                    f"ask needs an smtp or lmtp next hop that can be asked, not {kind}",
                )
            is_passed = accept.pass_client != NOBODY
            if is_passed and kinds.isdisjoint(NEXT_HOPS):
                self.fault(
                    (*place, "pass_client"),
                    f"{accept.pass_client} needs an smtp or lmtp next hop, not {kind}",
                )

    def dest(self, text: str) -> Dest:
        try:
            return parse_dest(text)
        except ValueError:  # reported by the reader
            return Dest("refuse")

    def destinations(self) -> None:
        """No next hop may be ourselves: mail would go round until its hop count ends it."""
        ours = {(host, port) for _, host, port in self.endpoints() if port}
        everywhere = {port for host, port in ours if host in ("0.0.0.0", "::")}  # noqa: S104
        looped = {port for host, port in ours if is_loopback(host)}
        places: list[tuple[Path, str]] = [(("deliver", "default"), self.config.deliver.default)]
        places += [
            (("accept", index, "deliver"), accept.deliver)
            for index, accept in enumerate(self.config.accept)
            if accept.deliver
        ]
        places += [
            (("route", index, "deliver"), route.deliver)
            for index, route in enumerate(self.config.route)
            if route.deliver
        ]
        for place, text in places:
            dest = self.dest(text)
            if dest.kind == "qmail-queue" and dest.path:
                self.program(place, dest.path)
            elif dest.kind == "pipe":
                import shlex

                self.program(place, shlex.split(dest.path)[0])
            if not dest.host:
                continue
            # Another address of 127.0.0.0/8 is another server's; of the name localhost either could be meant.
            is_named = not is_ipv4(dest.host) and not is_ipv6(dest.host)
            is_here = is_loopback(dest.host) and dest.port in (
                everywhere | looped if is_named else everywhere
            )
            if is_here or (dest.host, dest.port) in ours:
                self.fault(place, f"{text} is this server itself")
            if dest.kind == "lmtp" and dest.port == 25:
                self.warn(place, f"{text}: LMTP is not spoken on port 25 (RFC 2033 section 5)")

    def program(self, place: Path, path: str) -> None:
        """A program that can't be run would be a 451 for every message."""
        if not path.startswith("/"):
            self.fault(place, f"path {path!r} must begin with /")
            return
        try:
            bits, _ = self.host.mode(path)
        except OSError as error:
            self.fault(place, f"{path}: {error.strerror}")
            return
        if not bits & 0o111:
            self.fault(place, f"{path}: is no program that can be run")

    def queue(self) -> None:
        """Waiting that ends, and a warning that comes before the end."""
        queue = self.config.queue
        if queue.retry_min_s > queue.retry_max_s and self.is_sound("queue"):
            path = "retry_min_s" if self.is_given("queue", "retry_min_s") else "retry_max_s"
            self.fault(
                ("queue", path),
                f"retry_min_s ({queue.retry_min_s:g}) is more than retry_max_s ({queue.retry_max_s:g})",
            )
        if queue.lifetime_h and queue.delay_warning_h >= queue.lifetime_h and self.is_sound("queue"):
            self.warn(
                ("queue", "delay_warning_h"),
                f"nobody is warned: mail is in the queue for {queue.lifetime_h:g} h at most (lifetime_h)",
            )

    def sources(self) -> None:
        """Each source once, with an address."""
        seen: dict[str, int] = {}
        for index, source in enumerate(self.config.source):
            place = ("source", index)
            if seen.setdefault(source.name, index) != index and self.is_sound(*place, "name"):
                self.fault((*place, "name"), f"{source.name!r} is another source's name")
            if not source.ipv4 and not source.ipv6 and self.is_sound(*place):
                self.fault(place, "has neither ipv4 nor ipv6")

    def routes(self) -> None:
        """Routes name listeners and sources that are there, and lead somewhere."""
        config = self.config
        listeners = {listen.name for listen in config.listen}
        sources = {source.name for source in config.source}
        for index, route in enumerate(config.route):
            place = ("route", index)
            if not route.deliver and config.deliver.default == "refuse" and self.is_sound(*place, "deliver"):
                self.fault(
                    place, "has no deliver, and deliver.default is refuse: its mail has no place to go"
                )
            for number, name in enumerate(route.listener):
                if name not in listeners:
                    self.fault((*place, "listener", number), f"there is no listener {name!r}")
            for name, _ in route.sources:
                if name not in sources:
                    self.fault((*place, "sources", name), f"there is no [[source]] {name!r}")
            kind = self.dest(route.deliver or config.deliver.default).kind
            goes_out = kind in ("mx", "smtp", "lmtp")
            if route.sources and not goes_out and self.is_sound(*place, "deliver"):
                self.fault((*place, "sources"), f"there is no address to choose for {kind}")
            if route.tls != "opportunistic" and not goes_out and self.is_sound(*place, "deliver"):
                self.fault((*place, "tls"), f"there is no TLS with {kind}")
            if route.ca and route.tls != "verified":
                self.fault((*place, "ca"), 'is asked only where tls = "verified"')
            elif route.ca and self.is_sound(*place, "ca"):
                self.certificate_file((*place, "ca"), route.ca)
            is_last = not (route.sender or route.destination or route.listener)
            if is_last and index + 1 < len(config.route):
                self.warn(place, "fits all mail, so no route behind it is ever asked")
        self.client_certificate()
        self.direct()

    def users(self) -> None:
        """Who delivers as another account can: it is there, isn't root, and we are root, who may become it."""
        config = self.config
        deliver = config.deliver
        places: list[tuple[Path, str, str, bool]] = [
            (("deliver",), deliver.user, deliver.default, deliver.queue)
        ]
        places += [
            (("accept", index), one.user, one.deliver, deliver.queue if one.queue is None else one.queue)
            for index, one in enumerate(config.accept)
        ]
        # Mail for an [[accept]] without a place of its own goes by the routes too.
        is_routed = deliver.queue and all(one.queue is not False or one.deliver for one in config.accept)
        places += [
            (("route", index), one.user, one.deliver or deliver.default, is_routed)
            for index, one in enumerate(config.route)
        ]
        for place, user, text, is_queued in places:
            key = (*place, "user")
            if not user or not self.is_sound(*place):
                continue
            clause = self.user_fault(user, text, is_queued)
            if clause:
                self.fault(key, clause)

    def user_fault(self, user: str, deliver: str, is_queued: bool) -> str:
        """What is wrong with delivering to this DEST as this account; "" when nothing is."""
        kind = self.dest(deliver).kind if deliver else ""
        if kind not in OWNED:
            return f"is for a deliver of its own, maildir: or pipe:, not {kind or 'what the routes say'}"
        if not is_queued:
            return "needs the queue (queue = true): before the 250 nobody becomes another account"
        if not self.host.is_root():
            return f"to become {user!r} the server must be started as root"
        uid = self.host.account(user)
        if uid is None:
            return f"there is no account {user!r}"
        return f"{user!r} is root: mail is never delivered as root" if uid == 0 else ""

    def client_certificate(self) -> None:
        remote = self.config.remote
        if remote.key and not remote.certificate:
            self.fault(("remote", "key"), NO_CERTIFICATE)
        elif remote.certificate and self.is_sound("remote"):
            self.certificate_file(("remote", "certificate"), remote.certificate)
            which = "key" if remote.key else "certificate"
            self.key_file(("remote", which), remote.key or remote.certificate)
        if remote.pause_max_s < remote.pause_s:
            self.fault(("remote", "pause_max_s"), "must not be less than remote.pause_s")

    def direct(self) -> None:
        """What only the queue can do: to the world, from an address of our choice, and with TLS that must hold."""
        config = self.config
        reason = "mx needs the queue (queue = true): before the 250 mail goes to one next hop"
        is_direct = not config.deliver.queue
        if is_direct and config.deliver.default == "mx":
            self.fault(("deliver", "default"), reason)
        for index, accept in enumerate(config.accept):
            is_queued = config.deliver.queue if accept.queue is None else accept.queue
            if accept.deliver == "mx" and not is_queued:
                self.fault(("accept", index, "deliver"), reason)
            is_direct = is_direct or not (is_queued or accept.deliver)
        if not is_direct:
            return
        for index, route in enumerate(config.route):
            place = ("route", index)
            if route.deliver == "mx":
                self.fault((*place, "deliver"), reason)
            elif route.sources:
                self.fault((*place, "sources"), "need the queue (queue = true)")
            elif route.tls in ("required", "verified"):
                self.fault((*place, "tls"), f"{route.tls} needs the queue (queue = true)")

    def log(self) -> None:
        directory, slash, _ = self.config.log.to.rpartition("/")
        if slash and self.is_sound("log", "to") and not self.host.exists(directory or "/"):
            self.fault(("log", "to"), f"there is no directory {directory}")
        if self.config.log.to == "syslog" and not self.host.exists(SYSLOG_SOCKET):
            self.warn(("log", "to"), f"there is no {SYSLOG_SOCKET} now: until there is, lines are lost")

    def metrics(self) -> None:
        listen = self.config.metrics.listen
        if not listen or not self.is_sound("metrics", "listen"):
            return
        path = ("metrics", "listen")
        if listen.startswith("unix:"):
            directory = listen.removeprefix("unix:").rpartition("/")[0]
            if not self.host.exists(directory or "/"):
                self.fault(path, f"there is no directory {directory}")
            return
        host, port = parse_endpoint(listen)
        if port and any((host, port) == (other, number) for _, other, number in self.endpoints()):
            self.fault(path, "is a listener's address")
        if not is_loopback(host):
            self.warn(path, "is not on loopback: whoever reaches it may read how much mail there is")

    def postmaster(self, table: AcceptTable) -> None:
        """<postmaster> must be accepted (RFC 5321 section 4.5.1), so its domain must go somewhere."""
        config = self.config
        domain = config.postmaster.rpartition("@")[2]
        if not config.accept or not self.is_sound("postmaster"):
            return
        if table.find(parse_host_name(domain).encode()) is not None:
            return
        places = {
            config.deliver.default,
            *(route.deliver or config.deliver.default for route in config.route),
        }
        if places == {"refuse"}:
            self.warn(
                ("postmaster",),
                f"no [[accept]] takes mail for {domain}, so mail to <postmaster> without a domain is refused",
            )
        elif places == {"mx"} and domain.lower() == config.hostname.lower():
            self.warn(
                ("postmaster",),
                f"no [[accept]] takes mail for {domain}, so double bounces and answers to reports can't be delivered",
            )

    def policies(self) -> Iterator[tuple[Path, Policy, list[Listen]]]:
        """Each policy table with its place, and the listeners that it is for."""
        plain = [listen for listen in self.config.listen if listen.policy is None]
        yield ("policy",), self.config.policy, plain
        for index, listen in enumerate(self.config.listen):
            if listen.policy is not None:
                yield ("listen", index, "policy"), listen.policy, [listen]

    def senders(self) -> None:
        """What refuses senders that a server should not refuse, or can't be fulfilled."""
        for place, policy, listeners in self.policies():
            # A listener's own table shows the global values where it has none itself.
            if NOBOUNCE in policy.denymail and self.is_given(*place, "denymail"):
                self.warn(
                    (*place, "denymail"),
                    "NOBOUNCE refuses every bounce and receipt, which RFC 5321 sections 4.5.5 and 6.1 want taken",
                )
            if SPAM in policy.denymail and self.is_given(*place, "denymail"):
                self.warn((*place, "denymail"), "SPAM refuses all mail")
            is_clear = [listen.name for listen in listeners if listen.tls == "off"]
            if policy.require_tls and is_clear:
                self.warn(
                    (*place, "require_tls", 0),
                    f"{', '.join(is_clear)} offers no TLS, so mail of these senders can't come in there",
                )

    def p0f(self) -> None:
        for place, policy, _ in self.policies():
            key = (*place, "p0f")
            rule = policy.p0f
            if not rule.socket and (rule.match or rule.header):
                what = "match" if rule.match else "header"
                if self.is_sound(*key) and (rule.match or self.is_given(*key, "header")):
                    self.warn((*key, what), "there is no socket, so p0f is not asked")
            if rule.socket and self.config.workers > _P0F_CLIENTS:
                self.warn(
                    (*key, "socket"),
                    f"p0f takes {_P0F_CLIENTS} clients unless started with -S, and there are more workers",
                )
            if rule.timeout_s > self.config.dns.timeout_s and self.is_given(*key, "timeout_s"):
                self.warn((*key, "timeout_s"), "all questions of a phase end with dns.timeout_s")

    def tarpit(self) -> None:
        """A message that is slower than it may take can never be delivered."""
        for place, policy, listeners in self.policies():
            rule = policy.tarpit
            if not rule.after_recipients or rule.mode == "off":
                continue
            for listen in listeners:
                limits = listen.limits or self.config.limits
                slow = max(0, limits.recipients - rule.after_recipients + 1)
                longest_s = sum(
                    min(rule.delay_s + rule.step_s * beyond, DELAY_MOST_S)
                    for beyond in range(min(slow, 100_000))
                )
                if longest_s > min(limits.transaction_s, limits.session_s):
                    self.warn(
                        (*place, "tarpit", "after_recipients"),
                        f"a message with {limits.recipients} recipients (limits.recipients) is held back for "
                        f"{longest_s:.0f} s, longer than limits.transaction_s or session_s: it can't get through",
                    )
                    break

    def signatures(self) -> None:
        for place, policy, _ in self.policies():
            key = (*place, "signatures", "decoded")
            if policy.signatures.file or not policy.signatures.decoded:
                continue
            if self.is_given(*key) and self.is_sound(*place, "signatures"):
                self.warn(key, "there is no file, so nothing is compared")

    def relayed(self) -> None:
        config = self.config
        if self.is_trial:
            return
        if (
            self.is_given("relay", "networks")
            and config.relay.networks
            and config.deliver.default == "refuse"
        ):
            self.warn(("relay", "networks"), "may send anywhere, but deliver.default is refuse")
        if not config.accept and self.is_sound("accept") and config.deliver.default == "refuse":
            self.warnings.append("accept: no domain is accepted and nothing is relayed: all mail is refused")
        if any(ANY_DOMAIN in accept.domain for accept in config.accept):
            return
        for index, text in enumerate(config.relay.networks):
            if text.endswith("/0"):
                self.warn(("relay", "networks", index), f"{text} makes this server an open relay")
