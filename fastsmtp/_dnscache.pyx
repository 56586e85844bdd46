"""Answers kept for as long as they say, in a fixed number of bytes.

A ring of entries: each new one goes to the head and pushes the oldest off the
tail, so eviction costs nothing to decide and memory never fragments.  An entry
is the question's text and the answer's blob, nothing that Python's collector
would have to visit; 100,000 negative answers are some 8 MB.  The table from
question to entry uses Python's hash of the name, which is keyed: nobody from
outside can choose names that fall together.

Time comes in, as whole seconds since any fixed point.  Rank 1.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from fastsmtp._dnscodec cimport Question

cdef struct Entry:
    uint32_t hash
    uint32_t next         # offset of the next in the bucket, plus 1; 0: none
    uint32_t expires_s
    uint32_t size         # of all, in multiples of 8
    uint32_t blob_length
    uint16_t type
    uint16_t name_length  # DEAD: replaced by a newer one

cdef enum:
    DEAD = 0xFFFF
    LEAST_BYTES = 4_096
    MOST_BYTES = 0x7FFFFFFF
    BYTES_PER_BUCKET = 128


@cython.final
cdef class Cache:
    """Answers in at most capacity_bytes, the table of buckets included.

    entries  live ones, those that have expired and not yet been pushed out included
    evicted  pushed out to make room, since the start
    """

    def __cinit__(self, long capacity_bytes):
        """Raises ValueError below 4 KiB; more than 2 GiB are not used."""
        cdef uint32_t buckets = 16
        if capacity_bytes < LEAST_BYTES:
            raise ValueError(f"a cache of {capacity_bytes} bytes is too small, {LEAST_BYTES} is the least")
        if capacity_bytes > MOST_BYTES:
            capacity_bytes = MOST_BYTES
        while buckets * 2 * BYTES_PER_BUCKET <= capacity_bytes:
            buckets *= 2
        self.mask = buckets - 1
        self.capacity = <uint32_t>((capacity_bytes - buckets * sizeof(uint32_t)) & ~7)
        self.stop = self.capacity
        self.arena = <uint8_t *>malloc(self.capacity)
        self.buckets = <uint32_t *>calloc(buckets, sizeof(uint32_t))
        if self.arena is NULL or self.buckets is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.arena)
        free(self.buckets)

    def __len__(self):
        return self.entries

    @property
    def capacity_bytes(self):
        """What it may take, table included."""
        return self.capacity + (self.mask + 1) * sizeof(uint32_t)

    @property
    def used_bytes(self):
        """What its entries take now, dead ones included."""
        if not self.held:
            return 0
        # They lie one behind the other from the tail to the head, once around the end perhaps.
        if self.head > self.tail:
            return self.head - self.tail
        return self.stop - self.tail + self.head

    cdef const uint8_t *find(self, Question question, uint32_t now_s, int *length) noexcept:
        """The blob of this question, or NULL; good until the next put()."""
        cdef uint32_t hash = <uint32_t>question.hash, at = self.buckets[hash & self.mask]
        cdef Py_ssize_t n = PyBytes_GET_SIZE(question.name)
        cdef Entry *entry
        while at:
            entry = <Entry *>(self.arena + at - 1)
            if (entry.hash == hash and entry.name_length == n and entry.type == question.type
                    and memcmp(<uint8_t *>entry + sizeof(Entry), PyBytes_AS_STRING(question.name), n) == 0):
                if entry.expires_s <= now_s:
                    return NULL
                length[0] = <int>entry.blob_length
                return <uint8_t *>entry + sizeof(Entry) + n
            at = entry.next
        return NULL

    cdef void put(self, Question question, const uint8_t *blob, int length, uint32_t expires_s) noexcept:
        """Keep a blob; an answer that would take an eighth of all is not kept."""
        cdef uint32_t hash = <uint32_t>question.hash, at
        cdef Py_ssize_t n = PyBytes_GET_SIZE(question.name)
        cdef uint32_t need = <uint32_t>((sizeof(Entry) + n + length + 7) & ~7)
        cdef Entry *entry
        if n >= DEAD or need > self.capacity // 8:
            return
        at = self.buckets[hash & self.mask]
        while at:
            entry = <Entry *>(self.arena + at - 1)
            if (entry.hash == hash and entry.name_length == n and entry.type == question.type
                    and memcmp(<uint8_t *>entry + sizeof(Entry), PyBytes_AS_STRING(question.name), n) == 0):
                self.unlink(at - 1)
                break
            at = entry.next
        if self.capacity - self.head < need:
            while self.held and self.tail >= self.head:
                self.evict()
            if self.held:
                self.stop = self.head
                self.head = 0
        while self.held and self.head <= self.tail < self.head + need:
            self.evict()
        entry = <Entry *>(self.arena + self.head)
        entry.hash = hash
        entry.next = self.buckets[hash & self.mask]
        entry.expires_s = expires_s
        entry.size = need
        entry.blob_length = <uint32_t>length
        entry.type = <uint16_t>question.type
        entry.name_length = <uint16_t>n
        memcpy(<uint8_t *>entry + sizeof(Entry), PyBytes_AS_STRING(question.name), n)
        memcpy(<uint8_t *>entry + sizeof(Entry) + n, blob, length)
        self.buckets[hash & self.mask] = self.head + 1
        self.head += need
        self.held += 1
        self.entries += 1

    cdef void unlink(self, uint32_t offset) noexcept:
        """Take an entry out of its bucket and call it dead; its bytes stay until the tail comes by."""
        cdef Entry *entry = <Entry *>(self.arena + offset)
        cdef uint32_t *link = &self.buckets[entry.hash & self.mask]
        while link[0] != offset + 1:
            link = &(<Entry *>(self.arena + link[0] - 1)).next
        link[0] = entry.next
        entry.name_length = DEAD
        self.entries -= 1

    cdef void evict(self) noexcept:
        """Drop the entry at the tail."""
        cdef Entry *entry = <Entry *>(self.arena + self.tail)
        if entry.name_length != DEAD:
            self.unlink(self.tail)
            self.evicted += 1
        self.tail += entry.size
        self.held -= 1
        if self.held == 0:
            self.head = self.tail = 0
            self.stop = self.capacity
        elif self.tail == self.stop:
            self.tail = 0
            self.stop = self.capacity
