"""The dialogue as one table: verb and state to check or function, and the state after it.

The C table that the session reads, TABLE for the documentation's picture and what tests walk
through are all made from the same rows.

Rank 1: pure.
"""

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
    VERBS = 16      # rows, by Verb
    COLUMNS = 6     # REFUSED to IN_CHUNKS: the states in which a line is read

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


cdef int action_of(int verb, int state) noexcept nogil:
    """The Action for a verb in a state from REFUSED to IN_CHUNKS."""
    return _actions[verb][state - 1]
