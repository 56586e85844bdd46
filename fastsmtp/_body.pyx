"""Scanners: what the end-of-message stages know about a body that has streamed by.

A scanner is fed the decoded body in whatever pieces it arrives and keeps facts,
never the body.  The core is plain C over (pointer, length): no Python object, no
exception.  The doors for Python are feed() and finish(); _body.pyi has the contract.

Rank 1: pure, imports nothing of ours.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp

cdef extern from *:
    # tools/asan.py --prove builds with -Dseeded_defect=true: a CR near the end of a chunk then has the walk look
    # behind it.  In every other build it is the constant 0, and the compiler drops the code.
    """
    #ifdef FASTSMTP_SEEDED_DEFECT
    #define FS_SEEDED_DEFECT 1
    #else
    #define FS_SEEDED_DEFECT 0
    #endif
    """
    const bint SEEDED_DEFECT "FS_SEEDED_DEFECT"

# RFC 5322 section 2.1.1: a line has at most 998 octets, so no field name with its colon is longer.
cdef enum:
    NAME_MAX = 997

# Where the walk stands.  Every state but VALUE sees one octet at a time; VALUE jumps to the next LF.
cdef enum:
    LINE_START = 0      # before the first octet of a line
    NAME = 1            # in a field name
    BEFORE_COLON = 2    # after white space behind a name (obsolete, but found in the wild: RFC 5322 section 4.5.8)
    VALUE = 3           # behind the colon, or in a folded line
    EMPTY_CR = 4        # a CR stood first on the line
    ENDED = 5

cdef const char *RECEIVED = b"received"
cdef enum:
    RECEIVED_BYTES = 8

# ftext = %d33-57 / %d59-126 (RFC 5322 section 3.6.8), each mapped to its lower case; 0: not in a name.
cdef unsigned char[256] NAME_OCTET


cdef void fill_table() noexcept nogil:
    cdef int c
    for c in range(256):
        NAME_OCTET[c] = 0
        if 33 <= c <= 126 and c != c':':
            NAME_OCTET[c] = <unsigned char>(c + 32 if c'A' <= c <= c'Z' else c)


fill_table()


cdef bint grow(void **block, Py_ssize_t *room, Py_ssize_t wanted, Py_ssize_t first, size_t item) noexcept nogil:
    """Make room for `wanted` items; doubles, so that the cost of many fields stays linear.  False: no memory."""
    cdef Py_ssize_t new_room = room[0] if room[0] else first
    cdef void *moved
    if wanted <= room[0]:
        return True
    while new_room < wanted:
        new_room *= 2
    moved = realloc(block[0], <size_t>new_room * item)
    if moved is NULL:
        return False
    block[0] = moved
    room[0] = new_room
    return True


@cython.final
cdef class HeaderFacts:
    """See _body.pyi.  Made by HeaderScanner.finish() only."""

    def __init__(self):
        raise TypeError("HeaderFacts come from HeaderScanner.finish()")

    def __dealloc__(self):
        free(self.index.fields)
        free(self.index.names)

    @property
    def fields(self):
        cdef Py_ssize_t i
        cdef Field *field
        cdef list rows
        if self.listed is None:
            rows = []
            for i in range(self.index.count):
                field = self.index.fields + i
                name = PyBytes_FromStringAndSize(<char *>self.index.names + field.name_at, field.name_bytes)
                rows.append((name, field.offset, field.length))
            self.listed = tuple(rows)
        return self.listed

    def count(self, bytes name not None):
        """How many indexed fields have this name, in any case of letters."""
        return count_fields(&self.index, <const unsigned char *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), False)

    def has(self, bytes name not None):
        """Whether any indexed field has this name, in any case of letters."""
        return 0 != count_fields(
            &self.index, <const unsigned char *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), True)

    def __repr__(self):
        cut = ", is_cut" if self.is_cut else ""
        return f"HeaderFacts({self.index.count} fields, {self.size_bytes} octets, {self.hops} hops{cut})"


cdef Py_ssize_t count_fields(
    const Index *index, const unsigned char *name, Py_ssize_t name_bytes, bint is_one_enough
) noexcept nogil:
    cdef unsigned char[NAME_MAX] lower
    cdef Py_ssize_t i, found = 0
    if name_bytes > NAME_MAX:
        return 0
    for i in range(name_bytes):
        lower[i] = NAME_OCTET[name[i]]      # 0 for what no name contains: equal to none
    for i in range(index.count):
        if index.fields[i].name_bytes == name_bytes \
                and memcmp(index.names + index.fields[i].name_at, lower, name_bytes) == 0:
            found += 1
            if is_one_enough:
                break
    return found


@cython.final
@cython.freelist(16)
cdef class HeaderScanner:
    """See _body.pyi.

    A line ends at LF, with or without a CR before it: DATA brings CRLF only, but BDAT
    brings what the client has, and what is behind us (a Maildir, a pipe) sees LF as a
    line end.  A header that is hidden from us must not be visible there.
    """

    def __cinit__(self, *, Py_ssize_t header_bytes=262_144, Py_ssize_t fields_max=1_000):
        if header_bytes < 0 or fields_max < 0:
            raise ValueError("a bound is not negative")
        self.header_bytes = header_bytes
        self.fields_max = fields_max
        self.field_at = -1
        self.state = LINE_START

    def __dealloc__(self):
        free(self.index.fields)
        free(self.index.names)

    def feed(self, bytes chunk not None):
        """The next piece of the body.  Returns at once when the header has ended."""
        if self.state == ENDED:
            return
        if self.scan(<const unsigned char *>PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk)) < 0:
            raise MemoryError

    def finish(self):
        """The facts; the body has ended.  The scanner is used up: a second call knows nothing more."""
        cdef HeaderFacts facts = HeaderFacts.__new__(HeaderFacts)
        self.end_header()
        facts.hops = self.hops
        facts.size_bytes = self.at
        facts.is_cut = self.is_cut
        facts.index = self.index
        self.index.fields = NULL
        self.index.names = NULL
        self.index.count = self.index.room = self.index.names_bytes = self.index.names_room = 0
        return facts

    cdef int scan(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        """Walk n octets, up to header_bytes in all.  0, or -1 when there is no memory."""
        cdef Py_ssize_t left = self.header_bytes - self.at
        if self.state == ENDED:
            return 0
        if n <= left:
            return self.walk(p, n)
        if self.walk(p, left) < 0:
            return -1
        if self.state != ENDED:
            self.is_cut = True
            self.end_header()
        return 0

    cdef int walk(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        """The automaton.  0, or -1 when there is no memory."""
        cdef Py_ssize_t base = self.at      # offset in the body of p[0]
        cdef Py_ssize_t i = 0
        cdef const unsigned char *lf
        cdef unsigned char c, lower
        cdef int state = self.state
        while i < n:
            if state == VALUE:
                lf = <const unsigned char *>memchr(p + i, c'\n', <size_t>(n - i))
                if lf is NULL:
                    i = n
                    break
                i = (lf - p) + 1
                state = LINE_START
                continue
            c = p[i]
            if state == LINE_START:
                self.line_at = base + i
                if c == c' ' or c == c'\t':
                    if self.field_at < 0:
                        state = ENDED           # folded, but there is nothing to belong to
                        break
                    state = VALUE
                elif c == c'\r':
                    state = EMPTY_CR
                    if SEEDED_DEFECT and p[i + 2] == c'\n':
                        self.is_cut = True
                elif c == c'\n':
                    self.close_field(self.line_at)
                    self.line_at = base + i + 1
                    state = ENDED
                    break
                elif NAME_OCTET[c]:
                    self.name_bytes = 0
                    state = NAME
                    continue
                else:
                    state = ENDED
                    break
            elif state == NAME:
                lower = NAME_OCTET[c]
                if lower:
                    if self.name_bytes == NAME_MAX:
                        state = ENDED
                        break
                    if self.index.names_bytes + self.name_bytes >= self.index.names_room and not grow(
                        <void **>&self.index.names, &self.index.names_room,
                        self.index.names_bytes + self.name_bytes + 1, 512, 1,
                    ):
                        return -1
                    self.index.names[self.index.names_bytes + self.name_bytes] = lower
                    self.name_bytes += 1
                elif c == c':':
                    if self.open_field() < 0:
                        return -1
                    state = VALUE
                elif c == c' ' or c == c'\t':
                    state = BEFORE_COLON
                else:
                    state = ENDED
                    break
            elif state == BEFORE_COLON:
                if c == c':':
                    if self.open_field() < 0:
                        return -1
                    state = VALUE
                elif c != c' ' and c != c'\t':
                    state = ENDED
                    break
            elif c == c'\n':                    # EMPTY_CR: the empty line
                self.close_field(self.line_at)
                self.line_at = base + i + 1
                state = ENDED
                break
            else:
                state = ENDED
                break
            i += 1
        if state == ENDED:
            # line_at is where the header ended: behind the empty line, or before the line that is no field.
            self.close_field(self.line_at)
            self.at = self.line_at
        else:
            self.at = base + i
        self.state = state
        return 0

    cdef int open_field(self) noexcept nogil:
        """A name and its colon were read: the field before it ends, a new one begins."""
        cdef Field *field
        self.close_field(self.line_at)
        self.field_at = self.line_at
        if self.name_bytes == RECEIVED_BYTES and memcmp(
            self.index.names + self.index.names_bytes, RECEIVED, RECEIVED_BYTES
        ) == 0:
            self.hops += 1
        if self.index.count >= self.fields_max:
            self.is_cut = True                  # hops and size are still counted
            self.is_indexed = False
            return 0
        if self.index.count >= self.index.room and not grow(
            <void **>&self.index.fields, &self.index.room, self.index.count + 1, 24, sizeof(Field)
        ):
            return -1
        field = self.index.fields + self.index.count
        field.offset = self.line_at
        field.length = 0
        field.name_at = self.index.names_bytes
        field.name_bytes = self.name_bytes
        self.index.names_bytes += self.name_bytes
        self.index.count += 1
        self.is_indexed = True
        return 0

    cdef void close_field(self, Py_ssize_t end) noexcept nogil:
        if self.field_at >= 0 and self.is_indexed:
            self.index.fields[self.index.count - 1].length = end - self.field_at
        self.field_at = -1

    cdef void end_header(self) noexcept nogil:
        """No more octets: a line that was not known to be a field is none, an open field ends here."""
        if self.state == ENDED:
            return
        if self.state != VALUE and self.state != LINE_START:
            self.at = self.line_at
        self.close_field(self.at)
        self.state = ENDED
