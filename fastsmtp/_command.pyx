"""Verbs, and the arguments of commands: HELO, MAIL, RCPT, BDAT, XCLIENT (RFC 5321 section 4.1.1 and extensions).

A reader takes the octets behind the verb and returns an Event, or the Reply that refuses its
syntax.  Not here: which command may come when; that is _session's table.

Rank 1: pure; imports _event, _parser and reply.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcmp

from fastsmtp._ascii cimport ATEXT, DIGIT, NAME, is_in, is_word, upper
from fastsmtp._event cimport Event, Kind, Terms, new_event
from fastsmtp._parser cimport (
    Fault, Mailbox, Parameter, lowered, make_path, scan_parameter, scan_path, scan_xtext, unquote_xtext, uppered)

from fastsmtp import reply as replies

cdef enum:
    ENVID_BYTES = 100       # RFC 3461 section 4.4
    ORCPT_BYTES = 500       # RFC 3461 section 4.2

# A chunk over 1 TiB: nobody sends it, and reading it would take hours; the count is a lie.
cdef long long CHUNK_MOST = <long long>1 << 40

cdef tuple _NOTIFY = (b"NEVER", b"SUCCESS", b"FAILURE", b"DELAY")
# http://www.postfix.org/XCLIENT_README.html
cdef frozenset _XCLIENT_NAMES = frozenset(
    (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT"))

# Four capitals as one number.
cdef enum Word:
    W_HELO = 0x48454C4F
    W_EHLO = 0x45484C4F
    W_MAIL = 0x4D41494C
    W_RCPT = 0x52435054
    W_DATA = 0x44415441
    W_BDAT = 0x42444154
    W_RSET = 0x52534554
    W_NOOP = 0x4E4F4F50
    W_VRFY = 0x56524659
    W_EXPN = 0x4558504E
    W_HELP = 0x48454C50
    W_QUIT = 0x51554954
    W_AUTH = 0x41555448
    W_POST = 0x504F5354
    W_HEAD = 0x48454144


cdef int find_verb(const char *p, Py_ssize_t n) noexcept nogil:
    """The Verb that the n letters at p are."""
    cdef unsigned int word
    if n == 4:
        word = (upper(p[0]) << 24) | (upper(p[1]) << 16) | (upper(p[2]) << 8) | upper(p[3])
        if word == W_RCPT:
            return V_RCPT
        if word == W_MAIL:
            return V_MAIL
        if word == W_DATA:
            return V_DATA
        if word == W_BDAT:
            return V_BDAT
        if word == W_EHLO:
            return V_EHLO
        if word == W_HELO:
            return V_HELO
        if word == W_QUIT:
            return V_QUIT
        if word == W_RSET:
            return V_RSET
        if word == W_NOOP:
            return V_NOOP
        if word == W_VRFY:
            return V_VRFY
        if word == W_EXPN:
            return V_EXPN
        if word == W_HELP:
            return V_HELP
        if word == W_AUTH:
            return V_AUTH
        if word == W_POST or word == W_HEAD:
            return V_FOREIGN
    elif is_word(p, n, b"STARTTLS", 8):
        return V_STARTTLS
    elif is_word(p, n, b"XCLIENT", 7):
        return V_XCLIENT
    elif (is_word(p, n, b"GET", 3) or is_word(p, n, b"PUT", 3) or is_word(p, n, b"PRI", 3)
          or is_word(p, n, b"CONNECT", 7) or is_word(p, n, b"OPTIONS", 7) or is_word(p, n, b"DELETE", 6)
          or is_word(p, n, b"PATCH", 5) or is_word(p, n, b"TRACE", 5)):
        return V_FOREIGN
    return V_UNKNOWN


cdef long long scan_number(const char *p, Py_ssize_t n) noexcept nogil:
    """The value of n digits, at most 2**62; -1 when an octet is no digit."""
    cdef long long value = 0
    cdef Py_ssize_t i
    for i in range(n):
        if not is_in(p[i], DIGIT):
            return -1
        if value < <long long>1 << 58:
            value = value * 10 + (p[i] - c'0')
        else:
            value = <long long>1 << 62
    return value


cdef bint is_orcpt(const char *p, Py_ssize_t n, bint is_utf8_allowed) noexcept nogil:
    """original-recipient-address = addr-type ";" xtext        addr-type = atom (RFC 3461 section 4.2)"""
    cdef Py_ssize_t at = 0
    while at < n and p[at] != b';':
        if not is_in(p[at], ATEXT):
            return False
        at += 1
    return 0 < at < n - 1 and n <= ORCPT_BYTES and scan_xtext(p + at + 1, n - at - 1, is_utf8_allowed) > 0


cdef tuple notify_words(const char *p, Py_ssize_t n):
    """NOTIFY's words upper-case, each once; None when they are wrong (RFC 3461 section 4.1)."""
    cdef list words = []
    cdef bytes word
    for word in uppered(p, n).split(b","):
        if word not in _NOTIFY:
            return None
        if word not in words:
            words.append(word)
    if b"NEVER" in words and n != 5:
        return None
    return tuple(words)


