"""The SMTP dialogue as one table: bytes in, events out, bytes out.  Sans-IO.

A session never raises for what a peer sends; an exception out of here is our
defect.  It sees no socket, clock or configuration: only bytes and its Terms.

Pull model (docs/decisions/0001): feed() shows the session input, next_event()
parses as far as the next event that needs an answer.  While an event is open
the session parses nothing further, since what a command means depends on the
answer to the one before it.  Replies collect in the output until take(), so
the replies of a pipelined group leave in one write.

    session.feed(buffer, n)
    while (event := session.next_event()) is not None:
        ... session.reply(some_reply)        # at once, or later
    session.hold()                           # keep what is unread; buffer is free again
    transport.write(session.take())

Commands that need nobody's opinion (NOOP, HELP, VRFY, RSET's reply, bad syntax,
bad sequence, unknown) are answered inside.  The events are the same however the
bytes are cut, BODY chunks joined.
"""

from typing import Final, final

from fastsmtp._parser import Path
from fastsmtp.reply import Reply

# Event kinds: event.kind, dense from 0, so that a tuple of handlers can be indexed by it.
HELO: Final[int]  # needs a reply
MAIL: Final[int]  # needs a reply
RCPT: Final[int]  # needs a reply
DATA: Final[
    int
]  # needs a reply: 354, or a refusal.  For BDAT: reply(OK) lets the chunk flow and writes nothing
BODY: Final[int]  # no reply
END: Final[int]  # needs as many replies as event.replies says
RESET: Final[int]  # no reply: a transaction ended without END (RSET, HELO again; QUIT says QUIT)
STARTTLS: Final[int]  # needs a reply: 220 and then restart(is_tls=True) after the handshake, or a refusal
XCLIENT: Final[int]  # needs a reply: usually the banner, after restart()
AUTH: Final[int]  # reserved, not emitted
VIOLATION: Final[int]  # no reply: the session has answered; after a fatal one it is closing
QUIT: Final[int]  # no reply: the session has answered and is closing

EVENT_NAMES: Final[tuple[str, ...]]  # by kind

# Session.state
STATE_NEW: Final[int]  # not greeted: nothing is parsed
STATE_REFUSED: Final[int]  # greeted with a refusal: only QUIT is taken
STATE_FRESH: Final[int]  # greeted, no HELO
STATE_READY: Final[int]  # between transactions
STATE_MAIL: Final[int]  # MAIL accepted, no recipient yet
STATE_RCPT: Final[int]  # a recipient accepted
STATE_CHUNKS: Final[int]  # between BDAT chunks, and in them
STATE_DATA: Final[int]  # DATA accepted, up to the answer to the message
STATE_TLS: Final[int]  # 220 to STARTTLS written: input is dropped until restart()
STATE_CLOSED: Final[int]  # is_closing

@final
class Terms:
    """What this listener offers and enforces; frozen, shared by all its sessions."""
    def __init__(
        self,
        *,
        hostname: str,
        message_bytes: int = 52_428_800,  # SIZE; 0: no limit, announced as SIZE 0
        recipients: int = 1_000,  # announced by LIMITS RCPTMAX; enforced by policy
        errors: int = 20,  # 4xx and 5xx replies a session, then 421 4.7.0 and close
        commands: int = 0,  # NOOP, RSET, VRFY, EHLO ... without a message, then 421 4.7.0 and close; 0: no limit
        command_bytes: int = 512,  # 4.5.3.1.4, with CRLF; parameters add to it as their RFCs say
        local_bytes: int = 64,
        domain_bytes: int = 255,
        path_bytes: int = 256,
        is_starttls_offered: bool = False,
        is_tls_required: bool = False,  # MAIL before TLS: 530 5.7.0
        is_normalizing: bool = False,  # bare_newline = "normalize"
        is_xclient_allowed: bool = False,  # this client may use XCLIENT; announced then
        is_chunking: bool = True,
        is_smtputf8: bool = True,
        is_dsn: bool = True,
        is_lmtp: bool = False,  # reserved
        is_compatible: bool = False,  # qmail-smtpd's codes; a second MAIL starts anew; any HELO name is taken
    ) -> None: ...
    hostname: str
    message_bytes: int
    recipients: int
    errors: int
    commands: int
    command_bytes: int
    local_bytes: int
    domain_bytes: int
    path_bytes: int
    is_starttls_offered: bool
    is_tls_required: bool
    is_normalizing: bool
    is_xclient_allowed: bool
    is_chunking: bool
    is_smtputf8: bool
    is_dsn: bool
    is_lmtp: bool
    is_compatible: bool

