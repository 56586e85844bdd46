"""Patterns of mail addresses: badmailfrom, badrcptto, require_tls.

user@host      that address
@host          every address at that host
user@          that local part at every host
.host, @.host  every address at a host below it

Letters count alike, large and small (qmail's badmailfrom does the same).  However many patterns there are, an
address is looked up in the same time.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastsmtp import patterns as later
from fastsmtp.config.lists import entries
from fastsmtp.config.names import parse_domain_name, parse_host_name, spellings
from fastsmtp.typed import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastsmtp._parser import Path

# What nearly every line of a file is, lower-cased: RFC 5321 section 4.1.2 Dot-string and Domain, either may be away.
_PLAIN: Final = later.compile(
    rb"(?!@$)(?:[a-z0-9!$%&'*+/=?^_`{|}~-][a-z0-9!#$%&'*+/=?^_`{|}~-]*(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*)?"
    rb"@(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*)?"
)
# Within it no label, local part or domain can be too long (RFC 5321 section 4.5.3.1).
_PLAIN_MOST: Final = 64


class AddressPatterns:
    """A set of patterns; `path in patterns` for a fastsmtp._parser.Path."""

    __slots__ = ("_has_locals", "_has_suffixes", "_keys")

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        """keys: as parse_pattern gives them."""
        self._keys = frozenset(keys)
        self._has_locals = any(key.endswith(b"@") for key in self._keys)
        self._has_suffixes = any(key.startswith(b"@.") for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, path: Path) -> bool:
        keys = self._keys
        domain = path.domain
        if path.key in keys or b"@" + domain in keys:
            return True
        if self._has_locals and path.mailbox.lower() + b"@" in keys:
            return True
        if self._has_suffixes:
            at = domain.find(b".")
            while at != -1:
                if b"@" + domain[at:] in keys:
                    return True
                at = domain.find(b".", at + 1)
        return False


NO_PATTERNS: Final = AddressPatterns()


def parse_pattern(text: str) -> tuple[bytes, ...]:
    """The keys of one pattern: one, or two when its domain can be written in two ways.  ValueError with one clause."""
    if text.startswith((".", "@.")):
        return tuple(f"@{name}".encode() for name in spellings("." + parse_domain_name(text.lstrip("@")[1:])))
    if text.startswith("@"):
        return tuple(f"@{name}".encode() for name in spellings(parse_host_name(text[1:])))
    local, at, domain = text.rpartition("@")
    if not at:
        raise ValueError(f"{text!r} is none of user@host, @host, user@, .host")
    from fastsmtp._parser import Path, parse_mailbox

    path = parse_mailbox(f"{local}@host.example".encode(), is_utf8_allowed=True)
    if not isinstance(path, Path):
        raise ValueError(f"{text!r}: bad local part")
    key = path.key.rpartition(b"@")[0] + b"@"
    return tuple(key + name.encode() for name in spellings(parse_host_name(domain))) if domain else (key,)


def check_pattern(text: str) -> None:
    """A pattern, or ValueError with one clause."""
    parse_pattern(text)


def parse_patterns(path: str, data: bytes, faults: list[str]) -> set[bytes]:
    """The keys of a file, one pattern a line; plain lines are taken as they are, lower-cased."""
    keys = set()
    odd = False
    is_plain = _PLAIN.fullmatch
    for line in data.lower().replace(b"\r\n", b"\n").split(b"\n"):
        if len(line) <= _PLAIN_MOST and is_plain(line) and b"xn--" not in line:
            keys.add(line)
        elif line:
            odd = True
    if odd:
        for text, number in entries(path, data, faults):
            if text.lower().encode() in keys:
                continue
            try:
                keys.update(parse_pattern(text))
            except ValueError as error:
                faults.append(f"{path}:{number}: {error}")
    return keys
