# The states of a session, and what a verb comes to in each.

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


cdef enum Action:
    PROCEED = 0
    BAD_SEQUENCE = 1
    HELO_FIRST = 2
    NEED_MAIL = 3
    NEED_RCPT = 4
    NESTED = 5
    NOT_OFFERED = 6


cdef int action_of(int verb, int state) noexcept nogil
