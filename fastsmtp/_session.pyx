"""The SMTP dialogue of RFC 5321 as one table: bytes in, events out, bytes out.  Sans-IO.

Not here: the grammar (_parser), the texts (reply.py), any opinion (policy).  _session.pyi
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

Rank 1: pure; imports _parser and reply.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove

from fastsmtp._ascii cimport ALPHA, ATEXT, DIGIT, NAME, is_in, is_word, upper
from fastsmtp._parser cimport (
    Fault, Found, Mailbox, Parameter, begin_text, decode, end_text, lowered, make_path, scan_parameter, scan_path,
    scan_xtext, unquote_xtext, uppered)

from fastsmtp import reply as replies

# --- names -------------------------------------------------------------------------------------------

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

HELO = Kind.ON_HELO
MAIL = Kind.ON_MAIL
RCPT = Kind.ON_RCPT
DATA = Kind.ON_DATA
BODY = Kind.ON_BODY
END = Kind.ON_END
RESET = Kind.ON_RESET
STARTTLS = Kind.ON_STARTTLS
XCLIENT = Kind.ON_XCLIENT
AUTH = Kind.ON_AUTH
VIOLATION = Kind.ON_VIOLATION
QUIT = Kind.ON_QUIT

EVENT_NAMES = (
    "HELO", "MAIL", "RCPT", "DATA", "BODY", "END", "RESET", "STARTTLS", "XCLIENT", "AUTH", "VIOLATION", "QUIT")

cdef enum State:
    NEW = 0         # not greeted yet: nothing is parsed
    REFUSED = 1     # greeted with 554: only QUIT is taken (RFC 5321 3.1)
    FRESH = 2       # greeted
    READY = 3       # HELO given
    IN_MAIL = 4     # MAIL accepted, no recipient yet
    IN_RCPT = 5     # a recipient accepted
    IN_CHUNKS = 6   # BDAT accepted, LAST not seen
    IN_DATA = 7     # DATA accepted, up to the reply to the message
    IN_TLS = 8      # 220 to STARTTLS: input is dropped until restart()
    CLOSED = 9

STATE_NEW = State.NEW
STATE_REFUSED = State.REFUSED
STATE_FRESH = State.FRESH
STATE_READY = State.READY
STATE_MAIL = State.IN_MAIL
STATE_RCPT = State.IN_RCPT
STATE_CHUNKS = State.IN_CHUNKS
STATE_DATA = State.IN_DATA
STATE_TLS = State.IN_TLS
STATE_CLOSED = State.CLOSED
STATE_NAMES = ("new", "refused", "fresh", "ready", "mail", "rcpt", "chunks", "data", "tls", "closed")

cdef enum Mode:
    LINE = 0
    SKIP = 1
    TEXT = 2
    CHUNK = 3
    DROP = 4

cdef enum Verb:
    V_UNKNOWN = 0
    V_HELO = 1
    V_EHLO = 2
    V_MAIL = 3
    V_RCPT = 4
    V_DATA = 5
    V_BDAT = 6
    V_RSET = 7
    V_NOOP = 8
    V_VRFY = 9
    V_EXPN = 10
    V_HELP = 11
    V_QUIT = 12
    V_STARTTLS = 13
    V_XCLIENT = 14
    V_AUTH = 15
    VERBS = 16
    V_FOREIGN = 17  # another protocol's

# Four capitals as one number.
cdef enum Word:
    W_HELO = 0x48454C4F
    W_EHLO = 0x45484C4F
    W_MAIL = 0x4D41494C
    W_RCPT = 0x52435054
    W_DATA = 0x44415441
    W_BDAT = 0x42444154
    W_RSET = 0x52534554
    W_NOOP = 0x4E4F4F50
    W_VRFY = 0x56524659
    W_EXPN = 0x4558504E
    W_HELP = 0x48454C50
    W_QUIT = 0x51554954
    W_AUTH = 0x41555448
    W_POST = 0x504F5354
    W_HEAD = 0x48454144

cdef enum Action:
    PROCEED = 0
    BAD_SEQUENCE = 1
    HELO_FIRST = 2
    NEED_MAIL = 3
    NEED_RCPT = 4
    NESTED = 5
    NOT_OFFERED = 6

# The dialogue.  One letter a state: what happens to the verb there.
#   .  its function    x  503    h  503 HELO first    m  503 need MAIL    r  503 or 554 need RCPT
#   n  503 nested      -  502 not offered
# The next state is the one after a positive answer; "=" stays, "*" is READY when HELO was given.
cdef tuple _ROWS = (
    #            refused fresh ready mail rcpt chunks
    ("?",        "......", "="),
    ("HELO",     "x.....", "ready"),
    ("EHLO",     "x.....", "ready"),
    ("MAIL",     "xh.nnn", "mail"),
    ("RCPT",     "xhm..x", "rcpt"),
    ("DATA",     "xhmr.x", "data"),
    ("BDAT",     "xhmr..", "chunks"),
    ("RSET",     "x.....", "*"),
    ("NOOP",     "x.....", "="),
    ("VRFY",     "x.....", "="),
    ("EXPN",     "x-----", "="),
    ("HELP",     "x.....", "="),
    ("QUIT",     "......", "closed"),
    ("STARTTLS", "xh.xxx", "tls"),
    ("XCLIENT",  "x..xxx", "fresh"),
    ("AUTH",     "x-----", "="),
)
cdef dict _HAPPENS = {
    ".": "proceed", "x": "503 bad sequence", "h": "503 send HELO first", "m": "503 need MAIL",
    "r": "503 need RCPT, 554 when all were refused", "n": "503 nested MAIL", "-": "502 not offered"}

cdef enum:
    COLUMNS = 6
cdef int[VERBS][COLUMNS] _actions


def _tabulate() -> tuple:
    """Fill the C table from _ROWS; returns the same for Python."""
    rows = []
    for verb, (name, letters, after) in enumerate(_ROWS):
        for column, letter in enumerate(letters):
            _actions[verb][column] = ".xhmrn-".index(letter)
            state = STATE_NAMES[column + 1]
            following = state if letter != "." or after == "=" else after
            if following == "*":
                following = state if state == "fresh" else "ready"
            rows.append((name, state, _HAPPENS[letter], following))
    return tuple(rows)


TABLE = _tabulate()

# --- bounds ------------------------------------------------------------------------------------------

cdef enum:
    # What an extension adds to the longest command line, octets: SIZE 26 (RFC 1870), BODY 17 (RFC 6152),
    # SMTPUTF8 10 (RFC 6531), RET and ENVID 118 (RFC 3461 section 5)
    MAIL_MORE = 26 + 17 + 10 + 118
    # NOTIFY and ORCPT (RFC 3461 section 5)
    RCPT_MORE = 500
    # Postfix's XCLIENT_README: an XCLIENT command may be as long as a command line and 512 more
    XCLIENT_MORE = 512
    ENVID_BYTES = 100       # RFC 3461 section 4.4
    ORCPT_BYTES = 500       # RFC 3461 section 4.2
    COMMAND_LEAST = 64      # no Terms may allow less: the verb must be known before a line is too long
    OUT_FULL = 16384        # untaken output at which parsing waits: a client may send but never read
    OUT_FIRST = 512

# A chunk over 1 TiB: nobody sends it, and reading it would take hours; the count is a lie.
cdef long long CHUNK_MOST = 1 << 40

cdef object _OK = replies.OK
cdef object _START_DATA = replies.START_DATA
cdef tuple _CHECKS = (
    None, replies.BAD_SEQUENCE, replies.SEND_HELO_FIRST, replies.NEED_MAIL, replies.NEED_RCPT, replies.NESTED_MAIL,
    replies.NOT_OFFERED)
# http://www.postfix.org/XCLIENT_README.html
cdef tuple _NOTIFY = (b"NEVER", b"SUCCESS", b"FAILURE", b"DELAY")
cdef frozenset _XCLIENT_NAMES = frozenset(
    (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT"))


@cython.final
cdef class Terms:
    """What this listener offers and enforces; see _session.pyi."""

    def __cinit__(
        self, *, str hostname not None, long long message_bytes=52_428_800, int recipients=1_000, int errors=20,
        Py_ssize_t command_bytes=512, Py_ssize_t local_bytes=64, Py_ssize_t domain_bytes=255,
        Py_ssize_t path_bytes=256, bint is_starttls_offered=False, bint is_tls_required=False,
        bint is_normalizing=False, bint is_xclient_allowed=False, bint is_chunking=True, bint is_smtputf8=True,
        bint is_dsn=True, bint is_lmtp=False,
    ) -> None:
        if command_bytes < COMMAND_LEAST:
            raise ValueError(f"command_bytes under {<int>COMMAND_LEAST}")
        if message_bytes < 0 or recipients < 0 or errors < 0:
            raise ValueError("a limit is negative")
        self.hostname = hostname
        self.message_bytes = message_bytes
        self.recipients = recipients
        self.errors = errors
        self.command_bytes = command_bytes
        self.local_bytes = local_bytes
        self.domain_bytes = domain_bytes
        self.path_bytes = path_bytes
        self.limits = Limits(local_bytes, domain_bytes, path_bytes)
        self.is_starttls_offered = is_starttls_offered
        self.is_tls_required = is_tls_required
        self.is_normalizing = is_normalizing
        self.is_xclient_allowed = is_xclient_allowed
        self.is_chunking = is_chunking
        self.is_smtputf8 = is_smtputf8
        self.is_dsn = is_dsn
        self.is_lmtp = is_lmtp
        self.helo = b"250 " + hostname.encode("ascii") + b"\r\n"
        self.ehlo_clear = self.capabilities(False)
        self.ehlo_tls = self.capabilities(True)

    cdef bytes capabilities(self, bint is_tls):
        """The answer to EHLO.  ehlo-ok-rsp = ( "250-" Domain CRLF *( "250-" ehlo-line CRLF ) "250" SP ehlo-line CRLF )"""
        cdef list lines = [self.hostname.encode("ascii"), b"PIPELINING", b"SIZE %d" % self.message_bytes, b"8BITMIME"]
        if self.is_chunking:
            lines.append(b"CHUNKING")
        if self.is_smtputf8:
            lines.append(b"SMTPUTF8")
        lines.append(b"ENHANCEDSTATUSCODES")
        if self.is_dsn:
            lines.append(b"DSN")
        if self.is_starttls_offered and not is_tls:
            lines.append(b"STARTTLS")
        if self.recipients:
            lines.append(b"LIMITS RCPTMAX=%d" % self.recipients)
        if self.is_xclient_allowed:
            lines.append(b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT")
        return b"250-" + b"\r\n250-".join(lines) + b"\r\n250 HELP\r\n"


@cython.final
@cython.no_gc       # nothing that it holds can point back to it
@cython.freelist(64)
cdef class Event:
    """One event; see _session.pyi."""

    def __init__(self) -> None:
        raise TypeError("an Event comes from a Session")

    def __repr__(self) -> str:
        return f"Event({EVENT_NAMES[self.kind]})"


cdef inline Event new_event(int kind):
    cdef Event event = Event.__new__(Event)
    event.kind = kind
    return event


@cython.final
@cython.freelist(64)
cdef class Session:
    """One SMTP session; see _session.pyi."""

    def __cinit__(self, Terms terms not None, bytes id not None) -> None:
        self._terms = terms
        self.id = id
        self._tail = b" (id " + id + b")\r\n"
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

    cdef int _write(self, object reply, int code) except -1:
        """Queue a reply; the session's id ends each 4xx and 5xx."""
        cdef bytes head = reply.head
        self._append(PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        if code >= 400:
            self._append(PyBytes_AS_STRING(self._tail), PyBytes_GET_SIZE(self._tail))
        else:
            self._append(b"\r\n", 2)
        return 0

    cdef int _answer(self, object reply) except -1:
        """Queue the answer to a command, and count it: the last error allowed is followed by 421."""
        cdef int code = reply.code
        self._write(reply, code)
        if code < 400:
            return 0
        self.errors += 1
        if self._terms.errors and self.errors >= self._terms.errors and not self.is_closing:
            self._write(replies.TOO_MANY_ERRORS, 421)
            self._stop()
            self._fatal = new_event(ON_VIOLATION)
            self._fatal.violation = "too_many_errors"
            self._fatal.reply = replies.TOO_MANY_ERRORS
            self._fatal.is_fatal = True
        return 0

    def take(self) -> bytes:
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

    def feed(self, object data not None, Py_ssize_t size_bytes=-1) -> None:
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
        if n == 0 or self.state == IN_TLS or self.is_closing:
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

    def hold(self) -> None:
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

    def greet(self, object reply not None) -> None:
        """Queue the greeting (2xx), or a refusal.  After 421 the session closes, after any other only QUIT is taken."""
        cdef int code = reply.code
        if self.state != NEW:
            raise RuntimeError("greeted already")
        self._write(reply, code)
        if code == 421:
            self._stop()
        else:
            self.state = FRESH if code < 400 else REFUSED

    def close(self, object reply=None) -> None:
        """Queue a last reply that answers no command, and stop."""
        if self.is_closing:
            return
        if reply is not None:
            self._write(reply, reply.code)
        self._stop()
        self._pending = None

    def restart(self, *, bint is_tls=False) -> None:
        """Forget unread input, HELO and transaction.  Errors keep counting.

        After XCLIENT the event stays open: its reply is the greeting of the new client.
        """
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
        if self._open == 1 + <int>ON_XCLIENT:
            self.state = NEW
        elif self.state != NEW:
            # An implicit TLS listener greets after the handshake: it stays NEW.
            self._open = 0
            self.state = FRESH

    def reply(self, object reply not None) -> None:
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
        elif kind == ON_HELO:
            if not self._is_extended:
                answer = self._terms.helo
            else:
                answer = self._terms.ehlo_tls if self.is_tls else self._terms.ehlo_clear
            self._append(PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer))
            self.state = READY
        elif kind == ON_DATA:
            begin_text(
                &self._decoder, self._mode == LINE, self._terms.is_normalizing,
                Found.NUL if self._terms.is_normalizing else Found.NUL | Found.BARE_CR | Found.BARE_LF)
            if self._mode == LINE:
                self._write(reply if code == 354 else _START_DATA, code)
                self.state = IN_DATA
                self._mode = TEXT
            else:
                self.state = IN_CHUNKS
        else:
            self._write(reply, code)
            if kind == ON_MAIL:
                self.state = IN_MAIL
            elif kind == ON_RCPT:
                self.state = IN_RCPT
            elif kind == ON_END:
                self._end_transaction()
            elif kind == ON_XCLIENT:
                self.state = FRESH
            elif kind == ON_STARTTLS and code == 220:
                # RFC 3207 4.2: what came in clear behind STARTTLS is nobody's.
                self._forget_input()
                self.state = IN_TLS

    cdef int _refuse(self, int kind, object reply, int code) except -1:
        """The open event got 4xx or 5xx."""
        if code == 421:
            self._write(reply, code)
            self.errors += 1
            self._stop()
            return 0
        if kind == ON_DATA and self._mode == CHUNK:
            # The octets come whatever we say; a following BDAT could not be told from a new attempt,
            # so the transaction ends with them.
            self._drop(reply)
            self._is_drop_end = True
            return 0
        if kind == ON_RCPT:
            self._refused += 1
        elif kind == ON_END:
            self._end_transaction()
        elif kind == ON_XCLIENT and self.state == NEW:
            self.state = REFUSED
        return self._answer(reply)

    def next_event(self) -> "Event | None":
        """The next event, or None: more input is needed, an event is open, the output is full, or it is closing."""
        cdef Event event
        if self._pending is not None or self._fatal is not None:
            return self._pop()
        if self._open or self.state == NEW or self.state == IN_TLS:
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
        self.state = CLOSED
        self._mode = LINE
        self._open = 0
        self._forget_input()

    cdef Event _pop(self):
        """The event that is due before anything else is parsed, None when there is none."""
        cdef Event event = self._pending
        if event is not None:
            self._pending = None
            if event.kind == ON_HELO:
                self._open = 1 + <int>ON_HELO
            return event
        event = self._fatal
        self._fatal = None
        return event

    cdef Event _ask(self, int kind):
        """A new event that waits for reply()."""
        self._open = 1 + kind
        return new_event(kind)

    cdef Event _violate(self, str violation, object reply, bint is_fatal):
        """Answer something that is more than a mistake, and say so."""
        cdef Event event = new_event(ON_VIOLATION)
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

    cdef Event _abort(self, str violation, object reply):
        """The message can't be taken, framing is intact: VIOLATION, then RESET."""
        self._mode = LINE
        self._end_transaction()
        self._pending = new_event(ON_RESET)
        return self._violate(violation, reply, False)

    cdef void _end_transaction(self) noexcept:
        self.state = READY
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
        event = new_event(ON_BODY)
        event.chunk = chunk
        return event

    cdef bint _is_over(self) noexcept:
        return 0 < self._terms.message_bytes < self._decoder.size_bytes

    cdef Event _end_text(self):
        cdef Event event
        if self._is_over():
            return self._abort("too_big", replies.TOO_BIG)
        self._mode = LINE
        event = self._ask(ON_END)
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
        self._answer(replies.chunk_received(self._chunk_bytes))
        return None

    cdef int _drop(self, object reply) except -1:
        """The octets of this chunk are read and dropped, then answered with reply."""
        self._mode = DROP
        self._drop_reply = reply
        self._drop_violation = None
        self._is_drop_end = False
        return 0

    cdef Event _end_drop(self):
        cdef object reply = self._drop_reply
        self._mode = LINE
        self._drop_reply = None
        if self._drop_violation is not None:
            return self._abort(self._drop_violation, reply)
        self._answer(reply)
        if not self._is_drop_end or self.is_closing:
            return None
        self._end_transaction()
        return new_event(ON_RESET)

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
        verb = find_verb(p, at) if at == n or p[at] == b' ' else V_UNKNOWN
        while at < n and p[at] == b' ':
            at += 1
        p += at
        n -= at
        if verb == V_FOREIGN:
            # A browser or a proxy made to speak to us: the lines that follow are somebody else's text.
            return self._violate("not_smtp", replies.NOT_SMTP, True)
        action = _actions[verb][<int>self.state - 1]
        if verb == V_BDAT:
            return self._bdat(p, n, action)
        if action == NEED_RCPT and self._refused:
            self._answer(replies.NO_VALID_RECIPIENTS)
            return None
        if action != PROCEED:
            self._answer(_CHECKS[action])
            return None
        if verb == V_RCPT:
            return self._rcpt(p, n)
        if verb == V_MAIL:
            return self._mail(p, n)
        if verb == V_HELO or verb == V_EHLO:
            return self._helo(p, n, verb == V_EHLO)
        if verb == V_XCLIENT:
            return self._xclient(p, n)
        if verb == V_VRFY:
            self._answer(replies.CANNOT_VERIFY if n else replies.SYNTAX_ERROR)
        elif verb == V_NOOP:
            self._answer(_OK)
        elif verb == V_HELP:
            self._answer(replies.HELP)
        elif verb == V_UNKNOWN:
            self._answer(replies.UNKNOWN_COMMAND if self.state != REFUSED else replies.BAD_SEQUENCE)
        elif n:
            # The rest takes no argument.
            self._answer(replies.SYNTAX_ERROR)
        elif verb == V_DATA:
            return self._ask(ON_DATA)
        elif verb == V_RSET:
            self._answer(_OK)
            if self.state > READY:
                self._end_transaction()
                return new_event(ON_RESET)
        elif verb == V_STARTTLS:
            return self._starttls()
        elif verb == V_QUIT:
            self._answer(replies.BYE)
            self._stop()
            return new_event(ON_QUIT)
        return None

    cdef Event _helo(self, const char *p, Py_ssize_t n, bint is_extended):
        """helo = "HELO" SP Domain, ehlo = "EHLO" SP ( Domain / address-literal )

        Any word of harmless octets is taken: clients name themselves with underscores, without dots, with
        half a literal, and whether that matters is policy's question (RFC 5321 4.1.4).  Octets that would
        mean something in a Received field are not.
        """
        cdef Event event
        cdef Py_ssize_t i
        for i in range(n):
            if not is_in(p[i], NAME):
                n = 0
                break
        if n == 0 or n > self._terms.domain_bytes:
            self._answer(replies.SYNTAX_ERROR)
            return None
        event = new_event(ON_HELO)
        event.name = lowered(p, n)
        event.is_extended = is_extended
        self._is_extended = is_extended
        if self.state > READY:
            self._end_transaction()
            self._pending = event
            return new_event(ON_RESET)
        self._open = 1 + <int>ON_HELO
        return event

    cdef Event _mail(self, const char *p, Py_ssize_t n):
        """mail = "MAIL FROM:" Reverse-path [SP Mail-parameters]

        Spaces behind the colon are taken, though section 3.3 forbids them: old clients and scripts send
        them, Postfix and Exim take them, and nothing else can be meant.
        """
        cdef Event event
        cdef Mailbox mailbox
        cdef Py_ssize_t at = 5
        cdef Py_ssize_t end
        cdef object fault
        if self._terms.is_tls_required and not self.is_tls:
            self._answer(replies.NEED_TLS)
            return None
        if n < 5 or not is_word(p, 5, b"FROM:", 5):
            self._answer(replies.SYNTAX_ERROR)
            return None
        while at < n and p[at] == b' ':
            at += 1
        end = scan_path(p + at, n - at, True, self._terms.is_smtputf8, &self._terms.limits, &mailbox)
        if end < 0:
            self._answer(replies.NEED_SMTPUTF8 if end == -<Py_ssize_t>Fault.NEEDS_UTF8 else replies.BAD_SENDER_SYNTAX)
            return None
        event = new_event(ON_MAIL)
        event.body = b""
        event.ret = b""
        event.envid = b""
        if at + end < n:
            fault = self._mail_parameters(p, n, at + end, event)
            if fault is not None:
                self._answer(fault)
                return None
        if mailbox.is_utf8 and not event.is_smtputf8:
            self._answer(replies.NEED_SMTPUTF8)
            return None
        if 0 < self._terms.message_bytes < event.size_bytes:
            self._answer(replies.TOO_BIG)
            return None
        event.path = make_path(p + at, &mailbox)
        self._is_smtputf8 = event.is_smtputf8
        self._open = 1 + <int>ON_MAIL
        return event

    cdef object _mail_parameters(self, const char *p, Py_ssize_t n, Py_ssize_t at, Event event):
        """Fill the event from the parameters behind the path; None, or the reply that refuses them.

        SIZE=1*20DIGIT (RFC 1870) · BODY=7BIT / 8BITMIME (RFC 6152) · SMTPUTF8 (RFC 6531)
        RET=FULL / HDRS · ENVID=xtext, at most 100 (RFC 3461)
        """
        cdef Parameter found
        cdef const char *key
        cdef const char *value
        cdef Py_ssize_t key_n, value_n
        cdef int seen = 0
        cdef int bit
        cdef bint is_right
        while True:
            at = scan_parameter(p, n, at, False, &found)
            if at == 0:
                return None
            if at < 0:
                return replies.BAD_PARAMETER
            if not self._is_extended:
                return replies.NO_PARAMETERS_AFTER_HELO
            key = p + found.key_at
            key_n = found.key_end - found.key_at
            value = p + found.value_at if found.value_at >= 0 else NULL
            value_n = found.value_end - found.value_at
            if is_word(key, key_n, b"SIZE", 4):
                bit = 1
                event.size_bytes = scan_number(value, value_n) if value is not NULL else -1
                is_right = event.size_bytes >= 0 and value_n <= 20
            elif is_word(key, key_n, b"BODY", 4):
                bit = 2
                is_right = value is not NULL and (
                    is_word(value, value_n, b"8BITMIME", 8) or is_word(value, value_n, b"7BIT", 4))
                if is_right:
                    event.body = b"8BITMIME" if value_n == 8 else b"7BIT"
            elif is_word(key, key_n, b"SMTPUTF8", 8) and self._terms.is_smtputf8:
                bit = 4
                is_right = value is NULL
                event.is_smtputf8 = True
            elif is_word(key, key_n, b"RET", 3) and self._terms.is_dsn:
                bit = 8
                is_right = value is not NULL and (
                    is_word(value, value_n, b"FULL", 4) or is_word(value, value_n, b"HDRS", 4))
                if is_right:
                    event.ret = b"FULL" if upper(value[0]) == b'F' else b"HDRS"
            elif is_word(key, key_n, b"ENVID", 5) and self._terms.is_dsn:
                bit = 16
                is_right = value is not NULL and value_n <= ENVID_BYTES and scan_xtext(value, value_n, False) > 0
                if is_right:
                    event.envid = PyBytes_FromStringAndSize(value, value_n)
            else:
                return replies.UNKNOWN_PARAMETER
            if not is_right or seen & bit:
                return replies.BAD_PARAMETER
            seen |= bit

    cdef Event _rcpt(self, const char *p, Py_ssize_t n):
        """rcpt = "RCPT TO:" ( "<Postmaster@" Domain ">" / "<Postmaster>" / Forward-path ) [SP Rcpt-parameters]"""
        cdef Event event
        cdef Mailbox mailbox
        cdef Py_ssize_t at = 3
        cdef Py_ssize_t end
        cdef object fault
        if n < 3 or not is_word(p, 3, b"TO:", 3):
            fault = replies.SYNTAX_ERROR
        else:
            while at < n and p[at] == b' ':
                at += 1
            end = scan_path(p + at, n - at, False, self._is_smtputf8, &self._terms.limits, &mailbox)
            if end >= 0:
                event = new_event(ON_RCPT)
                event.notify = ()
                event.orcpt = b""
                fault = self._rcpt_parameters(p, n, at + end, event) if at + end < n else None
                if fault is None:
                    event.path = make_path(p + at, &mailbox)
                    self._open = 1 + <int>ON_RCPT
                    return event
            elif end == -<Py_ssize_t>Fault.NEEDS_UTF8:
                fault = replies.NEED_SMTPUTF8
            else:
                fault = replies.BAD_RECIPIENT_SYNTAX
        self._refused += 1
        self._answer(fault)
        return None

    cdef object _rcpt_parameters(self, const char *p, Py_ssize_t n, Py_ssize_t at, Event event):
        """Fill the event from the parameters behind the path; None, or the reply that refuses them.

        NOTIFY="NEVER" / 1#( "SUCCESS" / "FAILURE" / "DELAY" ) · ORCPT=atom ";" xtext, at most 500 (RFC 3461)
        """
        cdef Parameter found
        cdef const char *key
        cdef const char *value
        cdef Py_ssize_t key_n, value_n
        cdef int seen = 0
        cdef int bit
        while True:
            at = scan_parameter(p, n, at, self._is_smtputf8, &found)
            if at == 0:
                return None
            if at < 0:
                return replies.BAD_PARAMETER
            if not self._is_extended:
                return replies.NO_PARAMETERS_AFTER_HELO
            key = p + found.key_at
            key_n = found.key_end - found.key_at
            value = p + found.value_at
            value_n = found.value_end - found.value_at
            if is_word(key, key_n, b"NOTIFY", 6) and self._terms.is_dsn:
                bit = 1
                event.notify = None if found.value_at < 0 else notify_words(value, value_n)
                if event.notify is None:
                    return replies.BAD_PARAMETER
            elif is_word(key, key_n, b"ORCPT", 5) and self._terms.is_dsn:
                bit = 2
                if found.value_at < 0 or not is_orcpt(value, value_n, self._is_smtputf8):
                    return replies.BAD_PARAMETER
                event.orcpt = PyBytes_FromStringAndSize(value, value_n)
            else:
                return replies.UNKNOWN_PARAMETER
            if seen & bit:
                return replies.BAD_PARAMETER
            seen |= bit

    cdef Event _bdat(self, const char *p, Py_ssize_t n, int action):
        """bdat-cmd = "BDAT" SP chunk-size [ SP end-marker ]        chunk-size = 1*DIGIT, end-marker = "LAST" """
        cdef Py_ssize_t at = 0
        cdef long long size
        while at < n and is_in(p[at], DIGIT):
            at += 1
        size = scan_number(p, at) if at > 0 else -1
        self._is_last = False
        if at < n and p[at] == b' ':
            while at < n and p[at] == b' ':
                at += 1
            self._is_last = is_word(p + at, n - at, b"LAST", 4)
            at = at + 4 if self._is_last else 0
        if size < 0 or size > CHUNK_MOST or at != n:
            # Nobody knows where the next command begins.
            return self._violate("bad_chunk", replies.BAD_CHUNK, True)
        self._left = size
        self._chunk_bytes = size
        if not self._terms.is_chunking:
            self._drop(replies.NOT_OFFERED)
        elif action == NEED_RCPT and self._refused:
            self._drop(replies.NO_VALID_RECIPIENTS)
        elif action != PROCEED:
            self._drop(_CHECKS[action])
        else:
            self._mode = CHUNK
            if self.state == IN_RCPT:
                event = self._ask(ON_DATA)
                event.is_chunked = True
                return event
        return None

    cdef Event _starttls(self):
        if self.is_tls:
            self._answer(replies.TLS_ACTIVE)
        elif not self._terms.is_starttls_offered:
            self._answer(replies.NOT_OFFERED)
        else:
            return self._ask(ON_STARTTLS)
        return None

    cdef Event _xclient(self, const char *p, Py_ssize_t n):
        """xclient = "XCLIENT" 1*( SP attribute-name "=" xtext )"""
        cdef Parameter found
        cdef Event event
        cdef Py_ssize_t at = 0
        cdef list attributes = []
        cdef set seen = set()
        cdef bytes name, value
        cdef Py_ssize_t size
        if not self._terms.is_xclient_allowed:
            self._answer(replies.XCLIENT_DENIED)
            return None
        # The space before the first attribute belongs to it.
        p -= 1
        n += 1
        while n > 1:
            at = scan_parameter(p, n, at, False, &found)
            if at <= 0:
                break
            name = uppered(p + found.key_at, found.key_end - found.key_at)
            size = scan_xtext(p + found.value_at, found.value_end - found.value_at, False)
            if found.value_at < 0 or size < 0 or name not in _XCLIENT_NAMES or name in seen:
                at = -1
                break
            seen.add(name)
            value = PyBytes_FromStringAndSize(NULL, size)
            unquote_xtext(p + found.value_at, found.value_end - found.value_at, PyBytes_AS_STRING(value))
            attributes.append((name, value))
        if at < 0 or not attributes:
            self._answer(replies.SYNTAX_ERROR)
            return None
        event = self._ask(ON_XCLIENT)
        event.attributes = tuple(attributes)
        return event


