# The facts' C shape; with facts.py it makes a compiled module (docs/decisions/0005).

cdef class Client:
    cdef public object address
    cdef public int port
    cdef public object origin
    cdef public str name
    cdef public bint may_relay
    cdef public bint skips_checks
    cdef public str certificate
    cdef public bint has_pass
    cdef public object connections
    cdef public object rates
    cdef public object fingerprint
    cdef public object environment


cdef class Facts:
    cdef public str session_id
    cdef public str listener
    cdef public str local_address
    cdef public int local_port
    cdef public Client client
    cdef public object connections
    cdef public bint is_early
    cdef public bint has_waited
    cdef public bytes helo
    cdef public bint is_extended
    cdef public object tls
    cdef public object envelope
    cdef public object sender
    cdef public object recipient
    cdef public object declared_bytes
    cdef public object size_bytes
    cdef public object header
    cdef public object signature
    cdef public object messages
    cdef public object refused
    cdef public object score
    cdef public object observed_score
    cdef public object tags
    cdef public tuple held
    cdef public object bad_lists
    cdef list _notes
