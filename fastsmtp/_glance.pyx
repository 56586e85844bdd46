"""The payload of a message: its strings put together, and what the dispatcher must know of it read without the rest.

docs/queue.md has the layout.  Pure: works on bytes.  A message as objects is
_payload.pyx's.  Rank 5.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from fastsmtp._record cimport (
    ALIGN, BLOCK_BYTES, HEADER, K_END, K_KEPT, K_MESSAGE, K_SEAL, MAGIC, PAYLOAD_MOST, Header, crc_add, crc_init, up,
)

crc_init()

cdef enum:
    DOMAIN = 1                  # of a recipient's words
    DELIVER = 4
    ENTRY = 24                  # of the done-log
    DELIVERED = 1


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


cdef Py_ssize_t measure(object word, const char **p) except -1:
    """Where the bytes of a str (as UTF-8) or bytes object are, and how many."""
    cdef Py_ssize_t size = 0
    if type(word) is bytes:
        p[0] = PyBytes_AS_STRING(word)
        size = PyBytes_GET_SIZE(word)
    else:
        p[0] = PyUnicode_AsUTF8AndSize(word, &size)
    if size > 0xffff:
        raise ValueError("a message that doesn't fit into its record: a string of 64 KiB")
    return size


def put_together(bytes fixed not None, tuple strings not None, list recipients not None):
    cdef Py_ssize_t total = PyBytes_GET_SIZE(fixed)
    cdef const char *source = NULL
    cdef tuple words
    for word in strings:
        total += 2 + measure(word, &source)
    for words in recipients:
        for word in words:
            total += 2 + measure(word, &source)
    result = PyBytes_FromStringAndSize(NULL, total)
    cdef char *p = PyBytes_AS_STRING(result)
    memcpy(p, PyBytes_AS_STRING(fixed), <size_t>PyBytes_GET_SIZE(fixed))
    p = put_words(p + PyBytes_GET_SIZE(fixed), strings)
    for words in recipients:
        p = put_words(p, words)
    return result


cdef char *put_words(char *p, tuple words) except NULL:
    """Their lengths, and then they themselves."""
    cdef char *lengths = p
    cdef const char *source = NULL
    cdef Py_ssize_t size
    cdef uint16_t length
    p += 2 * len(words)
    for word in words:
        size = measure(word, &source)
        length = <uint16_t>size
        memcpy(lengths, &length, 2)
        lengths += 2
        memcpy(p, source, <size_t>size)
        p += size
    return p


cdef class _Entries:
    """Entries of the done-log, one behind the other."""

    cdef char *at
    cdef size_t size
    cdef size_t room

    def __dealloc__(self):
        free(self.at)

    cdef int add(self, uint64_t epoch, uint32_t offset, uint32_t recipient) except -1:
        cdef size_t room
        cdef void *memory
        if self.size + ENTRY > self.room:
            room = self.room * 2 if self.room else 4096
            memory = realloc(self.at, room)
            if memory is NULL:
                raise MemoryError()
            self.at = <char *>memory
            self.room = room
        cdef char *p = self.at + self.size
        memset(p, 0, ENTRY)
        memcpy(p, &epoch, 8)
        memcpy(p + 8, &offset, 4)
        memcpy(p + 12, &recipient, 4)
        p[16] = DELIVERED
        self.size += ENTRY
        return 0


cdef struct Outline:
    bint is_spooled
    uint32_t recipients
    const char *first           # of the recipients
    const char *reference       # to the body file


cdef bint outline(const char *p, uint64_t length, Outline *found) noexcept:
    """Where the recipients stand, and whether everything is within the payload."""
    cdef const char *end = p + length
    cdef uint32_t prefix = 0
    cdef uint64_t body = 0
    cdef uint16_t size = 0
    cdef uint8_t flags
    cdef const char *at
    cdef int i
    if length < FIXED + 2 * STRINGS or p[0] != LAYOUT:
        return False
    flags = <uint8_t>p[1]
    if flags >= FLAGS:
        return False
    memcpy(&found.recipients, p + 8, 4)
    memcpy(&prefix, p + 12, 4)
    memcpy(&body, p + 16, 8)
    found.is_spooled = (flags & SPOOLED) != 0
    at = p + FIXED + 2 * STRINGS
    for i in range(STRINGS):
        memcpy(&size, p + FIXED + 2 * i, 2)
        at += size
    if at > end:
        return False
    found.first = at
    for _ in range(found.recipients):
        if end - at < 2 * WORDS:
            return False
        at = after_recipient(at)
        if at > end:
            return False
    if found.is_spooled:
        body = REFERENCE
    if <uint64_t>(end - at) < prefix or <uint64_t>(end - at) - prefix != body:
        return False
    found.reference = at + prefix
    return True


cdef inline const char *after_recipient(const char *p) noexcept:
    cdef uint16_t sizes[WORDS]
    memcpy(sizes, p, 2 * WORDS)
    return p + 2 * WORDS + sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4] + sizes[5]


cdef inline bint is_discarded(const char *p) noexcept:
    cdef uint16_t sizes[WORDS]
    memcpy(sizes, p, 2 * WORDS)
    return sizes[DELIVER] == 7 and memcmp(p + 2 * WORDS + sizes[0] + sizes[1] + sizes[2] + sizes[3], b"discard", 7) == 0


cdef tuple destinations(Outline *found):
    """(deliver, domain) of each recipient."""
    cdef uint16_t sizes[WORDS]
    cdef const char *p = found.first
    cdef const char *word
    cdef list result = []
    for _ in range(found.recipients):
        memcpy(sizes, p, 2 * WORDS)
        word = p + 2 * WORDS + sizes[0]
        domain = PyUnicode_DecodeUTF8(word, sizes[DOMAIN], b"replace")
        word += sizes[1] + sizes[2] + sizes[3]
        result.append((PyUnicode_DecodeUTF8(word, sizes[DELIVER], b"replace"), domain))
        p = after_recipient(p)
    return tuple(result)


cdef object body_number(Outline *found):
    cdef uint64_t number = 0
    if not found.is_spooled:
        return None
    memcpy(&number, found.reference, 8)
    return number


def destinations_of(bytes payload not None):
    cdef Outline found
    if not outline(PyBytes_AS_STRING(payload), <uint64_t>PyBytes_GET_SIZE(payload), &found):
        raise ValueError("no message in a layout that is known")
    return body_number(&found), destinations(&found)


def glance(bytes data not None, *, uint64_t base, uint64_t epoch, uint64_t start, bint at_batch=True):
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef const char *one
    cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(data)
    cdef uint64_t at = start - base
    cdef uint64_t wanted = 0
    cdef Header header
    cdef Outline found
    cdef uint32_t crc, i
    cdef bint is_plain
    cdef _Entries entries = _Entries()
    cdef list messages = []
    cdef list seals = []
    cdef list odd = []
    cdef Py_ssize_t discarded = 0
    if start < base:
        raise ValueError("the scan begins before the data")
    while True:
        if at + HEADER > size:
            wanted = HEADER
            break
        memcpy(&header, p + at, HEADER)
        if (
            memcmp(header.magic, MAGIC, 4) != 0 or header.epoch != epoch or header.offset != base + at
            or not K_MESSAGE <= header.kind <= K_KEPT or header.length > PAYLOAD_MOST
            or (at_batch and header.batch != header.offset)
        ):
            break
        if at + HEADER + header.length > size:
            wanted = up(HEADER + header.length, ALIGN)
            break
        one = p + at + HEADER
        crc = crc_add(0xffffffffU, p + at, HEADER - 4)
        crc = ~crc_add(crc, one, header.length)
        if crc != header.crc:
            break
        at_batch = header.kind == K_END
        if at_batch:
            at = up(base + at + HEADER, BLOCK_BYTES) - base
            continue
        if header.kind == K_SEAL:
            seals.append(PyBytes_FromStringAndSize(one, header.length))
        elif header.kind == K_MESSAGE:
            if not outline(one, header.length, &found):
                odd.append((base + at, header.length))
            else:
                is_plain = not found.is_spooled
                one = found.first
                for i in range(found.recipients):
                    if not is_discarded(one):
                        is_plain = False
                        break
                    one = after_recipient(one)
                if is_plain:
                    for i in range(found.recipients):
                        entries.add(epoch, header.offset, i)
                    discarded += 1
                else:
                    messages.append((base + at, header.length, body_number(&found), destinations(&found)))
        at += up(HEADER + header.length, ALIGN)
    return (
        PyBytes_FromStringAndSize(entries.at, <Py_ssize_t>entries.size) if entries.size else b"",
        discarded, messages, seals, odd, base + at, at_batch, wanted,
    )
