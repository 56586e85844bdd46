# A reply's C shape; with reply.py it makes a compiled module (docs/decisions/0005).

cdef class Reply:
    cdef public int code
    cdef public str enhanced
    cdef public tuple lines
    cdef public bytes head
