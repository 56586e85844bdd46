"""tcpserver's rules: which clients are denied, and which variables a client's session gets.  Text and cdb.

    192.0.2.1:allow,RELAYCLIENT=""           an address, IPv4 or IPv6
    192.0.2.:deny                            what begins so; 2001:db8: as well
    192.0.2.37-53:allow  10.2-3.:allow       ranges
    192.0.2.0/24:deny    2001:db8::/32:deny  CIDR: not in ucspi-tcp, ours
    =mail.example.org:allow  =.example.org:allow  =:allow     by reverse name; "=" is whoever has one
    :allow,DENYMAIL="NOBOUNCE"               everybody else

The order of the look-up is tcpserver's, the first that fits wins: the address, its name, shorter and shorter
prefixes (those with CIDR among them by their length), shorter and shorter ends of the name, "=", and the empty
one.  Of two rules for the same thing the first one counts, as in a cdb.

Addresses are compared as numbers, so an IPv6 address fits however it is written.  A prefix with "::" in it is
compared with the compressed text, as the ucspi-tcp with IPv6 does.  Rules with "@" need ident, which
nobody asks any more: they never fit.

A line that tcprules would not take is a fault with file and line, and so is one with neither allow nor deny.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from fastsmtp import patterns
from fastsmtp.address import Address
from fastsmtp.config.cdb import is_cdb, read_cdb
from fastsmtp.records import dataclass
from fastsmtp.typed import Final

EXPANDED_MAX: Final = 65_536
"""Keys that the ranges of one line may come to: two octets' worth."""

WARNINGS_MAX: Final = 20

