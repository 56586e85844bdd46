# The C shape of a message on its way into the queue; with queue_sink.py it makes a compiled module
# (docs/decisions/0005).

from fastsmtp.message cimport Envelope
from fastsmtp.policy.facts cimport Facts
from fastsmtp.promise cimport Promise


cdef class QueueSink:
    cdef public object remote
    cdef public object journal
    cdef public object disk
    cdef public object budget
    cdef public object wall
    cdef public object meter
    cdef bint _is_closed


cdef class QueueTransaction:
    cdef QueueSink _sink
    cdef Envelope _envelope
    cdef Facts _facts
    cdef list _chunks
    cdef Py_ssize_t _memory_bytes
    cdef Py_ssize_t _size_bytes
    cdef object _spooled
    cdef object _cuts
    cdef bint _is_over
    cdef str _id
    cdef Promise _promise

    cpdef write(self, bytes chunk)
    cpdef _forget_memory(self)
    cpdef _release(self, bint is_named)
