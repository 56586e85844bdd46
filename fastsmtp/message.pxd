# The message's C shape; with message.py it makes a compiled module (docs/decisions/0005).

cdef class Recipient:
    cdef public bytes address
    cdef public bytes domain
    cdef public tuple notify
    cdef public bytes orcpt
    cdef public str deliver
    cdef public str pass_client
    cdef public bint is_queued


cdef class Envelope:
    cdef public bytes sender
    cdef public bytes sender_domain
    cdef public object size_bytes
    cdef public bytes body
    cdef public bint is_smtputf8
    cdef public bytes ret
    cdef public bytes envid
    cdef public list recipients