HARSH: Final = {
    "SPAM": "refuses all mail",
    "NOBOUNCE": "refuses every bounce and receipt, which RFC 5321 sections 4.5.5 and 6.1 want taken",
}
_ACTION: Final = patterns.compile(rb":(allow|deny)(?=,|$)")
_RANGED: Final = patterns.compile(r"[0-9.]*[0-9]-[0-9][0-9.-]*")
_DOTTED: Final = patterns.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){1,3}")
_GROUPED: Final = patterns.compile(r"(?:[0-9a-f]{1,4}:){1,7}")
_IPV4_BITS: Final = 96
_BITS: Final = 128


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for a client.

    place      "FILE:12", for logs; of a cdb the file alone
    is_denied  the connection is closed without a word
    variables  name -> value, in the rule's order
    """

    place: str
    is_denied: bool
    variables: Mapping[str, str]


class Rules:
    """A rules file, ready to be asked; a look-up costs a step a prefix length in use.

    warnings  rules that fit nobody, or are unsafe, with file and line; no fault, since tcpserver takes them too
    """

    __slots__ = ("_default", "_hosts", "_lengths", "_networks", "_texts", "is_by_name", "warnings")

    def __init__(self) -> None:
        self._networks: dict[int, dict[int, Rule]] = {}
        self._lengths: tuple[int, ...] = ()
        self._texts: dict[str, Rule] = {}
        self._hosts: dict[str, Rule] = {}
        self._default: Rule | None = None
        self.is_by_name = False
        self.warnings: list[str] = []

    def __len__(self) -> int:
        networks = sum(len(found) for found in self._networks.values())
        return networks + len(self._texts) + len(self._hosts) + (self._default is not None)

    def find(self, address: Address, name: str = "") -> Rule | None:
        """The rule of a client; name is its reverse name, "" when it has none.  None: no rule, so it is allowed."""
        number = int.from_bytes(address.packed)
        rule = self._exact(number)
        name = name.lower().removesuffix(".")
        if rule is None and name:
            rule = self._hosts.get(name)
        if rule is None and self._texts and not address.is_ipv4:
            rule = self._by_text(address.text)
        if rule is not None:
            return rule
        for length in self._lengths:
            if length < _IPV4_BITS and address.is_ipv4:
                break
            rule = self._networks[length].get(number >> (_BITS - length))
            if rule is not None:
                return rule
        if name and self._hosts:
            rule = self._by_name(name)
        return rule or self._default

    def needs_name(self, address: Address) -> bool:
        """True when the client's name can decide which rule is its own."""
        return self.is_by_name and self._exact(int.from_bytes(address.packed)) is None

    def add(self, key: str, rule: Rule) -> None:
        """ValueError with one clause for a key that can fit nobody; an earlier rule for the same key stays."""
        if not key:
            self._default = self._default or rule
        elif "@" in key:
            raise ValueError("needs ident, which is not asked")
        elif key.startswith("="):
            self._hosts.setdefault(key[1:].lower() or "=", rule)
            self.is_by_name = True
        elif "::" in key and key.endswith(":") and not key.endswith("::"):
            self._texts.setdefault(key.lower(), rule)
        else:
            network, length = parse_network(key)
            self._networks.setdefault(length, {}).setdefault(network, rule)
            if key.endswith("::"):
                # An address that ends in zeros, and tcpserver's prefix as well.
                self._texts.setdefault(key.lower(), rule)

    def close(self) -> None:
        """All rules are in."""
        self._lengths = tuple(sorted(self._networks, reverse=True))
        self.warnings.extend(itertools.islice(self._unsafe(), WARNINGS_MAX))

    def _unsafe(self) -> Iterator[str]:
        """What tcpserver takes without a word, and a mail server shouldn't."""
        everybody = [
            self._default,
            *self._networks.get(0, {}).values(),
            *self._networks.get(_IPV4_BITS, {}).values(),
        ]
        named = list(self._hosts.values())
        for rule in everybody:
            if rule is not None and "RELAYCLIENT" in rule.variables:
                yield f"{rule.place}: RELAYCLIENT for everybody: an open relay"
        for rule in named:
            if "RELAYCLIENT" in rule.variables:
                yield (
                    f"{rule.place}: RELAYCLIENT by name: whoever runs the DNS of that name and of an address relays; "
                    "name addresses, or use client certificates"
                )
        for rule in (
            *everybody,
            *named,
            *(one for found in self._networks.values() for one in found.values()),
        ):
            words = rule.variables.get("DENYMAIL", "").split(",") if rule is not None else []
            for word, what in HARSH.items():
                if rule is not None and word in words:
                    yield f"{rule.place}: DENYMAIL={word} {what}"

    def _exact(self, number: int) -> Rule | None:
        found = self._networks.get(_BITS)
        return None if found is None else found.get(number)

    def _by_text(self, text: str) -> Rule | None:
        at = text.rfind(":")
        while at > 0:
            rule = self._texts.get(text[: at + 1])
            if rule is not None:
                return rule
            at = text.rfind(":", 0, at)
        return None

    def _by_name(self, name: str) -> Rule | None:
        at = name.find(".")
        while at != -1:
            rule = self._hosts.get(name[at:])
            if rule is not None:
                return rule
            at = name.find(".", at + 1)
        return self._hosts.get("=")


def parse_network(key: str) -> tuple[int, int]:
    """The leading bits of an address, prefix or CIDR network, and how many; ValueError with one clause.

    IPv4 is ::ffff:a.b.c.d, as Address has it.
    """
    text, slash, bits = key.partition("/")
    if not slash:
        if _DOTTED.fullmatch(text):
            octets = text.split(".")[:-1]
            return _leading(".".join([*octets, "0", "0", "0"][:4]), _IPV4_BITS + 8 * len(octets))
        if _GROUPED.fullmatch(text.lower()):
            groups = text.split(":")[:-1]
            return _leading(":".join([*groups, *["0"] * 8][:8]), 16 * len(groups))
        return _leading(text, _BITS)
    most = _BITS if ":" in text else 32
    if not (bits.isascii() and bits.isdigit()) or int(bits) > most:
        raise ValueError("is no network")
    return _leading(text, int(bits) + _BITS - most)


def _leading(text: str, length: int) -> tuple[int, int]:
    if "%" in text:
        raise ValueError("has a zone")
    try:
        number = int.from_bytes(Address(text).packed)
    except ValueError:
        raise ValueError("is neither an address, a prefix nor a name with =") from None
    return number >> (_BITS - length), length


