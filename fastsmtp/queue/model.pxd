# The C shape of a queued message; with model.py it makes a compiled module (docs/decisions/0005).

from fastsmtp.message cimport Envelope, Recipient
from fastsmtp.policy.facts cimport Client, Facts


cdef class Origins:
    cdef public str address
    cdef public int port
    cdef public object origin
    cdef public str name
    cdef public bytes helo
    cdef public bint is_extended
    cdef public str listener
    cdef public str local_address
    cdef public object tls


cdef class QueuedMessage:
    cdef public str id
    cdef public object accepted_ms
    cdef public Envelope envelope
    cdef public Origins origins
    cdef public bytes prefix
    cdef public object body
    cdef public object body_bytes
    cdef public tuple cuts


cpdef Origins origins_of(Facts facts)
cpdef list encode(QueuedMessage message)
