"""A qmail home: what its control directory says, as keys of our configuration, each with file and line.

What is laid under the TOML file and the flags is here (read_home); reading rules are qmail's (docs/qmail.md):

    one line     the first one, without blanks at its end
    an integer   leading digits; without any the file counts for nothing
    a list       a line an entry, without blanks at its end; empty ones and those that begin with "#" are none
    a map        key:value; a line without ":" is none

A file that isn't there says nothing; one that can't be read is a fault.  A CR at the end of a line is left
out, and a warning says so: qmail keeps it, and then nothing fits.

Lists that grow (rcpthosts, badmailfrom ...) are named, not copied: lists.py reads them, so that a change is
taken up in place.  Any other change of the directory is a reload.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterator

from fastsmtp.config.environment import number
from fastsmtp.config.host import Host
from fastsmtp.config.lines import Path
from fastsmtp.config.names import parse_accept_domain
from fastsmtp.config.rules import DELAY_MOST_S
from fastsmtp.config.settings import AcceptTable
from fastsmtp.config.tree import Tree
from fastsmtp.records import dataclass, field
from fastsmtp.typed import Any, Final

USER: Final = "qmaild"
RULES: Final = "/etc/tcp.smtp.cdb"
"""Where the run scripts that everybody copied keep tcpserver's rules."""

ACTIONS: Final = ("reject", "defer", "tag")

WEAK: Final = {
    "rsa512.pem": "an export-grade RSA key, which anybody can factor (FREAK)",
    "rsa2048.pem": "an ephemeral RSA key, which no TLS of today uses",
    "dh512.pem": "DH parameters that anybody can break (Logjam)",
    "dh1024.pem": "DH parameters that a state can break (Logjam)",
    "dh2048.pem": "DH parameters; key exchange is ECDHE here",
}
OTHERS: Final = {
    "qmail-remote": (
        "bindroutes", "clientcert.pem", "domainbindings", "helohost", "notlshosts", "outgoingip", "outgoingip6",
        "outgoingips", "smtproutes", "timeoutconnect", "timeoutremote", "tlsclientciphers", "tlshosts", "tlshostsdir",
    ),
    "qmail-send": (
        "bouncefrom", "bouncehost", "concurrencylocal", "concurrencyremote", "doublebouncehost", "doublebounceto",
        "envnoathost", "percenthack", "queuelifetime",
    ),
    "qmail-inject": ("defaultdomain", "defaulthost", "idhost", "plusdomain"),
    "other programs": ("concurrencypop3", "qmqpservers", "defaultdelivery", "logcount", "logsize"),
}  # fmt: skip
"""Files of other programs than qmail-smtpd: not ours to read, and nothing is lost by that."""

NAMES_SHOWN: Final = 10
_CRLF: Final = b"\r\n"
_CR: Final = "which is left out here; qmail keeps it"


