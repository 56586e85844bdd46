"""The quick half of log_format.Logfmt: a line whose values stand bare or just between quotes, copied and checked at once.

Anything that needs an escape, cutting or a form of its own is left to log_format.py; None says so.
Rank 0: pure.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport memcpy


cdef enum:  # as in log_format.py; a test compares what comes of them
    MAX_LINE = 3_900
    MAX_VALUE = 1_024
    DIGITS = 19  # of the largest long long


cdef inline bint copy_bare(char *to, const char *p, Py_ssize_t n) noexcept nogil:
    """Copy n bytes; False when one of them may not stand bare: not printable ASCII, or one of SP " = \\."""
    cdef Py_ssize_t at
    cdef unsigned char byte
    for at in range(n):
        byte = <unsigned char>p[at]
        if byte <= 0x20 or byte >= 0x7F or byte == 0x22 or byte == 0x3D or byte == 0x5C:
            return False
        to[at] = p[at]
    return True


cdef inline bint copy_quoted(char *to, const char *p, Py_ssize_t n) noexcept nogil:
    """The n bytes between quotes, n + 2 of them; False when one of them is not printable ASCII, or wants an escape."""
    cdef Py_ssize_t at
    cdef unsigned char byte
    for at in range(n):
        byte = <unsigned char>p[at]
        if byte < 0x20 or byte >= 0x7F or byte == 0x22 or byte == 0x5C:
            return False
        to[at + 1] = p[at]
    to[0] = b'"'
    to[n + 1] = b'"'
    return True


cdef inline Py_ssize_t copy_number(char *to, long long number) noexcept nogil:
    """Write a number that isn't negative in decimal digits, at most DIGITS of them; how many there are."""
    cdef char digits[DIGITS]
    cdef Py_ssize_t at = DIGITS
    while True:
        at -= 1
        digits[at] = <char>(0x30 + number % 10)
        number //= 10
        if number == 0:
            break
    memcpy(to, digits + at, DIGITS - at)
    return DIGITS - at


def plain_line(bytes stamp not None, bytes event not None, tuple shape not None, dict fields not None):
    """stamp + event + each prefix of the shape with its value, or None when a value can't be written simply.

    shape   ((b" helo=", "helo"), ...): what stands before the value, and its key in fields
    fields  values: bytes and str, int from 0, bool; None leaves its field out
    """
    cdef char line[MAX_LINE]
    cdef Py_ssize_t size = PyBytes_GET_SIZE(stamp)
    cdef Py_ssize_t n
    cdef const char *p
    cdef long long number
    cdef int overflow = 0
    cdef bytes prefix
    cdef object value
    n = PyBytes_GET_SIZE(event)
    if size + n > MAX_LINE:
        return None
    memcpy(line, PyBytes_AS_STRING(stamp), size)
    memcpy(line + size, PyBytes_AS_STRING(event), n)
    size += n
    for prefix, key in shape:
        value = fields[key]
        if value is None:
            continue
        n = PyBytes_GET_SIZE(prefix)
        if size + n > MAX_LINE:
            return None
        memcpy(line + size, PyBytes_AS_STRING(prefix), n)
        size += n
        if type(value) is int:
            number = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow or number < 0 or size + DIGITS > MAX_LINE:
                return None
            size += copy_number(line + size, number)
            continue
        if value is True:
            p = b"true"
            n = 4
        elif value is False:
            p = b"false"
            n = 5
        elif type(value) is bytes:
            p = PyBytes_AS_STRING(value)
            n = PyBytes_GET_SIZE(value)
        elif type(value) is str and (<str>value).isascii():
            p = PyUnicode_AsUTF8AndSize(value, &n)
        else:
            return None
        if n == 0:
            if size + 2 > MAX_LINE:
                return None
            memcpy(line + size, b'""', 2)
            size += 2
            continue
        if n > MAX_VALUE or size + n + 2 > MAX_LINE:
            return None
        if not copy_bare(line + size, p, n):
            if not copy_quoted(line + size, p, n):
                return None
            size += 2
        size += n
    return PyBytes_FromStringAndSize(line, size)
