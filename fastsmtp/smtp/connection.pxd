# The connection's C shape; with connection.py it makes a compiled module (docs/decisions/0005).

from fastsmtp._event cimport Event
from fastsmtp._session cimport Session
from fastsmtp.smtp.conversation cimport Conversation
from fastsmtp.smtp.profile cimport Profile


cdef class Connection:
    cdef object __weakref__
    cdef public object listener
    cdef public object raw
    cdef public object life
    cdef public object window
    cdef public str session_id
    cdef public Profile profile
    cdef public Session session
    cdef public Conversation conversation
    cdef public Py_ssize_t bytes_in
    cdef public double accepted_s
    cdef public double ends_s
    cdef public double patience_s
    cdef public double since_s
    cdef public bint _is_busy
    cdef bint _has_quit
    cdef bint _is_eof
    cdef bint _is_in_body
    cdef bint _is_reading
    cdef bint _is_write_paused
    cdef int _commands
    cdef Py_ssize_t _body_mark
    cdef bytearray _buffer
    cdef bytes _counted
    cdef object _admission
    cdef object _coming
    cdef object _pause
    cdef object _service
    cdef object _task
    cdef object _transport

    cpdef talk(self)
    cpdef flush(self)
    cpdef _pump(self)
    cpdef bint _take(self, coming) except -1
    cpdef _go_on(self)
    cpdef _turn(self)
    cpdef _await_command(self)
    cpdef _pause_reading(self)
    cpdef _resume_reading(self)
    cpdef _finish(self)
