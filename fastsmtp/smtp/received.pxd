# The C shape of what writes Received; with received.py it makes a compiled module (docs/decisions/0005).

from fastsmtp.message cimport Envelope, Recipient
from fastsmtp.policy.facts cimport Facts


cdef class ReceivedWriter:
    cdef str _by
    cdef object _wall
    cdef long long _second
    cdef str _date

    cpdef str head(self, Facts facts)
    cpdef bytes field(self, str head, Facts facts, str message_id)
    cpdef str date(self)
