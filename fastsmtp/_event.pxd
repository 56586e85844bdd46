# The words of the dialogue, as C sees them: see _session.pyi.

from fastsmtp._parser cimport Limits, Path


cdef enum Kind:
    ON_HELO = 0
    ON_MAIL = 1
    ON_RCPT = 2
    ON_DATA = 3
    ON_BODY = 4
    ON_END = 5
    ON_RESET = 6
    ON_STARTTLS = 7
    ON_XCLIENT = 8
    ON_AUTH = 9
    ON_VIOLATION = 10
    ON_QUIT = 11


cdef class Terms:
    cdef readonly str hostname
    cdef readonly long long message_bytes
    cdef readonly int recipients
    cdef readonly int errors
    cdef readonly int commands
    cdef readonly Py_ssize_t command_bytes
    cdef readonly Py_ssize_t local_bytes
    cdef readonly Py_ssize_t domain_bytes
    cdef readonly Py_ssize_t path_bytes
    cdef readonly bint is_starttls_offered
    cdef readonly bint is_tls_required
    cdef readonly bint is_normalizing
    cdef readonly bint is_xclient_allowed
    cdef readonly bint is_chunking
    cdef readonly bint is_smtputf8
    cdef readonly bint is_dsn
    cdef readonly bint is_lmtp
    cdef readonly bint is_compatible
    cdef Limits limits
    cdef bytes helo             # the answers to HELO and EHLO on the wire
    cdef bytes ehlo_clear
    cdef bytes ehlo_tls

    cdef bytes capabilities(self, bint is_tls)


cdef class Event:
    cdef readonly int kind
    cdef readonly bint is_extended
    cdef readonly bint is_smtputf8
    cdef readonly bint is_chunked
    cdef readonly bint is_fatal
    cdef readonly int replies
    cdef readonly long long size_bytes
    cdef readonly bytes name
    cdef readonly Path path
    cdef readonly bytes body
    cdef readonly bytes ret
    cdef readonly bytes envid
    cdef readonly tuple notify
    cdef readonly bytes orcpt
    cdef readonly bytes chunk
    cdef readonly tuple attributes
    cdef readonly str violation
    cdef readonly object reply


cdef inline Event new_event(int kind):
    cdef Event event = Event.__new__(Event)
    event.kind = kind
    return event
