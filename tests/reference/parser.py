"""SMTP grammar as regular expressions, one a rule, in the words of RFC 5321 4.1.2 and RFC 6531 3.3.

A function returns what was read, or the set of all that is wrong with the text; the compiled parser names one
of them.  What is not the grammar is wrong in ways that have no name: Fault.SYNTAX in the set stands for any.

Where the world differs from the RFC we follow the world, knowingly:
* a label may hold "_" anywhere (hosts are named so, and send mail);
* "::" may stand for a single group (RFC 4291 section 2.2);
* white space behind the parameters, and more than one space between them, is tolerated (RFC 5321 4.1.1).
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple


class Fault(enum.Enum):
    """Why a text was refused; the names are those of fastsmtp._parser without FAULT_."""

    SYNTAX = enum.auto()
    LOCAL_TOO_LONG = enum.auto()
    DOMAIN_TOO_LONG = enum.auto()
    PATH_TOO_LONG = enum.auto()
    NEEDS_UTF8 = enum.auto()
    BAD_UTF8 = enum.auto()
    BAD_LITERAL = enum.auto()
    BAD_PARAMETER = enum.auto()


Faults = frozenset[Fault]
SYNTAX = Faults({Fault.SYNTAX})


class Path(NamedTuple):
    address: bytes
    local: bytes
    mailbox: bytes
    domain: bytes
    key: bytes
    is_utf8: bool


# UTF8-non-ascii: UTF-8 itself is checked on the whole text (bytes.decode): here any octet over 127 will do.
ATEXT = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]"
DOT_STRING = rb"%s+(?:\.%s+)*" % (ATEXT, ATEXT)
QCONTENT = rb"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])"
QUOTED_STRING = rb'"%s*"' % QCONTENT
LOCAL_PART = rb"(?:%s|%s)" % (DOT_STRING, QUOTED_STRING)
LET_DIG = rb"[A-Za-z0-9_\x80-\xff]"
SUB_DOMAIN = rb"%s(?:[A-Za-z0-9_\x80-\xff-]*%s)?" % (LET_DIG, LET_DIG)
DOMAIN = rb"%s(?:\.%s)*" % (SUB_DOMAIN, SUB_DOMAIN)
# The inside of a literal is looked at afterwards: whatever it holds, this is how far it goes.  dcontent.
ADDRESS_LITERAL = rb"\[[!-Z^-~]*\]"
MAILBOX = rb"(?P<local>%s)@(?P<domain>%s|%s)" % (LOCAL_PART, DOMAIN, ADDRESS_LITERAL)
SOURCE_ROUTE = rb"(?P<route>@%s(?:,@%s)*:)?" % (DOMAIN, DOMAIN)
PATH = rb"<%s%s>" % (SOURCE_ROUTE, MAILBOX)

GENERAL_LITERAL = re.compile(rb"[A-Za-z0-9-]*[A-Za-z0-9]:[!-Z^-~]+")
SNUM = re.compile(rb"[0-9]{1,3}")
HEX_GROUP = re.compile(rb"[0-9A-Fa-f]{1,4}")
ESMTP_KEYWORD = rb"[A-Za-z0-9][A-Za-z0-9-]*"
ESMTP_VALUE = rb"[!-<>-~\x80-\xff]+"
ESMTP_PARAM = re.compile(rb" +(%s)(?:=(%s))?" % (ESMTP_KEYWORD, ESMTP_VALUE))
XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")


def parse_path(
    text: bytes,
    *,
    is_reverse: bool = False,
    is_utf8_allowed: bool = False,
    local_bytes: int = 64,
    domain_bytes: int = 255,
    path_bytes: int = 256,
) -> tuple[Path, bytes] | Faults:
    if is_reverse and text.startswith(b"<>"):
        return Path(b"", b"", b"", b"", b"", False), text[2:]
    if not is_reverse and text[:12].lower() == b"<postmaster>":
        name = text[1:11]
        return Path(name, name, name, b"", name.lower() + b"@", False), text[12:]
    found = re.match(PATH, text)
    if found is None:
        return SYNTAX
    faults = _faults(found, is_utf8_allowed, local_bytes, domain_bytes)
    for domain in re.findall(rb"[^@,:]+", found["route"] or b""):
        faults |= _domain_faults(domain, domain_bytes)
    if len(found[0]) > path_bytes:
        faults.add(Fault.PATH_TOO_LONG)
    return Faults(faults) or (_path(found), text[found.end() :])


def parse_mailbox(
    text: bytes, *, is_utf8_allowed: bool = False, local_bytes: int = 64, domain_bytes: int = 255
) -> Path | Faults:
    found = re.fullmatch(MAILBOX, text)
    if found is None:
        return SYNTAX
    return Faults(_faults(found, is_utf8_allowed, local_bytes, domain_bytes)) or _path(found)


def parse_domain(text: bytes, *, is_utf8_allowed: bool = False, domain_bytes: int = 255) -> bytes | Faults:
    if not re.fullmatch(rb"%s|%s" % (DOMAIN, ADDRESS_LITERAL), text):
        return SYNTAX
    faults = _utf8_faults(text, is_utf8_allowed) | _domain_faults(text, domain_bytes)
    return Faults(faults) or text.lower()


def parse_parameters(
    text: bytes, *, is_utf8_allowed: bool = False
) -> tuple[tuple[bytes, bytes | None], ...] | Faults:
    parameters: list[tuple[bytes, bytes | None]] = []
    is_wrong = bool(_utf8_faults(text, is_utf8_allowed))
    text = text.rstrip(b" ")
    at = 0
    while found := ESMTP_PARAM.match(text, at):
        keyword = found[1].upper()
        is_wrong |= any(keyword == before for before, _ in parameters)
        parameters.append((keyword, found[2]))
        at = found.end()
    if is_wrong or at < len(text):
        return Faults({Fault.BAD_PARAMETER})
    return tuple(parameters)


def decode_xtext(text: bytes) -> bytes | Faults:
    """RFC 3461 section 4: xchar stands for itself, "+" and two upper-case hex digits for any octet."""
    if not XTEXT.fullmatch(text):
        return SYNTAX
    return re.sub(rb"\+(..)", lambda found: bytes.fromhex(found[1].decode()), text)


def encode_xtext(value: bytes) -> bytes:
    return re.sub(rb"[^!-*,-<>-~]", lambda found: b"+%02X" % ord(found[0]), value)


def quote(mailbox: bytes) -> bytes:
    """A local-part that says mailbox: as it is where it is a Dot-string, else quoted."""
    if re.fullmatch(DOT_STRING, mailbox):
        return mailbox
    return b'"' + re.sub(rb'(["\\])', rb"\\\1", mailbox) + b'"'


def unquote(local: bytes) -> bytes:
    return re.sub(rb"\\(.)", rb"\1", local[1:-1]) if local.startswith(b'"') else local


def _path(found: re.Match[bytes]) -> Path:
    local, domain = found["local"], found["domain"].lower()  # bytes.lower() changes A to Z and nothing else
    mailbox = unquote(local)
    address = local + b"@" + found["domain"]
    return Path(address, local, mailbox, domain, mailbox.lower() + b"@" + domain, not address.isascii())


def _faults(found: re.Match[bytes], is_utf8_allowed: bool, local_bytes: int, domain_bytes: int) -> set[Fault]:
    faults = _utf8_faults(found[0], is_utf8_allowed) | _domain_faults(found["domain"], domain_bytes)
    if len(found["local"]) > local_bytes:
        faults.add(Fault.LOCAL_TOO_LONG)
    return faults


def _utf8_faults(text: bytes, is_utf8_allowed: bool) -> set[Fault]:
    if text.isascii():
        return set()
    try:
        text.decode()
    except UnicodeDecodeError:
        return {Fault.BAD_UTF8, Fault.NEEDS_UTF8}
    return set() if is_utf8_allowed else {Fault.NEEDS_UTF8}


def _domain_faults(domain: bytes, domain_bytes: int) -> set[Fault]:
    faults = set()
    if domain.startswith(b"["):
        if not is_literal(domain[1:-1]):
            faults.add(Fault.BAD_LITERAL)
    elif any(len(label) > 63 for label in domain.split(b".")):
        faults.add(Fault.DOMAIN_TOO_LONG)
    if len(domain) > domain_bytes:
        faults.add(Fault.DOMAIN_TOO_LONG)
    return faults


def is_literal(inside: bytes) -> bool:
    """IPv4-address-literal, IPv6-address-literal or General-address-literal (RFC 5321 section 4.1.3)."""
    if inside[:5].lower() == b"ipv6:":
        return is_ipv6(inside[5:])
    return is_ipv4(inside) or GENERAL_LITERAL.fullmatch(inside) is not None


def is_ipv4(text: bytes) -> bool:
    """Snum 3("." Snum), Snum = 1*3DIGIT up to 255."""
    numbers = text.split(b".")
    return len(numbers) == 4 and all(SNUM.fullmatch(number) and int(number) <= 255 for number in numbers)


def is_ipv6(text: bytes) -> bool:
    """IPv6-full, IPv6-comp, IPv6v4-full or IPv6v4-comp."""
    head, colon, last = text.rpartition(b":")
    groups_wanted = 8
    if is_ipv4(last):
        if not colon:
            return False
        groups_wanted = 6
        text = head + b":" if head.endswith(b":") else head
    if text.count(b"::") > 1 or b":::" in text:
        return False
    left, gap, right = text.partition(b"::")
    groups = [*(left.split(b":") if left else []), *(right.split(b":") if right else [])]
    if not all(HEX_GROUP.fullmatch(group) for group in groups):
        return False
    return len(groups) < groups_wanted if gap else len(groups) == groups_wanted
