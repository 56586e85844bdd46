# The session's C shapes.  Python sees them through _session.pyi.

from fastsmtp._parser cimport Decoder, Limits, Mailbox, Path


cdef class Terms:
    cdef readonly str hostname
    cdef readonly long long message_bytes
    cdef readonly int recipients
    cdef readonly int errors
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


cdef class Session:
    cdef Terms _terms
    cdef readonly bytes id
    cdef readonly int state
    cdef readonly bint is_closing
    cdef readonly bint is_tls
    cdef readonly int errors
    cdef readonly int commands

    cdef bytes _tail            # b" (id X)\r\n"
    cdef int _mode              # what the next octet is part of
    cdef int _open              # 1 + kind of the event that waits for reply(), 0: none
    cdef bint _is_extended      # EHLO, not HELO
    cdef bint _is_first         # no command line yet since the greeting or restart()
    cdef bint _is_smtputf8      # of the transaction
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
    cdef object _drop_reply     # what a dropped chunk is answered with
    cdef str _drop_violation
    cdef bint _is_drop_end      # the transaction ends with the dropped chunk

    cdef char *_out
    cdef Py_ssize_t _out_n
    cdef Py_ssize_t _out_size

    cdef int _append(self, const char *p, Py_ssize_t n) except -1
    cdef int _write(self, object reply, int code) except -1
    cdef int _answer(self, object reply) except -1
    cdef int _refuse(self, int kind, object reply, int code) except -1
    cdef bint _is_over(self) noexcept
    cdef void _stop(self) noexcept
    cdef void _forget_input(self) noexcept
    cdef void _free_own(self) noexcept
    cdef bint _advance(self) noexcept
    cdef bint _pull(self, Py_ssize_t limit) except -1
    cdef int _hold(self) except -1
    cdef Event _violate(self, str violation, object reply, bint is_fatal)
    cdef Event _abort(self, str violation, object reply)
    cdef Event _pop(self)
    cdef Event _ask(self, int kind)
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
    cdef int _drop(self, object reply) except -1
    cdef Event _command(self, const char *p, Py_ssize_t n)
    cdef Event _helo(self, const char *p, Py_ssize_t n, bint is_extended)
    cdef Event _mail(self, const char *p, Py_ssize_t n)
    cdef object _mail_parameters(self, const char *p, Py_ssize_t n, Py_ssize_t at, Event event)
    cdef Event _rcpt(self, const char *p, Py_ssize_t n)
    cdef object _rcpt_parameters(self, const char *p, Py_ssize_t n, Py_ssize_t at, Event event)
    cdef Event _bdat(self, const char *p, Py_ssize_t n, int action)
    cdef Event _starttls(self)
    cdef Event _xclient(self, const char *p, Py_ssize_t n)
