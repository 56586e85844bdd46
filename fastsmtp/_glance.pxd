"""The layout of a message's payload (docs/queue.md), for who reads it: _glance.pyx and _payload.pyx."""

cdef enum:
    LAYOUT = 1
    SPOOLED = 4                 # of the flags: the body is in a file
    FLAGS = 32                  # all that are known are below
    FIXED = 40                  # bytes, with flags at 1, the number of recipients at 8, prefix at 12, body at 16
    STRINGS = 15
    WORDS = 6                   # of a recipient: address, domain, orcpt, notify, deliver, pass_client
    REFERENCE = 20              # of a body in a file: number, epoch, checksum
