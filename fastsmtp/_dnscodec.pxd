"""What the other compiled DNS modules take from the codec."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef enum:
    NAME_BYTES = 255          # a name on the wire, RFC 1035 section 2.3.4
    QUERY_BYTES = 290         # header 12, name 255, type and class 4, OPT 11, and room
    BLOB_BYTES = 131_072      # an answer with its names expanded; twice the longest message
    HEAD_BYTES = 12
    MAX_RECORDS = 5_500       # (65,535 - 12) / 12: no longer answer section can be true

# Numbers of Status; up to 23 they are rcodes.
cdef enum:
    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16
    NODATA = 32
    TIMEOUT = 33
    BROKEN = 34
    UNREACHABLE = 35
    BADNAME = 36
    BUSY = 37
    OTHER = 38

cdef struct Record:           # one of an answer section
    uint32_t owner_hash
    uint32_t ttl
    uint16_t owner
    uint16_t type
    uint16_t rdata
    uint16_t rdlength

cdef struct Head:             # of a blob: what is known of an answer, names expanded, records one after the other
    uint32_t ttl
    uint16_t count
    uint16_t type
    uint16_t rcode
    uint8_t status
    uint8_t is_authentic


cdef class Question:
    cdef readonly bytes name
    cdef readonly int type
    cdef Py_hash_t hash


cdef class Answer:
    cdef readonly object status
    cdef readonly tuple records
    cdef readonly bytes canonical_name
    cdef readonly int rcode
    cdef readonly long ttl
    cdef readonly bint is_authentic
    cdef readonly bint is_failed


cdef int wire_name(const uint8_t *text, Py_ssize_t length, uint8_t *out) noexcept nogil
cdef int expand_name(const uint8_t *p, int n, int at, uint8_t *out, int *end) noexcept nogil
cdef int put_query(uint8_t *out, unsigned int id, const uint8_t *name, int name_length,
                   int type, bint has_edns, bint wants_ad) noexcept nogil
cdef int read_answer(const uint8_t *p, int n, int at, const uint8_t *name, int name_length, int type,
                     bint trusts_ad, Record *records, uint8_t *blob) noexcept nogil
cdef Answer answer_of(const uint8_t *blob, int length)
cdef Answer failure(int status)
