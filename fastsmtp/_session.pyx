"""The SMTP dialogue of RFC 5321 as one table: bytes in, events out, bytes out.  Sans-IO.

Not here: arguments (_command), grammar (_parser), dots (_text), texts (reply.py), opinions (policy).  _session.pyi
says how it is used, docs/decisions/0001 why events are pulled.

How it works.  Input is shown by feed() and never copied, but for what is unread at hold().
next_event() reads on in the mode that it is in:

    LINE    a command line: looked up in the table (verb, state) -> check, then its function
    SKIP    the rest of a line that was too long
    TEXT    the text of DATA, through the decoder, straight from the read buffer
    CHUNK   octets of BDAT
    DROP    octets of a BDAT that was refused: they come whatever we say

and returns when there is an event.  A transaction whose DATA was accepted ends in exactly one of
END or RESET; only where the session ends at once (QUIT, a fatal VIOLATION) neither comes.

Framing errors in DATA end the session: once an end of line is in doubt so is the end of the
message, and what follows may be a second, smuggled one.

Rank 1: pure; imports _command, _event, _text and reply.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

from fastsmtp._ascii cimport ALPHA, is_in, is_word
from fastsmtp._command cimport Verb, find_verb, read_bdat, read_helo, read_mail, read_rcpt, read_xclient
from fastsmtp._event cimport Event, Kind, Terms, new_event
from fastsmtp._table cimport Action, State, action_of
from fastsmtp._text cimport Found, begin_text, decode, end_text, found_word
from fastsmtp.reply cimport Reply

from fastsmtp import reply as replies
from fastsmtp._event import (
    AUTH, BODY, DATA, END, EVENT_NAMES, HELO, MAIL, QUIT, RCPT, RESET, STARTTLS, VIOLATION, XCLIENT)
from fastsmtp._table import (
    STATE_CHUNKS, STATE_CLOSED, STATE_DATA, STATE_FRESH, STATE_MAIL, STATE_NAMES, STATE_NEW, STATE_RCPT, STATE_READY,
    STATE_REFUSED, STATE_TLS, TABLE)

cdef enum Mode:
    LINE = 0
    SKIP = 1
    TEXT = 2
    CHUNK = 3
    DROP = 4

cdef enum:
    # What an extension adds to the longest command line, octets: SIZE 26 (RFC 1870), BODY 17 (RFC 6152),
    # SMTPUTF8 10 (RFC 6531), RET and ENVID 118 (RFC 3461 section 5)
    MAIL_MORE = 26 + 17 + 10 + 118
    # NOTIFY and ORCPT (RFC 3461 section 5)
    RCPT_MORE = 500
    # Postfix's XCLIENT_README: an XCLIENT command may be as long as a command line and 512 more
    XCLIENT_MORE = 512
    OUT_FULL = 16384        # untaken output at which parsing waits: a client may send but never read
    OUT_FIRST = 512

cdef object _OK = replies.OK
cdef object _START_DATA = replies.START_DATA
cdef object _chunk_received = replies.chunk_received
cdef dict _QMAIL = replies.QMAIL_DIALOGUE
cdef tuple _CHECKS = (
    None, replies.BAD_SEQUENCE, replies.SEND_HELO_FIRST, replies.NEED_MAIL, replies.NEED_RCPT, replies.NESTED_MAIL,
    replies.NOT_OFFERED)

# A cimported class is no name of this module for Python; this is where Python looks for it.
globals().update(Event=Event, Terms=Terms)


@cython.final
@cython.freelist(64)
cdef class Session:
    """One SMTP session; see _session.pyi."""

    def __cinit__(self, Terms terms not None, bytes id not None) -> None:
        self._terms = terms
        self.id = id
        self._is_first = True

    def __dealloc__(self) -> None:
        free(self._own)
        free(self._out)

    @property
    def terms(self) -> Terms:
        return self._terms

    @terms.setter
    def terms(self, Terms terms not None) -> None:
        self._terms = terms

    @property
    def is_open(self) -> bool:
        return self._open != 0

    @property
    def is_body(self) -> bool:
        return self._mode >= TEXT

    @property
    def is_full(self) -> bool:
        return self._out_n > OUT_FULL

    @property
    def held_bytes(self) -> int:
        return self._n - self._at if self._own is not NULL else 0

    # --- output --------------------------------------------------------------------------------------

    cdef int _append(self, const char *p, Py_ssize_t n) except -1:
        cdef Py_ssize_t size
        cdef char *grown
        if self._out_n + n > self._out_size:
            size = max(self._out_size * 2, self._out_n + n, <Py_ssize_t>OUT_FIRST)
            grown = <char *>realloc(self._out, size)
            if grown is NULL:
                raise MemoryError
            self._out = grown
            self._out_size = size
        memcpy(self._out + self._out_n, p, n)
        self._out_n += n
        return 0

    cdef int _write(self, Reply reply, int code) except -1:
        """Queue a reply; the session's id ends each 4xx and 5xx."""
        cdef bytes head = reply.head
        self._append(PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        if code >= 400:
            self._append(b" (id ", 5)
            self._append(PyBytes_AS_STRING(self.id), PyBytes_GET_SIZE(self.id))
            self._append(b")\r\n", 3)
        else:
            self._append(b"\r\n", 2)
        return 0

    cdef Reply _told(self, Reply reply):
        """A refusal as this client is told it: with qmail's codes where the terms say so."""
        return _QMAIL.get(reply, reply) if self._terms.is_compatible else reply

    cdef int _answer(self, Reply reply) except -1:
        """Queue the answer to a command, and count it: the last error allowed is followed by 421."""
        cdef int code = reply.code
        if code < 400:
            self._write(reply, code)
            return 0
        reply = self._told(reply)
        self._write(reply, reply.code)
        self.errors += 1
        if self._terms.errors and self.errors >= self._terms.errors and not self.is_closing:
            self._write(replies.TOO_MANY_ERRORS, 421)
            self._stop()
            self._fatal = new_event(Kind.ON_VIOLATION)
            self._fatal.violation = "too_many_errors"
            self._fatal.reply = replies.TOO_MANY_ERRORS
            self._fatal.is_fatal = True
        return 0

    cpdef bytes take(self):
        """The output so far, b"" if none."""
        cdef bytes out
        if self._out_n == 0:
            return b""
        out = PyBytes_FromStringAndSize(self._out, self._out_n)
        free(self._out)
        self._out = NULL
        self._out_n = 0
        self._out_size = 0
        return out

    # --- input ---------------------------------------------------------------------------------------

    cpdef feed(self, object data, Py_ssize_t size_bytes=-1):
        """Show size_bytes (all: -1) of data.  Nothing is copied; data must stay until hold()."""
        cdef const char *p
        cdef Py_ssize_t n
        if isinstance(data, bytearray):
            p = PyByteArray_AS_STRING(data)
            n = PyByteArray_GET_SIZE(data)
        elif isinstance(data, bytes):
            p = PyBytes_AS_STRING(data)
            n = PyBytes_GET_SIZE(data)
        else:
            raise TypeError("feed takes bytes or a bytearray")
        if size_bytes > n:
            raise ValueError("size_bytes is more than data has")
        if size_bytes >= 0:
            n = size_bytes
        self._is_starved = False
        if n == 0 or self.state == State.IN_TLS or self.is_closing:
            return
        self._hold()
        self._fed = data
        if self._own is not NULL:
            self._next = p
            self._next_n = n
        else:
            self._p = p
            self._at = 0
            self._n = n

    cpdef hold(self):
        """Copy what is unread; after it the buffer given to feed() may change."""
        self._hold()

    cdef int _hold(self) except -1:
        cdef Py_ssize_t unread = self._n - self._at
        cdef char *kept
        if self._fed is None:
            return 0
        if unread + self._next_n == 0:
            self._forget_input()
            return 0
        if self._own is NULL:
            kept = <char *>malloc(unread)
            if kept is NULL:
                raise MemoryError
            memcpy(kept, self._p + self._at, unread)
        else:
            if unread and self._at:
                memmove(self._own, self._p + self._at, unread)
            kept = <char *>realloc(self._own, unread + self._next_n)
            if kept is NULL:
                raise MemoryError
            if self._next_n:
                memcpy(kept + unread, self._next, self._next_n)
        self._own = kept
        self._p = kept
        self._at = 0
        self._n = unread + self._next_n
        self._next = NULL
        self._next_n = 0
        self._fed = None
        return 0

    cdef void _free_own(self) noexcept:
        free(self._own)
        self._own = NULL

    cdef void _forget_input(self) noexcept:
        self._free_own()
        self._p = NULL
        self._at = 0
        self._n = 0
        self._next = NULL
        self._next_n = 0
        self._fed = None

    cdef bint _advance(self) noexcept:
        """Go on to what feed() showed behind the held octets; False when there is no more input."""
        if self._next_n == 0:
            return False
        self._free_own()
        self._p = self._next
        self._at = 0
        self._n = self._next_n
        self._next = NULL
        self._next_n = 0
        return True

    cdef bint _pull(self, Py_ssize_t limit) except -1:
        """Join the held beginning of a line with what was shown behind it, up to its LF or limit octets in all."""
        cdef Py_ssize_t unread = self._n - self._at
        cdef Py_ssize_t more = min(self._next_n, limit - unread)
        cdef const char *lf
        cdef char *joined
        if more <= 0:
            return False
        lf = <const char *>memchr(self._next, b'\n', more)
        if lf is not NULL:
            more = lf - self._next + 1
        if self._at:
            memmove(self._own, self._own + self._at, unread)
        self._at = 0
        self._n = unread
        joined = <char *>realloc(self._own, unread + more)
        if joined is NULL:
            raise MemoryError
        memcpy(joined + unread, self._next, more)
        self._own = joined
        self._p = joined
        self._n = unread + more
        self._next += more
        self._next_n -= more
        return True

    # --- the caller's side ---------------------------------------------------------------------------

    def greet(self, Reply reply not None) -> None:
        """Queue the greeting (2xx), or a refusal.  After 421 the session closes, after any other only QUIT is taken."""
        cdef int code = reply.code
        if self.state != State.NEW:
            raise RuntimeError("greeted already")
        self._write(reply, code)
        if code == 421:
            self._stop()
        else:
            self.state = State.FRESH if code < 400 else State.REFUSED

    def close(self, Reply reply=None) -> None:
        """Queue a last reply that answers no command, and stop."""
        if self.is_closing:
            return
        if reply is not None:
            reply = self._told(reply)
            self._write(reply, reply.code)
        self._stop()
        self._pending = None

    def restart(self, *, bint is_tls=False) -> None:
        """Forget unread input, HELO and transaction.  Errors keep counting; what was not greeted yet still has to be.

        After XCLIENT the event stays open: its reply is the greeting of the new client.
        """
        cdef bint is_new = self.state == State.NEW
        if self.is_closing:
            return
        self._forget_input()
        self._end_transaction()
        self._pending = None
        self._mode = LINE
        self._is_extended = False
        self._is_first = True
        if is_tls:
            self.is_tls = True
        if self._open == 1 + <int>Kind.ON_XCLIENT:
            self.state = State.NEW
        else:
            # An implicit TLS listener greets after the handshake: its session stays NEW.
            self._open = 0
            self.state = State.NEW if is_new else State.FRESH

    cpdef reply(self, Reply reply):
        """Answer the open event; the state moves by the reply's class, 421 closes."""
        cdef int kind = self._open - 1
        cdef int code = reply.code
        cdef bytes answer
        if self.is_closing:
            # A time-out closed it while somebody was still thinking about the answer.
            return
        if kind < 0:
            raise RuntimeError("no event is open")
        self._open = 0
        if code >= 400:
            self._refuse(kind, reply, code)
        elif kind == Kind.ON_HELO:
            self._is_extended = self._asks_extended
            if not self._is_extended:
                answer = self._terms.helo
            else:
                answer = self._terms.ehlo_tls if self.is_tls else self._terms.ehlo_clear
            self._append(PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer))
            self.state = State.READY
        elif kind == Kind.ON_DATA:
            begin_text(
                &self._decoder, self._mode == LINE, self._terms.is_normalizing,
                Found.NUL if self._terms.is_normalizing else Found.NUL | Found.BARE_CR | Found.BARE_LF)
            if self._mode == LINE:
                self._write(reply if code == 354 else _START_DATA, code)
                self.state = State.IN_DATA
                self._mode = TEXT
            else:
                self.state = State.IN_CHUNKS
        else:
            self._write(reply, code)
            if kind == Kind.ON_MAIL:
                self.state = State.IN_MAIL
            elif kind == Kind.ON_RCPT:
                self.state = State.IN_RCPT
            elif kind == Kind.ON_END:
                self._barren = 0
                self._end_transaction()
            elif kind == Kind.ON_XCLIENT:
                self.state = State.FRESH
            elif kind == Kind.ON_STARTTLS and code == 220:
                # RFC 3207 4.2: what came in clear behind STARTTLS is nobody's.
                self._forget_input()
                self.state = State.IN_TLS

    cdef int _refuse(self, int kind, Reply reply, int code) except -1:
        """The open event got 4xx or 5xx."""
        if code == 421:
            self._write(reply, code)
            self.errors += 1
            self._stop()
            return 0
        if kind == Kind.ON_DATA and self._mode == CHUNK:
            # The octets come whatever we say; a following BDAT could not be told from a new attempt,
            # so the transaction ends with them.
            self._drop(reply)
            self._is_drop_end = True
            return 0
        if kind == Kind.ON_RCPT:
            self._refused += 1
        elif kind == Kind.ON_END:
            self._end_transaction()
        elif kind == Kind.ON_XCLIENT and self.state == State.NEW:
            self.state = State.REFUSED
        return self._answer(reply)

    cpdef Event next_event(self):
        """The next event, or None: more input is needed, an event is open, the output is full, or it is closing."""
        cdef Event event
        if self._pending is not None or self._fatal is not None:
            return self._pop()
        if self._open or self.state == State.NEW or self.state == State.IN_TLS:
            return None
        while not self.is_closing and self._out_n <= OUT_FULL:
            if self._mode >= TEXT:
                event = self._settle()
                if event is not None:
                    return event
                if self.is_closing or self._mode == LINE:
                    continue
            if self._at == self._n and not self._advance():
                return None
            if self._mode == LINE:
                event = self._read_line()
            elif self._mode == TEXT:
                event = self._read_text()
            elif self._mode == SKIP:
                event = self._skip_line()
            else:
                event = self._read_chunk()
            if event is not None:
                return event
            if self._is_starved:
                return None
        return self._pop()

    # --- ends and errors -----------------------------------------------------------------------------

    cdef void _stop(self) noexcept:
        self.is_closing = True
        self.state = State.CLOSED
        self._mode = LINE
        self._open = 0
        self._forget_input()

    cdef Event _pop(self):
        """The event that is due before anything else is parsed, None when there is none."""
        cdef Event event = self._pending
        if event is not None:
            self._pending = None
            if event.kind == Kind.ON_HELO or event.kind == Kind.ON_MAIL:
                self._open = 1 + event.kind
            return event
        event = self._fatal
        self._fatal = None
        return event

    cdef Event _ask(self, int kind):
        """A new event that waits for reply()."""
        self._open = 1 + kind
        return new_event(kind)

    cdef Event _violate(self, str violation, Reply reply, bint is_fatal):
        """Answer something that is more than a mistake, and say so."""
        cdef Event event = new_event(Kind.ON_VIOLATION)
        reply = self._told(reply)
        event.violation = violation
        event.reply = reply
        event.is_fatal = is_fatal
        if is_fatal:
            self._write(reply, reply.code)
            self.errors += 1
            self._stop()
        else:
            self._answer(reply)
        return event

    cdef Event _abort(self, str violation, Reply reply):
        """The message can't be taken, framing is intact: VIOLATION, then RESET."""
        self._mode = LINE
        self._end_transaction()
        self._pending = new_event(Kind.ON_RESET)
        return self._violate(violation, reply, False)

    cdef void _end_transaction(self) noexcept:
        self.state = State.READY
        self._refused = 0
        self._is_smtputf8 = False

    # --- text ----------------------------------------------------------------------------------------

    cdef Event _settle(self):
        """What is due in a text without further input."""
        if self._mode == TEXT:
            if self._decoder.is_done:
                return self._end_text()
            if self._decoder.found & self._decoder.stops_at:
                return self._violate(found_word(self._decoder.found), found_reply(self._decoder.found), True)
        elif self._left == 0:
            return self._end_chunk() if self._mode == CHUNK else self._end_drop()
        return None

    cdef Event _read_text(self):
        cdef Py_ssize_t consumed = 0
        cdef bytes chunk = decode(&self._decoder, self._p + self._at, self._n - self._at, &consumed)
        self._at += consumed
        return self._body(chunk)

    cdef Event _body(self, bytes chunk):
        """The BODY event of a piece of text; what is over the limit is left out."""
        cdef Event event
        cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk)
        cdef long long over
        if self._terms.message_bytes:
            over = self._decoder.size_bytes - self._terms.message_bytes
            if over > 0:
                if over >= size:
                    return None
                chunk = chunk[:size - over]
        if size == 0:
            return None
        event = new_event(Kind.ON_BODY)
        event.chunk = chunk
        return event

    cdef bint _is_over(self) noexcept:
        return 0 < self._terms.message_bytes < self._decoder.size_bytes

    cdef Event _end_text(self):
        cdef Event event
        if self._is_over():
            return self._abort("too_big", replies.TOO_BIG)
        self._mode = LINE
        event = self._ask(Kind.ON_END)
        event.size_bytes = self._decoder.size_bytes
        event.replies = 1
        return event

    cdef Event _read_chunk(self):
        """Octets of a BDAT: text, or what is dropped.

        Dots and ends mean nothing here (RFC 3030), but bare CR, bare LF and NUL are held to the same rule as in
        DATA: the message may go on by DATA later, and what they would do there is done to the next hop.  The
        framing is a count and stays right, so the session goes on.
        """
        cdef Py_ssize_t n = self._n - self._at
        cdef Py_ssize_t consumed = 0
        cdef bytes chunk
        if n > self._left:
            n = <Py_ssize_t>self._left
        if self._mode == DROP:
            self._at += n
            self._left -= n
            return None
        chunk = decode(&self._decoder, self._p + self._at, n, &consumed)
        self._at += consumed
        self._left -= consumed
        if self._decoder.found & self._decoder.stops_at:
            self._drop(found_reply(self._decoder.found))
            self._drop_violation = found_word(self._decoder.found)
        return self._body(chunk)

    cdef Event _end_chunk(self):
        if self._is_last and end_text(&self._decoder) & self._decoder.stops_at:
            return self._abort(found_word(self._decoder.found), found_reply(self._decoder.found))
        if self._is_over():
            return self._abort("too_big", replies.TOO_BIG)
        if self._is_last:
            return self._end_text()
        self._mode = LINE
        self._answer(_chunk_received(self._chunk_bytes))
        return None

    cdef int _drop(self, Reply reply) except -1:
        """The octets of this chunk are read and dropped, then answered with reply."""
        self._mode = DROP
        self._drop_reply = reply
        self._drop_violation = None
        self._is_drop_end = False
        return 0

    cdef Event _end_drop(self):
        cdef Reply reply = self._drop_reply
        self._mode = LINE
        self._drop_reply = None
        if self._drop_violation is not None:
            return self._abort(self._drop_violation, reply)
        self._answer(reply)
        if not self._is_drop_end or self.is_closing:
            return None
        self._end_transaction()
        return new_event(Kind.ON_RESET)

    # --- lines ---------------------------------------------------------------------------------------

    cdef Py_ssize_t _line_limit(self, const char *p, Py_ssize_t n) noexcept:
        """How long this command line may be with its CRLF (RFC 5321 4.5.3.1.4 and the extensions)."""
        if n >= 4 and is_word(p, 4, b"MAIL", 4):
            return self._terms.command_bytes + MAIL_MORE
        if n >= 4 and is_word(p, 4, b"RCPT", 4):
            return self._terms.command_bytes + RCPT_MORE
        if n >= 7 and is_word(p, 7, b"XCLIENT", 7):
            return self._terms.command_bytes + XCLIENT_MORE
        return self._terms.command_bytes

    cdef Event _read_line(self):
        """Find the next command line and carry it out; without a whole one is_starved."""
        cdef Py_ssize_t limit = self._terms.command_bytes
        cdef Py_ssize_t n
        cdef const char *p = NULL
        cdef const char *lf = NULL
        cdef unsigned char first
        if self._is_first:
            first = <unsigned char>self._p[self._at]
            if first > 126 or (first < 32 and first != 0 and first != 9 and first != 10 and first != 13):
                # A TLS ClientHello, most often.  It need not hold any line end: don't wait for one.
                return self._violate("not_smtp", replies.NOT_SMTP, True)
        while True:
            p = self._p + self._at
            n = self._n - self._at
            if n > self._terms.command_bytes:
                limit = self._line_limit(p, n)
            lf = <const char *>memchr(p, b'\n', min(n, limit))
            if lf is not NULL:
                break
            if n == self._terms.command_bytes:
                limit = self._line_limit(p, n)
            if n >= limit:
                self.commands += 1
                self._is_first = False
                self._mode = SKIP
                self._skip_cr = False
                return self._violate("line_too_long", replies.LINE_TOO_LONG, False)
            if self._own is NULL or not self._pull(limit):
                self._is_starved = True
                return None
        n = lf - p
        self._at += n + 1
        self.commands += 1
        self._is_first = False
        if n > 0 and (lf - 1)[0] == b'\r':
            n -= 1
        elif not self._terms.is_normalizing:
            return self._violate("bare_newline", replies.BARE_NEWLINE, True)
        if memchr(p, 0, n) is not NULL:
            return self._violate("nul", replies.NUL_RECEIVED, True)
        if memchr(p, b'\r', n) is not NULL:
            return self._violate("bare_newline", replies.BARE_NEWLINE, True)
        while n > 0 and ((p + n - 1)[0] == b' ' or (p + n - 1)[0] == b'\t'):
            n -= 1
        return self._command(p, n)

    cdef Event _skip_line(self):
        """Drop the rest of a line that was too long, holding nothing of it."""
        cdef const char *p = self._p + self._at
        cdef Py_ssize_t n = self._n - self._at
        cdef const char *lf = <const char *>memchr(p, b'\n', n)
        cdef bint is_crlf
        if lf is NULL:
            self._skip_cr = (p + n - 1)[0] == b'\r'
            self._at = self._n
            return None
        is_crlf = (lf - 1)[0] == b'\r' if lf > p else self._skip_cr
        self._at += lf - p + 1
        self._mode = LINE
        if not is_crlf and not self._terms.is_normalizing:
            return self._violate("bare_newline", replies.BARE_NEWLINE, True)
        return None

    cdef Event _command(self, const char *p, Py_ssize_t n):
        """Look one command line up in the table, and carry it out.  p is valid until an answer is queued."""
        cdef Py_ssize_t at = 0
        cdef int verb, action
        while at < n and is_in(p[at], ALPHA):
            at += 1
        verb = find_verb(p, at) if at == n or p[at] == b' ' else Verb.V_UNKNOWN
        while at < n and p[at] == b' ':
            at += 1
        p += at
        n -= at
        if verb == Verb.V_FOREIGN:
            # A browser or a proxy made to speak to us: the lines that follow are somebody else's text.
            return self._violate("not_smtp", replies.NOT_SMTP, True)
        if verb != Verb.V_MAIL and verb != Verb.V_RCPT and verb != Verb.V_DATA and verb != Verb.V_BDAT:
            self._barren += 1
            if self._terms.commands and self._barren > self._terms.commands and verb != Verb.V_QUIT:
                return self._violate("too_many_commands", replies.TOO_MANY_COMMANDS, True)
        action = action_of(verb, self.state)
        if verb == Verb.V_BDAT:
            return self._bdat(p, n, action)
        if action == Action.NEED_RCPT and self._refused:
            self._answer(replies.NO_VALID_RECIPIENTS)
            return None
        if action == Action.NESTED and self._terms.is_compatible:
            action = Action.PROCEED
        if action != Action.PROCEED:
            self._answer(_CHECKS[action])
            return None
        if verb == Verb.V_RCPT:
            return self._asked(verb, read_rcpt(p, n, self._terms, self._is_extended, self._is_smtputf8))
        if verb == Verb.V_MAIL:
            if self._terms.is_tls_required and not self.is_tls:
                self._answer(replies.NEED_TLS)
                return None
            return self._asked(verb, read_mail(p, n, self._terms, self._is_extended))
        if verb == Verb.V_HELO or verb == Verb.V_EHLO:
            return self._asked(verb, read_helo(p, n, self._terms, verb == Verb.V_EHLO))
        if verb == Verb.V_XCLIENT:
            if not self._terms.is_xclient_allowed:
                self._answer(replies.XCLIENT_DENIED)
                return None
            return self._asked(verb, read_xclient(p, n))
        if verb == Verb.V_VRFY:
            self._answer(replies.CANNOT_VERIFY if n else replies.SYNTAX_ERROR)
        elif verb == Verb.V_NOOP:
            self._answer(_OK)
        elif verb == Verb.V_HELP:
            self._answer(replies.HELP)
        elif verb == Verb.V_UNKNOWN:
            self._answer(replies.UNKNOWN_COMMAND if self.state != State.REFUSED else replies.BAD_SEQUENCE)
        elif n:
            # The rest takes no argument.
            self._answer(replies.SYNTAX_ERROR)
        elif verb == Verb.V_DATA:
            return self._ask(Kind.ON_DATA)
        elif verb == Verb.V_RSET:
            self._answer(_OK)
            if self.state > State.READY:
                self._end_transaction()
                return new_event(Kind.ON_RESET)
        elif verb == Verb.V_STARTTLS:
            return self._starttls()
        elif verb == Verb.V_QUIT:
            self._answer(replies.BYE)
            self._stop()
            return new_event(Kind.ON_QUIT)
        return None

    cdef Event _asked(self, int verb, object found):
        """What a reader made of a command: an event that waits for reply(), or the reply that refuses it."""
        cdef Event event
        if not isinstance(found, Event):
            if verb == Verb.V_RCPT:
                # A recipient that can't be read was refused as well (RFC 2920 3.1: then DATA gets 554, not 503).
                self._refused += 1
            self._answer(found)
            return None
        event = found
        if event.kind == Kind.ON_HELO:
            self._asks_extended = event.is_extended
            if self.state > State.READY:
                self._end_transaction()
                self._pending = event
                return new_event(Kind.ON_RESET)
        elif event.kind == Kind.ON_MAIL:
            if self.state > State.READY:
                # qmail-smtpd: a second MAIL begins anew.
                self._end_transaction()
                self._is_smtputf8 = event.is_smtputf8
                self._pending = event
                return new_event(Kind.ON_RESET)
            self._is_smtputf8 = event.is_smtputf8
        self._open = 1 + event.kind
        return event

    cdef Event _bdat(self, const char *p, Py_ssize_t n, int action):
        """The octets follow whatever we think of the command: they are taken as text, or dropped."""
        cdef Event event
        cdef long long size = read_bdat(p, n, &self._is_last)
        if size < 0:
            return self._violate("bad_chunk", replies.BAD_CHUNK, True)
        self._left = size
        self._chunk_bytes = size
        if not self._terms.is_chunking:
            self._drop(replies.NOT_OFFERED)
        elif action == Action.NEED_RCPT and self._refused:
            self._drop(replies.NO_VALID_RECIPIENTS)
        elif action != Action.PROCEED:
            self._drop(_CHECKS[action])
        else:
            self._mode = CHUNK
            if self.state == State.IN_RCPT:
                event = self._ask(Kind.ON_DATA)
                event.is_chunked = True
                return event
        return None

    cdef Event _starttls(self):
        if self.is_tls:
            self._answer(replies.TLS_ACTIVE)
        elif not self._terms.is_starttls_offered:
            self._answer(replies.NOT_OFFERED)
        else:
            return self._ask(Kind.ON_STARTTLS)
        return None


cdef Reply found_reply(int found):
    return replies.NUL_RECEIVED if found & Found.NUL else replies.BARE_NEWLINE