@dataclass(slots=True)
class Home:
    """What a qmail home comes to.

    directory    of the control files
    facts        (place in the configuration, value, "FILE:LINE"), in the order in which they are laid
    files        control files that are read or looked for: a change of one is a reload
    lists        those of them that lists.py reads: a change of their contents needs none
    ours         names of locals and virtualdomains, with their places: rcpthosts should have them
    unsupported  (file, why): found, and not acted upon
    """

    directory: str
    facts: list[tuple[Path, Any, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: dict[str, None] = field(default_factory=dict)
    lists: dict[str, None] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    unsupported: list[tuple[str, str]] = field(default_factory=list)

    def lay_under(self, tree: Tree) -> None:
        """Put the facts where tree says nothing; an [[accept]] stands behind those of tree."""
        has_certificate = _has(tree.values, ("tls", "certificate"))
        # An array of tables is one value: who writes one in the file has said all of it.
        arrays = {path[:2] for path, _, _ in self.facts if len(path) == 3 and _has(tree.values, path[:2])}
        for path, value, origin in self.facts:
            if path[0] == "accept":
                tree.set(("accept", tree.length("accept")), value, origin)
            elif path[0] == "listen":
                if not has_certificate:
                    self._lay_under_listeners(tree, path[1:], value, origin)
            elif not (_has(tree.values, path) or (isinstance(path[-1], int) and path[:2] in arrays)):
                tree.set(path, value, origin)

    def _lay_under_listeners(self, tree: Tree, path: Path, value: Any, origin: str) -> None:
        for index in range(max(tree.length("listen"), 1)):
            if not _has(tree.values, ("listen", index, *path)):
                tree.set(("listen", index, *path), value, origin)

    def unheard(self, table: AcceptTable) -> list[str]:
        """A warning for names that are ours by locals or virtualdomains, and that rcpthosts lacks."""
        lacking: dict[str, list[str]] = {}
        for name, place in self.ours.items():
            key = f"x{name}" if name.startswith(".") else name
            if table.find(key.encode()) is None:
                lacking.setdefault(place.rpartition(":")[0], []).append(name)
        return [
            f"{file}: {', '.join(names[:NAMES_SHOWN])}{' ...' if len(names) > NAMES_SHOWN else ''}: not in "
            "rcpthosts, so mail from outside is refused"
            for file, names in lacking.items()
        ]


def _has(values: Any, path: Path) -> bool:
    """True when there is a value at path, or something else than a table on the way to it."""
    for key in path:
        if isinstance(key, int):
            if not isinstance(values, list) or key >= len(values):
                return False
            values = values[key]
        elif not isinstance(values, dict):
            return True
        elif key not in values:
            return False
        else:
            values = values[key]
    return True


def read_home(path: str, host: Host) -> Home:
    """What the home at path says; faults are in it, nothing is raised."""
    reader = _Reader(path, host)
    reader.read()
    return reader.home


class _Reader:
    def __init__(self, path: str, host: Host) -> None:
        self.path = path
        self.host = host
        self.home = Home(os.path.join(path, "control"))

    # --- files ---------------------------------------------------------------------------------------

    def place(self, name: str) -> str:
        return os.path.join(self.home.directory, name)

    def contents(self, name: str) -> bytes | None:
        """None when it isn't there; what can't be read is a fault."""
        path = self.place(name)
        self.home.files[path] = None
        try:
            return self.host.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.home.faults.append(f"{path}: {error.strerror}")
            return None

    def lines(self, name: str) -> Iterator[tuple[str, str]]:
        """(entry, place) of a list."""
        data = self.contents(name)
        for at, raw in enumerate((data or b"").split(b"\n"), 1):
            place = f"{self.place(name)}:{at}"
            text = self.text(raw, place)
            if text and not text.startswith("#"):
                yield text, place

    def first_line(self, name: str) -> tuple[str, str] | None:
        """(text, place) of a one-line file; None when it isn't there, or its first line is empty."""
        data = self.contents(name)
        if data is None:
            return None
        place = f"{self.place(name)}:1"
        text = self.text(data.partition(b"\n")[0], place)
        if not text:
            self.warn(place, "is empty, and counts for nothing")
            return None
        return text, place

    def integer(self, name: str) -> tuple[int, str] | None:
        found = self.first_line(name)
        if found is None:
            return None
        text, place = found
        if not text[0].isascii() or not text[0].isdigit():
            self.warn(place, f"{text[:40]!r} is no number, and counts for nothing")
            return None
        return number(text), place

    def text(self, raw: bytes, place: str) -> str:
        """A line without blanks at its end, and without the CR that an editor of another system left there."""
        line = raw.rstrip(b" \t")
        if line.endswith(b"\r"):
            line = line.rstrip(b" \t\r")
            self.warn(place, f"ends with a CR, {_CR}")
        if b"\0" in line:
            self.home.faults.append(f"{place}: has a NUL")
            return ""
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.home.faults.append(f"{place}: not UTF-8")
            return ""

    # --- facts ---------------------------------------------------------------------------------------

    def fact(self, key: str, value: Any, origin: str) -> None:
        self.home.facts.append((tuple(key.split(".")), value, origin))

    def warn(self, place: str, clause: str) -> None:
        self.home.warnings.append(f"{place}: {clause}")

    def read(self) -> None:
        try:
            names = self.host.names(self.home.directory)
        except OSError as error:
            self.home.faults.append(f"{self.home.directory}: {error.strerror}: {self.path} is no qmail home")
            return
        self.defaults()
        self.identity()
        self.recipients()
        self.limits()
        self.checks()
        self.tls()
        for name in WEAK:
            if name in names:
                self.warn(self.place(name), f"{WEAK[name]}: ignored")
        read = {os.path.basename(path) for path in self.home.files}
        for name in names:
            if name not in read and name not in WEAK:
                self.home.unsupported.append((self.place(name), _owner(name)))

    def defaults(self) -> None:
        """What a qmail home means by itself: qmail-queue takes the mail, and no check runs that nobody asked for."""
        origin = f"{self.path} (a qmail home)"
        for key, value in (
            ("user", USER),
            ("compatible", True),
            ("deliver.default", f"qmail-queue:{os.path.join(self.path, 'bin/qmail-queue')}"),
            ("deliver.queue", False),
            ("relay.networks", []),
            ("policy.helo.mode", "off"),
            ("policy.reverse_dns.mode", "off"),
        ):
            self.fact(key, value, origin)
        # Under tcpserver they have had their say: what the client's rule said is in the environment.
        if "TCPREMOTEIP" not in self.host.environ and self.host.exists(RULES):
            self.fact("tcprules", RULES, f"{RULES} is there")

    def identity(self) -> None:
        me = self.first_line("me")
        greeting = self.first_line("smtpgreeting")
        if me is not None:
            self.fact("hostname", *me)
        else:
            self.warn(self.place("me"), "is not there, so the system's name is ours")
        if greeting is not None:
            self.fact("greeting", *greeting)
        literal = self.first_line("localiphost") or me
        if literal is not None:
            self.fact("localiphost", *literal)

    def recipients(self) -> None:
        """rcpthosts and its big brother; locals and virtualdomains are other programs', and only compared."""
        hosts = self.listed("rcpthosts")
        if hosts is None:
            # qmail takes mail for the whole world then.
            self.warn(
                self.place("rcpthosts"),
                "is not there, so no domain is ours and only RELAYCLIENT may send; qmail-smtpd would be an open relay",
            )
        else:
            more = self.more_hosts()
            paths = [hosts] if more is None else [hosts, more]
            self.home.facts.append((("accept",), {"domain": paths}, hosts))
        for text, place in self.lines("locals"):
            self.ours(text, place)
        for text, place in self.lines("virtualdomains"):
            name, colon, prepended = text.partition(":")
            # A line without ":" is none; an address is no domain; without a value the name is excepted.
            if colon and prepended and "@" not in name:
                self.ours(name, place)

    def ours(self, text: str, place: str) -> None:
        try:
            name = parse_accept_domain(text)
        except ValueError:
            return
        self.home.ours.setdefault(name, place)

    def more_hosts(self) -> str | None:
        """qmail-smtpd reads morercpthosts.cdb; without it we take the text that it is made from."""
        compiled = self.contents("morercpthosts.cdb")
        if compiled is not None:
            path = self.place("morercpthosts.cdb")
            self.home.files[self.place("morercpthosts")] = None
            self.home.lists[path] = None
            return path
        path = self.listed("morercpthosts") or ""
        if path:
            self.warn(
                path, "is read as it is: there is no morercpthosts.cdb, which is all that qmail-smtpd reads"
            )
        return path or None

    def listed(self, name: str) -> str | None:
        """The path of a list that lists.py reads; None when it isn't there."""
        data = self.contents(name)
        if data is None:
            return None
        path = self.place(name)
        self.home.lists[path] = None
        if _CRLF in data:
            at = data.count(b"\n", 0, data.index(_CRLF)) + 1
            self.warn(f"{path}:{at}", f"the first of {data.count(_CRLF)} CRs, {_CR}")
        return path

    def limits(self) -> None:
        for name, key, convert in _LIMITS:
            found = self.integer(name)
            if found is not None:
                self.fact(key, convert(found[0]), found[1])

    def checks(self) -> None:
        for name, key in (("badmailfrom", "policy.badmailfrom"), ("badrcptto", "policy.badrcptto")):
            path = self.listed(name)
            if path is not None:
                self.fact(key, [path], path)
        mfcheck = self.integer("mfcheck")
        self.fact(
            "policy.mfcheck.mode",
            "enforce" if mfcheck is not None and mfcheck[0] else "off",
            f"{self.path} (a qmail home)" if mfcheck is None else mfcheck[1],
        )
        count = self.integer("tarpitcount")
        if count is not None:
            self.fact("policy.tarpit.after_recipients", *count)
        # tarpit.patch counts accepted recipients, and no others.
        self.fact("policy.tarpit.count_rejected", value=False, origin=f"{self.path} (a qmail home)")
        delay = self.integer("tarpitdelay")
        if delay is not None:
            self.fact("policy.tarpit.delay_s", min(float(delay[0]), DELAY_MOST_S), delay[1])
        path = self.listed("signatures")
        if path is not None:
            self.fact("policy.signatures.file", path, path)
        socket = self.first_line("p0f")
        if socket is not None:
            self.fact("policy.p0f.socket", *socket)
        self.zones("rblzones", "dnsbl")
        self.zones("rhsbl", "rhsbl")

    def zones(self, name: str, key: str) -> None:
        """zone [answers] [reject|defer|tag]"""
        for index, (text, place) in enumerate(self.lines(name)):
            zone, *words = text.split()
            table: dict[str, Any] = {"zone": zone}
            table["action"] = words.pop() if words and words[-1] in ACTIONS else ACTIONS[0]
            answers = [answer for word in words for answer in word.split(",") if answer]
            if answers:
                table["answers"] = answers
            if key == "rhsbl":
                table["of"] = ["mail"]
            self.home.facts.append((("policy", key, index), table, place))

    def tls(self) -> None:
        names = ("servercert.pem", "cert.pem")
        found = next((name for name in names if self.contents(name) is not None), None)
        if found is None:
            # As tls.patch from 2005 on: no certificate, no STARTTLS.
            self.fact("listen.tls", "off", f"{self.place(names[0])} is not there")
        else:
            self.fact("tls.certificate", self.place(found), self.place(found))
        clients = self.listed("tlsclients")
        if clients is not None:
            self.fact("relay.certificates", [clients], clients)
        has_authority = self.contents("clientca.pem") is not None
        if has_authority:
            self.fact("tls.client_ca", self.place("clientca.pem"), self.place("clientca.pem"))
        if self.contents("clientcrl.pem") is not None and has_authority:
            self.fact("tls.client_crl", self.place("clientcrl.pem"), self.place("clientcrl.pem"))
        ciphers = list(self.lines("tlsserverciphers"))
        variable = self.host.environ.get("TLSCIPHERS")
        if variable:
            self.fact("tls.ciphers", variable, "$TLSCIPHERS")
        elif ciphers:
            # Several lines are one string, as tls.patch joins them.
            self.fact("tls.ciphers", ":".join(text for text, _ in ciphers), ciphers[0][1])


def _owner(name: str) -> str:
    for program, names in OTHERS.items():
        if name in names:
            return f"read by {program}, not by qmail-smtpd"
    return "not known here"


_LIMITS: Final[tuple[tuple[str, str, Callable[[int], Any]], ...]] = (
    ("databytes", "limits.message_bytes", int),
    ("timeoutsmtpd", "limits.command_s", lambda seconds: float(max(seconds, 1))),
    ("concurrencyincoming", "limits.connections", lambda most: max(most, 1)),
)
