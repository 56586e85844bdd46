"""Counters in one shared mapping; _counters.pyi says what they promise.

One writer a region, many readers, no lock.  A slot's `sequence` makes that
sound: its lowest bit is set while the key or several fields change together
(a slot is given to another client, a minute ends), the next bit says that the
slot is in use, the rest counts changes.  A reader takes what it read only if
the sequence was even and stayed the same; it gives up after a few tries, since
a writer may have been killed in the middle.  A single number (a count that
goes up by one) is stored whole and needs none of this.

A client's place is SipHash-1-3 of its key under a seed drawn before the fork,
so nobody can choose addresses that crowd one part of the table.  Probing is
linear and bounded.  A slot once used stays used (its client may change), so a
look-up ends at the first unused one.
"""

from libc.math cimport floor
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

cimport cython

import os as _os

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint32_t load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint64_t load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline uint32_t load32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store32_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline double as_double(uint64_t bits) { double d; __builtin_memcpy(&d, &bits, 8); return d; }
    static inline uint64_t as_bits(double d) { uint64_t bits; __builtin_memcpy(&bits, &d, 8); return bits; }
    """
    uint32_t load32(const uint32_t *p) noexcept nogil
    uint64_t load64(const uint64_t *p) noexcept nogil
    void store32(uint32_t *p, uint32_t v) noexcept nogil
    void store64(uint64_t *p, uint64_t v) noexcept nogil
    uint32_t load32_acquire(const uint32_t *p) noexcept nogil
    void store32_release(uint32_t *p, uint32_t v) noexcept nogil
    void fence_acquire() noexcept nogil
    void fence_release() noexcept nogil
    double as_double(uint64_t bits) noexcept nogil
    uint64_t as_bits(double d) noexcept nogil

CONNECTIONS = 0
MESSAGES = 1
RECIPIENTS = 2
HANDSHAKES = 3

cdef enum:
    KINDS = 4
    PROBES = 16         # places where a client may be: 16 cache lines in a row
    TRIES = 64          # of a reader that meets a writer
    WRITING = 1         # bits of Slot.sequence
    USED = 2
    STEP = 4
    PAGE = 4096
    MINUTE_S = 60
    MOST_SLOTS = 1 << 24

cdef struct Slot:       # 64 bytes: one cache line
    uint64_t key_high
    uint64_t key_low
    uint32_t connections
    uint32_t minute     # that current[] counts
    uint32_t current[4]
    uint32_t previous[4]
    uint32_t pass_until # seconds; 0: none
    uint32_t sequence

cdef struct Head:       # of a region, on a page of its own
    uint64_t beat       # bits of a double
    uint64_t overflows
    uint32_t connections

cdef struct Root:       # of the mapping, on a page of its own
    uint64_t seed[2]
    uint32_t used       # regions that readers look at

cdef struct Key:
    uint64_t high
    uint64_t low
    uint64_t place      # hash

cdef enum Found:
    UNUSED = 0
    OTHER = 1
    SAME = 2


# --- the hash ---------------------------------------------------------------------------------------------------------

cdef inline uint64_t rotate(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline void mix(uint64_t *v) noexcept nogil:
    """One SipRound."""
    v[0] += v[1]
    v[2] += v[3]
    v[1] = rotate(v[1], 13) ^ v[0]
    v[3] = rotate(v[3], 16) ^ v[2]
    v[0] = rotate(v[0], 32)
    v[2] += v[1]
    v[0] += v[3]
    v[1] = rotate(v[1], 17) ^ v[2]
    v[3] = rotate(v[3], 21) ^ v[0]
    v[2] = rotate(v[2], 32)


cdef inline uint64_t place_of(uint64_t high, uint64_t low, const uint64_t *seed) noexcept nogil:
    """SipHash-1-3 of a message of two words (the length block is that of 16 bytes)."""
    cdef uint64_t v[4]
    v[0] = seed[0] ^ 0x736f6d6570736575ULL
    v[1] = seed[1] ^ 0x646f72616e646f6dULL
    v[2] = seed[0] ^ 0x6c7967656e657261ULL
    v[3] = seed[1] ^ 0x7465646279746573ULL
    v[3] ^= high
    mix(v)
    v[0] ^= high
    v[3] ^= low
    mix(v)
    v[0] ^= low
    v[3] ^= <uint64_t>16 << 56
    mix(v)
    v[0] ^= <uint64_t>16 << 56
    v[2] ^= 0xff
    mix(v)
    mix(v)
    mix(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


# --- a slot, as a reader of any region sees it --------------------------------------------------------------------------

cdef inline Found look(Slot *slot, const Key *key, Slot *copy) noexcept nogil:
    """Whether the slot is this client's; if SAME, copy has its numbers as they stood at one moment."""
    cdef uint32_t before
    cdef int tries = TRIES
    cdef int kind
    cdef Found found
    while tries:
        tries -= 1
        before = load32_acquire(&slot.sequence)
        if before & WRITING:
            continue
        if not before & USED:
            return UNUSED
        found = OTHER
        if load64(&slot.key_low) == key.low and load64(&slot.key_high) == key.high:
            found = SAME
            copy.connections = load32(&slot.connections)
            copy.minute = load32(&slot.minute)
            for kind in range(KINDS):
                copy.current[kind] = load32(&slot.current[kind])
                copy.previous[kind] = load32(&slot.previous[kind])
            copy.pass_until = load32(&slot.pass_until)
        fence_acquire()
        if load32(&slot.sequence) == before:
            return found
    return OTHER


