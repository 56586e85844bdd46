"""The payload of a message read into objects; docs/queue.md has the layout, queue/model.py the objects and the way back.

Nothing that stands in a payload is believed: every length is held against the octets that there are.  Rank 5: pure.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastsmtp._glance cimport FIXED, FLAGS, LAYOUT, REFERENCE, SPOOLED, STRINGS, WORDS

from fastsmtp.errors import QueueDamaged, QueueTooNew
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy.facts import Origin, TlsFacts
from fastsmtp.queue.model import BodyReference, Origins, QueuedMessage

cdef enum:                      # of the flags
    SMTPUTF8 = 1
    EXTENDED = 2
    TLS = 8
    RESUMED = 16

cdef enum:                      # of the strings
    ID = 0
    SENDER = 1
    SENDER_DOMAIN = 2
    BODY = 3
    RET = 4
    ENVID = 5
    ADDRESS = 6
    NAME = 7
    HELO = 8
    LISTENER = 9
    LOCAL_ADDRESS = 10
    PROTOCOL = 11
    CIPHER = 12
    SERVER_NAME = 13
    CUTS = 14

cdef enum:                      # of a recipient's words
    TO = 0
    DOMAIN = 1
    ORCPT = 2
    NOTIFY = 3
    DELIVER = 4
    PASS_CLIENT = 5

cdef enum:
    CUT = 8                     # bytes: offset, length

# By number; calling the enumeration costs many times as much.
cdef tuple ORIGINS = tuple(Origin)


cdef struct Fixed:              # the layout's fixed part, which has no holes
    uint8_t layout
    uint8_t flags
    uint8_t origin
    uint8_t nothing
    uint16_t port
    uint16_t bits
    uint32_t recipients
    uint32_t prefix
    uint64_t body
    uint64_t accepted
    uint64_t declared


cdef struct Word:
    const char *p
    Py_ssize_t size


cdef const char *read_words(const char *p, const char *end, int count, Word *words) noexcept nogil:
    """Where these words stand: their lengths (2 octets each), then they themselves.  What follows, NULL: too short."""
    cdef uint16_t size = 0
    cdef const char *at
    cdef int i
    if end - p < 2 * count:
        return NULL
    at = p + 2 * count
    for i in range(count):
        memcpy(&size, p + 2 * i, 2)
        if end - at < size:
            return NULL
        words[i].p = at
        words[i].size = size
        at += size
    return at


cdef inline bytes octets(Word word):
    return PyBytes_FromStringAndSize(word.p, word.size) if word.size else b""


cdef inline str text(Word word):
    return PyUnicode_DecodeUTF8(word.p, word.size, NULL) if word.size else ""


def decode(bytes payload not None, Py_ssize_t start=0):
    cdef const char *p = PyBytes_AS_STRING(payload) + start
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload) - start
    if not 0 <= start <= PyBytes_GET_SIZE(payload):
        raise ValueError("it starts outside")
    if size and <uint8_t>p[0] > LAYOUT:
        raise QueueTooNew(
            f"a message in layout {<uint8_t>p[0]}, written by a later fastsmtp; this one reads layouts up to {LAYOUT}"
        )
    try:
        return read(p, size)
    except ValueError as error:
        raise QueueDamaged(f"no message: {error}") from None


cdef object read(const char *p, Py_ssize_t size):
    cdef const char *end = p + size
    cdef const char *at
    cdef Fixed fixed
    cdef Word strings[STRINGS]
    cdef list recipients
    cdef object body
    cdef object tls = None
    if size < FIXED:
        raise ValueError("it ends within its fixed part")
    memcpy(&fixed, p, FIXED)
    if not fixed.layout or fixed.flags >= FLAGS:
        raise ValueError("neither layout nor flags are known")
    if fixed.origin >= len(ORIGINS):
        raise ValueError(f"{fixed.origin} is no origin")
    at = read_words(p + FIXED, end, STRINGS, strings)
    if at is NULL:
        raise ValueError("it ends within its strings")
    recipients = []
    at = read_recipients(at, end, fixed.recipients, recipients)
    # Both sides are compared as unsigned: at is not behind the end.
    if <uint64_t>(end - at) < fixed.prefix or <uint64_t>(end - at) - fixed.prefix != (
        REFERENCE if fixed.flags & SPOOLED else fixed.body
    ):
        raise ValueError("its parts are not as long as they say")
    prefix = PyBytes_FromStringAndSize(at, fixed.prefix)
    at += fixed.prefix
    if fixed.flags & SPOOLED:
        body = reference(at)
    else:
        body = (PyBytes_FromStringAndSize(at, end - at),) if at < end else ()
    if fixed.flags & TLS:
        tls = TlsFacts(
            text(strings[PROTOCOL]), text(strings[CIPHER]), fixed.bits, text(strings[SERVER_NAME]),
            (fixed.flags & RESUMED) != 0,
        )
    elif (
        strings[PROTOCOL].size or strings[CIPHER].size or strings[SERVER_NAME].size or fixed.bits
        or fixed.flags & RESUMED
    ):
        raise ValueError("it knows of TLS, and there was none")
    return QueuedMessage(
        text(strings[ID]),
        fixed.accepted,
        Envelope(
            octets(strings[SENDER]), octets(strings[SENDER_DOMAIN]), fixed.declared, octets(strings[BODY]),
            (fixed.flags & SMTPUTF8) != 0, octets(strings[RET]), octets(strings[ENVID]), recipients,
        ),
        Origins(
            text(strings[ADDRESS]), fixed.port, ORIGINS[fixed.origin], text(strings[NAME]), octets(strings[HELO]),
            (fixed.flags & EXTENDED) != 0, text(strings[LISTENER]), text(strings[LOCAL_ADDRESS]), tls,
        ),
        prefix,
        body,
        fixed.body,
        read_cuts(strings[CUTS]),
    )


cdef const char *read_recipients(const char *p, const char *end, uint32_t count, list found) except NULL:
    """What follows them."""
    cdef Word words[WORDS]
    cdef const char *at = p
    for _ in range(count):
        at = read_words(at, end, WORDS, words)
        if at is NULL:
            raise ValueError("it ends within its strings")
        found.append(Recipient(
            octets(words[TO]), octets(words[DOMAIN]),
            tuple(octets(words[NOTIFY]).split(b",")) if words[NOTIFY].size else (),
            octets(words[ORCPT]), text(words[DELIVER]), text(words[PASS_CLIENT]),
        ))
    return at


cdef object reference(const char *p):
    """The REFERENCE octets at p."""
    cdef uint64_t number = 0
    cdef uint64_t epoch = 0
    cdef uint32_t crc = 0
    memcpy(&number, p, 8)
    memcpy(&epoch, p + 8, 8)
    memcpy(&crc, p + 16, 4)
    return BodyReference(number, epoch, crc)


cdef tuple read_cuts(Word word):
    cdef uint32_t cut[2]
    cdef Py_ssize_t at
    cdef list found
    if not word.size:
        return ()
    if word.size % CUT:
        raise ValueError("half a cut")
    found = []
    for at in range(0, word.size, CUT):
        memcpy(cut, word.p + at, CUT)
        found.append((cut[0], cut[1]))
    return tuple(found)
