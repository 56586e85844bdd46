"""The native thread of a journal; docs/queue.md has the format.

Here: framing, group commit, publishing of the synced offset.  Not here: how a
record looks and is found again (_record.pyx), which file, when a new one, what
a payload means (queue/journal.py).  Nothing opens a file: descriptors come in.

A Writer has a ring of batches.  The loop thread puts records into the one that
is filling, without a copy: a record is an iovec of the caller's bytes objects,
kept alive until reap().  The thread takes that batch as soon as it is free
(no timer), syncs the body files it names, sums, writes and syncs, publishes,
and tells the loop through an eventfd.  After a failure it takes nothing more
until use() names another segment.

The lock is held for a few instructions, never during a system call, and the
thread never wants the GIL while it holds it.  Rank 5.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cimport cython

from fastsmtp._journalcalls cimport (
    IOV_MAX, EIO, iovec, pthread_t, pthread_mutex_t, pthread_cond_t, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock, pthread_mutex_destroy, pthread_cond_init, pthread_cond_wait, pthread_cond_signal,
    pthread_cond_destroy, pthread_join, thread_start, thread_name, thread_slice, kernel_write, kernel_sync, descriptor_copy,
    close_descriptor, bell_open, bell_ring, bell_quiet, bell_close, load_acquire, store_release, load_relaxed,
    store_relaxed, exchange_ordered, fence_acquire_, fence_release_, shared_map, munmap,
)
from fastsmtp._record cimport (
    ALIGN, BLOCK_BYTES, HEADER, K_DONE, K_END, K_KEPT, K_MESSAGE, K_SEAL, MAGIC, PAYLOAD_MOST, Header, crc_add, crc_init, up,
)

crc_init()

cdef enum:
    RING = 4                    # batches: one fills, one is written, the others wait for reap()
    THREAD_SLICE_NS = 100_000   # it works for some 20 us at a time and sleeps
    LOOP_SLICE_NS = 300_000     # a few commands of a session

cdef char zeros[BLOCK_BYTES]
memset(zeros, 0, BLOCK_BYTES)

cdef struct Entry:
    Header header
    uint32_t first              # of its pieces
    uint32_t pieces
    int body_fd                 # ours, synced first; -1: none
    int error                   # of that sync

cdef struct Batch:
    Entry *entries
    uint32_t count
    uint32_t entry_room
    iovec *pieces
    PyObject **held             # the bytes objects behind the pieces
    uint32_t piece_count
    uint32_t piece_room
    uint64_t size               # bytes of the records, without the end record
    int error
    double began_s
    double took_s               # to be written and synced

cdef struct Published:          # 128 bytes a worker
    uint64_t generation         # says which slot counts: one that is being written never does
    uint64_t slots[2][3]        # number, epoch, synced
    uint64_t is_asked           # the reader sleeps, and is to be told of the next sync
    uint64_t is_low             # in the last region, which is no worker's: below the low-water mark
    uint64_t spare[7]

cdef struct Engine:
    pthread_mutex_t mutex
    pthread_cond_t work
    Batch ring[RING]
    uint64_t filling            # numbers of batches, modulo RING
    uint64_t finished           # batches before this one are written or failed
    uint64_t reaped
    bint is_busy
    bint is_waiting
    bint is_closing
    bint is_stopped             # no segment, or it had a failure
    int fd
    int bell
    uint64_t number
    uint64_t epoch
    uint64_t limit              # size of the segment
    uint64_t end                # where the next batch goes
    uint64_t bound              # end of the batch under way, at most
    uint64_t after              # end of the batch under way; the thread's own
    uint64_t batches            # synced so far
    iovec *parts
    Header last                 # the end record of the batch under way
    Published *published
    PyObject *system            # None: the kernel


cdef inline double now_s() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef inline uint64_t room_of(uint64_t size) noexcept nogil:
    """What a batch with so many bytes of records takes in the segment."""
    return up(size + HEADER, BLOCK_BYTES)


# --- system calls: the kernel's, or those of the object that a test passes in ---------------------------------------

cdef Py_ssize_t write_parts(Engine *e, const iovec *parts, int count, uint64_t offset) noexcept nogil:
    """Bytes written, or -errno."""
    if e.system is NULL:
        return kernel_write(e.fd, parts, count, <int64_t>offset)
    with gil:
        return ask_write(<object>e.system, e.fd, parts, count, offset)


cdef Py_ssize_t ask_write(object system, int fd, const iovec *parts, int count, uint64_t offset) noexcept:
    cdef int i
    cdef list pieces = []
    try:
        for i in range(count):
            pieces.append(PyBytes_FromStringAndSize(<char *>parts[i].iov_base, <Py_ssize_t>parts[i].iov_len))
        return system.pwritev(fd, [b"".join(pieces)], offset)
    except OSError as error:
        return -(error.errno or EIO)
    except BaseException:
        return -EIO


cdef int sync(Engine *e, int fd) noexcept nogil:
    """0 or -errno."""
    if e.system is NULL:
        return kernel_sync(fd)
    with gil:
        return ask_sync(<object>e.system, fd)


cdef int ask_sync(object system, int fd) noexcept:
    try:
        system.fdatasync(fd)
    except OSError as error:
        return -(error.errno or EIO)
    except BaseException:
        return -EIO
    return 0


# --- the native thread ----------------------------------------------------------------------------------------------

cdef inline bint can_take(Engine *e) noexcept nogil:
    return (
        not e.is_stopped
        and not e.is_busy
        and e.ring[e.filling % RING].count > 0
        and e.filling + 1 - e.reaped < RING
    )


cdef void unlock_and_wake(Engine *e) noexcept nogil:
    """Once, however many appends there are before it runs, and not while we hold the lock that it would wait for."""
    cdef bint is_wanted = e.is_waiting and can_take(e)
    if is_wanted:
        e.is_waiting = False
    pthread_mutex_unlock(&e.mutex)
    if is_wanted:
        pthread_cond_signal(&e.work)


cdef Batch *take(Engine *e) noexcept nogil:
    """The filling batch becomes the one under way; with the lock."""
    cdef Batch *batch = &e.ring[e.filling % RING]
    e.filling += 1
    e.is_busy = True
    e.bound = e.end + room_of(batch.size)
    batch.began_s = now_s()
    return batch


cdef void frame(Engine *e, Header *header, uint32_t offset) noexcept nogil:
    memcpy(header.magic, MAGIC, 4)
    header.epoch = e.epoch
    header.offset = offset
    header.batch = <uint32_t>e.end
    memset(header.reserved, 0, 3)


cdef int flush(Engine *e, int count, uint64_t *offset) noexcept nogil:
    """Write the parts, however often it takes; 0 or an errno."""
    cdef Py_ssize_t written
    cdef int i = 0
    while i < count:
        written = write_parts(e, &e.parts[i], count - i, offset[0])
        if written <= 0:
            # 0: a regular file never says so, unless something is badly wrong.
            return <int>-written if written else EIO
        offset[0] += <uint64_t>written
        while i < count and <size_t>written >= e.parts[i].iov_len:
            written -= <Py_ssize_t>e.parts[i].iov_len
            i += 1
        if i < count:
            e.parts[i].iov_base = <char *>e.parts[i].iov_base + written
            e.parts[i].iov_len -= <size_t>written
    return 0


cdef int put(Engine *e, const void *data, uint64_t size, int *count, uint64_t *offset) noexcept nogil:
    """One more part; written out when there is no room for another."""
    cdef int error
    if size == 0:
        return 0
    if count[0] == IOV_MAX:
        error = flush(e, count[0], offset)
        if error:
            return error
        count[0] = 0
    e.parts[count[0]].iov_base = <void *>data
    e.parts[count[0]].iov_len = size
    count[0] += 1
    return 0


cdef int commit(Engine *e, Batch *batch) noexcept nogil:
    """Everything from the first sync to the last; e.after is where it ended.  0 or an errno."""
    cdef uint64_t at = e.end        # where the next record stands
    cdef uint64_t offset = e.end    # where the next write goes
    cdef uint32_t i, j
    cdef int count = 0
    cdef int error
    cdef Entry *entry
    cdef iovec *piece
    for i in range(batch.count):
        entry = &batch.entries[i]
        if entry.body_fd >= 0:
            entry.error = -sync(e, entry.body_fd)
    for i in range(batch.count):
        entry = &batch.entries[i]
        if entry.error:
            continue
        frame(e, &entry.header, <uint32_t>at)
        entry.header.crc = crc_add(0xffffffffU, &entry.header, HEADER - 4)
        for j in range(entry.first, entry.first + entry.pieces):
            piece = &batch.pieces[j]
            entry.header.crc = crc_add(entry.header.crc, piece.iov_base, piece.iov_len)
        entry.header.crc = ~entry.header.crc
        at += up(HEADER + entry.header.length, ALIGN)
        error = put(e, &entry.header, HEADER, &count, &offset)
        for j in range(entry.first, entry.first + entry.pieces):
            if not error:
                error = put(e, batch.pieces[j].iov_base, batch.pieces[j].iov_len, &count, &offset)
        if not error:
            error = put(e, zeros, up(entry.header.length, ALIGN) - entry.header.length, &count, &offset)
        if error:
            return error
    e.last.kind = K_END
    e.last.length = 0
    frame(e, &e.last, <uint32_t>at)
    e.last.crc = ~crc_add(0xffffffffU, &e.last, HEADER - 4)
    at += HEADER
    error = put(e, &e.last, HEADER, &count, &offset)
    if not error:
        error = put(e, zeros, up(at, BLOCK_BYTES) - at, &count, &offset)
    if not error:
        error = flush(e, count, &offset)
    if not error:
        error = -sync(e, e.fd)
    if not error:
        e.after = up(at, BLOCK_BYTES)
        publish(e)
    return error


cdef void publish(Engine *e) noexcept nogil:
    """Into the slot that doesn't count, which then does: a writer that is killed here leaves the other one whole."""
    cdef uint64_t generation
    cdef uint64_t *slot
    if e.published is NULL:
        return
    generation = load_relaxed(&e.published.generation) + 1
    slot = e.published.slots[generation & 1]
    fence_release_()
    store_relaxed(&slot[0], e.number)
    store_relaxed(&slot[1], e.epoch)
    store_relaxed(&slot[2], e.after)
    store_release(&e.published.generation, generation)


