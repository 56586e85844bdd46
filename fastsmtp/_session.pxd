# The session's C shapes.  Python sees them through _session.pyi.

from fastsmtp._event cimport Event, Terms
from fastsmtp._text cimport Decoder
from fastsmtp.reply cimport Reply


cdef class Session:
    cdef Terms _terms
    cdef readonly bytes id
    cdef readonly int state
    cdef readonly bint is_closing
    cdef readonly bint is_tls
    cdef readonly int errors
    cdef readonly int commands

    cdef int _mode              # what the next octet is part of
    cdef int _open              # 1 + kind of the event that waits for reply(), 0: none
    cdef bint _is_extended      # EHLO, not HELO
    cdef bint _asks_extended    # the HELO event that waits is EHLO
    cdef bint _is_first         # no command line yet since the greeting or restart()
    cdef bint _is_smtputf8      # of the transaction
    cdef int _barren            # command lines that bring no message forward, since the last message
    cdef int _refused           # recipients refused in this transaction
    cdef Event _pending         # comes out before anything else is parsed
    cdef Event _fatal           # comes out last

    # Input: what is read now, and behind it what feed() showed while some was still held.
    cdef const char *_p
    cdef Py_ssize_t _at
    cdef Py_ssize_t _n
    cdef const char *_next
    cdef Py_ssize_t _next_n
    cdef object _fed            # keeps the shown buffer alive
    cdef char *_own             # malloc: the unread octets that hold() kept; _p points into it or into _fed
    cdef bint _is_starved       # the input ends inside a command line
    cdef bint _skip_cr          # the last octet of the line that is skipped was CR

    # Text of DATA and BDAT.
    cdef Decoder _decoder
    cdef long long _chunk_bytes
    cdef long long _left        # octets of the BDAT chunk still to come
    cdef bint _is_last
    cdef Reply _drop_reply      # what a dropped chunk is answered with
    cdef str _drop_violation
    cdef bint _is_drop_end      # the transaction ends with the dropped chunk

    cdef char *_out
    cdef Py_ssize_t _out_n
    cdef Py_ssize_t _out_size

    cpdef feed(self, object data, Py_ssize_t size_bytes=*)
    cpdef hold(self)
    cpdef Event next_event(self)
    cpdef reply(self, Reply reply)
    cpdef bytes take(self)
    cdef int _append(self, const char *p, Py_ssize_t n) except -1
    cdef int _write(self, Reply reply, int code) except -1
    cdef Reply _told(self, Reply reply)
    cdef int _answer(self, Reply reply) except -1
    cdef int _refuse(self, int kind, Reply reply, int code) except -1
    cdef bint _is_over(self) noexcept
    cdef void _stop(self) noexcept
    cdef void _forget_input(self) noexcept
    cdef void _free_own(self) noexcept
    cdef bint _advance(self) noexcept
    cdef bint _pull(self, Py_ssize_t limit) except -1
    cdef int _hold(self) except -1
    cdef Event _violate(self, str violation, Reply reply, bint is_fatal)
    cdef Event _abort(self, str violation, Reply reply)
    cdef Event _pop(self)
    cdef Event _ask(self, int kind)
    cdef Event _asked(self, int verb, object found)
    cdef void _end_transaction(self) noexcept
    cdef Event _settle(self)
    cdef Event _read_line(self)
    cdef Py_ssize_t _line_limit(self, const char *p, Py_ssize_t n) noexcept
    cdef Event _skip_line(self)
    cdef Event _read_text(self)
    cdef Event _read_chunk(self)
    cdef Event _body(self, bytes chunk)
    cdef Event _end_text(self)
    cdef Event _end_chunk(self)
    cdef Event _end_drop(self)
    cdef int _drop(self, Reply reply) except -1
    cdef Event _command(self, const char *p, Py_ssize_t n)
    cdef Event _bdat(self, const char *p, Py_ssize_t n, int action)
    cdef Event _starttls(self)