cdef inline Slot *find(Slot *table, uint64_t mask, const Key *key, Slot *copy) noexcept nogil:
    """This client's slot in a region's table, or NULL."""
    cdef int probe
    cdef Slot *slot
    cdef Found found
    for probe in range(PROBES):
        slot = &table[(key.place + <uint64_t>probe) & mask]
        found = look(slot, key, copy)
        if found == SAME:
            return slot
        if found == UNUSED:
            return NULL
    return NULL


# --- a slot, as the one writer of its region sees it ---------------------------------------------------------------------

cdef inline Slot *find_own(Slot *table, uint64_t mask, const Key *key) noexcept nogil:
    """As find, without the precautions against a writer: that is us."""
    cdef int probe
    cdef Slot *slot
    for probe in range(PROBES):
        slot = &table[(key.place + <uint64_t>probe) & mask]
        if not slot.sequence & USED:
            return NULL
        if slot.key_low == key.low and slot.key_high == key.high:
            return slot
    return NULL


cdef inline uint32_t begin(Slot *slot) noexcept nogil:
    cdef uint32_t sequence = slot.sequence
    store32(&slot.sequence, sequence | WRITING)
    fence_release()
    return sequence


cdef inline void end(Slot *slot, uint32_t sequence, uint32_t used) noexcept nogil:
    store32_release(&slot.sequence, ((sequence + STEP) & ~<uint32_t>(WRITING | USED)) | used)


cdef void empty(Slot *slot, uint32_t minute) noexcept nogil:
    """All numbers to zero; between begin and end."""
    cdef int kind
    store32(&slot.connections, 0)
    store32(&slot.minute, minute)
    for kind in range(KINDS):
        store32(&slot.current[kind], 0)
        store32(&slot.previous[kind], 0)
    store32(&slot.pass_until, 0)


cdef Slot *claim(Slot *table, uint64_t mask, const Key *key, uint32_t now) noexcept nogil:
    """A slot for a client that has none: an unused one, else one that says nothing any more, else NULL.

    A pass only spares a client the greeting delay, so where nothing else is left the pass that ends first
    gives way to a count.
    """
    cdef int probe
    cdef uint32_t sequence
    cdef uint32_t minute = now // MINUTE_S
    cdef Slot *slot
    cdef Slot *chosen = NULL
    for probe in range(PROBES):
        slot = &table[(key.place + <uint64_t>probe) & mask]
        if not slot.sequence & USED:
            chosen = slot
            break
        if slot.connections or slot.minute + 1 >= minute:
            continue
        if chosen is NULL or slot.pass_until < chosen.pass_until:
            chosen = slot
            if slot.pass_until <= now:
                break
    if chosen is NULL:
        return NULL
    sequence = begin(chosen)
    store64(&chosen.key_high, key.high)
    store64(&chosen.key_low, key.low)
    empty(chosen, minute)
    end(chosen, sequence, USED)
    return chosen


cdef inline void roll(Slot *slot, uint32_t minute) noexcept nogil:
    """Make `minute` the slot's current one.  A clock that seems to run back changes nothing."""
    cdef uint32_t sequence
    cdef int kind
    cdef bint is_next
    if minute <= slot.minute:
        return
    is_next = minute == slot.minute + 1
    sequence = begin(slot)
    for kind in range(KINDS):
        store32(&slot.previous[kind], slot.current[kind] if is_next else 0)
        store32(&slot.current[kind], 0)
    store32(&slot.minute, minute)
    end(slot, sequence, USED)