cdef void settle(Engine *e, Batch *batch, int error) noexcept nogil:
    """The batch under way is over; with the lock."""
    batch.error = error
    batch.took_s = now_s() - batch.began_s
    e.is_busy = False
    e.finished += 1
    if error:
        e.is_stopped = True
    else:
        e.end = e.after
        e.batches += 1
    e.bound = e.end


cdef void *serve(void *argument) noexcept nogil:
    cdef Engine *e = <Engine *>argument
    cdef Batch *batch
    cdef int error
    thread_name()
    thread_slice(THREAD_SLICE_NS)
    pthread_mutex_lock(&e.mutex)
    while True:
        while not can_take(e) and not e.is_closing:
            e.is_waiting = True
            pthread_cond_wait(&e.work, &e.mutex)
            e.is_waiting = False
        if not can_take(e):
            break
        batch = take(e)
        pthread_mutex_unlock(&e.mutex)
        error = commit(e, batch)
        pthread_mutex_lock(&e.mutex)
        settle(e, batch, error)
        bell_ring(e.bell)
    pthread_mutex_unlock(&e.mutex)
    return NULL


# --- what Python sees -----------------------------------------------------------------------------------------------

def answer_soon():
    thread_slice(LOOP_SLICE_NS)


@cython.final
cdef class Progress:
    cdef Published *regions
    cdef readonly int workers

    def __cinit__(self, int workers):
        if workers < 1:
            raise ValueError("progress needs at least one worker")
        self.workers = workers
        self.regions = <Published *>shared_map(sizeof(Published) * (<size_t>workers + 1))
        if self.regions is NULL:
            raise MemoryError("no memory for the progress of the journal's writers")

    def __dealloc__(self):
        if self.regions is not NULL:
            munmap(self.regions, sizeof(Published) * (<size_t>self.workers + 1))

    cdef Published *region(self, int worker) except NULL:
        if not 0 <= worker < self.workers:
            raise IndexError(f"no region {worker}: there are {self.workers}")
        return &self.regions[worker]

    def read(self, int worker):
        cdef Published *region = self.region(worker)
        cdef uint64_t generation, number, epoch, synced
        while True:
            generation = load_acquire(&region.generation)
            number = load_relaxed(&region.slots[generation & 1][0])
            epoch = load_relaxed(&region.slots[generation & 1][1])
            synced = load_relaxed(&region.slots[generation & 1][2])
            fence_acquire_()
            if load_relaxed(&region.generation) == generation:
                return number, epoch, synced

    def clear(self, int worker):
        cdef Published *region = self.region(worker)
        memset(region, 0, sizeof(Published))

    def ask(self, int worker):
        exchange_ordered(&self.region(worker).is_asked, 1)

    def is_asked(self, int worker):
        cdef Published *region = self.region(worker)
        # Ordered behind publish(): either we see the question, or who asked sees what was synced.
        return exchange_ordered(&region.is_asked, 0) != 0

    @property
    def is_low(self):
        return load_relaxed(&self.regions[self.workers].is_low) != 0

    @is_low.setter
    def is_low(self, bint value):
        store_relaxed(&self.regions[self.workers].is_low, value)


