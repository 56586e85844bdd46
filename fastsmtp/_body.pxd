"""What other compiled modules may use of the body scanners.  The contract in words is _body.pyi."""

cdef struct Field:
    Py_ssize_t offset       # of the name's first octet, counted from the start of the body
    Py_ssize_t length       # octets, with every line end that belongs to the field
    Py_ssize_t name_at      # where its lower-case name stands in the names block
    Py_ssize_t name_bytes

# Fields and names in two growing blocks; whoever holds the struct frees it.
cdef struct Index:
    Field *fields
    Py_ssize_t count
    Py_ssize_t room
    unsigned char *names
    Py_ssize_t names_bytes
    Py_ssize_t names_room

cdef class HeaderFacts:
    cdef readonly Py_ssize_t hops
    cdef readonly Py_ssize_t size_bytes
    cdef readonly bint is_cut
    cdef Index index
    cdef tuple listed           # the value of `fields` once it was asked for

cdef class HeaderScanner:
    cdef Py_ssize_t header_bytes
    cdef Py_ssize_t fields_max
    cdef Py_ssize_t at          # octets walked so far
    cdef Py_ssize_t line_at     # where the current line began
    cdef Py_ssize_t field_at    # where the current field began, -1: none is open
    cdef Py_ssize_t name_bytes  # of the name being read, at the end of the names block
    cdef bint is_indexed        # the open field has a row in the index
    cdef Py_ssize_t hops
    cdef int state
    cdef bint is_cut
    cdef Index index

    cdef int scan(self, const unsigned char *p, Py_ssize_t n) noexcept nogil
    cdef int walk(self, const unsigned char *p, Py_ssize_t n) noexcept nogil
    cdef int open_field(self) noexcept nogil
    cdef void close_field(self, Py_ssize_t end) noexcept nogil
    cdef void end_header(self) noexcept nogil
