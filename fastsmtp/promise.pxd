# A promise's C shape; with promise.py it makes a compiled module (docs/decisions/0005).

cdef class Promise:
    cdef public object value
    cdef object _then

    cpdef keep(self, value)
    cpdef then(self, callback)
