# The conversation's C shape; with conversation.py it makes a compiled module (docs/decisions/0005).

from fastsmtp._event cimport Event
from fastsmtp._session cimport Session
from fastsmtp.message cimport Envelope, Recipient
from fastsmtp.policy.decision cimport Decision
from fastsmtp.policy.facts cimport Facts
from fastsmtp.policy.runner cimport Plan
from fastsmtp.smtp.profile cimport Profile


cdef class Conversation:
    cdef public Profile profile
    cdef public Session session
    cdef public Facts facts
    cdef public object transaction
    cdef public object pending
    cdef public object route
    cdef public list headers
    cdef public bint is_committing
    cdef public bint has_logged
    cdef public double began_s
    cdef public double pass_s
    cdef Plan _plan
    cdef object _scanner
    cdef object _signatures
    cdef bint _is_slow
    cdef str _received_head

    cpdef helo(self, Event event)
    cpdef mail(self, Event event)
    cpdef rcpt(self, Event event)
    cpdef data(self, Event event)
    cpdef body(self, Event event)
    cpdef end(self, Event event)
    cpdef reset(self, Event event)
    cpdef violation(self, Event event)
    cpdef quit(self, Event event)
    cpdef _helo_decided(self, Event event, Decision decision)
    cpdef _mail_decided(self, Event event, Decision decision)
    cpdef _rcpt_decided(self, Event event, Decision decision)
    cpdef _rcpt_answered(self, Recipient recipient, answer)
    cpdef _data_decided(self, Event event, Decision decision)
    cpdef _end_decided(self, Event event, Decision decision)
    cpdef _promised(self, answer)
    cpdef _committed(self, answer, double delay_s=*)
    cpdef _answer(self, Decision decision, positive, phase)
    cpdef _answer_now(self, Decision decision, positive)
    cpdef double apply(self, tuple effects, phase) except? -1.0
    cpdef _abort(self)
    cpdef _forget(self)
    cpdef give_up(self)
