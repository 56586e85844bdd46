"""What a qmail home says to qmail-remote: routes, time-outs, the address to send from, TLS for each host.

    home = RemoteHome(Host(), "/var/qmail", os.environ)
    home.relay_for(host), home.sender_address(sender, host, relay), home.tls_for(name)

Files are read when they are asked for and not before, since qmail-remote lives for one message.  An absent
one says nothing.  One that can't be read, or whose value can't be used, raises Unusable: qmail-remote
answers with a temporary failure, Z (#4.3.0), before it has asked the DNS anything.

Who gives the address, first hit wins (docs/outgoing-address.md):

    smtproutes.d/HOST   outgoingip=, outgoingip6=   Qsmtp
    $OUTGOINGIP         addresses                   indimail
    outgoingip.HOST     addresses, one a line       indimail
    bindroutes          destination address: ours   Chuck Foster's local-bind; known after the DNS only
    domainbindings      sender or its domain: ours  indimail; EHLO gets the sender's domain
    senderip            sender's domain: ours       John Simpson
    outgoingips         sender's domain: ours       Brealey-Guzman; EHLO gets the sender's domain
    outgoingip          ours; a second line, or outgoingip6, for IPv6

Rank 2: reads files through Host.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from fastsmtp.config.endpoint import parse_host_port
from fastsmtp.config.host import Host
from fastsmtp.config.names import parse_domain_name

CONNECT_S: Final = 60
REMOTE_S: Final = 1200
PORT: Final = 25


class Unusable(Exception):
    """Something in the control directory can't be used; the text begins with the file and line."""


class Relay(NamedTuple):
    """Where smtproutes sends a host's mail; host "" when it only says from which address.

    origin   "FILE:LINE", for people
    local    the address of smtproutes.d, or None
    """

    host: str
    port: int
    origin: str
    local: Local | None = None


class Local(NamedTuple):
    """An address of ours for each family; "" is the system's choice.  helo "" is helohost."""

    ipv4: str = ""
    ipv6: str = ""
    helo: str = ""
    origin: str = ""

    def towards(self, address: str) -> str:
        """What is bound for a destination address; "" for the system's choice."""
        return self.ipv6 if ":" in address else self.ipv4


class TlsOf(NamedTuple):
    """What one host must have: mode as a route's tls, and the file of its signers."""

    mode: str
    ca: str = ""


class BoundRoutes:
    """bindroutes: by the destination's address."""

    __slots__ = ("_four", "_six", "file")

    def __init__(self, file: str, entries: Mapping[str, tuple[str, str]]) -> None:
        self.file = file
        self._four = {key: found for key, found in entries.items() if not key.startswith("[")}
        self._six: list[tuple[ipaddress.IPv6Network, tuple[str, str]]] = []
        for key, found in entries.items():
            if key.startswith("["):
                try:
                    network = ipaddress.IPv6Network(key[1:].partition("]")[0], strict=False)
                except ValueError:
                    raise Unusable(f"{found[1]}: {key} is neither an IPv6 address nor a network") from None
                self._six.append((network, found))
        self._six.sort(key=lambda entry: -entry[0].prefixlen)

    def towards(self, address: str) -> str | None:
        """What is bound for this address: "" for the system's choice, None where the file says nothing.

        Raises Unusable for a value that is no address: so mail to that destination is kept back, as some do
        on purpose.
        """
        found = self._found(address)
        if found is None:
            return None
        value, place = found
        local = parse_local([value], place)
        return local.towards(address)

    def _found(self, address: str) -> tuple[str, str] | None:
        if ":" in address:
            number = ipaddress.IPv6Address(address)
            for network, found in self._six:
                if number in network:
                    return found
            return None
        for key in prefixes(address):
            if key in self._four:
                return self._four[key]
        return None


class Choice(NamedTuple):
    """From which address one message goes, as far as that is known before the DNS.

    fixed    from what stands before bindroutes, or None
    routes   bindroutes, or None
    other    from what stands behind it; all of it empty: the system's choice
    """

    fixed: Local | None
    routes: BoundRoutes | None
    other: Local

    @property
    def helo(self) -> str:
        return self.fixed.helo if self.fixed is not None else self.other.helo

    def towards(self, address: str) -> str:
        """What is bound for a destination address; "" for the system's choice.  Raises Unusable."""
        if self.fixed is not None:
            return self.fixed.towards(address)
        if self.routes is not None:
            local = self.routes.towards(address)
            if local is not None:
                return local
        return self.other.towards(address)


