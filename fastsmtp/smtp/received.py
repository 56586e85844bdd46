"""The Received header field (RFC 5321 section 4.4, protocol words of RFC 3848 and RFC 6531).

Built once a message on the hot path: bytes in, bytes out, the date cached for
a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fastsmtp import patterns
from fastsmtp.policy.facts import Facts

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# What a HELO name may put into our header: no white space, parentheses, line ends, or 8-bit.
_UNSAFE = patterns.compile(rb"[^0-9A-Za-z.:_\[\]-]")
_HELO_BYTES = 255
# RFC 5322 section 3.2.2 ctext without its quoted pairs.
_NOT_IN_COMMENT = patterns.compile(r"[^!-'*-\[\]-~]")

_PROTOCOLS = {
    (False, False, False): "SMTP",
    (True, False, False): "ESMTP",
    (True, True, False): "ESMTPS",
    (True, False, True): "UTF8SMTP",
    (True, True, True): "UTF8SMTPS",
    # HELO after STARTTLS: RFC 3848 has no word for it; the S is what a reader looks for.
    (False, True, False): "SMTPS",
}


class ReceivedWriter:
    """Writes the field for one host name.

    wall  the wall clock in seconds
    """

    __slots__ = ("_by", "_date", "_second", "_wall")

    def __init__(self, hostname: str, wall: Callable[[], float]) -> None:
        self._by = f"\r\n\tby {hostname} (fastsmtp) with "
        self._wall = wall
        self._second = -1
        self._date = ""

    def head(self, facts: Facts) -> str:
        """The part that is the same for all messages of a session, until HELO, TLS or the client change."""
        client = facts.client
        helo = _UNSAFE.sub(b"?", facts.helo[:_HELO_BYTES]).decode() or "unknown"
        name = f"{client.name} " if client.name else ""
        return f"Received: from {helo} ({name}{client.address.literal}){self._by}"

    def field(self, head: str, facts: Facts, message_id: str) -> bytes:
        """The whole field with its line ends; "for" only when there is one recipient, so no Bcc is betrayed."""
        envelope = facts.envelope
        tls = facts.tls
        is_utf8 = envelope is not None and envelope.is_smtputf8
        protocol = _PROTOCOLS[facts.is_extended, tls is not None, is_utf8]
        if tls is not None:
            granted = facts.client.certificate
            shown = f"\r\n\t(cert {_NOT_IN_COMMENT.sub('?', granted)})" if granted else ""
            protocol = f"{protocol} ({tls.protocol} {tls.cipher}){shown}"
        recipient = ""
        if envelope is not None and len(envelope.recipients) == 1:
            address = envelope.recipients[0].address
            recipient = f"\r\n\tfor <{address.decode('utf-8', 'replace')}>"
        return f"{head}{protocol} id {message_id}{recipient};\r\n\t{self.date()}\r\n".encode()

    def date(self) -> str:
        """RFC 5322 section 3.3 date-time, UTC."""
        second = int(self._wall())
        if second != self._second:
            t = time.gmtime(second)
            self._date = (
                f"{_DAYS[t.tm_wday]}, {t.tm_mday} {_MONTHS[t.tm_mon - 1]} {t.tm_year}"
                f" {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000"
            )
            self._second = second
        return self._date