# --- small scanners ----------------------------------------------------------------------------------

cdef int find_verb(const char *p, Py_ssize_t n) noexcept nogil:
    """The Verb that the n letters at p are."""
    cdef unsigned int word
    if n == 4:
        word = (upper(p[0]) << 24) | (upper(p[1]) << 16) | (upper(p[2]) << 8) | upper(p[3])
        if word == W_RCPT:
            return V_RCPT
        if word == W_MAIL:
            return V_MAIL
        if word == W_DATA:
            return V_DATA
        if word == W_BDAT:
            return V_BDAT
        if word == W_EHLO:
            return V_EHLO
        if word == W_HELO:
            return V_HELO
        if word == W_QUIT:
            return V_QUIT
        if word == W_RSET:
            return V_RSET
        if word == W_NOOP:
            return V_NOOP
        if word == W_VRFY:
            return V_VRFY
        if word == W_EXPN:
            return V_EXPN
        if word == W_HELP:
            return V_HELP
        if word == W_AUTH:
            return V_AUTH
        if word == W_POST or word == W_HEAD:
            return V_FOREIGN
    elif is_word(p, n, b"STARTTLS", 8):
        return V_STARTTLS
    elif is_word(p, n, b"XCLIENT", 7):
        return V_XCLIENT
    elif (is_word(p, n, b"GET", 3) or is_word(p, n, b"PUT", 3) or is_word(p, n, b"PRI", 3)
          or is_word(p, n, b"CONNECT", 7) or is_word(p, n, b"OPTIONS", 7) or is_word(p, n, b"DELETE", 6)
          or is_word(p, n, b"PATCH", 5) or is_word(p, n, b"TRACE", 5)):
        return V_FOREIGN
    return V_UNKNOWN


