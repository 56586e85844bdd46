# Verbs, and the arguments of commands.  A reader returns the Event that the command asks for,
# or the Reply that refuses its syntax; p is not kept.

from fastsmtp._event cimport Terms


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


cdef int find_verb(const char *p, Py_ssize_t n) noexcept nogil
cdef long long read_bdat(const char *p, Py_ssize_t n, bint *is_last) noexcept nogil
cdef object read_helo(const char *p, Py_ssize_t n, Terms terms, bint is_extended)
cdef object read_mail(const char *p, Py_ssize_t n, Terms terms, bint is_extended)
cdef object read_rcpt(const char *p, Py_ssize_t n, Terms terms, bint is_extended, bint is_smtputf8)
cdef object read_xclient(const char *p, Py_ssize_t n)
