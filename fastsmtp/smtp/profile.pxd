# The profile's C shape; with profile.py it makes a compiled module (docs/decisions/0005).

from fastsmtp.policy.facts cimport Client
from fastsmtp.policy.runner cimport Plan


cdef class Profile:
    cdef public Profile base
    cdef public Plan plan
    cdef public Plan namer
    cdef public object counters
    cdef public object foreign
    cdef public bytes localiphost
    cdef public object log
    cdef public object meter
    cdef public object now
    cdef public object received
    cdef public object refusal
    cdef public object service
    cdef public object settings
    cdef public object sink
    cdef public object terms
    cdef public object xclient_terms
    cdef public object tls
    cdef public bint counts_connections
    cdef public bint counts_handshakes
    cdef public bint counts_messages
    cdef public bint counts_recipients
    cdef public bint is_implicit
    cdef dict _derived

    cpdef note_rate(self, Client client, int token)
