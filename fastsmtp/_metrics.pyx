"""Numbers of all processes in one shared mapping; _metrics.pyi says what they promise.

A sheet is a process's own part: a list of series, each a key and a number, and
the bytes of the keys.  It has one writer, and a reader needs no lock: a series
is written whole before `count` lets readers see it, and its number is one word.
What the mapping holds is never trusted with a length: whoever writes it may be a
worker that was taken over, and the master reads it as root.

    page 0    Root: the sequence, odd while the master moves numbers from one sheet to another
    sheet     Head, a page | Series[MOST_SERIES] | the keys

So the sum over all sheets never goes back: a reader that saw a move begins again.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

cimport cython

cdef extern from *:
    """
    #include <stdint.h>
    static inline int64_t m_load(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void m_store(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline uint32_t m_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void m_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void m_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    int64_t m_load(const int64_t *p) noexcept nogil
    void m_store(int64_t *p, int64_t v) noexcept nogil
    uint32_t m_load32(const uint32_t *p) noexcept nogil
    void m_store32(uint32_t *p, uint32_t v) noexcept nogil
    void m_fence() noexcept nogil

cdef enum:
    PAGE = 4096
    MOST_SERIES = 2048      # of one process
    TEXT_BYTES = 163_840    # 80 for a key
    KEY_BYTES = 4_096       # of one key, and less
    MOST_BOUNDS = 24
    TRIES = 64              # of a reader that meets a move

cdef struct Series:
    int64_t value
    uint32_t at             # of its key in the text
    uint32_t size

cdef struct Head:
    uint32_t count
    uint32_t text

cdef struct Root:
    uint32_t sequence

cdef enum:
    SHEET_BYTES = PAGE + MOST_SERIES * 16 + TEXT_BYTES

MOST = MOST_SERIES


@cython.final
cdef class Board:
    cdef char *memory
    cdef size_t size
    cdef readonly int sheets

    def __cinit__(self, int sheets):
        if sheets < 1:
            raise ValueError("a board has at least one sheet")
        self.sheets = sheets
        self.size = PAGE + <size_t>SHEET_BYTES * <size_t>sheets
        # Not reserved: a sheet that no process ever had costs nothing.
        self.memory = <char *>mmap(
            NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if self.memory == <char *>MAP_FAILED:
            self.memory = NULL
            raise MemoryError(f"no memory for the metrics of {sheets} processes ({self.size} bytes)")

    def __dealloc__(self):
        if self.memory is not NULL:
            munmap(self.memory, self.size)

    cdef Head *head(self, int sheet) except NULL:
        if not 0 <= sheet < self.sheets:
            raise IndexError(f"no sheet {sheet}: there are {self.sheets}")
        return <Head *>(self.memory + PAGE + <size_t>SHEET_BYTES * <size_t>sheet)

    def sheet(self, int number):
        cdef Sheet sheet = Sheet.__new__(Sheet)
        sheet.head = self.head(number)
        sheet.series = <Series *>(<char *>sheet.head + PAGE)
        sheet.text = <char *>sheet.head + PAGE + MOST_SERIES * sizeof(Series)
        sheet.board = self
        sheet.cells = {}
        return sheet

    def fold(self, int number, Sheet into not None):
        cdef Root *root = <Root *>self.memory
        cdef Head *head = self.head(number)
        cdef uint32_t sequence = root.sequence
        cdef dict left = {}
        if head == into.head:
            raise ValueError("a sheet can't be folded into itself")
        self.collect(head, left)
        # Everything that can fail is done before readers are held up.
        moved = [(into.cell(key), value) for key, value in left.items() if value > 0 and key[:1] != b"g"]
        m_store32(&root.sequence, sequence | 1)
        m_fence()
        for cell, value in moved:
            (<Cell>cell).add(value)
        m_store32(&head.count, 0)
        m_store32(&head.text, 0)
        m_fence()
        m_store32(&root.sequence, (sequence | 1) + 1)

    cdef int collect(self, Head *head, dict sums) except -1:
        """Add a sheet's numbers to sums, by key."""
        cdef Series *series = <Series *>(<char *>head + PAGE)
        cdef char *text = <char *>head + PAGE + MOST_SERIES * sizeof(Series)
        cdef uint32_t count = m_load32(&head.count)
        cdef uint32_t number, at, size
        if count > MOST_SERIES:
            count = MOST_SERIES
        for number in range(count):
            at = m_load32(&series[number].at)
            size = m_load32(&series[number].size)
            if at > TEXT_BYTES or size > TEXT_BYTES - at or not 0 < size < KEY_BYTES:
                continue
            key = PyBytes_FromStringAndSize(text + at, size)
            sums[key] = sums.get(key, 0) + m_load(&series[number].value)
        return 0

    def read(self):
        cdef Root *root = <Root *>self.memory
        cdef uint32_t before
        cdef int tries = TRIES
        cdef int number
        cdef dict sums = {}
        while tries:
            tries -= 1
            before = m_load32(&root.sequence)
            m_fence()
            sums = {}
            for number in range(self.sheets):
                if m_load32(&self.head(number).count):
                    self.collect(self.head(number), sums)
            m_fence()
            if not before & 1 and m_load32(&root.sequence) == before:
                break
        return sums


@cython.final
cdef class Sheet:
    cdef Board board        # keeps the mapping
    cdef Head *head
    cdef Series *series
    cdef char *text
    cdef dict cells
    cdef readonly int lost

    def __init__(self):
        raise TypeError("sheets come from Board.sheet")

    cpdef Cell cell(self, bytes key):
        cdef Cell cell = self.cells.get(key)
        cdef uint32_t count = self.head.count
        cdef uint32_t at = self.head.text
        cdef Py_ssize_t size
        if cell is not None:
            return cell
        cell = Cell.__new__(Cell)
        cell.sheet = self
        if key is None:
            raise TypeError("a key is bytes")
        size = PyBytes_GET_SIZE(key)
        if not 0 < size < KEY_BYTES:
            raise ValueError("a key of this size")
        if count >= MOST_SERIES or at > TEXT_BYTES or size > TEXT_BYTES - at:
            # It counts, but nobody sees it.
            self.lost += 1
            cell.value = &cell.spare
            return cell
        memcpy(self.text + at, PyBytes_AS_STRING(key), size)
        self.series[count].value = 0
        self.series[count].at = at
        self.series[count].size = <uint32_t>size
        self.head.text = at + <uint32_t>size
        m_store32(&self.head.count, count + 1)
        cell.value = &self.series[count].value
        self.cells[key] = cell
        return cell

    def spread(self, bytes key, tuple bounds):
        cdef Spread spread = Spread.__new__(Spread)
        if not 0 < len(bounds) < MOST_BOUNDS:
            raise ValueError("bounds out of number")
        spread.sheet = self
        spread.cells = [self.cell(b"%b\0%d" % (key, number)) for number in range(len(bounds) + 2)]
        spread.count = len(bounds)
        for number, bound in enumerate(bounds):
            spread.bounds[number] = bound
        for number, cell in enumerate(spread.cells):
            spread.values[number] = (<Cell>cell).value
        return spread


@cython.final
cdef class Cell:
    cdef Sheet sheet        # keeps the mapping
    cdef int64_t *value
    cdef int64_t spare

    def __init__(self):
        raise TypeError("cells come from Sheet.cell")

    cpdef void inc(self):
        m_store(self.value, self.value[0] + 1)

    cpdef void dec(self):
        m_store(self.value, self.value[0] - 1)

    cpdef void add(self, int64_t amount):
        m_store(self.value, self.value[0] + amount)

    cpdef void set(self, int64_t value):
        m_store(self.value, value)

    def __int__(self):
        return m_load(self.value)


@cython.final
cdef class Spread:
    cdef Sheet sheet
    cdef list cells
    cdef int count
    cdef double bounds[MOST_BOUNDS]
    cdef int64_t *values[MOST_BOUNDS + 2]

    def __init__(self):
        raise TypeError("spreads come from Sheet.spread")

    cpdef void observe(self, double seconds):
        cdef int at = 0
        while at < self.count and seconds > self.bounds[at]:
            at += 1
        m_store(self.values[at], self.values[at][0] + 1)
        # Beyond the last bucket: the sum, in microseconds.
        at = self.count + 1
        m_store(self.values[at], self.values[at][0] + <int64_t>(seconds * 1e6))
