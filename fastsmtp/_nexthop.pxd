"""A reply of a next hop, for compiled code that works on it; _parser.pyi says what its parts are."""

cdef class NextHopReply:
    cdef readonly int code
    cdef readonly str enhanced
    cdef readonly tuple lines
