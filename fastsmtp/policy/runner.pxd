# The plan's C shape; with runner.py it makes a compiled module (docs/decisions/0005).

from fastsmtp.policy.decision cimport Decision
from fastsmtp.policy.facts cimport Client, Facts


cdef class Plan:
    cdef public object settings
    cdef public object know
    cdef public object speaks_at
    cdef object _observer
    cdef object _report
    cdef bint _is_soft
    cdef bint _is_compatible
    cdef public tuple _by_phase
    cdef tuple _unskippable

    cpdef run(self, phase, Facts facts)
