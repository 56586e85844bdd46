# With limits.py it makes a compiled module (docs/decisions/0005).

from fastsmtp.policy.facts cimport Client, Facts

cpdef count_connections(Facts facts, settings)
cpdef count_messages(Facts facts, settings)
cpdef count_recipients(Facts facts, settings)
