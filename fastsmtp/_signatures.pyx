"""The signature scanner: a walk over MIME that looks at the first line of each body and at little else.

It never holds more than one line, one header field and a few boundaries, whatever is sent.  In a body it jumps
from line to line; where no boundary can come any more it doesn't look at all.  _signatures.pyi has the contract.

Rank 1: pure, imports nothing of ours.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

cdef enum:
    LINE_MAX = 1024         # qmail-smtpd with the patch of 2004 keeps as much of a line
    FIELD_MAX = 2048        # of Content-Type with its folded lines; beyond it every line with -- begins a part
    BOUNDARY_MAX = 128      # RFC 2046 section 5.1.1 allows 70
    BOUNDARIES_MAX = 32     # different ones in a message; beyond it every line with -- begins a part
    DECODED_MAX = 192       # octets at the beginning of a body
    BASE64_MAX = 256        # DECODED_MAX written as base64

LINE_BYTES_MAX = LINE_MAX

# Where the walk stands.
cdef enum:
    HEADER = 0
    BODY = 1
    DONE = 2                # nothing that comes can matter

# What becomes of the current line.
cdef enum:
    LINE_START = 0
    GATHERED = 1
    SKIPPED = 2

# The field that is being read.
cdef enum:
    OTHER_FIELD = 0
    CONTENT_TYPE = 1
    TRANSFER_ENCODING = 2

# Content-Transfer-Encoding (RFC 2045 section 6).
cdef enum:
    IDENTITY = 0
    BASE64 = 1
    QUOTED_PRINTABLE = 2

cdef const char *NAME_CONTENT_TYPE = b"content-type"
cdef const char *NAME_TRANSFER_ENCODING = b"content-transfer-encoding"
cdef const char *WORD_BOUNDARY = b"boundary"
cdef const char *WORD_MESSAGE = b"message/"
cdef const char *WORD_BASE64 = b"base64"
cdef const char *WORD_QUOTED_PRINTABLE = b"quoted-printable"
cdef enum:
    NAME_CONTENT_TYPE_BYTES = 12
    NAME_TRANSFER_ENCODING_BYTES = 25
    WORD_BOUNDARY_BYTES = 8
    WORD_MESSAGE_BYTES = 8
    WORD_BASE64_BYTES = 6
    WORD_QUOTED_PRINTABLE_BYTES = 16

# How the two bounces begin that have the returned message as text, behind a line of hyphens: qmail's and Exim's.
cdef const char *BOUNCE_QMAIL = b"Hi. This is the "
cdef const char *BOUNCE_EXIM = b"This message was created automatically by mail delivery software"
cdef enum:
    BOUNCE_QMAIL_BYTES = 16
    BOUNCE_EXIM_BYTES = 64

cdef const char *BASE64_OCTETS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
cdef enum:
    NO_VALUE = 255

cdef unsigned char[256] BASE64_VALUE
cdef unsigned char[256] HEX_VALUE


cdef void fill_tables() noexcept nogil:
    cdef int c
    for c in range(256):
        BASE64_VALUE[c] = NO_VALUE
        HEX_VALUE[c] = NO_VALUE
    for c in range(64):
        BASE64_VALUE[<unsigned char>BASE64_OCTETS[c]] = <unsigned char>c
    for c in range(10):
        HEX_VALUE[c'0' + c] = <unsigned char>c
    for c in range(6):
        HEX_VALUE[c'A' + c] = <unsigned char>(10 + c)
        HEX_VALUE[c'a' + c] = <unsigned char>(10 + c)


fill_tables()


cdef inline unsigned char lower(unsigned char c) noexcept nogil:
    return c + 32 if c'A' <= c <= c'Z' else c


cdef inline bint is_blank(unsigned char c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef bint begins(const unsigned char *p, Py_ssize_t n, const char *word, Py_ssize_t word_bytes) noexcept nogil:
    """Whether the n octets at p begin with the word (lower case), in any case of letters."""
    cdef Py_ssize_t i
    if n < word_bytes:
        return False
    for i in range(word_bytes):
        if lower(p[i]) != <unsigned char>word[i]:
            return False
    return True


cdef bint is_name(const unsigned char *p, Py_ssize_t n) noexcept nogil:
    """Whether this can be a field's name: ftext = %d33-57 / %d59-126 (RFC 5322 section 3.6.8)."""
    cdef Py_ssize_t i
    for i in range(n):
        if p[i] < 33 or p[i] > 126:
            return False
    return n > 0


