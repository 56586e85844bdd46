"""What a session is told and what it tells: Terms and Event.  The types are described in _session.pyi.

Rank 1: pure.
"""

cimport cython

from fastsmtp._parser cimport Limits

# Event kinds, dense from 0.
HELO = Kind.ON_HELO
MAIL = Kind.ON_MAIL
RCPT = Kind.ON_RCPT
DATA = Kind.ON_DATA
BODY = Kind.ON_BODY
END = Kind.ON_END
RESET = Kind.ON_RESET
STARTTLS = Kind.ON_STARTTLS
XCLIENT = Kind.ON_XCLIENT
AUTH = Kind.ON_AUTH
VIOLATION = Kind.ON_VIOLATION
QUIT = Kind.ON_QUIT

EVENT_NAMES = (
    "HELO", "MAIL", "RCPT", "DATA", "BODY", "END", "RESET", "STARTTLS", "XCLIENT", "AUTH", "VIOLATION", "QUIT")

cdef enum:
    COMMAND_LEAST = 64      # octets; no Terms may allow less: the verb must be known before a line is too long


@cython.final
cdef class Terms:
    """What this listener offers and enforces; see _session.pyi."""

    def __cinit__(
        self, *, str hostname not None, long long message_bytes=52_428_800, int recipients=1_000, int errors=20, int commands=0,
        Py_ssize_t command_bytes=512, Py_ssize_t local_bytes=64, Py_ssize_t domain_bytes=255,
        Py_ssize_t path_bytes=256, bint is_starttls_offered=False, bint is_tls_required=False,
        bint is_normalizing=False, bint is_xclient_allowed=False, bint is_chunking=True, bint is_smtputf8=True,
        bint is_dsn=True, bint is_lmtp=False, bint is_compatible=False,
    ) -> None:
        if command_bytes < COMMAND_LEAST:
            raise ValueError(f"command_bytes under {<int>COMMAND_LEAST}")
        if message_bytes < 0 or recipients < 0 or errors < 0 or commands < 0:
            raise ValueError("a limit is negative")
        self.hostname = hostname
        self.message_bytes = message_bytes
        self.recipients = recipients
        self.errors = errors
        self.commands = commands
        self.command_bytes = command_bytes
        self.local_bytes = local_bytes
        self.domain_bytes = domain_bytes
        self.path_bytes = path_bytes
        self.limits = Limits(local_bytes, domain_bytes, path_bytes)
        self.is_starttls_offered = is_starttls_offered
        self.is_tls_required = is_tls_required
        self.is_normalizing = is_normalizing
        self.is_xclient_allowed = is_xclient_allowed
        self.is_chunking = is_chunking
        self.is_smtputf8 = is_smtputf8
        self.is_dsn = is_dsn
        self.is_lmtp = is_lmtp
        self.is_compatible = is_compatible
        self.helo = b"250 " + hostname.encode("ascii") + b"\r\n"
        self.ehlo_clear = self.capabilities(False)
        self.ehlo_tls = self.capabilities(True)

    cdef bytes capabilities(self, bint is_tls):
        """The answer to EHLO.  ehlo-ok-rsp = ( "250-" Domain CRLF *( "250-" ehlo-line CRLF ) "250" SP ehlo-line CRLF )"""
        cdef list lines = [self.hostname.encode("ascii"), b"PIPELINING", b"SIZE %d" % self.message_bytes, b"8BITMIME"]
        if self.is_chunking:
            lines.append(b"CHUNKING")
        if self.is_smtputf8:
            lines.append(b"SMTPUTF8")
        lines.append(b"ENHANCEDSTATUSCODES")
        if self.is_dsn:
            lines.append(b"DSN")
        if self.is_starttls_offered and not is_tls:
            lines.append(b"STARTTLS")
        if self.recipients:
            lines.append(b"LIMITS RCPTMAX=%d" % self.recipients)
        if self.is_xclient_allowed:
            lines.append(b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT")
        return b"250-" + b"\r\n250-".join(lines) + b"\r\n250 HELP\r\n"


@cython.final
@cython.no_gc       # nothing that it holds can point back to it
@cython.freelist(64)
cdef class Event:
    """One event; see _session.pyi."""

    def __init__(self) -> None:
        raise TypeError("an Event comes from a Session")

    def __repr__(self) -> str:
        return f"Event({EVENT_NAMES[self.kind]})"
