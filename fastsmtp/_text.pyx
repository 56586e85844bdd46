"""The text of DATA and BDAT: dots taken out, the end found, bare line ends and NUL found.

Only CR LF . CR LF ends it (RFC 5321 sections 4.1.1.4 and 4.5.2).  A clean stretch, which is
nearly all of any mail, is found by a loop over bytes that compilers vectorise and copied
once; an automaton takes the octets between.  There is no limit on the length of a line: we
never alter a body, so a long line is passed on, not cut or folded (folding breaks DKIM).

Rank 1: pure.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.string cimport memcpy

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *p, Py_ssize_t n) except NULL
    char *octets_of "PyBytes_AS_STRING" (PyObject *text) noexcept nogil
    int _PyBytes_Resize(PyObject **p, Py_ssize_t n) except -1


cdef extern from *:
    # The compiler takes a call's result as a new reference: this is how an owned pointer becomes an object.
    """
    #define fs_taken(text) (text)
    """
    bytes taken "fs_taken" (PyObject *text)


cdef extern from *:
    # tests/fuzz/prove.py builds with -Dseeded_defect=true: LF . CR LF then ends the text behind two rare octets,
    # and the fuzzer has to find it.  In every other build it is the constant 0, and the compiler drops the code.
    """
    #ifdef FASTSMTP_SEEDED_DEFECT
    #define FS_SEEDED_DEFECT 1
    #else
    #define FS_SEEDED_DEFECT 0
    #endif
    """
    const bint SEEDED_DEFECT "FS_SEEDED_DEFECT"


FOUND_BARE_CR = Found.BARE_CR
FOUND_BARE_LF = Found.BARE_LF
FOUND_NUL = Found.NUL

# What stands directly before the next octet.
cdef enum:
    IN_LINE = 0         # anything else, and what follows a bare line end: no dot is special there
    AFTER_CR = 1        # CR, already given out
    AT_LINE = 2         # CR LF, or the beginning of the text: a dot is stuffing, or the end
    AFTER_DOT = 3       # AT_LINE and a dot, dropped
    AFTER_DOT_CR = 4    # AT_LINE, a dot and CR; the CR is not given out: it may belong to the end

# Octets looked at in one go.  It doubles with success and starts again small after a
# line that needs work, so that a text full of such lines costs little more than a scan.
cdef enum:
    BLOCK_LEAST = 64
    BLOCK_MOST = 4096


cdef void begin_text(Decoder *d, bint has_dots, bint is_normalizing, int stops_at) noexcept nogil:
    """Make the decoder ready for a text from its first octet."""
    d.state = AT_LINE if has_dots else IN_LINE
    d.found = 0
    d.stops_at = stops_at
    d.is_normalizing = is_normalizing
    d.has_dots = has_dots
    d.is_done = False
    d.size_bytes = 0


cdef inline unsigned char is_dirty(const char *p, Py_ssize_t n, unsigned char dot) noexcept nogil:
    """0 when in the n octets at p each CR is followed by LF, each LF follows CR, no LF is followed by dot, and
    no octet is NUL.  Looks at p[n], which must exist.  A branch-free loop over bytes: compilers vectorise it."""
    cdef unsigned char dirty = 0
    cdef const unsigned char *u = <const unsigned char *>p
    cdef Py_ssize_t i
    for i in range(n):
        dirty |= <unsigned char>(
            (<unsigned char>(u[i] == 13) ^ <unsigned char>(u[i + 1] == 10))
            | <unsigned char>(u[i] == 0)
            | (<unsigned char>(u[i] == 10) & <unsigned char>(u[i + 1] == dot)))
    return dirty


cdef Py_ssize_t clean_run(const char *p, Py_ssize_t n, bint has_dots) noexcept nogil:
    """How many of the n octets at p may be given out as they are.

    The run holds whole CR LF only and no NUL.  The octet behind it needs the automaton: a
    bare line end, a CR at the end of the n octets, NUL, or a dot at the start of a line.
    p[0] is not at the start of a line and not behind a CR.
    """
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t block = BLOCK_LEAST
    cdef Py_ssize_t size
    # Without dots no pair may match: 10 after 10 is already refused as a bare LF.
    cdef unsigned char dot = b'.' if has_dots else 10
    cdef unsigned char c
    if n == 0 or p[0] == b'\n':
        return 0
    while at < n - 1:
        size = min(block, n - 1 - at)
        if not is_dirty(p + at, size, dot):
            at += size
            if block < BLOCK_MOST:
                block *= 2
            continue
        if size > BLOCK_LEAST:
            block = max(size // 4, <Py_ssize_t>BLOCK_LEAST)
            continue
        while True:
            c = <unsigned char>p[at]
            if c == 0:
                return at
            if c == 13:
                if p[at + 1] != b'\n':
                    return at
            elif p[at + 1] == b'\n':
                return at + 1
            if c == 10 and <unsigned char>p[at + 1] == dot:
                return at + 1
            at += 1
    # The last octet has no successor to be judged by.
    if p[at] == 0 or p[at] == b'\r':
        return at
    return at + 1


cdef Py_ssize_t decode_into(
    Decoder *d, const char *p, Py_ssize_t n, char *out, Py_ssize_t *written) noexcept nogil:
    """Decode n octets into out (room for 2 n + 2); returns how many were consumed.

    Fewer than n are consumed only behind the end of data, or before an octet that shows what
    d.stops_at names.
    """
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t to = 0
    cdef Py_ssize_t run
    cdef char c
    cdef int shown
    while i < n and not d.is_done:
        if d.state == IN_LINE or (d.state == AT_LINE and not (d.has_dots and p[i] == b'.')):
            run = clean_run(p + i, n - i, d.has_dots)
            if run > 0:
                memcpy(out + to, p + i, run)
                to += run
                i += run
                d.state = AT_LINE if (p + i - 1)[0] == b'\n' else IN_LINE
                continue
        c = p[i]
        shown = 0
        if c == b'\n':
            if d.state == AFTER_CR:
                if not d.is_normalizing:
                    out[to] = c
                    to += 1
                d.state = AT_LINE
                i += 1
                continue
            if d.state == AFTER_DOT_CR:
                d.is_done = True
                i += 1
                break
            shown = Found.BARE_LF
        elif d.state == AFTER_CR or d.state == AFTER_DOT_CR:
            shown = Found.BARE_CR
        elif c == 0:
            shown = Found.NUL
        if shown:
            d.found |= shown
            if shown & d.stops_at:
                break
            if shown == Found.BARE_CR:
                # A CR that waited for its LF: what follows is looked at again, as inside a line.
                if d.state == AFTER_DOT_CR:
                    out[to] = b'\r'
                    to += 1
                    if d.is_normalizing:
                        out[to] = b'\n'
                        to += 1
                d.state = IN_LINE
                continue
            if shown == Found.BARE_LF and d.is_normalizing:
                out[to] = b'\r'
                to += 1
            out[to] = c
            to += 1
            d.state = IN_LINE
            if SEEDED_DEFECT and i >= 2 and (p + i - 2)[0] == 0x13 and (p + i - 1)[0] == 0x7F:
                d.state = AT_LINE
        elif c == b'.' and d.state == AT_LINE and d.has_dots:
            d.state = AFTER_DOT
        elif c == b'\r':
            if d.state == AFTER_DOT:
                d.state = AFTER_DOT_CR
            else:
                out[to] = c
                to += 1
                if d.is_normalizing:
                    out[to] = b'\n'
                    to += 1
                d.state = AFTER_CR
        else:
            out[to] = c
            to += 1
            d.state = IN_LINE
        i += 1
    d.size_bytes += to
    written[0] = to
    return i


cdef bytes decode(Decoder *d, const char *p, Py_ssize_t n, Py_ssize_t *consumed):
    """Decode n octets; the text as one bytes object (one allocation and one copy when nothing needs work)."""
    cdef Py_ssize_t run = 0
    cdef Py_ssize_t size = 0
    cdef PyObject *text
    if d.state == IN_LINE or (d.state == AT_LINE and n > 0 and not (d.has_dots and p[0] == b'.')):
        run = clean_run(p, n, d.has_dots)
        if run > 0 and (run == n or (d.has_dots and n - run >= 3 and (p + run - 1)[0] == b'\n'
                                     and p[run] == b'.' and p[run + 1] == b'\r' and p[run + 2] == b'\n')):
            d.size_bytes += run
            d.state = AT_LINE if (p + run - 1)[0] == b'\n' else IN_LINE
            consumed[0] = run
            if run < n:
                d.is_done = True
                consumed[0] = run + 3
            return PyBytes_FromStringAndSize(p, run)
    text = new_bytes(NULL, 2 * n + 2 if d.is_normalizing else n + 2)
    consumed[0] = decode_into(d, p, n, octets_of(text), &size)
    # Shrinks in place: the reference is ours alone, and is moved, not counted.
    _PyBytes_Resize(&text, size)
    return taken(text)


cdef int end_text(Decoder *d) noexcept nogil:
    """The text is over by count (BDAT LAST): returns the Found bits, a CR that waited for its LF among them."""
    if d.state == AFTER_CR:
        d.found |= Found.BARE_CR
    return d.found


@cython.final
cdef class DataDecoder:
    """The text of DATA; see _parser.pyi.

    A dot is stuffing only behind CR LF (or at the very start).  Behind a bare CR or LF,
    also a normalized one, it is text: senders that write bare LF don't stuff there (curl).
    """

    cdef Decoder _decoder

    def __cinit__(self, *, bint is_normalizing=False) -> None:
        begin_text(&self._decoder, True, is_normalizing, 0)

    @property
    def found(self) -> int:
        return self._decoder.found

    @property
    def size_bytes(self) -> int:
        return self._decoder.size_bytes

    @property
    def is_done(self) -> bool:
        return self._decoder.is_done

    def feed(self, bytes data not None) -> "tuple[bytes, int]":
        """Decoded bytes, and how many of data were consumed (less than all only at the end of data)."""
        cdef Py_ssize_t consumed = 0
        cdef bytes text
        if self._decoder.is_done:
            return b"", 0
        text = decode(&self._decoder, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &consumed)
        return text, consumed