@final
class Event:
    """One event; only the fields of its kind are set, the others hold None, 0 or False.

    HELO       name (lower-cased bytes as sent), is_extended (EHLO)
    MAIL       path, size_bytes, body (b"7BIT"|b"8BITMIME"|b""), is_smtputf8, ret, envid
    RCPT       path (domain b"" for <postmaster>), notify (tuple of upper-case words), orcpt
    DATA       is_chunked (True: BDAT; there is no 354)
    BODY       chunk (bytes, unstuffed, CRLF)
    END        size_bytes (of the body), replies (how many replies it wants: 1)
    STARTTLS   -
    XCLIENT    attributes: tuple[(bytes NAME upper, bytes value decoded from xtext)]; [UNAVAILABLE] as sent
    VIOLATION  violation (a word for logs), reply (the Reply that was queued), is_fatal
    """

    kind: int
    name: bytes
    is_extended: bool
    path: Path
    size_bytes: int
    body: bytes
    is_smtputf8: bool
    ret: bytes
    envid: bytes
    notify: tuple[bytes, ...]
    orcpt: bytes
    is_chunked: bool
    chunk: bytes
    replies: int
    attributes: tuple[tuple[bytes, bytes], ...]
    violation: str
    reply: Reply
    is_fatal: bool

@final
class Session:
    terms: Terms  # may be set while no event is open (settings change with the client)
    id: bytes  # "(id ...)" at the end of each 4xx and 5xx reply
    state: int  # STATE_*
    is_closing: bool  # nothing more is parsed; write take(), then close
    is_open: bool  # an event waits for reply()
    is_full: bool  # over 16 KiB of output wait for take(): next_event() gives None until then
    is_body: bool  # in DATA or BDAT text: offer the big read window
    is_tls: bool
    errors: int  # 4xx and 5xx replies so far
    held_bytes: int  # unread input that the session keeps
    commands: int  # command lines so far
    def __init__(self, terms: Terms, id: bytes) -> None: ...
    def greet(self, reply: Reply) -> None:
        """Queue the greeting (2xx), or a refusal.  After 554 only QUIT is taken (RFC 5321 3.1), after 421 it closes."""
    def feed(self, data: bytes | bytearray, size_bytes: int = -1) -> None:
        """Show size_bytes (all: -1) of data.  Nothing is copied; data must stay until hold()."""
    def next_event(self) -> Event | None:
        """The next event, or None: more input is needed, an event is open, or the session is closing."""
    def hold(self) -> None:
        """Copy what is unread; after it the buffer given to feed() may change."""
    def reply(self, reply: Reply) -> None:
        """Answer the open event; the state moves by the reply's class.

        A positive reply to HELO is written as what EHLO and HELO want, whatever its text.  421 closes.
        Does nothing when the session is closing (a time-out may come before the answer); RuntimeError
        when no event is open.
        """
    def close(self, reply: Reply | None = None) -> None:
        """Queue a last reply that answers no command (421 on a time-out) and stop."""
    def take(self) -> bytes:
        """The output so far, b"" if none."""
    def restart(self, *, is_tls: bool = False) -> None:
        """Forget everything: unread input, HELO, transaction (RFC 3207 4.2; XCLIENT).  Errors keep counting."""

# The dialogue as data, for the docs' picture and for tests: (verb, state name, what happens, next state name).
TABLE: Final[tuple[tuple[str, str, str, str], ...]]
STATE_NAMES: Final[tuple[str, ...]]
