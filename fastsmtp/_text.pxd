# The decoder of DATA and BDAT, for the session: it works on the read buffer.

cdef enum Found:
    BARE_CR = 1
    BARE_LF = 2
    NUL = 4


cdef inline str found_word(int found):
    """The word for logs for what the decoder stopped at."""
    return "nul" if found & NUL else "bare_newline"


cdef struct Decoder:
    int state
    int found           # Found bits
    int stops_at        # Found bits that stop it before the octet that shows them
    bint is_normalizing
    bint has_dots       # DATA; False for BDAT, whose end is a count
    bint is_done        # the end of data was read
    long long size_bytes


cdef void begin_text(Decoder *d, bint has_dots, bint is_normalizing, int stops_at) noexcept nogil
cdef bytes decode(Decoder *d, const char *p, Py_ssize_t n, Py_ssize_t *consumed)
cdef int end_text(Decoder *d) noexcept nogil