def parse_rules(path: str, data: bytes, faults: list[str]) -> Rules:
    """Rules of a text or a cdb; every fault is one line in faults, with file and line where there are lines."""
    rules = Rules()
    if is_cdb(data):
        _read_cdb(path, data, rules, faults)
    else:
        _read_text(path, data, rules, faults)
    rules.close()
    return rules


def _read_text(path: str, data: bytes, rules: Rules, faults: list[str]) -> None:
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.rstrip(b" \t\r")
        if not line or line.startswith(b"#"):
            continue
        place = f"{path}:{number}"
        try:
            key, rule = parse_line(line, place)
            keys = list(expand(key))
        except ValueError as error:
            faults.append(f"{place}: {error}")
            continue
        for one in keys:
            _add(rules, one, rule)


def _add(rules: Rules, key: str, rule: Rule) -> None:
    try:
        rules.add(key, rule)
    except ValueError as error:
        if len(rules.warnings) < WARNINGS_MAX:
            rules.warnings.append(f"{rule.place}: the rule for {key[:60]!r} fits nobody: it {error}")


def parse_line(line: bytes, place: str) -> tuple[str, Rule]:
    """Address and rule of a line; ValueError with one clause."""
    if b"\0" in line:
        raise ValueError("has a NUL")
    found = _ACTION.search(line)
    if found is None:
        raise ValueError("has neither :allow nor :deny")
    variables: dict[str, str] = {}
    at = found.end()
    while at < len(line):
        # at is a comma; then NAME= and the value between two octets of a kind.
        equal = line.find(b"=", at)
        name = line[at + 1 : equal] if equal != -1 else b""
        if line[at : at + 1] != b"," or not name or b"," in name:
            raise ValueError(f'{_text(line[at : at + 60])!r} is not ,NAME="value"')
        quote = line[equal + 1 : equal + 2]
        end = line.find(quote, equal + 2) if quote else -1
        if end == -1:
            raise ValueError(f"the value of {_text(name)} has no end")
        variables[_text(name)] = _text(line[equal + 2 : end])
        at = end + 1
    return _text(line[: found.start()]), Rule(place, found[1] == b"deny", variables)


def expand(key: str) -> Iterator[str]:
    """Each address or prefix of a range, "10.2-3." -> "10.2.", "10.3."; a key without one as it is.

    ValueError with one clause when nothing, or more than EXPANDED_MAX, comes of it.
    """
    if not _RANGED.fullmatch(key):
        yield key
        return
    choices: list[list[str]] = []
    count = 1
    for part in key.split("."):
        low, dash, high = part.partition("-")
        if dash:
            if not (low.isdigit() and high.isdigit()):
                raise ValueError(f"{key!r} is no range")
            # tcprules takes 255 for whatever is more.
            choices.append([str(octet) for octet in range(int(low[:4]), min(int(high[:4]), 255) + 1)])
        else:
            choices.append([part])
        count *= len(choices[-1])
    if not 0 < count <= EXPANDED_MAX:
        raise ValueError(f"the range {key!r} holds " + ("too many addresses" if count else "nothing"))
    for parts in itertools.product(*choices):
        yield ".".join(parts)


def _read_cdb(path: str, data: bytes, rules: Rules, faults: list[str]) -> None:
    try:
        for key, value in read_cdb(data):
            _add(rules, _text(key), _unpacked(path, value))
    except ValueError as error:
        faults.append(f"{path}: {error}")


def _unpacked(path: str, value: bytes) -> Rule:
    """The rule of a cdb's record: "D" NUL denies, "+NAME=value" NUL is a variable."""
    is_denied = False
    variables: dict[str, str] = {}
    for item in value.split(b"\0"):
        if item.startswith(b"D"):
            is_denied = True
        elif item.startswith(b"+"):
            name, equal, text = item[1:].partition(b"=")
            if equal and name:
                variables[_text(name)] = _text(text)
    return Rule(path, is_denied, variables)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