class RemoteHome:
    """The control directory of a qmail home, as qmail-remote reads it.

    now   seconds since 1970: which of several addresses has its turn
    """

    def __init__(
        self,
        host: Host,
        home: str,
        environment: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.directory = f"{home}/control"
        self._host = host
        self._environment = environment or {}
        self._now = now

    # --- single values -----------------------------------------------------------------------------

    @property
    def helohost(self) -> str:
        """helohost, else me; Unusable without either, as there."""
        found = self._line("helohost") or self._line("me")
        if found is None:
            raise Unusable(f"{self.directory}/me: neither it nor helohost is there")
        return found[0]

    @property
    def connect_s(self) -> int:
        return self._seconds("timeoutconnect", CONNECT_S)

    @property
    def remote_s(self) -> int:
        return self._seconds("timeoutremote", REMOTE_S)

    @property
    def certificate(self) -> str:
        """clientcert.pem with its key, "" when it isn't there."""
        return self._there("clientcert.pem")

    @property
    def ciphers(self) -> str:
        """$TLSCIPHERS, else tlsclientciphers, its lines joined by ":"; "" for the default."""
        return self._environment.get("TLSCIPHERS", "") or ":".join(
            text for text, _ in self._lines("tlsclientciphers")
        )

    # --- routes ------------------------------------------------------------------------------------

    def relay_for(self, host: str) -> Relay | None:
        """What smtproutes.d, else smtproutes, says of a host; None: its MX."""
        host = host.lower()
        return self._route_file(host) or self._route_line(host)

    def _route_file(self, host: str) -> Relay | None:
        if not _is_plain(host):
            return None
        names = [host, *(f"*{suffix}" for suffix in suffixes(host)), "default"]
        for name in names:
            lines = list(self._lines(f"smtproutes.d/{name}"))
            if not lines:
                continue
            values: dict[str, tuple[str, str]] = {}
            for text, place in lines:
                key, equals, value = text.partition("=")
                if not equals or key not in ("relay", "port", "outgoingip", "outgoingip6") or key in values:
                    raise Unusable(
                        f"{place}: {text!r}: relay=, port=, outgoingip= or outgoingip6=, each once"
                    )
                values[key] = (value.strip(), place)
            return self._relay(values, lines[0][1])
        return None

    def _relay(self, values: Mapping[str, tuple[str, str]], origin: str) -> Relay:
        text, place = values.get("relay", ("", origin))
        port, port_place = values.get("port", (str(PORT), origin))
        if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
            raise Unusable(f"{port_place}: {port!r} is no port")
        local: Local | None = None
        texts = [values[key] for key in ("outgoingip", "outgoingip6") if key in values]
        if texts:
            local = parse_local([text for text, _ in texts], texts[0][1])
        host = _relay_of(text, int(port), place)[0] if text else ""
        return Relay(host, int(port), origin, local)

    def _route_line(self, host: str) -> Relay | None:
        entries = self._map("smtproutes")
        for key in (host, *suffixes(host), ""):
            if key in entries:
                value, place = entries[key]
                if not value:
                    return None
                return Relay(*_relay_of(value, PORT, place), place)
        return None

    # --- the address -------------------------------------------------------------------------------

    def sender_address(self, sender: str, host: str, relay: Relay | None) -> Choice:
        """From which address the sender's mail to a host goes.  Raises Unusable, before any DNS."""
        for fixed in self._fixed(host.lower(), relay):
            return Choice(fixed, None, Local())
        entries = self._map("bindroutes")
        routes = BoundRoutes(f"{self.directory}/bindroutes", entries) if entries else None
        for other in self._by_sender(sender):
            return Choice(None, routes, other)
        return Choice(None, routes, self._outgoingip())

    def _fixed(self, host: str, relay: Relay | None) -> Iterator[Local]:
        if relay is not None and relay.local is not None:
            yield relay.local
        texts = self._environment.get("OUTGOINGIP", "").replace(",", " ").split()
        if texts:
            yield self._in_turn(texts, "$OUTGOINGIP")
        if _is_plain(host):
            lines = list(self._lines(f"outgoingip.{host}"))
            if lines:
                yield self._in_turn([text for text, _ in lines], lines[0][1])

    def _by_sender(self, sender: str) -> Iterator[Local]:
        address = sender.lower()
        domain = address.rpartition("@")[2] if "@" in address else ""
        bindings = self._environment.get("DOMAINBINDINGS", "") or "domainbindings"
        by_domain = (*((domain, *suffixes(domain)) if domain else ()), "")
        for name, keys, sets_helo in (
            (bindings, (address, *by_domain) if domain else by_domain, True),
            ("senderip", (domain,) if domain else (), False),
            ("outgoingips", by_domain, True),
        ):
            entries = self._map(name)
            key = next((key for key in keys if key in entries), None)
            if key is None:
                continue
            value, place = entries[key]
            if not value:
                yield Local(origin=place)
                continue
            local = parse_local([value], place)
            # The null sender, or #@[], has no domain to say in EHLO: helohost stays.
            yield local._replace(helo=domain) if sets_helo and _is_domain(domain) else local

    def _outgoingip(self) -> Local:
        """The first line is IPv4's, as ever; a second one, or outgoingip6, is IPv6's."""
        texts = []
        place = ""
        data = self._read("outgoingip")
        if data is not None:
            place = f"{self.directory}/outgoingip:1"
            texts = [text for text in (_text(raw) for raw in data.split(b"\n")[:2]) if text]
            if not texts:
                raise Unusable(f"{place}: is empty")
        six = self._line("outgoingip6")
        if six is not None:
            texts.append(six[0])
            place = place or six[1]
        return parse_local(texts, place) if texts else Local()

    def _in_turn(self, texts: list[str], place: str) -> Local:
        """One of each family, by the clock."""
        locals_ = [parse_local([text], place) for text in texts]
        turn = int(self._now())
        four = [local.ipv4 for local in locals_ if local.ipv4]
        six = [local.ipv6 for local in locals_ if local.ipv6]
        return Local(four[turn % len(four)] if four else "", six[turn % len(six)] if six else "", "", place)

    # --- TLS ---------------------------------------------------------------------------------------

    def tls_for(self, name: str) -> TlsOf:
        """What a server must have, by its host name in the MX or route; "" or an address: no file says.

        tlshosts/NAME.pem makes verified TLS mandatory; else notlshosts/NAME, or tlshosts/exhaustivelist, leaves
        it out.
        """
        name = name.lower().rstrip(".")
        if not _is_plain(name) or name.replace(".", "").isdigit() or ":" in name:
            return TlsOf("opportunistic")
        ca = self._there(f"tlshosts/{name}.pem")
        if ca:
            return TlsOf("verified", ca)
        if self._there(f"notlshosts/{name}") or self._there("tlshosts/exhaustivelist"):
            return TlsOf("off")
        return TlsOf("opportunistic")

    # --- files -------------------------------------------------------------------------------------

    def _there(self, name: str) -> str:
        """The path of a file that is there, else ""; not to know is not the same as its absence."""
        path = f"{self.directory}/{name}"
        try:
            self._host.mode(path)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, ValueError) as error:
            raise Unusable(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        return path

    def _read(self, name: str) -> bytes | None:
        path = f"{self.directory}/{name}"
        try:
            return self._host.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise Unusable(f"{path}: {getattr(error, 'strerror', None) or error}") from None

    def _line(self, name: str) -> tuple[str, str] | None:
        data = self._read(name)
        text = _text((data or b"").partition(b"\n")[0])
        return (text, f"{self.directory}/{name}:1") if text else None

    def _seconds(self, name: str, default: int) -> int:
        found = self._line(name)
        if found is None:
            return default
        digits = found[0][: len(found[0]) - len(found[0].lstrip("0123456789"))]
        return max(int(digits[:9]), 1) if digits else default

    def _lines(self, name: str) -> Iterator[tuple[str, str]]:
        data = self._read(name)
        for at, raw in enumerate((data or b"").split(b"\n"), 1):
            text = _text(raw)
            if text and not text.startswith("#"):
                yield text, f"{self.directory}/{name}:{at}"

    def _map(self, name: str) -> dict[str, tuple[str, str]]:
        """key -> (value, place); lower-case keys, a line without a colon is none, the last of a key wins."""
        entries = {}
        for text, place in self._lines(name):
            end = text.find("]", 1) if text.startswith("[") else 0
            colon = text.find(":", max(end, 0))
            if colon != -1:
                entries[text[:colon].lower()] = (text[colon + 1 :].strip(), place)
        return entries


def parse_local(texts: list[str], place: str) -> Local:
    """Addresses of ours, at most one of a family; one text may have both, with a comma.  Raises Unusable."""
    found = {4: "", 6: ""}
    for text in [part.strip() for entry in texts for part in entry.split(",")]:
        plain = text.removeprefix("[").removesuffix("]")
        try:
            address = ipaddress.ip_address(plain)
        except ValueError:
            raise Unusable(f"{place}: {text!r} is no IP address") from None
        if found[address.version]:
            raise Unusable(f"{place}: two IPv{address.version} addresses")
        found[address.version] = address.compressed
    # The unspecified address is how the system's choice is said.
    four, six = found[4], found[6]
    return Local("" if four == "0.0.0.0" else four, "" if six == "::" else six, "", place)  # noqa: S104


def suffixes(host: str) -> Iterator[str]:
    """ ".example.org", ".org" of "mx.example.org"."""
    at = host.find(".", 1)
    while at != -1:
        yield host[at:]
        at = host.find(".", at + 1)


def prefixes(address: str) -> Iterator[str]:
    """ "1.2.3.4", "1.2.3.", "1.2.", "1.", ""."""
    yield address
    numbers = address.split(".")
    for count in range(len(numbers) - 1, -1, -1):
        yield "".join(f"{number}." for number in numbers[:count])


def _relay_of(text: str, port: int, place: str) -> tuple[str, int]:
    """(host, port) of "host", "host:port", "[2001:db8::1]" or "[2001:db8::1]:25"."""
    words = text.split(maxsplit=1)
    if len(words) > 1:
        raise Unusable(f"{place}: {words[0]!r}: a name and password behind it are not known here")
    try:
        return parse_host_port(text, default_port=port)
    except ValueError as error:
        raise Unusable(f"{place}: {error}") from None


def _is_domain(text: str) -> bool:
    try:
        return bool(parse_domain_name(text))
    except ValueError:
        return False


def _is_plain(name: str) -> bool:
    """Whether a host's name can be a file's."""
    return bool(name) and "/" not in name and "\0" not in name and not name.startswith(".")


def _text(raw: bytes) -> str:
    """A line without blanks, and without a CR, at its end."""
    return raw.rstrip(b" \t\r").decode("utf-8", "surrogateescape")
