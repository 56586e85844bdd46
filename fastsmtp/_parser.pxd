# What other compiled modules may use of the parser.  The scanners take octets and
# return an offset, or a Fault made negative; they touch no Python object.

cdef enum Fault:
    SYNTAX = 1
    LOCAL_TOO_LONG = 2
    DOMAIN_TOO_LONG = 3
    PATH_TOO_LONG = 4
    NEEDS_UTF8 = 5
    BAD_UTF8 = 6
    BAD_LITERAL = 7
    BAD_PARAMETER = 8


cdef struct Limits:
    # RFC 5321 section 4.5.3.1, octets
    Py_ssize_t local_bytes
    Py_ssize_t domain_bytes
    Py_ssize_t path_bytes


cdef struct Mailbox:
    # Offsets into the scanned text.  domain_at == domain_end: no domain (<> and <Postmaster>).
    Py_ssize_t local_at
    Py_ssize_t local_end
    Py_ssize_t domain_at
    Py_ssize_t domain_end
    bint is_quoted
    bint is_utf8


cdef struct Parameter:
    # One esmtp-param; value_at == -1: no "=".
    Py_ssize_t key_at
    Py_ssize_t key_end
    Py_ssize_t value_at
    Py_ssize_t value_end


cdef Py_ssize_t utf8_size(const char *p, Py_ssize_t n) noexcept nogil
cdef Py_ssize_t scan_domain(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, Py_ssize_t limit) noexcept nogil
cdef Py_ssize_t scan_mailbox(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, const Limits *limits,
    Mailbox *out) noexcept nogil
cdef Py_ssize_t scan_path(
    const char *p, Py_ssize_t n, bint is_reverse, bint is_utf8_allowed, const Limits *limits,
    Mailbox *out) noexcept nogil
cdef Py_ssize_t scan_parameter(
    const char *p, Py_ssize_t n, Py_ssize_t at, bint is_utf8_allowed, Parameter *out) noexcept nogil
cdef Py_ssize_t scan_xtext(const char *p, Py_ssize_t n, bint is_utf8_allowed) noexcept nogil
cdef Py_ssize_t unquote_xtext(const char *p, Py_ssize_t n, char *out) noexcept nogil

cdef Path make_path(const char *p, const Mailbox *mailbox)
cdef bytes lowered(const char *p, Py_ssize_t n)
cdef bytes uppered(const char *p, Py_ssize_t n)


cdef class Path:
    cdef readonly bytes address
    cdef readonly bytes local
    cdef readonly bytes mailbox
    cdef readonly bytes domain
    cdef readonly bytes key
    cdef readonly bint is_utf8
