"""SMTP grammar in C: command lines, paths, parameters, the DATA decoder, replies of a next hop.

Pure: bytes in, values out, no I/O.  The session cimports the C functions; these
are the doors for Python and for tests.  Nothing here raises for what a peer
sent: a function returns a value or one of the Fault numbers.

Limits (RFC 5321 section 4.5.3.1) are arguments, never constants inside.
"""

from typing import Final, final

# Why a text was refused.  The names are part of the API (logs and tests use fault_name).
FAULT_SYNTAX: Final[int]  # not the grammar
FAULT_LOCAL_TOO_LONG: Final[int]  # local-part over local_bytes (4.5.3.1.1: 64)
FAULT_DOMAIN_TOO_LONG: Final[int]  # domain over domain_bytes (4.5.3.1.2: 255) or a label over 63
FAULT_PATH_TOO_LONG: Final[int]  # path over path_bytes (4.5.3.1.3: 256 with the brackets)
FAULT_NEEDS_UTF8: Final[int]  # right, but only under SMTPUTF8 (RFC 6531)
FAULT_BAD_UTF8: Final[int]  # 8-bit, and no UTF-8
FAULT_BAD_LITERAL: Final[int]  # address literal that is neither IPv4 nor IPv6 (nor a General-address-literal)
FAULT_BAD_PARAMETER: Final[int]  # esmtp-param grammar, or a keyword twice

def fault_name(fault: int) -> str: ...

@final
class Path:
    """A reverse or forward path (RFC 5321 section 4.1.2), source route parsed and dropped.

    address  b"local@domain" as sent, b"" for <>, b"Postmaster" for <Postmaster>
    local    local-part as sent, with its quotes
    mailbox  local-part unquoted and unescaped (what a Maildir or a list looks up)
    domain   lower-case; literals with brackets (b"[192.0.2.1]", b"[ipv6:2001:db8::1]"); b"" if none
    key      mailbox + b"@" + domain with ASCII letters lower-cased: for sets and maps; b"" for <>
    is_utf8  True when any octet is over 127
    """

    address: bytes
    local: bytes
    mailbox: bytes
    domain: bytes
    key: bytes
    is_utf8: bool

def parse_path(
    text: bytes,
    *,
    is_reverse: bool = False,
    is_utf8_allowed: bool = False,
    local_bytes: int = 64,
    domain_bytes: int = 255,
    path_bytes: int = 256,
) -> tuple[Path, bytes] | int:
    """Parse "<...>" at the start of text; returns the path and what follows it, or a Fault.

    <> only when is_reverse; <Postmaster> in any case of letters only when not is_reverse.
    """

def parse_mailbox(
    text: bytes, *, is_utf8_allowed: bool = False, local_bytes: int = 64, domain_bytes: int = 255
) -> Path | int:
    """A bare local@domain, as in configuration, lists and tests."""

def parse_parameters(
    text: bytes, *, is_utf8_allowed: bool = False
) -> tuple[tuple[bytes, bytes | None], ...] | int:
    """Text such as b" KEY=value KEY2" to ((b"KEY", b"value"), (b"KEY2", None)); a Fault else (RFC 5321 4.1.2).

    Keywords come out upper-cased.
    """

def parse_domain(text: bytes, *, is_utf8_allowed: bool = False, domain_bytes: int = 255) -> bytes | int:
    """A Domain or address-literal as HELO and EHLO take it, lower-cased."""

def decode_xtext(text: bytes) -> bytes | int:
    """RFC 3461 section 4 xtext (ENVID, ORCPT, XCLIENT values)."""

# What a DATA decoder found; a bit set.
FOUND_BARE_CR: Final[int]
FOUND_BARE_LF: Final[int]
FOUND_NUL: Final[int]

@final
class DataDecoder:
    """The text of DATA: dot-unstuffing, and only CR LF . CR LF ends it (RFC 5321 sections 4.1.1.4, 4.5.2).

    The chunks' concatenation and the findings are the same however the input is cut.
    With is_normalizing a bare CR or LF comes out as CRLF, and never is part of the end.
    """

    found: int  # FOUND_* bits seen so far
    size_bytes: int  # decoded bytes so far
    is_done: bool
    def __init__(self, *, is_normalizing: bool = False) -> None: ...
    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Decoded bytes, and how many of data were consumed (less than all only at the end of data)."""

@final
class ReplyParser:
    """A next hop's replies, one or many lines (RFC 5321 section 4.2), for delivery.

    feed(bytes) -> list of NextHopReply; raises errors.ProtocolError when the bytes are no reply
    (no digits, another code on a continuation line, a line over 2,048 octets, over 128 lines).
    """
    def feed(self, data: bytes) -> list[NextHopReply]: ...

@final
class NextHopReply:
    code: int
    enhanced: str  # "5.1.1" or ""
    lines: tuple[bytes, ...]  # texts without code and enhanced code