# --- arguments ---------------------------------------------------------------------------------------

cdef object read_helo(const char *p, Py_ssize_t n, Terms terms, bint is_extended):
    """helo = "HELO" SP Domain, ehlo = "EHLO" SP ( Domain / address-literal )

    Any word of harmless octets is taken: clients name themselves with underscores, without dots, with
    half a literal, and whether that matters is policy's question (RFC 5321 4.1.4).  Octets that would
    mean something in a Received field are not; qmail-smtpd takes them, and no name at all.
    """
    cdef Event event
    cdef Py_ssize_t i
    if terms.is_compatible:
        event = new_event(Kind.ON_HELO)
        event.name = b"".join([bytes([p[i]]) if is_in(p[i], NAME) else b"?" for i in range(min(n, terms.domain_bytes))])
        event.name = event.name.lower() or b"?"
        event.is_extended = is_extended
        return event
    for i in range(n):
        if not is_in(p[i], NAME):
            n = 0
            break
    if n == 0 or n > terms.domain_bytes:
        return replies.SYNTAX_ERROR
    event = new_event(Kind.ON_HELO)
    event.name = lowered(p, n)
    event.is_extended = is_extended
    return event


cdef Py_ssize_t scan_double_bounce(const char *p, Py_ssize_t n, Mailbox *out) noexcept nogil:
    """Offset behind "<#@[]>" at p, or -SYNTAX.

    qmail sends double bounces from there, to whoever its doublebouncehost is.  It is no address by any grammar.
    """
    if n < 6 or memcmp(p, b"<#@[]>", 6) != 0:
        return -<Py_ssize_t>Fault.SYNTAX
    out.local_at = 1
    out.local_end = 2
    out.domain_at = 3
    out.domain_end = 5
    out.is_quoted = out.is_utf8 = False
    return 6


cdef enum:              # what a reader of one parameter says, beside its own bit
    UNKNOWN = 0
    WRONG = -1
    READ_FAILED = -2    # an exception

cdef struct Given:      # one parameter; value is NULL where there is none
    const char *key
    Py_ssize_t key_n
    const char *value
    Py_ssize_t value_n
    bint is_utf8_allowed

ctypedef int (*read_one_f)(const Given *one, Terms terms, Event event) except READ_FAILED


cdef object read_parameters(
    const char *p, Py_ssize_t n, Py_ssize_t at, Terms terms, bint is_extended, bint is_utf8_allowed,
    Event event, read_one_f read_one):
    """Fill the event from the parameters behind the path; None, or the reply that refuses them.

    esmtp-param = esmtp-keyword ["=" esmtp-value] (RFC 5321 section 4.1.2); each at most once
    """
    cdef Parameter found
    cdef Given one
    cdef int seen = 0
    cdef int bit
    one.is_utf8_allowed = is_utf8_allowed
    while True:
        at = scan_parameter(p, n, at, is_utf8_allowed, &found)
        if at == 0:
            return None
        if at < 0:
            return replies.BAD_PARAMETER
        if not is_extended:
            return replies.NO_PARAMETERS_AFTER_HELO
        one.key = p + found.key_at
        one.key_n = found.key_end - found.key_at
        one.value = p + found.value_at if found.value_at >= 0 else NULL
        one.value_n = found.value_end - found.value_at
        bit = read_one(&one, terms, event)
        if bit == UNKNOWN:
            return replies.UNKNOWN_PARAMETER
        if bit == WRONG or seen & bit:
            return replies.BAD_PARAMETER
        seen |= bit


