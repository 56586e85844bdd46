"""Records of the journal: their checksum, and how they are found again; docs/queue.md has the format.

Pure: works on bytes that were read.  Writing them is _journal.pyx.  Rank 5.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

crc_init()

MESSAGE = K_MESSAGE
SEAL = K_SEAL
END = K_END
DONE = K_DONE
KEPT = K_KEPT
HEADER_BYTES = HEADER
BLOCK = BLOCK_BYTES
MAX_PAYLOAD = PAYLOAD_MOST


def crc32c(data, uint32_t value=0):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return <uint32_t>~crc_add(~value, view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)


def crc32c_by_table(bytes data not None, uint32_t value=0):
    return <uint32_t>~crc_by_table(
        ~value, <const unsigned char *>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data)
    )


cdef inline bint is_header(const char *p, uint64_t epoch, uint64_t offset) noexcept nogil:
    cdef Header header
    if memcmp(p, MAGIC, 4) != 0:
        return False
    memcpy(&header, p, HEADER)
    return (
        header.epoch == epoch
        and header.offset == offset
        and header.batch <= header.offset
        and K_MESSAGE <= header.kind <= K_KEPT
        and header.length <= PAYLOAD_MOST
    )


def scan(bytes data not None, *, uint64_t base, uint64_t epoch, uint64_t start, bint at_batch=True):
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(data)
    cdef uint64_t at = start - base
    cdef uint64_t total
    cdef Header header
    cdef uint32_t crc
    cdef list found = []
    if start < base:
        raise ValueError("the scan begins before the data")
    while True:
        if at + HEADER > size:
            return found, base + at, at_batch, HEADER
        if not is_header(p + at, epoch, base + at):
            return found, base + at, at_batch, 0
        memcpy(&header, p + at, HEADER)
        if at_batch and header.batch != header.offset:
            return found, base + at, at_batch, 0
        total = up(HEADER + header.length, ALIGN)
        if at + HEADER + header.length > size:
            return found, base + at, at_batch, total
        crc = crc_add(0xffffffffU, p + at, HEADER - 4)
        crc = ~crc_add(crc, p + at + HEADER, header.length)
        if crc != header.crc:
            return found, base + at, at_batch, 0
        at_batch = header.kind == K_END
        if at_batch:
            found.append((K_END, base + at, 0, header.batch))
            at = up(base + at + HEADER, BLOCK_BYTES) - base
        else:
            found.append((header.kind, base + at, header.length, header.batch))
            at += total


def holds(bytes data not None, uint64_t epoch, uint64_t offset):
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(data)
    cdef Header header
    cdef uint32_t crc
    if size < HEADER or not is_header(p, epoch, offset):
        return False
    memcpy(&header, p, HEADER)
    if header.kind == K_END or size != HEADER + header.length:
        return False
    crc = crc_add(0xffffffffU, p, HEADER - 4)
    return header.crc == <uint32_t>~crc_add(crc, p + HEADER, header.length)


def find(bytes data not None, *, uint64_t base, uint64_t epoch, uint64_t start):
    cdef const char *p = PyBytes_AS_STRING(data)
    cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(data)
    cdef uint64_t at
    if start < base:
        raise ValueError("the search begins before the data")
    at = up(start, ALIGN) - base
    while at + HEADER <= size:
        if is_header(p + at, epoch, base + at):
            return <int64_t>(base + at)
        at += ALIGN
    return -1
