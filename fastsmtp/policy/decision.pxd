# A decision's C shape; with decision.py it makes a compiled module (docs/decisions/0005).

cdef class Decision:
    cdef public object verdict
    cdef public object reply
    cdef public tuple effects
    cdef public str stage