cdef object read_mail(const char *p, Py_ssize_t n, Terms terms, bint is_extended):
    """mail = "MAIL FROM:" Reverse-path [SP Mail-parameters]

    Spaces behind the colon are taken, though section 3.3 forbids them: old clients and scripts send
    them, Postfix and Exim take them, and nothing else can be meant.
    """
    cdef Event event
    cdef Mailbox mailbox
    cdef Py_ssize_t at = 5
    cdef Py_ssize_t end
    cdef object fault
    if n < 5 or not is_word(p, 5, b"FROM:", 5):
        return replies.SYNTAX_ERROR
    while at < n and p[at] == b' ':
        at += 1
    end = scan_path(p + at, n - at, True, terms.is_smtputf8, &terms.limits, &mailbox)
    if end < 0 and terms.is_compatible:
        end = scan_double_bounce(p + at, n - at, &mailbox)
    if end < 0:
        return replies.NEED_SMTPUTF8 if end == -<Py_ssize_t>Fault.NEEDS_UTF8 else replies.BAD_SENDER_SYNTAX
    event = new_event(Kind.ON_MAIL)
    event.body = b""
    event.ret = b""
    event.envid = b""
    if at + end < n:
        fault = read_parameters(p, n, at + end, terms, is_extended, False, event, mail_parameter)
        if fault is not None:
            return fault
    if mailbox.is_utf8 and not event.is_smtputf8:
        return replies.NEED_SMTPUTF8
    if 0 < terms.message_bytes < event.size_bytes:
        return replies.TOO_BIG
    event.path = make_path(p + at, &mailbox)
    return event


cdef int mail_parameter(const Given *one, Terms terms, Event event) except READ_FAILED:
    """SIZE=1*20DIGIT (RFC 1870) · BODY=7BIT / 8BITMIME (RFC 6152) · SMTPUTF8 (RFC 6531)
    RET=FULL / HDRS · ENVID=xtext, at most 100 (RFC 3461)
    """
    cdef const char *value = one.value
    cdef Py_ssize_t n = one.value_n
    if is_word(one.key, one.key_n, b"SIZE", 4):
        event.size_bytes = scan_number(value, n) if value is not NULL else -1
        return 1 if event.size_bytes >= 0 and n <= 20 else WRONG
    if is_word(one.key, one.key_n, b"BODY", 4):
        if value is NULL or not (is_word(value, n, b"8BITMIME", 8) or is_word(value, n, b"7BIT", 4)):
            return WRONG
        event.body = b"8BITMIME" if n == 8 else b"7BIT"
        return 2
    if is_word(one.key, one.key_n, b"SMTPUTF8", 8) and terms.is_smtputf8:
        event.is_smtputf8 = True
        return 4 if value is NULL else WRONG
    if is_word(one.key, one.key_n, b"RET", 3) and terms.is_dsn:
        if value is NULL or not (is_word(value, n, b"FULL", 4) or is_word(value, n, b"HDRS", 4)):
            return WRONG
        event.ret = b"FULL" if upper(value[0]) == b'F' else b"HDRS"
        return 8
    if is_word(one.key, one.key_n, b"ENVID", 5) and terms.is_dsn:
        if value is NULL or n > ENVID_BYTES or scan_xtext(value, n, False) <= 0:
            return WRONG
        event.envid = PyBytes_FromStringAndSize(value, n)
        return 16
    return UNKNOWN


