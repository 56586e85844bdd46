"""Replies of a next hop, one or many lines (RFC 5321 section 4.2), for delivery.

Rank 1: pure; imports errors.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr

from fastsmtp._ascii cimport DIGIT, is_in

from fastsmtp.errors import ProtocolError

# Four times RFC 5321 section 4.5.3.1.5 (512): some servers put whole sentences and URLs in.
cdef enum:
    REPLY_LINE_BYTES = 2048
    REPLY_LINES = 128


cdef Py_ssize_t scan_enhanced(const char *p, Py_ssize_t n, char kind) noexcept nogil:
    """Octets of the enhanced code at p, which must begin with kind and end in a space or the line; 0: none.

    status-code = class "." subject "." detail (RFC 3463 section 2)        subject, detail = 1*3digit
    """
    cdef Py_ssize_t i = 1
    cdef int digits
    if n < 5 or p[0] != kind:
        return 0
    for _ in range(2):
        if i == n or p[i] != b'.':
            return 0
        i += 1
        digits = 0
        while i < n and is_in(p[i], DIGIT):
            digits += 1
            i += 1
        if not 1 <= digits <= 3:
            return 0
    return i if i == n or p[i] == b' ' else 0


@cython.final
@cython.freelist(16)
cdef class NextHopReply:
    """One reply of a next hop; see _parser.pyi."""

    def __init__(self) -> None:
        raise TypeError("a NextHopReply comes from a ReplyParser")

    def __repr__(self) -> str:
        return f"NextHopReply({self.code}, {self.enhanced!r}, {self.lines!r})"


@cython.final
cdef class ReplyParser:
    """A next hop's replies; see _parser.pyi.

    A line may end in a bare LF: unlike in mail text nothing can be smuggled through a reply,
    and old servers send it.
    """

    cdef bytes _held
    cdef list _lines        # of the reply that is being read
    cdef int _code          # 0: between replies
    cdef str _enhanced

    def __cinit__(self) -> None:
        self._held = b""
        self._lines = []
        self._code = 0
        self._enhanced = ""

    def feed(self, bytes data not None) -> "list[NextHopReply]":
        """The replies that are complete with data.  Raises ProtocolError when the bytes are no reply."""
        cdef list replies = []
        cdef const char *p
        cdef const char *lf
        cdef Py_ssize_t n
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t size
        if self._held:
            data = self._held + data
        p = PyBytes_AS_STRING(data)
        n = PyBytes_GET_SIZE(data)
        while at < n:
            lf = <const char *>memchr(p + at, b'\n', n - at)
            if lf is NULL:
                break
            size = lf - (p + at)
            if size >= REPLY_LINE_BYTES:
                raise ProtocolError("reply line too long")
            if self._line(p + at, size - 1 if size > 0 and (lf - 1)[0] == b'\r' else size):
                replies.append(self._reply())
            at += size + 1
        if n - at >= REPLY_LINE_BYTES:
            raise ProtocolError("reply line too long")
        self._held = data[at:]
        return replies

    cdef bint _line(self, const char *p, Py_ssize_t n) except -1:
        """Take one line without its end; True when it is a reply's last.

        Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF
        Reply-code = %x32-35 %x30-35 %x30-39 (we take any second digit, as section 4.2.1 advises)
        """
        cdef Py_ssize_t i
        cdef int code
        if (n < 3 or not b'2' <= p[0] <= b'5' or not is_in(p[1], DIGIT) or not is_in(p[2], DIGIT)
                or (n > 3 and p[3] != b' ' and p[3] != b'-')):
            raise ProtocolError("not an SMTP reply")
        code = (p[0] - c'0') * 100 + (p[1] - c'0') * 10 + (p[2] - c'0')
        if self._code and self._code != code:
            raise ProtocolError("reply code changes within a reply")
        if len(self._lines) >= REPLY_LINES:
            raise ProtocolError("reply has too many lines")
        i = scan_enhanced(p + 4, n - 4, p[0]) if n > 4 else 0
        if i > 0:
            if not self._lines:
                self._enhanced = (p + 4)[:i].decode("ascii")
            i += 1
        self._code = code
        i = min(i + 4, n)
        self._lines.append(PyBytes_FromStringAndSize(p + i, n - i))
        return n == 3 or p[3] == b' '

    cdef NextHopReply _reply(self):
        cdef NextHopReply reply = NextHopReply.__new__(NextHopReply)
        reply.code = self._code
        reply.enhanced = self._enhanced
        reply.lines = tuple(self._lines)
        self._code = 0
        self._enhanced = ""
        self._lines = []
        return reply
