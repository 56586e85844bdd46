"""What is said to a next hop: a command line; a whole message as the text of DATA, dots stuffed and ended, one copy.

delivery/dot.py has the text for messages that come in pieces, and is what this is compared with in tests.

Rank 1: pure.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcpy


cdef Py_ssize_t count_dots(const char *p, Py_ssize_t n) noexcept nogil:
    """Lines that begin with a dot, in the n octets at p; -1 for a bare CR or LF."""
    cdef const char *end = p + n
    cdef const char *lf
    cdef const char *cr
    cdef Py_ssize_t dots = 0
    while p < end:
        if p[0] == b'.':
            dots += 1
        lf = <const char *>memchr(p, b'\n', end - p)
        if lf is NULL:
            return -1 if memchr(p, b'\r', end - p) is not NULL else dots
        cr = <const char *>memchr(p, b'\r', lf - p)
        if cr is NULL or cr + 1 != lf:
            return -1
        p = lf + 1
    return dots


cdef char *stuff(const char *p, Py_ssize_t n, char *out) noexcept nogil:
    """Copy the n octets at p, which have no bare line ends, with dots stuffed; the end of what was written."""
    cdef const char *end = p + n
    cdef const char *lf
    cdef Py_ssize_t size
    while p < end:
        if p[0] == b'.':
            out[0] = b'.'
            out += 1
        lf = <const char *>memchr(p, b'\n', end - p)
        size = end - p if lf is NULL else lf + 1 - p
        memcpy(out, p, size)
        out += size
        p += size
    return out


def text_of(bytes message not None) -> bytes:
    """The text of DATA (RFC 5321 section 4.5.2), with the end of data; a last line without its end gets one.

    Raises ValueError for a bare CR or LF: to a lax next hop LF . LF is an end of data, and what
    follows would be a second message from nobody.
    """
    cdef const char *p = PyBytes_AS_STRING(message)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(message)
    cdef Py_ssize_t dots = count_dots(p, n)
    cdef bint is_whole = n == 0 or p[n - 1] == b'\n'
    cdef bytes text
    cdef char *out
    if dots < 0:
        raise ValueError("a bare CR or LF in a body")
    text = PyBytes_FromStringAndSize(NULL, n + dots + (3 if is_whole else 5))
    out = PyBytes_AS_STRING(text)
    if dots:
        out = stuff(p, n, out)
    else:
        memcpy(out, p, n)
        out += n
    if not is_whole:
        memcpy(out, b"\r\n", 2)
        out += 2
    memcpy(out, b".\r\n", 3)
    return text


def command_of(list words not None) -> bytes:
    """A command line: the words with a space between them, CR LF behind.

    Raises ValueError for a CR, LF or NUL inside: behind it could stand a command of our client's.
    """
    cdef bytes word
    cdef bytes text
    cdef char *out
    cdef Py_ssize_t size = 2 + len(words) - 1
    for word in words:
        if word is None:
            raise TypeError("a word is bytes")
        if has_line_end(PyBytes_AS_STRING(word), PyBytes_GET_SIZE(word)):
            raise ValueError("a line end inside a command")
        size += PyBytes_GET_SIZE(word)
    if not words:
        raise ValueError("no command")
    text = PyBytes_FromStringAndSize(NULL, size)
    out = PyBytes_AS_STRING(text)
    for word in words:
        memcpy(out, PyBytes_AS_STRING(word), PyBytes_GET_SIZE(word))
        out += PyBytes_GET_SIZE(word)
        out[0] = b' '
        out += 1
    (out - 1)[0] = b'\r'
    out[0] = b'\n'
    return text


cdef bint has_line_end(const char *p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if p[i] == b'\r' or p[i] == b'\n' or p[i] == 0:
            return True
    return False
