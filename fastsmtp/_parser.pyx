"""SMTP grammar in C: domains, mailboxes, paths, parameters, xtext.

Also the door to its neighbours, DataDecoder (_text) and ReplyParser (_nexthop).  Not here: the
commands (_command), what is answered, in which order commands may come (_session).  No I/O, and nothing raises for what a peer sent: scanners return an offset or
a Fault made negative, and the functions at the end of each part make Python values.

What we admit, where RFC 5321 and the world differ:

* Section 4.1.2 only: no comment, no folding white space, no obsolete form of RFC 5322.
* A domain may be one label (mail to the TLD, hosts without dots), and a label may hold
  underscores anywhere: hosts named so send and get mail.  No trailing dot.
* A source route is read and dropped (appendix C).
* "::" in an IPv6 literal may stand for one group, as RFC 4291 and inet_pton have it.
* A General-address-literal is grammar; whether the tag is known is policy's question.

Rank 1: pure.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from fastsmtp._ascii cimport (
    ALPHA, ATEXT, DIGIT, DTEXT, QTEXT, VALUE, XCHAR, is_8bit, is_in, is_word, lower, upper)

from fastsmtp._nexthop import NextHopReply, ReplyParser
from fastsmtp._text import FOUND_BARE_CR, FOUND_BARE_LF, FOUND_NUL, DataDecoder

FAULT_SYNTAX = Fault.SYNTAX
FAULT_LOCAL_TOO_LONG = Fault.LOCAL_TOO_LONG
FAULT_DOMAIN_TOO_LONG = Fault.DOMAIN_TOO_LONG
FAULT_PATH_TOO_LONG = Fault.PATH_TOO_LONG
FAULT_NEEDS_UTF8 = Fault.NEEDS_UTF8
FAULT_BAD_UTF8 = Fault.BAD_UTF8
FAULT_BAD_LITERAL = Fault.BAD_LITERAL
FAULT_BAD_PARAMETER = Fault.BAD_PARAMETER

cdef tuple _FAULT_NAMES = (
    "", "syntax", "local_too_long", "domain_too_long", "path_too_long", "needs_utf8", "bad_utf8",
    "bad_literal", "bad_parameter")

# RFC 1035 section 2.3.4, octets
cdef enum:
    LABEL_BYTES = 63


def fault_name(int fault) -> str:
    """The word for logs of a Fault number; "fault 99" for a number that is none."""
    if 1 <= fault < len(_FAULT_NAMES):
        return _FAULT_NAMES[fault]
    return f"fault {fault}"


# --- octets ------------------------------------------------------------------------------------------

cdef Py_ssize_t utf8_size(const char *p, Py_ssize_t n) noexcept nogil:
    """Octets of the UTF8-non-ascii character at p (RFC 6532 3.1, RFC 3629 section 4), 0 when it is none.

    UTF8-2 = %xC2-DF UTF8-tail
    UTF8-3 = %xE0 %xA0-BF UTF8-tail / %xE1-EC 2( UTF8-tail ) / %xED %x80-9F UTF8-tail / %xEE-EF 2( UTF8-tail )
    UTF8-4 = %xF0 %x90-BF 2( UTF8-tail ) / %xF1-F3 3( UTF8-tail ) / %xF4 %x80-8F 2( UTF8-tail )
    """
    cdef const unsigned char *u = <const unsigned char *>p
    cdef unsigned char low = 0x80
    cdef unsigned char high = 0xBF
    cdef Py_ssize_t size, i
    if n < 2:
        return 0
    if 0xC2 <= u[0] <= 0xDF:
        size = 2
    elif 0xE0 <= u[0] <= 0xEF:
        size = 3
        if u[0] == 0xE0:
            low = 0xA0
        elif u[0] == 0xED:
            high = 0x9F
    elif 0xF0 <= u[0] <= 0xF4:
        size = 4
        if u[0] == 0xF0:
            low = 0x90
        elif u[0] == 0xF4:
            high = 0x8F
    else:
        return 0
    if n < size or not low <= u[1] <= high:
        return 0
    for i in range(2, size):
        if not 0x80 <= u[i] <= 0xBF:
            return 0
    return size


cdef bytes lowered(const char *p, Py_ssize_t n):
    """The n octets at p with ASCII capitals made small."""
    cdef bytes text = PyBytes_FromStringAndSize(NULL, n)
    cdef char *to = PyBytes_AS_STRING(text)
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = <char>lower(p[i])
    return text


cdef bytes uppered(const char *p, Py_ssize_t n):
    """The n octets at p with ASCII small letters made capitals."""
    cdef bytes text = PyBytes_FromStringAndSize(NULL, n)
    cdef char *to = PyBytes_AS_STRING(text)
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = <char>upper(p[i])
    return text


# --- domains and literals ----------------------------------------------------------------------------

cdef Py_ssize_t scan_ipv4(const char *p, Py_ssize_t n) noexcept nogil:
    """1 when the n octets are IPv4-address-literal's inside, 0 else.

    IPv4-address-literal = Snum 3("."  Snum)        Snum = 1*3DIGIT, 0 to 255
    """
    cdef Py_ssize_t i = 0
    cdef int part, digits, value
    for part in range(4):
        if part > 0:
            if i == n or p[i] != b'.':
                return 0
            i += 1
        digits = 0
        value = 0
        while i < n and is_in(p[i], DIGIT) and digits < 4:
            value = value * 10 + (p[i] - c'0')
            digits += 1
            i += 1
        if digits == 0 or digits > 3 or value > 255:
            return 0
    return i == n


cdef Py_ssize_t scan_ipv6(const char *p, Py_ssize_t n) noexcept nogil:
    """1 when the n octets are an IPv6 address, 0 else.

    IPv6-addr = IPv6-full / IPv6-comp / IPv6v4-full / IPv6v4-comp        IPv6-hex = 1*4HEXDIG
    """
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t group_at
    cdef int groups = 0
    cdef bint is_compressed = False
    cdef unsigned char c
    if n >= 1 and p[0] == b':':
        if n < 2 or p[1] != b':':
            return 0
        is_compressed = True
        i = 2
    while i < n:
        group_at = i
        while i < n and i - group_at < 5:
            c = lower(p[i])
            if not (is_in(<char>c, DIGIT) or b'a' <= c <= b'f'):
                break
            i += 1
        if i < n and p[i] == b'.':
            if not scan_ipv4(p + group_at, n - group_at):
                return 0
            groups += 2
            break
        if not 1 <= i - group_at <= 4:
            return 0
        groups += 1
        if i == n:
            break
        if p[i] != b':':
            return 0
        i += 1
        if i == n:
            return 0
        if p[i] == b':':
            if is_compressed:
                return 0
            is_compressed = True
            i += 1
    return groups <= 7 if is_compressed else groups == 8


cdef Py_ssize_t scan_literal(const char *p, Py_ssize_t n, Py_ssize_t at) noexcept nogil:
    """Offset behind the address literal at p[at], or -BAD_LITERAL.

    address-literal = "[" ( IPv4-address-literal / IPv6-address-literal / General-address-literal ) "]"
    IPv6-address-literal = "IPv6:" IPv6-addr
    General-address-literal = Standardized-tag ":" 1*dcontent        Standardized-tag = Ldh-str
    """
    cdef Py_ssize_t end = at + 1
    cdef Py_ssize_t i
    while end < n and is_in(p[end], DTEXT):
        end += 1
    if end == n or p[end] != b']':
        return -<Py_ssize_t>Fault.BAD_LITERAL
    at += 1
    if scan_ipv4(p + at, end - at):
        return end + 1
    if end - at >= 5 and is_word(p + at, 5, b"IPV6:", 5):
        return end + 1 if scan_ipv6(p + at + 5, end - at - 5) else -<Py_ssize_t>Fault.BAD_LITERAL
    i = at
    while i < end and (is_in(p[i], ALPHA | DIGIT) or p[i] == b'-'):
        i += 1
    if i == at or p[i] != b':' or not is_in((p + i - 1)[0], ALPHA | DIGIT) or i + 1 == end:
        return -<Py_ssize_t>Fault.BAD_LITERAL
    return end + 1


cdef Py_ssize_t scan_domain(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, Py_ssize_t limit) noexcept nogil:
    """Offset behind the Domain or address-literal at p[at], or a Fault made negative.

    Domain = sub-domain *("." sub-domain)        sub-domain = Let-dig [Ldh-str] / U-label (RFC 6531 3.3)
    """
    cdef Py_ssize_t i = at
    cdef Py_ssize_t label_at = at
    cdef Py_ssize_t size
    cdef bint is_long = False
    if at < n and p[at] == b'[':
        i = scan_literal(p, n, at)
        if i > 0 and i - at > limit:
            return -<Py_ssize_t>Fault.DOMAIN_TOO_LONG
        return i
    while True:
        if i < n and (is_in(p[i], ALPHA | DIGIT) or p[i] == b'_'):
            i += 1
        elif i < n and p[i] == b'-':
            if i == label_at:
                return -<Py_ssize_t>Fault.SYNTAX
            i += 1
        elif i < n and is_8bit(p[i]):
            size = utf8_size(p + i, n - i)
            if size == 0:
                return -<Py_ssize_t>Fault.BAD_UTF8
            if not is_utf8_allowed:
                return -<Py_ssize_t>Fault.NEEDS_UTF8
            i += size
        else:
            if i == label_at or (p + i - 1)[0] == b'-':
                return -<Py_ssize_t>Fault.SYNTAX
            if i - label_at > LABEL_BYTES:
                is_long = True
            if i == n or p[i] != b'.':
                break
            i += 1
            label_at = i
    if is_long or i - at > limit:
        return -<Py_ssize_t>Fault.DOMAIN_TOO_LONG
    return i


# --- mailboxes and paths -----------------------------------------------------------------------------

cdef Py_ssize_t scan_quoted(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, bint *is_utf8) noexcept nogil:
    """Offset behind the Quoted-string at p[at], or a Fault made negative.

    Quoted-string = DQUOTE *QcontentSMTP DQUOTE
    QcontentSMTP = qtextSMTP / quoted-pairSMTP / UTF8-non-ascii        quoted-pairSMTP = %d92 %d32-126
    """
    cdef Py_ssize_t i = at + 1
    cdef Py_ssize_t size
    while i < n:
        if is_in(p[i], QTEXT):
            i += 1
        elif p[i] == b'"':
            return i + 1
        elif p[i] == b'\\':
            if i + 1 == n or not 32 <= <unsigned char>p[i + 1] <= 126:
                break
            i += 2
        elif is_8bit(p[i]):
            size = utf8_size(p + i, n - i)
            if size == 0:
                return -<Py_ssize_t>Fault.BAD_UTF8
            if not is_utf8_allowed:
                return -<Py_ssize_t>Fault.NEEDS_UTF8
            is_utf8[0] = True
            i += size
        else:
            break
    return -<Py_ssize_t>Fault.SYNTAX


cdef Py_ssize_t scan_dot_string(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, bint *is_utf8) noexcept nogil:
    """Offset behind the Dot-string at p[at], or a Fault made negative.

    Dot-string = Atom *("." Atom)        Atom = 1*( atext / UTF8-non-ascii )
    """
    cdef Py_ssize_t i = at
    cdef Py_ssize_t atom_at = at
    cdef Py_ssize_t size
    while True:
        if i < n and is_in(p[i], ATEXT):
            i += 1
        elif i < n and is_8bit(p[i]):
            size = utf8_size(p + i, n - i)
            if size == 0:
                return -<Py_ssize_t>Fault.BAD_UTF8
            if not is_utf8_allowed:
                return -<Py_ssize_t>Fault.NEEDS_UTF8
            is_utf8[0] = True
            i += size
        else:
            if i == atom_at:
                return -<Py_ssize_t>Fault.SYNTAX
            if i == n or p[i] != b'.':
                return i
            i += 1
            atom_at = i


cdef Py_ssize_t scan_local(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, const Limits *limits,
    Mailbox *out) noexcept nogil:
    """Offset behind the Local-part at p[at], or a Fault made negative.

    Local-part = Dot-string / Quoted-string
    """
    cdef Py_ssize_t i
    out.local_at = at
    out.is_utf8 = False
    out.is_quoted = at < n and p[at] == b'"'
    if out.is_quoted:
        i = scan_quoted(p, n, at, is_utf8_allowed, &out.is_utf8)
    else:
        i = scan_dot_string(p, n, at, is_utf8_allowed, &out.is_utf8)
    if i < 0:
        return i
    out.local_end = i
    out.domain_at = i
    out.domain_end = i
    if i - at > limits.local_bytes:
        return -<Py_ssize_t>Fault.LOCAL_TOO_LONG
    return i


cdef Py_ssize_t scan_mailbox(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, const Limits *limits,
    Mailbox *out) noexcept nogil:
    """Offset behind the Mailbox at p[at], or a Fault made negative.

    Mailbox = Local-part "@" ( Domain / address-literal )
    """
    cdef Py_ssize_t i = scan_local(p, n, at, is_utf8_allowed, limits, out)
    cdef Py_ssize_t j
    if i < 0:
        return i
    if i == n or p[i] != b'@':
        return -<Py_ssize_t>Fault.SYNTAX
    i += 1
    out.domain_at = i
    i = scan_domain(p, n, i, is_utf8_allowed, limits.domain_bytes)
    if i < 0:
        return i
    out.domain_end = i
    for j in range(out.domain_at, i):
        if is_8bit(p[j]):
            out.is_utf8 = True
            break
    return i


cdef Py_ssize_t scan_route(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, const Limits *limits) noexcept nogil:
    """Offset behind the source route at p[at] with its colon, or a Fault made negative.

    A-d-l = At-domain *( "," At-domain )        At-domain = "@" Domain
    """
    cdef Py_ssize_t i = at
    while True:
        if i == n or p[i] != b'@':
            return -<Py_ssize_t>Fault.SYNTAX
        i += 1
        if i < n and p[i] == b'[':
            return -<Py_ssize_t>Fault.SYNTAX
        i = scan_domain(p, n, i, is_utf8_allowed, limits.domain_bytes)
        if i < 0:
            return i
        if i < n and p[i] == b':':
            return i + 1
        if i == n or p[i] != b',':
            return -<Py_ssize_t>Fault.SYNTAX
        i += 1


cdef Py_ssize_t scan_path(
    const char *p, Py_ssize_t n, bint is_reverse, bint is_utf8_allowed, const Limits *limits,
    Mailbox *out) noexcept nogil:
    """Offset behind the path that begins at p, or a Fault made negative.

    Reverse-path = Path / "<>"        Forward-path = Path        Path = "<" [ A-d-l ":" ] Mailbox ">"
    RCPT also takes "<Postmaster>" without a domain, in any case of letters (section 4.1.1.3).
    """
    cdef Py_ssize_t i = 1
    if n < 2 or p[0] != b'<':
        return -<Py_ssize_t>Fault.SYNTAX
    if p[1] == b'>':
        if not is_reverse:
            return -<Py_ssize_t>Fault.SYNTAX
        out.local_at = out.local_end = out.domain_at = out.domain_end = 1
        out.is_quoted = out.is_utf8 = False
        return 2
    if not is_reverse and n >= 12 and p[11] == b'>' and is_word(p + 1, 10, b"POSTMASTER", 10):
        out.local_at = 1
        out.local_end = out.domain_at = out.domain_end = 11
        out.is_quoted = out.is_utf8 = False
        return 12
    if p[1] == b'@':
        i = scan_route(p, n, 1, is_utf8_allowed, limits)
        if i < 0:
            return i
    i = scan_mailbox(p, n, i, is_utf8_allowed, limits, out)
    if i < 0:
        return i
    if i == n or p[i] != b'>':
        return -<Py_ssize_t>Fault.SYNTAX
    i += 1
    if i > limits.path_bytes:
        return -<Py_ssize_t>Fault.PATH_TOO_LONG
    return i


@cython.final
@cython.freelist(64)
cdef class Path:
    """A reverse or forward path; see _parser.pyi for the fields."""

    def __init__(self) -> None:
        raise TypeError("a Path comes from parse_path or parse_mailbox")

    def __repr__(self) -> str:
        return f"Path({self.address!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Path) and self.address == (<Path>other).address

    def __hash__(self) -> int:
        return hash(self.address)


cdef bytes _unquoted(const char *p, Py_ssize_t n):
    """The inside of a Quoted-string without its backslashes."""
    cdef bytes text = PyBytes_FromStringAndSize(NULL, n)
    cdef char *to = PyBytes_AS_STRING(text)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t size = 0
    while i < n:
        if p[i] == b'\\':
            i += 1
        to[size] = p[i]
        size += 1
        i += 1
    return text[:size]


cdef Path make_path(const char *p, const Mailbox *m):
    """The Path of a mailbox that was scanned in p.  Equal fields are one object."""
    cdef Path path = Path.__new__(Path)
    cdef Py_ssize_t i
    cdef bint is_lower = True
    for i in range(m.local_at, m.domain_end):
        if b'A' <= p[i] <= b'Z':
            is_lower = False
            break
    path.is_utf8 = m.is_utf8
    path.address = PyBytes_FromStringAndSize(p + m.local_at, m.domain_end - m.local_at)
    if m.domain_at == m.domain_end:
        path.local = path.mailbox = path.address
        path.domain = b""
        path.key = b"" if m.local_at == m.local_end else lowered(p + m.local_at, m.local_end - m.local_at) + b"@"
        return path
    path.local = PyBytes_FromStringAndSize(p + m.local_at, m.local_end - m.local_at)
    path.mailbox = _unquoted(p + m.local_at + 1, m.local_end - m.local_at - 2) if m.is_quoted else path.local
    if is_lower:
        path.domain = PyBytes_FromStringAndSize(p + m.domain_at, m.domain_end - m.domain_at)
    else:
        path.domain = lowered(p + m.domain_at, m.domain_end - m.domain_at)
    if m.is_quoted:
        path.key = path.mailbox.lower() + b"@" + path.domain
    elif is_lower:
        path.key = path.address
    else:
        path.key = lowered(p + m.local_at, m.domain_end - m.local_at)
    return path


def parse_path(
    bytes text not None, *, bint is_reverse=False, bint is_utf8_allowed=False,
    Py_ssize_t local_bytes=64, Py_ssize_t domain_bytes=255, Py_ssize_t path_bytes=256,
) -> "tuple[Path, bytes] | int":
    """Parse "<...>" at the start of text; returns the path and what follows it, or a Fault."""
    cdef Mailbox mailbox
    cdef Limits limits = Limits(local_bytes, domain_bytes, path_bytes)
    cdef const char *p = PyBytes_AS_STRING(text)
    cdef Py_ssize_t end = scan_path(p, PyBytes_GET_SIZE(text), is_reverse, is_utf8_allowed, &limits, &mailbox)
    if end < 0:
        return -end
    return make_path(p, &mailbox), text[end:]


def parse_mailbox(
    bytes text not None, *, bint is_utf8_allowed=False, Py_ssize_t local_bytes=64, Py_ssize_t domain_bytes=255,
) -> "Path | int":
    """A bare local@domain and nothing else; a Fault when it is none."""
    cdef Mailbox mailbox
    cdef Limits limits = Limits(local_bytes, domain_bytes, 0)
    cdef const char *p = PyBytes_AS_STRING(text)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t end = scan_mailbox(p, n, 0, is_utf8_allowed, &limits, &mailbox)
    if end < 0:
        return -end
    if end != n:
        return <int>Fault.SYNTAX
    return make_path(p, &mailbox)


def parse_domain(bytes text not None, *, bint is_utf8_allowed=False, Py_ssize_t domain_bytes=255) -> "bytes | int":
    """A Domain or address-literal and nothing else, lower-cased; a Fault when it is none."""
    cdef const char *p = PyBytes_AS_STRING(text)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t end = scan_domain(p, n, 0, is_utf8_allowed, domain_bytes)
    if end < 0:
        return -end
    return lowered(p, n) if end == n else <int>Fault.SYNTAX


# --- parameters and xtext ----------------------------------------------------------------------------

cdef Py_ssize_t scan_parameter(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, Parameter *out) noexcept nogil:
    """Offset behind the next parameter from p[at] on; 0 when only spaces are left; -BAD_PARAMETER.

    esmtp-param = esmtp-keyword ["=" esmtp-value]        before each: 1*SP (RFC: one)
    esmtp-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-")
    esmtp-value = 1*( %d33-60 / %d62-126 / UTF8-non-ascii )
    """
    cdef Py_ssize_t i = at
    cdef Py_ssize_t size
    while i < n and p[i] == b' ':
        i += 1
    if i == n:
        return 0
    if i == at or not is_in(p[i], ALPHA | DIGIT):
        return -<Py_ssize_t>Fault.BAD_PARAMETER
    out.key_at = i
    while i < n and (is_in(p[i], ALPHA | DIGIT) or p[i] == b'-'):
        i += 1
    out.key_end = i
    out.value_at = -1
    out.value_end = -1
    if i < n and p[i] == b'=':
        i += 1
        out.value_at = i
        while i < n:
            if is_in(p[i], VALUE):
                i += 1
                continue
            if not is_8bit(p[i]):
                break
            size = utf8_size(p + i, n - i)
            if size == 0 or not is_utf8_allowed:
                return -<Py_ssize_t>Fault.BAD_PARAMETER
            i += size
        out.value_end = i
        if i == out.value_at:
            return -<Py_ssize_t>Fault.BAD_PARAMETER
    if i < n and p[i] != b' ':
        return -<Py_ssize_t>Fault.BAD_PARAMETER
    return i


def parse_parameters(
    bytes text not None, *, bint is_utf8_allowed=False,
) -> "tuple[tuple[bytes, bytes | None], ...] | int":
    """" KEY=value KEY2" to ((b"KEY", b"value"), (b"KEY2", None)); a Fault else."""
    cdef Parameter found
    cdef const char *p = PyBytes_AS_STRING(text)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t at = 0
    cdef list pairs = []
    cdef set seen = set()
    cdef bytes key
    while True:
        at = scan_parameter(p, n, at, is_utf8_allowed, &found)
        if at == 0:
            return tuple(pairs)
        if at < 0:
            return -at
        key = uppered(p + found.key_at, found.key_end - found.key_at)
        if key in seen:
            return <int>Fault.BAD_PARAMETER
        seen.add(key)
        pairs.append((key, None if found.value_at < 0 else text[found.value_at:found.value_end]))


cdef inline int hex_digit(char c) noexcept nogil:
    """Value of an upper-case hexadecimal digit, -1 when it is none (RFC 3461 wants capitals)."""
    if b'0' <= c <= b'9':
        return c - c'0'
    if b'A' <= c <= b'F':
        return c - c'A' + 10
    return -1


cdef Py_ssize_t scan_xtext(const char *p, Py_ssize_t n, bint is_utf8_allowed) noexcept nogil:
    """Octets that the n octets of xtext stand for, or -SYNTAX.

    xtext = *( xchar / hexchar )        hexchar = "+" 2(%x30-39 / %x41-46)
    RFC 6533 section 3 lets UTF-8 stand for itself under SMTPUTF8.
    """
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t octets
    while i < n:
        octets = 1
        if is_in(p[i], XCHAR):
            i += 1
        elif p[i] == b'+' and i + 2 < n and hex_digit(p[i + 1]) >= 0 and hex_digit(p[i + 2]) >= 0:
            i += 3
        elif is_utf8_allowed and is_8bit(p[i]):
            octets = utf8_size(p + i, n - i)
            if octets == 0:
                return -<Py_ssize_t>Fault.SYNTAX
            i += octets
        else:
            return -<Py_ssize_t>Fault.SYNTAX
        size += octets
    return size


cdef Py_ssize_t unquote_xtext(const char *p, Py_ssize_t n, char *out) noexcept nogil:
    """Decode n octets that scan_xtext has passed; returns the size.  out has room for n."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t size = 0
    while i < n:
        if p[i] == b'+':
            out[size] = <char>(hex_digit(p[i + 1]) * 16 + hex_digit(p[i + 2]))
            i += 3
        else:
            out[size] = p[i]
            i += 1
        size += 1
    return size


def decode_xtext(bytes text not None) -> "bytes | int":
    """The octets that an xtext stands for (RFC 3461 section 4), or a Fault."""
    cdef const char *p = PyBytes_AS_STRING(text)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(text)
    cdef Py_ssize_t size = scan_xtext(p, n, False)
    cdef bytes out
    if size < 0:
        return -size
    if size == n:
        return text
    out = PyBytes_FromStringAndSize(NULL, size)
    unquote_xtext(p, n, PyBytes_AS_STRING(out))
    return out