# no_gc_clear: the thread uses system and progress until __dealloc__ has ended it.
@cython.final
@cython.no_gc_clear
cdef class Writer:
    cdef Engine *e
    cdef pthread_t thread
    cdef int bell[2]
    cdef readonly bint is_threaded
    cdef readonly bint is_closed
    cdef public object timed
    cdef object system
    cdef Progress progress      # keeps the mapping
    cdef list cookies           # one list a batch of the ring

    def __cinit__(self, *, Progress progress=None, int worker=0, object system=None, bint is_threaded=True):
        self.bell[0] = self.bell[1] = -1
        self.is_closed = True
        self.e = <Engine *>calloc(1, sizeof(Engine))
        if self.e is NULL:
            raise MemoryError()
        self.e.parts = <iovec *>calloc(IOV_MAX, sizeof(iovec))
        if self.e.parts is NULL:
            raise MemoryError()
        pthread_mutex_init(&self.e.mutex, NULL)
        pthread_cond_init(&self.e.work, NULL)
        if bell_open(self.bell) < 0:
            PyErr_SetFromErrno(OSError)
        self.e.bell = self.bell[1]
        self.e.fd = -1
        self.e.is_stopped = True
        self.cookies = [[] for _ in range(RING)]
        self.system = system
        if system is not None:
            self.e.system = <PyObject *>system
        self.progress = progress
        if progress is not None:
            self.e.published = progress.region(worker)
        self.is_threaded = is_threaded
        if is_threaded and thread_start(&self.thread, serve, self.e) != 0:
            raise OSError("no thread for the journal")
        self.is_closed = False

    def __dealloc__(self):
        cdef int i
        cdef Batch *batch
        if self.e is NULL:
            return
        if not self.is_closed:
            self.stop()
        for i in range(RING):
            batch = &self.e.ring[i]
            self.let_go(batch)
            free(batch.entries)
            free(batch.pieces)
            free(batch.held)
        bell_close(self.bell)
        if self.e.parts is not NULL:
            pthread_cond_destroy(&self.e.work)
            pthread_mutex_destroy(&self.e.mutex)
        free(self.e.parts)
        free(self.e)

    cdef void let_go(self, Batch *batch) noexcept:
        """Give back the bytes objects of a batch that nobody works on any more."""
        cdef uint32_t i
        for i in range(batch.count):
            if batch.entries[i].body_fd >= 0:
                self.close_copy(batch.entries[i].body_fd)
        for i in range(batch.piece_count):
            Py_DECREF(<object>batch.held[i])
        batch.piece_count = batch.count = 0
        batch.size = 0
        batch.error = 0

    cdef int copy(self, int fd) except -1:
        """A descriptor of our own: whoever gave this one may be cancelled, and close it, while it is being synced."""
        cdef int ours
        if self.system is not None:
            return self.system.dup(fd)
        ours = descriptor_copy(fd)
        if ours < 0:
            PyErr_SetFromErrno(OSError)
        return ours

    cdef void close_copy(self, int fd) noexcept:
        if self.system is None:
            close_descriptor(fd)
        else:
            self.system.close(fd)

    def duplicate(self, int fd):
        return self.copy(fd)

    def close_duplicate(self, int fd):
        if fd >= 0:
            self.close_copy(fd)

    cdef void stop(self) noexcept:
        self.is_closed = True
        if not self.is_threaded:
            return
        with nogil:
            pthread_mutex_lock(&self.e.mutex)
            self.e.is_closing = True
            pthread_cond_signal(&self.e.work)
            pthread_mutex_unlock(&self.e.mutex)
            pthread_join(self.thread, NULL)

    def close(self):
        if not self.is_closed:
            if not self.is_threaded:
                while self.step():
                    pass
            self.stop()

    def fileno(self):
        return self.bell[0]

    def use(self, int fd, *, uint64_t number, uint64_t epoch, uint64_t size, uint64_t offset=BLOCK_BYTES):
        if epoch == 0 or fd < 0 or offset % BLOCK_BYTES or offset < BLOCK_BYTES or size > 0xffffffffU:
            raise ValueError("a segment has a descriptor, an epoch, and batches at whole blocks of 4 GiB at most")
        cdef Engine *e = self.e
        cdef uint64_t waiting
        pthread_mutex_lock(&e.mutex)
        waiting = e.ring[e.filling % RING].size
        if not e.is_stopped:
            pthread_mutex_unlock(&e.mutex)
            raise RuntimeError("the segment is in use")
        if waiting and offset + room_of(waiting) > size:
            pthread_mutex_unlock(&e.mutex)
            raise ValueError("what waits has no room in that segment")
        e.fd = fd
        e.number = number
        e.epoch = epoch
        e.limit = size
        e.end = e.bound = offset
        e.is_stopped = False
        unlock_and_wake(e)

    def pause(self):
        cdef Engine *e = self.e
        cdef bint is_idle
        pthread_mutex_lock(&e.mutex)
        is_idle = not e.is_busy and (e.is_stopped or e.ring[e.filling % RING].count == 0)
        if is_idle:
            e.is_stopped = True
        pthread_mutex_unlock(&e.mutex)
        if not is_idle:
            raise RuntimeError("the segment is in use")

    def append(self, pieces, object cookie, *, int kind=K_MESSAGE, int body_fd=-1):
        if self.is_closed:
            raise RuntimeError("the writer is closed")
        if kind != K_MESSAGE and kind != K_SEAL and kind != K_DONE and kind != K_KEPT:
            raise ValueError("no such kind of record")
        cdef Engine *e = self.e
        cdef uint64_t length = 0
        cdef uint64_t size
        cdef uint32_t count = 0
        cdef uint64_t batch_number
        cdef Batch *batch
        cdef bint has_room
        cdef bint is_stopped
        cdef tuple parts = tuple(pieces)
        for piece in parts:
            if not PyBytes_CheckExact(piece):
                raise TypeError("the pieces of a record are bytes")
            length += <uint64_t>PyBytes_GET_SIZE(piece)
            count += 1
        if length > PAYLOAD_MOST:
            raise ValueError("a record's payload is 16 MiB at most")
        size = up(HEADER + length, ALIGN)
        if body_fd >= 0:
            body_fd = self.copy(body_fd)
        pthread_mutex_lock(&e.mutex)
        batch_number = e.filling % RING
        batch = &e.ring[batch_number]
        # Without a segment nothing is known of room; use() looks then.
        is_stopped = e.is_stopped
        has_room = is_stopped or e.bound + room_of(batch.size + size) <= e.limit
        if has_room and not grow(batch, count):
            pthread_mutex_unlock(&e.mutex)
            if body_fd >= 0:
                self.close_copy(body_fd)
            raise MemoryError()
        if has_room:
            self.enter(batch, parts, <uint32_t>length, kind, body_fd)
            batch.size += size
        unlock_and_wake(e)
        if has_room:
            (<list>self.cookies[batch_number]).append(cookie)
        elif body_fd >= 0:
            self.close_copy(body_fd)
        return has_room

    cdef int enter(self, Batch *batch, tuple pieces, uint32_t length, int kind, int body_fd) except -1:
        """Nothing in here can fail: the room is there and the pieces have been looked at."""
        cdef Entry *entry = &batch.entries[batch.count]
        entry.first = batch.piece_count
        entry.body_fd = body_fd
        entry.error = 0
        entry.header.kind = <uint8_t>kind
        entry.header.length = length
        for piece in pieces:
            Py_INCREF(piece)
            batch.held[batch.piece_count] = <PyObject *>piece
            batch.pieces[batch.piece_count].iov_base = PyBytes_AS_STRING(piece)
            batch.pieces[batch.piece_count].iov_len = <size_t>PyBytes_GET_SIZE(piece)
            batch.piece_count += 1
        entry.pieces = batch.piece_count - entry.first
        batch.count += 1
        return 0

    def reap(self):
        cdef Engine *e = self.e
        cdef uint64_t finished
        cdef Batch *batch
        cdef Entry *entry
        cdef uint32_t i
        cdef list result = []
        cdef list cookies
        bell_quiet(self.bell[0])
        pthread_mutex_lock(&e.mutex)
        finished = e.finished
        pthread_mutex_unlock(&e.mutex)
        while e.reaped < finished:
            batch = &e.ring[e.reaped % RING]
            cookies = self.cookies[e.reaped % RING]
            for i in range(batch.count):
                entry = &batch.entries[i]
                result.append(
                    (cookies[i], batch.error or entry.error, entry.header.offset, entry.header.length)
                )
            cookies.clear()
            if self.timed is not None and not batch.error:
                self.timed(batch.took_s)
            self.let_go(batch)
            pthread_mutex_lock(&e.mutex)
            e.reaped += 1
            unlock_and_wake(e)
        return result

    def withdraw(self):
        cdef Engine *e = self.e
        cdef Batch *batch
        cdef list cookies
        pthread_mutex_lock(&e.mutex)
        if not e.is_stopped:
            pthread_mutex_unlock(&e.mutex)
            raise RuntimeError("what waits is about to be written")
        batch = &e.ring[e.filling % RING]
        cookies = self.cookies[e.filling % RING]
        pthread_mutex_unlock(&e.mutex)
        self.cookies[e.filling % RING] = []
        self.let_go(batch)
        return cookies

    def step(self):
        if self.is_threaded:
            raise RuntimeError("the thread does that")
        cdef Engine *e = self.e
        cdef Batch *batch
        cdef int error
        if not can_take(e):
            return False
        batch = take(e)
        with nogil:
            error = commit(e, batch)
        settle(e, batch, error)
        bell_ring(e.bell)
        return True

    @property
    def has_news(self):
        return load_relaxed(&self.e.finished) != self.e.reaped

    @property
    def is_idle(self):
        cdef bint result
        pthread_mutex_lock(&self.e.mutex)
        result = not self.e.is_busy and (self.e.is_stopped or self.e.ring[self.e.filling % RING].count == 0)
        pthread_mutex_unlock(&self.e.mutex)
        return result

    @property
    def is_stopped(self):
        cdef bint result
        pthread_mutex_lock(&self.e.mutex)
        result = self.e.is_stopped
        pthread_mutex_unlock(&self.e.mutex)
        return result

    @property
    def end(self):
        cdef uint64_t result
        pthread_mutex_lock(&self.e.mutex)
        result = self.e.end
        pthread_mutex_unlock(&self.e.mutex)
        return result

    @property
    def batches(self):
        cdef uint64_t result
        pthread_mutex_lock(&self.e.mutex)
        result = self.e.batches
        pthread_mutex_unlock(&self.e.mutex)
        return result


cdef bint grow(Batch *batch, uint32_t pieces) noexcept:
    """Room for one more entry and so many pieces."""
    cdef uint32_t room
    cdef void *memory
    if batch.count == batch.entry_room:
        room = batch.entry_room * 2 if batch.entry_room else 64
        memory = realloc(batch.entries, room * sizeof(Entry))
        if memory is NULL:
            return False
        batch.entries = <Entry *>memory
        batch.entry_room = room
    if batch.piece_count + pieces > batch.piece_room:
        room = batch.piece_room * 2 + pieces + 64
        memory = realloc(batch.pieces, room * sizeof(iovec))
        if memory is NULL:
            return False
        batch.pieces = <iovec *>memory
        memory = realloc(batch.held, room * sizeof(PyObject *))
        if memory is NULL:
            return False
        batch.held = <PyObject **>memory
        batch.piece_room = room
    return True
