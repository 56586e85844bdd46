"""Files with one entry a line: domains, networks, recipients.

Lists is a snapshot, path to bytes: the master reads the files before privileges
are dropped and hands changes to the workers, who never open them.  Parsing is
pure, and fast where it must be: a recipient file may have 100,000 lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from fastsmtp import patterns
from fastsmtp.config.cdb import is_cdb, read_cdb
from fastsmtp.config.names import parse_domain_name, spellings
from fastsmtp.records import dataclass, field
from fastsmtp.typed import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastsmtp._signatures import Signatures

# What nearly every line of a recipient file is, lower-cased: RFC 5321 section 4.1.2 Dot-string "@" Domain.
_PLAIN: Final = patterns.compile(
    rb"[a-z0-9!$%&'*+/=?^_`{|}~-][a-z0-9!#$%&'*+/=?^_`{|}~-]*(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    rb"@[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*"
)


@dataclass(frozen=True, slots=True)
class Lists:
    """A snapshot of the files that a configuration names.

    files    path -> contents
    lenient  those of a qmail home: a line that means nothing there is left out, with a warning, as qmail does
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    lenient: frozenset[str] = frozenset()

    def with_file(self, path: str, data: bytes) -> Lists:
        """The same snapshot with one file as it is now."""
        return Lists({**self.files, path: data}, self.lenient)


def entries(path: str, data: bytes, faults: list[str]) -> Iterator[tuple[str, int]]:
    """Entry and line number, without comments and blank lines; what isn't UTF-8 is a fault.

    Of a cdb (qmail's morercpthosts.cdb) the keys are the entries.
    """
    if is_cdb(data):
        yield from _keys(path, data, faults)
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        entry = _strip(line)
        if not entry:
            continue
        try:
            yield entry.decode(), number
        except UnicodeDecodeError:
            faults.append(f"{path}:{number}: not UTF-8")


def _keys(path: str, data: bytes, faults: list[str]) -> Iterator[tuple[str, int]]:
    try:
        for number, (key, _) in enumerate(read_cdb(data), 1):
            yield key.decode("utf-8", "backslashreplace"), number
    except ValueError as error:
        faults.append(f"{path}: {error}")


def checked(path: str, data: bytes, check: Callable[[str], object], faults: list[str]) -> Iterator[str]:
    """The entries that check takes; those for which it raises ValueError are faults."""
    for entry, number in entries(path, data, faults):
        try:
            check(entry)
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
        else:
            yield entry


def parse_recipients(path: str, data: bytes, faults: list[str]) -> frozenset[bytes]:
    """The keys (fastsmtp._parser.Path.key) of a file of addresses.

    Plain lines are taken as they are, lower-cased; those with quotes, 8-bit text,
    blanks or comments go through the parser.
    """
    data = data.replace(b"\r\n", b"\n")
    lowered = data.lower()
    lines = lowered.split(b"\n")
    is_plain = _PLAIN.fullmatch
    # Within 64 octets nothing can be too long (RFC 5321 section 4.5.3.1); beyond, the parser looks.
    keys = {line for line in lines if len(line) <= 64 and is_plain(line)}
    if b"xn--" in lowered:
        keys = {line for line in keys if b"xn--" not in line}
    if len(keys) == len(lines):
        return frozenset(keys)
    raw = data.split(b"\n")
    for number, line in enumerate(lines):
        if line and line not in keys:
            entry = _strip(raw[number])
            if entry:
                keys.update(_odd(f"{path}:{number + 1}", entry, faults))
    return frozenset(keys)


def parse_signatures(path: str, data: bytes, faults: list[str]) -> Signatures:
    """A file of signatures, by the rules of qmail's control files: "#" and blanks count at the ends only.

    A line is a literal.  "#" at its beginning is a comment; blanks at its end are none of it.
    """
    from fastsmtp._signatures import LINE_BYTES_MAX, Signatures

    literals = []
    for number, line in enumerate(data.split(b"\n"), 1):
        literal = line.rstrip(b" \t")
        if not literal or literal.startswith(b"#"):
            continue
        if literal.endswith(b"\r"):
            faults.append(f"{path}:{number}: ends with a CR: no line of a mail would ever match")
        elif len(literal) > LINE_BYTES_MAX:
            faults.append(f"{path}:{number}: longer than {LINE_BYTES_MAX} octets")
        else:
            literals.append(literal)
    return Signatures(literals)


def _strip(line: bytes) -> bytes:
    """A line without its comment: "#" at the start, or behind a blank ("#" may stand in a local part)."""
    line = line.strip()
    if line.startswith(b"#"):
        return b""
    if b"#" in line:
        line = re.split(rb"[ \t]#", line, maxsplit=1)[0].rstrip()
    return line


def _odd(place: str, entry: bytes, faults: list[str]) -> tuple[bytes, ...]:
    """The keys of an entry that is not plain: one, or two when its domain can be written in two ways."""
    from fastsmtp._parser import fault_name, parse_mailbox

    if b"@" not in entry:
        faults.append(f"{place}: {_text(entry)} has no domain")
        return ()
    path = parse_mailbox(entry, is_utf8_allowed=True)
    if isinstance(path, int):
        faults.append(f"{place}: {_text(entry)} is no address ({fault_name(path)})")
        return ()
    if path.domain.isascii() and b"xn--" not in path.domain:
        return (path.key,)
    try:
        domain = parse_domain_name(path.domain.decode())
    except ValueError as error:
        faults.append(f"{place}: {error}")
        return ()
    local = path.key.rpartition(b"@")[0]
    return tuple(local + b"@" + name.encode() for name in spellings(domain))


def _text(entry: bytes) -> str:
    text = repr(entry.decode(errors="backslashreplace"))
    return text if len(text) <= 60 else text[:57] + "..."
