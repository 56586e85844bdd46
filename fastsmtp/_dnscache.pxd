"""The cache as the engine sees it."""

from libc.stdint cimport uint8_t, uint32_t

from fastsmtp._dnscodec cimport Question


cdef class Cache:
    cdef uint8_t *arena
    cdef uint32_t *buckets
    cdef uint32_t mask, capacity, head, tail, stop, held
    cdef readonly long entries
    cdef readonly long evicted

    cdef const uint8_t *find(self, Question question, uint32_t now_s, int *length) noexcept
    cdef void put(self, Question question, const uint8_t *blob, int length, uint32_t expires_s) noexcept
    cdef void unlink(self, uint32_t offset) noexcept
    cdef void evict(self) noexcept