cdef object read_rcpt(const char *p, Py_ssize_t n, Terms terms, bint is_extended, bint is_smtputf8):
    """rcpt = "RCPT TO:" ( "<Postmaster@" Domain ">" / "<Postmaster>" / Forward-path ) [SP Rcpt-parameters]"""
    cdef Event event
    cdef Mailbox mailbox
    cdef Py_ssize_t at = 3
    cdef Py_ssize_t end
    cdef object fault
    if n < 3 or not is_word(p, 3, b"TO:", 3):
        return replies.SYNTAX_ERROR
    while at < n and p[at] == b' ':
        at += 1
    end = scan_path(p + at, n - at, False, is_smtputf8, &terms.limits, &mailbox)
    if end < 0:
        return replies.NEED_SMTPUTF8 if end == -<Py_ssize_t>Fault.NEEDS_UTF8 else replies.BAD_RECIPIENT_SYNTAX
    event = new_event(Kind.ON_RCPT)
    event.notify = ()
    event.orcpt = b""
    if at + end < n:
        fault = read_parameters(p, n, at + end, terms, is_extended, is_smtputf8, event, rcpt_parameter)
        if fault is not None:
            return fault
    event.path = make_path(p + at, &mailbox)
    return event


cdef int rcpt_parameter(const Given *one, Terms terms, Event event) except READ_FAILED:
    """NOTIFY="NEVER" / 1#( "SUCCESS" / "FAILURE" / "DELAY" ) · ORCPT=atom ";" xtext, at most 500 (RFC 3461)"""
    if is_word(one.key, one.key_n, b"NOTIFY", 6) and terms.is_dsn:
        event.notify = None if one.value is NULL else notify_words(one.value, one.value_n)
        return WRONG if event.notify is None else 1
    if is_word(one.key, one.key_n, b"ORCPT", 5) and terms.is_dsn:
        if one.value is NULL or not is_orcpt(one.value, one.value_n, one.is_utf8_allowed):
            return WRONG
        event.orcpt = PyBytes_FromStringAndSize(one.value, one.value_n)
        return 2
    return UNKNOWN


cdef object read_xclient(const char *p, Py_ssize_t n):
    """xclient = "XCLIENT" 1*( SP attribute-name "=" xtext )"""
    cdef Parameter found
    cdef Event event
    cdef Py_ssize_t at = 0
    cdef list attributes = []
    cdef set seen = set()
    cdef bytes name, value
    cdef Py_ssize_t size
    # The space before the first attribute belongs to it.
    p -= 1
    n += 1
    while n > 1:
        at = scan_parameter(p, n, at, False, &found)
        if at <= 0:
            break
        name = uppered(p + found.key_at, found.key_end - found.key_at)
        size = scan_xtext(p + found.value_at, found.value_end - found.value_at, False)
        if found.value_at < 0 or size < 0 or name not in _XCLIENT_NAMES or name in seen:
            at = -1
            break
        seen.add(name)
        value = PyBytes_FromStringAndSize(NULL, size)
        unquote_xtext(p + found.value_at, found.value_end - found.value_at, PyBytes_AS_STRING(value))
        attributes.append((name, value))
    if at < 0 or not attributes:
        return replies.SYNTAX_ERROR
    event = new_event(Kind.ON_XCLIENT)
    event.attributes = tuple(attributes)
    return event


cdef long long read_bdat(const char *p, Py_ssize_t n, bint *is_last) noexcept nogil:
    """The chunk size, or -1 when nobody can know where the next command begins.

    bdat-cmd = "BDAT" SP chunk-size [ SP end-marker ]        chunk-size = 1*DIGIT, end-marker = "LAST" (RFC 3030)
    """
    cdef Py_ssize_t at = 0
    cdef long long size
    while at < n and is_in(p[at], DIGIT):
        at += 1
    size = scan_number(p, at) if at > 0 else -1
    is_last[0] = False
    if at < n and p[at] == b' ':
        while at < n and p[at] == b' ':
            at += 1
        if not is_word(p + at, n - at, b"LAST", 4):
            return -1
        is_last[0] = True
        at = n
    return size if at == n and size <= CHUNK_MOST else -1
