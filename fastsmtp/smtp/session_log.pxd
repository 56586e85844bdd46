# With session_log.py it makes a compiled module (docs/decisions/0005).

from fastsmtp.policy.facts cimport Facts

cpdef message(log, Facts facts, int code, double took_s)