cdef inline uint32_t seconds(double now_s) noexcept nogil:
    if now_s <= 0:
        return 0
    return <uint32_t>floor(now_s) if now_s < 4294967295.0 else <uint32_t>0xffffffffU


@cython.final
cdef class Counters:
    cdef char *memory
    cdef size_t size
    cdef size_t stride
    cdef uint64_t mask
    cdef readonly int workers

    def __cinit__(self, int workers, Py_ssize_t slots=32_768):
        cdef uint64_t wanted = PROBES
        cdef bytes seed
        if workers < 1:
            raise ValueError("counters need at least one worker")
        if not 1 <= slots <= MOST_SLOTS:
            raise ValueError("slots out of range")
        while wanted < <uint64_t>slots:
            wanted *= 2
        self.workers = workers
        self.mask = wanted - 1
        self.stride = PAGE + wanted * sizeof(Slot)
        self.stride = (self.stride + PAGE - 1) // PAGE * PAGE
        self.size = PAGE + self.stride * <size_t>workers
        # Not reserved: a region that no worker ever had costs nothing.
        self.memory = <char *>mmap(
            NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if self.memory == <char *>MAP_FAILED:
            self.memory = NULL
            raise MemoryError(f"no memory for the counters of {workers} workers ({self.size} bytes)")
        seed = _os.urandom(16)
        memcpy((<Root *>self.memory).seed, PyBytes_AS_STRING(seed), 16)
        (<Root *>self.memory).used = <uint32_t>workers

    def __dealloc__(self):
        if self.memory is not NULL:
            munmap(self.memory, self.size)

    cdef Head *head(self, int worker) except NULL:
        if not 0 <= worker < self.workers:
            raise IndexError(f"no region {worker}: there are {self.workers}")
        return <Head *>(self.memory + PAGE + self.stride * <size_t>worker)

    def region(self, int worker):
        self.head(worker)
        cdef Region region = Region.__new__(Region)
        region.counters = self
        region.own = self.head(worker)
        region.table = <Slot *>(<char *>region.own + PAGE)
        region.root = <Root *>self.memory
        region.first = self.memory + PAGE
        region.stride = self.stride
        region.mask = self.mask
        return region

    def use(self, int workers):
        if not 0 < workers <= self.workers:
            raise IndexError(f"no {workers} regions: there are {self.workers}")
        store32(&(<Root *>self.memory).used, <uint32_t>workers)

    def clear(self, int worker):
        self.forget(worker, True)

    def release(self, int worker):
        self.forget(worker, False)

    cdef int forget(self, int worker, bint everything) except -1:
        """Readers may look on meanwhile, so slots are changed one by one."""
        cdef Head *head = self.head(worker)
        cdef Slot *table = <Slot *>(<char *>head + PAGE)
        cdef Slot *slot
        cdef uint64_t at
        cdef uint32_t sequence
        store64(&head.beat, 0)
        store32(&head.connections, 0)
        if everything:
            store64(&head.overflows, 0)
        for at in range(self.mask + 1):
            slot = &table[at]
            if slot.sequence == 0:
                continue
            if everything or slot.sequence & WRITING:
                # A look-up ends at an unused slot, so a half-written one stays in use, as nobody's: all zero.
                sequence = begin(slot)
                store64(&slot.key_high, 0)
                store64(&slot.key_low, 0)
                empty(slot, 0)
                end(slot, sequence, 0 if everything else USED)
            elif slot.connections:
                store32(&slot.connections, 0)
        return 0

    def beat_s(self, int worker):
        return as_double(load64(&self.head(worker).beat))

    def connections(self):
        cdef uint64_t total = 0
        cdef int worker
        for worker in range(self.workers):
            total += load32(&self.head(worker).connections)
        return total


@cython.final
cdef class Region:
    cdef Counters counters      # keeps the mapping
    cdef Head *own
    cdef Slot *table
    cdef Root *root
    cdef char *first
    cdef size_t stride
    cdef uint64_t mask
    cdef uint32_t seen          # the latest time that a caller named, for those who name none

    def __init__(self):
        raise TypeError("regions come from Counters.region")

    cdef int key(self, bytes client, Key *key) except -1:
        """The client's 16 bytes as two words, and its place."""
        if client is None or PyBytes_GET_SIZE(client) != 16:
            raise ValueError("a client key is 16 bytes")
        memcpy(&key.high, PyBytes_AS_STRING(client), 8)
        memcpy(&key.low, PyBytes_AS_STRING(client) + 8, 8)
        key.place = place_of(key.high, key.low, self.root.seed)
        return 0

    cdef Slot *slot(self, const Key *key, uint32_t now) noexcept nogil:
        """Our slot of this client, claimed if need be; NULL when there is no place, which is counted."""
        cdef Slot *slot = find_own(self.table, self.mask, key)
        if slot is NULL:
            slot = claim(self.table, self.mask, key, now)
            if slot is NULL:
                store64(&self.own.overflows, self.own.overflows + 1)
        return slot

    cdef Slot *table_of(self, uint32_t worker) noexcept nogil:
        return <Slot *>(self.first + self.stride * <size_t>worker + PAGE)

    cdef uint64_t sum_connections(self, const Key *key) noexcept nogil:
        cdef Slot copy
        cdef uint64_t total = 0
        cdef uint32_t worker
        for worker in range(load32(&self.root.used)):
            if find(self.table_of(worker), self.mask, key, &copy) is not NULL:
                total += copy.connections
        return total

    @property
    def overflows(self):
        return load64(&self.own.overflows)

    def beat(self, double now_s):
        self.seen = seconds(now_s)
        store64(&self.own.beat, as_bits(now_s))

    def connect(self, bytes client, double now_s):
        cdef Key key
        cdef Slot *slot
        self.key(client, &key)
        self.seen = seconds(now_s)
        store32(&self.own.connections, self.own.connections + 1)
        slot = self.slot(&key, self.seen)
        if slot is not NULL:
            store32(&slot.connections, slot.connections + 1)
        return self.sum_connections(&key)

    def disconnect(self, bytes client):
        cdef Key key
        cdef Slot *slot
        self.key(client, &key)
        self.disconnect_uncounted()
        slot = find_own(self.table, self.mask, &key)
        # None, or at zero already: the client found no place when it connected.
        if slot is not NULL and slot.connections:
            store32(&slot.connections, slot.connections - 1)

    def connect_uncounted(self):
        store32(&self.own.connections, self.own.connections + 1)

    cpdef disconnect_uncounted(self):
        if self.own.connections:
            store32(&self.own.connections, self.own.connections - 1)

    def connections(self):
        cdef uint64_t total = 0
        cdef uint32_t worker
        for worker in range(load32(&self.root.used)):
            total += load32(&(<Head *>(self.first + self.stride * <size_t>worker)).connections)
        return total

    def client_connections(self, bytes client):
        cdef Key key
        self.key(client, &key)
        return self.sum_connections(&key)

    def take(self, bytes client, int token, double now_s, uint32_t amount=1):
        cdef Key key
        cdef Slot *slot
        cdef uint32_t now = seconds(now_s)
        if not 0 <= token < KINDS:
            raise IndexError("no such token")
        self.key(client, &key)
        self.seen = now
        slot = self.slot(&key, now)
        if slot is not NULL:
            roll(slot, now // MINUTE_S)
            store32(&slot.current[token], slot.current[token] + amount)

    def rate(self, bytes client, int token, double now_s):
        cdef Key key
        cdef Slot copy
        cdef uint32_t now = seconds(now_s)
        cdef uint32_t minute = now // MINUTE_S
        cdef uint32_t worker
        cdef uint64_t current = 0
        cdef uint64_t previous = 0
        if not 0 <= token < KINDS:
            raise IndexError("no such token")
        self.key(client, &key)
        for worker in range(load32(&self.root.used)):
            if find(self.table_of(worker), self.mask, &key, &copy) is NULL:
                continue
            if copy.minute >= minute:
                current += copy.current[token]
                previous += copy.previous[token]
            elif copy.minute + 1 == minute:
                previous += copy.current[token]
        return current + (previous * (MINUTE_S - now % MINUTE_S) + MINUTE_S // 2) // MINUTE_S

    def grant_pass(self, bytes client, double until_s):
        cdef Key key
        cdef Slot *slot
        cdef uint32_t until = seconds(until_s)
        self.key(client, &key)
        slot = find_own(self.table, self.mask, &key)
        if slot is NULL:
            slot = self.slot(&key, self.seen)
        if slot is not NULL and until > slot.pass_until:
            store32(&slot.pass_until, until)

    def has_pass(self, bytes client, double now_s):
        cdef Key key
        cdef Slot copy
        cdef uint32_t now = seconds(now_s)
        cdef uint32_t worker
        self.key(client, &key)
        for worker in range(load32(&self.root.used)):
            if find(self.table_of(worker), self.mask, &key, &copy) is not NULL and copy.pass_until > now:
                return True
        return False