@cython.final
cdef class Signatures:
    """See _signatures.pyi.

    Sorted, and no signature begins with another.  So the one that a line begins with is the greatest one that is not
    greater than the line: between them only longer ones with the same beginning could stand.
    """

    cdef tuple literals
    cdef const unsigned char **texts
    cdef Py_ssize_t *lengths
    cdef Py_ssize_t count

    def __cinit__(self, literals=()):
        cdef Py_ssize_t i
        cdef list kept = []
        cdef bytes last = b""
        for literal in sorted(set(literals)):
            if not 0 < len(literal) <= LINE_MAX:
                raise ValueError(f"a signature has 1 to {LINE_MAX} octets")
            if not last or not literal.startswith(last):
                last = <bytes?>literal
                kept.append(literal)
        self.literals = tuple(kept)
        self.count = len(kept)
        # One more than needed: malloc(0) may be NULL.
        self.texts = <const unsigned char **>malloc(<size_t>(self.count + 1) * sizeof(char *))
        self.lengths = <Py_ssize_t *>malloc(<size_t>(self.count + 1) * sizeof(Py_ssize_t))
        if self.texts is NULL or self.lengths is NULL:
            raise MemoryError
        for i in range(self.count):
            last = <bytes>kept[i]
            self.texts[i] = <const unsigned char *>PyBytes_AS_STRING(last)
            self.lengths[i] = PyBytes_GET_SIZE(last)

    def __dealloc__(self):
        free(self.texts)
        free(self.lengths)

    def __len__(self):
        return self.count

    def __repr__(self):
        return f"Signatures({self.count})"

    def find(self, bytes line not None):
        cdef Py_ssize_t index = self.look_up(<const unsigned char *>PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line))
        return None if index < 0 else self.literals[index]

    cdef Py_ssize_t look_up(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        """The index of the signature that the n octets at p begin with, or -1."""
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.count
        cdef Py_ssize_t middle, common
        cdef int order
        while low < high:
            middle = (low + high) // 2
            common = self.lengths[middle]
            order = memcmp(self.texts[middle], p, <size_t>(common if common < n else n))
            if order < 0 or (order == 0 and common <= n):
                low = middle + 1
            else:
                high = middle
        if low == 0 or self.lengths[low - 1] > n:
            return -1
        if memcmp(self.texts[low - 1], p, <size_t>self.lengths[low - 1]) != 0:
            return -1
        return low - 1


@cython.final
cdef class SignatureHit:
    """See _signatures.pyi.  Made by SignatureScanner.finish() only."""

    cdef readonly bytes signature
    cdef readonly Py_ssize_t part
    cdef readonly bint is_decoded

    def __init__(self):
        raise TypeError("a SignatureHit comes from SignatureScanner.finish()")

    def __repr__(self):
        decoded = ", is_decoded" if self.is_decoded else ""
        return f"SignatureHit({self.signature!r}, part {self.part}{decoded})"


@cython.final
@cython.freelist(8)
cdef class SignatureScanner:
    """See _signatures.pyi."""

    cdef Signatures signatures
    cdef bint is_decoding
    cdef int state
    cdef int line_state
    cdef Py_ssize_t part
    # The first hit; -1: none.
    cdef Py_ssize_t hit
    cdef Py_ssize_t hit_part
    cdef bint hit_is_decoded
    # The line: what is kept of it, and whether there was more.
    cdef unsigned char[LINE_MAX] line
    cdef Py_ssize_t line_bytes
    cdef bint is_line_cut
    # The header.
    cdef int field
    cdef unsigned char[FIELD_MAX] value
    cdef Py_ssize_t value_bytes
    cdef bint is_value_cut
    cdef bint has_message       # what follows this header is a message with a header of its own
    cdef bint has_odd_line      # a line that is no field was compared already
    cdef bint skips_empty       # this header may come behind empty lines
    cdef int encoding
    # The body.
    cdef bint wants_first
    cdef bint awaits_copy       # a bounce: a line of hyphens, then the returned message
    cdef bint is_collecting
    cdef unsigned char[DECODED_MAX] decoded
    cdef Py_ssize_t decoded_bytes
    cdef unsigned int bits      # base64: what is left over of the last octets
    cdef int bits_count
    # What can end a part.
    cdef unsigned char[BOUNDARIES_MAX][BOUNDARY_MAX] boundaries
    cdef Py_ssize_t[BOUNDARIES_MAX] boundary_bytes
    cdef int boundaries_count
    cdef bint is_lax            # any line with two hyphens may be a boundary

    def __cinit__(self, Signatures signatures not None, *, bint is_decoding=False):
        self.signatures = signatures
        self.is_decoding = is_decoding
        self.hit = -1
        self.part = 0
        self.boundaries_count = 0
        self.is_lax = False
        self.line_state = LINE_START
        self.is_collecting = False
        if signatures.count == 0:
            self.state = DONE
        else:
            self.start_header(False)

    def feed(self, bytes chunk not None):
        if self.state != DONE:
            self.scan(<const unsigned char *>PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk))

    def finish(self):
        cdef SignatureHit found
        if self.state != DONE and self.line_state == GATHERED:
            self.end_line()
        self.compare_decoded()
        self.state = DONE
        if self.hit < 0:
            return None
        found = SignatureHit.__new__(SignatureHit)
        found.signature = self.signatures.literals[self.hit]
        found.part = self.hit_part
        found.is_decoded = self.hit_is_decoded
        return found

    # --- lines -----------------------------------------------------------------------------------

    cdef void scan(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        cdef const unsigned char *end = p + n
        cdef const unsigned char *lf
        cdef Py_ssize_t length
        while p < end:
            if self.line_state == LINE_START:
                if self.state == DONE:
                    return
                if self.state == BODY and not self.wants_first and not self.is_collecting:
                    # The tight loop: only a line that begins with a hyphen can matter.
                    while p[0] != c'-':
                        p = <const unsigned char *>memchr(p, c'\n', <size_t>(end - p))
                        if p is NULL:
                            self.line_state = SKIPPED
                            return
                        p += 1
                        if p == end:
                            return
                self.line_state = GATHERED
                self.line_bytes = 0
                self.is_line_cut = False
            lf = <const unsigned char *>memchr(p, c'\n', <size_t>(end - p))
            if self.line_state == GATHERED:
                length = (end if lf is NULL else lf) - p
                if length > LINE_MAX - self.line_bytes:
                    length = LINE_MAX - self.line_bytes
                    self.is_line_cut = True
                memcpy(self.line + self.line_bytes, p, <size_t>length)
                self.line_bytes += length
            if lf is NULL:
                return
            if self.line_state == GATHERED:
                self.end_line()
            self.line_state = LINE_START
            p = lf + 1

    cdef void end_line(self) noexcept nogil:
        cdef const unsigned char *p = self.line
        cdef Py_ssize_t n = self.line_bytes
        if n and not self.is_line_cut and p[n - 1] == c'\r':
            n -= 1
        if self.state == HEADER and not (n and is_blank(p[0])):
            # Before the look at boundaries: this line may be the first that ends with the one the field has named.
            self.end_field()
        if n >= 2 and p[0] == c'-' and p[1] == c'-' and self.is_boundary(p + 2, n - 2):
            self.compare_decoded()
            self.start_header(False)
        elif self.state == HEADER:
            self.header_line(p, n)
        elif self.state == BODY:
            self.body_line(p, n)
        if self.hit >= 0:
            self.state = DONE

    cdef bint is_boundary(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        """Whether the text behind two hyphens begins with a boundary: the last one of a part, too, and one with more
        behind it.  Some readers take it for one, and a header too many hides nothing."""
        cdef int i
        if self.is_lax:
            return True
        for i in range(self.boundaries_count):
            if n >= self.boundary_bytes[i] and memcmp(p, &self.boundaries[i][0], <size_t>self.boundary_bytes[i]) == 0:
                return True
        return False

    # --- the header ------------------------------------------------------------------------------

    cdef void start_header(self, bint skips_empty) noexcept nogil:
        self.state = HEADER
        self.part += 1
        self.field = OTHER_FIELD
        self.value_bytes = 0
        self.is_value_cut = False
        self.has_message = False
        self.has_odd_line = False
        self.skips_empty = skips_empty
        self.encoding = IDENTITY
        self.wants_first = False
        self.awaits_copy = False
        self.is_collecting = False

    cdef void header_line(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t name_bytes
        cdef const unsigned char *colon
        if n == 0:
            if not self.skips_empty:
                if self.has_message:
                    self.start_header(False)
                else:
                    self.start_body()
            return
        self.skips_empty = False
        if is_blank(p[0]):
            self.keep_value(p, n)
            return
        colon = <const unsigned char *>memchr(p, c':', <size_t>n)
        name_bytes = 0 if colon is NULL else colon - p
        while name_bytes and is_blank(p[name_bytes - 1]):
            name_bytes -= 1
        if name_bytes == NAME_CONTENT_TYPE_BYTES and begins(p, n, NAME_CONTENT_TYPE, name_bytes):
            self.field = CONTENT_TYPE
        elif name_bytes == NAME_TRANSFER_ENCODING_BYTES and begins(p, n, NAME_TRANSFER_ENCODING, name_bytes):
            self.field = TRANSFER_ENCODING
        elif not self.has_odd_line and not is_name(p, name_bytes):
            # Some readers take a line that is no field for the end of the header: then it is the body's first.
            self.has_odd_line = True
            self.compare(p, n)
        if self.field != OTHER_FIELD:
            self.keep_value(colon + 1, n - (colon + 1 - p))

    cdef void keep_value(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        if self.field == OTHER_FIELD:
            return
        if self.is_line_cut:
            self.is_value_cut = True
        if n > FIELD_MAX - self.value_bytes:
            n = FIELD_MAX - self.value_bytes
            self.is_value_cut = True
        memcpy(self.value + self.value_bytes, p, <size_t>n)
        self.value_bytes += n

    cdef void end_field(self) noexcept nogil:
        cdef const unsigned char *p = self.value
        cdef Py_ssize_t n = self.value_bytes
        while n and is_blank(p[0]):
            p += 1
            n -= 1
        if self.field == CONTENT_TYPE:
            self.has_message = self.has_message or begins(p, n, WORD_MESSAGE, WORD_MESSAGE_BYTES)
            self.find_boundaries(p, n)
            if self.is_value_cut:
                self.is_lax = True
        elif self.field == TRANSFER_ENCODING:
            if begins(p, n, WORD_BASE64, WORD_BASE64_BYTES):
                self.encoding = BASE64
            elif begins(p, n, WORD_QUOTED_PRINTABLE, WORD_QUOTED_PRINTABLE_BYTES):
                self.encoding = QUOTED_PRINTABLE
        self.field = OTHER_FIELD
        self.value_bytes = 0
        self.is_value_cut = False

    cdef void find_boundaries(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        """Every parameter whose name begins with boundary, RFC 2231's forms too: the beginning of one is enough."""
        cdef Py_ssize_t i = 0
        while i + WORD_BOUNDARY_BYTES < n:
            if not begins(p + i, n - i, WORD_BOUNDARY, WORD_BOUNDARY_BYTES):
                i += 1
                continue
            i += WORD_BOUNDARY_BYTES
            while i < n and (p[i] == c'*' or c'0' <= p[i] <= c'9' or is_blank(p[i])):
                i += 1
            if i < n and p[i] == c'=':
                i = self.keep_boundary(p, i + 1, n)

    cdef Py_ssize_t keep_boundary(self, const unsigned char *p, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
        """Add the boundary that is written at i; returns where its text ends."""
        cdef unsigned char[BOUNDARY_MAX] text
        cdef Py_ssize_t length = 0
        cdef bint is_quoted
        cdef int j
        while i < n and is_blank(p[i]):
            i += 1
        is_quoted = i < n and p[i] == c'"'
        if is_quoted:
            i += 1
        while i < n:
            if is_quoted:
                if p[i] == c'"':
                    break
                if p[i] == c'\\' and i + 1 < n:
                    i += 1
            elif p[i] == c';' or is_blank(p[i]):
                break
            if length == BOUNDARY_MAX:
                self.is_lax = True
                return i
            text[length] = p[i]
            length += 1
            i += 1
        for j in range(self.boundaries_count):
            if self.boundary_bytes[j] == length and memcmp(&self.boundaries[j][0], text, <size_t>length) == 0:
                return i
        if length == 0 or self.boundaries_count == BOUNDARIES_MAX:
            self.is_lax = True
            return i
        memcpy(&self.boundaries[self.boundaries_count][0], text, <size_t>length)
        self.boundary_bytes[self.boundaries_count] = length
        self.boundaries_count += 1
        return i

    # --- the body --------------------------------------------------------------------------------

    cdef void start_body(self) noexcept nogil:
        self.state = BODY
        self.wants_first = True
        self.awaits_copy = False
        self.is_collecting = self.is_decoding
        self.decoded_bytes = 0
        self.bits = 0
        self.bits_count = 0

    cdef void body_line(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        if self.awaits_copy and n >= 3 and p[0] == c'-' and p[1] == c'-' and p[2] == c'-':
            self.compare_decoded()
            self.start_header(True)
            return
        if self.wants_first and n:
            self.wants_first = False
            self.compare(p, n)
            self.awaits_copy = (
                n >= BOUNCE_QMAIL_BYTES and memcmp(p, BOUNCE_QMAIL, BOUNCE_QMAIL_BYTES) == 0
            ) or (n >= BOUNCE_EXIM_BYTES and memcmp(p, BOUNCE_EXIM, BOUNCE_EXIM_BYTES) == 0)
        if self.is_collecting:
            self.decode(p, n)
        if not (self.wants_first or self.is_collecting or self.awaits_copy
                or self.boundaries_count or self.is_lax):
            self.state = DONE

    cdef void compare(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        self.note(self.signatures.look_up(p, n), False)

    cdef void note(self, Py_ssize_t index, bint is_decoded) noexcept nogil:
        if index >= 0 and self.hit < 0:
            self.hit = index
            self.hit_part = self.part
            self.hit_is_decoded = is_decoded

    # --- decoding --------------------------------------------------------------------------------

    cdef void decode(self, const unsigned char *p, Py_ssize_t n) noexcept nogil:
        """One line of the body, without its line end."""
        cdef Py_ssize_t i
        cdef unsigned char value
        if self.encoding == BASE64:
            for i in range(n):
                value = BASE64_VALUE[p[i]]
                if value == NO_VALUE:
                    if p[i] == c'=':
                        # The end of the data (RFC 2045 section 6.8).
                        self.compare_decoded()
                        return
                    continue
                self.bits = (self.bits << 6 | value) & 0xFFFF
                self.bits_count += 6
                if self.bits_count >= 8:
                    self.bits_count -= 8
                    self.put(<unsigned char>(self.bits >> self.bits_count & 0xFF))
            return
        if self.encoding == QUOTED_PRINTABLE:
            # Blanks at the end of a line are none of the text's (RFC 2045 section 6.7, rule 3).
            while n and is_blank(p[n - 1]):
                n -= 1
            i = 0
            while i < n:
                if p[i] == c'=':
                    if i + 1 == n:
                        return                      # a soft line break
                    if i + 2 < n and HEX_VALUE[p[i + 1]] != NO_VALUE and HEX_VALUE[p[i + 2]] != NO_VALUE:
                        self.put(<unsigned char>(HEX_VALUE[p[i + 1]] << 4 | HEX_VALUE[p[i + 2]]))
                        i += 3
                        continue
                self.put(p[i])
                i += 1
        else:
            for i in range(n):
                self.put(p[i])
        self.put(c'\r')
        self.put(c'\n')

    cdef void put(self, unsigned char octet) noexcept nogil:
        if not self.is_collecting:
            return
        self.decoded[self.decoded_bytes] = octet
        self.decoded_bytes += 1
        if self.decoded_bytes == DECODED_MAX:
            self.compare_decoded()

    cdef void compare_decoded(self) noexcept nogil:
        """The beginning of the body is known, or all of it."""
        cdef unsigned char[BASE64_MAX] text
        cdef Py_ssize_t text_bytes = 0
        cdef const unsigned char *p = self.decoded
        cdef Py_ssize_t n = self.decoded_bytes
        cdef Py_ssize_t i
        cdef unsigned int bits = 0
        cdef int bits_count = 0
        if not self.is_collecting:
            return
        self.is_collecting = False
        for i in range(n):
            bits = (bits << 8 | p[i]) & 0xFFFF
            bits_count += 8
            while bits_count >= 6:
                bits_count -= 6
                text[text_bytes] = <unsigned char>BASE64_OCTETS[bits >> bits_count & 0x3F]
                text_bytes += 1
        self.note(self.signatures.look_up(text, text_bytes), True)
        while n and (p[0] == c'\r' or p[0] == c'\n'):
            p += 1
            n -= 1
        self.note(self.signatures.look_up(p, n), True)
