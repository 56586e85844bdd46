# With relay.py it makes a compiled module (docs/decisions/0005).

from fastsmtp.policy.facts cimport Client, Facts

cpdef know_client(Facts facts, settings)
cpdef find_recipient(Facts facts, settings)