cdef long long scan_number(const char *p, Py_ssize_t n) noexcept nogil:
    """The value of n digits, at most 2**62; -1 when an octet is no digit."""
    cdef long long value = 0
    cdef Py_ssize_t i
    for i in range(n):
        if not is_in(p[i], DIGIT):
            return -1
        if value < <long long>1 << 58:
            value = value * 10 + (p[i] - c'0')
        else:
            value = <long long>1 << 62
    return value


cdef bint is_orcpt(const char *p, Py_ssize_t n, bint is_utf8_allowed) noexcept nogil:
    """original-recipient-address = addr-type ";" xtext        addr-type = atom (RFC 3461 section 4.2)"""
    cdef Py_ssize_t at = 0
    while at < n and p[at] != b';':
        if not is_in(p[at], ATEXT):
            return False
        at += 1
    return 0 < at < n - 1 and n <= ORCPT_BYTES and scan_xtext(p + at + 1, n - at - 1, is_utf8_allowed) > 0


cdef tuple notify_words(const char *p, Py_ssize_t n):
    """NOTIFY's words upper-case, each once; None when they are wrong (RFC 3461 section 4.1)."""
    cdef list words = []
    cdef bytes word
    for word in uppered(p, n).split(b","):
        if word not in _NOTIFY:
            return None
        if word not in words:
            words.append(word)
    if b"NEVER" in words and len(words) > 1:
        return None
    return tuple(words)


cdef str found_word(int found):
    """The word for logs for what the decoder stopped at."""
    return "nul" if found & Found.NUL else "bare_newline"


cdef object found_reply(int found):
    return replies.NUL_RECEIVED if found & Found.NUL else replies.BARE_NEWLINE
