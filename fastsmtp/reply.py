"""Every reply that we speak, with its enhanced code and its RFC section.

A Reply is a closed value: a raw (code, text) pair never crosses a module.
The session adds the session's id to each 4xx and 5xx reply when it writes it.
Not here: which reply is given when (that is policy, and the session's table).

Rank 1: pure, imports only errors.
"""

from collections.abc import Sequence

from fastsmtp import errors

# RFC 5321 section 4.5.3.1.5: a reply line is at most 512 octets with its CRLF.  40 are kept for the id.
REPLY_LINE_BYTES = 512 - 2 - 40
# Of a signature: it tells the sender which part is meant, and the operator which line of his file.
SIGNATURE_SHOWN = 40
# Of what a next hop says; its text is for a person to read.
PASSED_LINES = 10
# Of what qmail-queue says for itself: notqmail reads no more.
QUEUE_SAYS = 255


class Reply:
    """One SMTP reply.

    code      three digits, 2xx to 5xx (RFC 5321 section 4.2)
    enhanced  "5.7.1" (RFC 3463), or "" where RFC 2034 wants none (greeting, EHLO, 3xx)
    lines     the text, a str a line, printable ASCII or UTF-8, without codes
    head      the reply on the wire without its last CRLF

    Made once and never changed; nothing guards that, since one is made for every message.
    """

    __slots__ = ("code", "enhanced", "head", "lines")
    code: int
    enhanced: str
    lines: tuple[str, ...]
    head: bytes

    def __init__(self, code: int, enhanced: str, *lines: str) -> None:
        if not 200 <= code <= 599:
            raise ValueError(f"no SMTP reply code: {code}")
        lines = lines or ("",)
        prefix = f"{enhanced} " if enhanced else ""
        last = len(lines) - 1
        head = b"\r\n".join(
            _wire_line(f"{code}{' ' if at == last else '-'}{prefix}{line}") for at, line in enumerate(lines)
        )
        self.code = code
        self.enhanced = enhanced
        self.lines = lines
        self.head = head

    def __repr__(self) -> str:
        return f"Reply({self.code}, {self.enhanced!r}, {', '.join(map(repr, self.lines))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and self.head == other.head

    def __hash__(self) -> int:
        return hash(self.head)

    @property
    def is_positive(self) -> bool:
        return self.code < 400

    @property
    def is_temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        return self.code >= 500

    def softened(self) -> "Reply":
        """The 4xx twin of a 5xx reply (policy.soft_reject); any other reply unchanged."""
        if self.code < 500:
            return self
        enhanced = f"4{self.enhanced[1:]}" if self.enhanced else ""
        return Reply(self.code - 100 if self.code in _HAS_TWIN else 450, enhanced, *self.lines)

    def as_qmail(self) -> "Reply":
        """The same refusal with the codes that qmail-smtpd and its patches give it (compatible = true)."""
        codes = _QMAIL.get((self.code, self.enhanced))
        return self if codes is None else Reply(*codes, *self.lines)

    def as_greeting(self) -> "Reply":
        """The same refusal as the greeting may say it: 554, or 421 (RFC 5321 sections 3.1 and 4.3.2)."""
        if self.code in (421, 554) or self.is_positive:
            return self
        return Reply(554 if self.code >= 500 else 421, self.enhanced, *self.lines)


# 5xx codes whose 4xx twin is an SMTP code as well: 550/450, 551 has none, 552/452, 554/454 means TLS.
_HAS_TWIN = frozenset({550, 552})

# Ours -> those of qmail-smtpd 1.03, tls.patch, antispam4, mfcheck and viruscan, whose replies scripts match on.
_QMAIL = {
    (550, "5.7.1"): (553, "5.7.1"),
    (550, "5.1.7"): (553, "5.7.1"),
    (550, "5.1.8"): (553, "5.7.1"),
    (550, "5.7.25"): (553, "5.7.1"),
    (550, "5.7.27"): (553, "5.7.1"),
    (554, "5.7.1"): (552, "5.3.4"),
    (451, "4.4.3"): (451, "4.3.0"),
}


def _wire_line(line: str) -> bytes:
    """One line for the wire: no control character leaves, and none is longer than REPLY_LINE_BYTES."""
    clean = line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)
    wire = clean.encode("utf-8", "replace")
    if len(wire) > REPLY_LINE_BYTES:
        wire = wire[:REPLY_LINE_BYTES].decode("utf-8", "ignore").encode()
    return wire


def banner(hostname: str) -> Reply:
    """220, RFC 5321 section 4.3.1; no enhanced code (RFC 2034 section 4)."""
    return Reply(220, "", f"{hostname} ESMTP")


def accepted(message_id: str) -> Reply:
    """250 to the end of data: from here on the message is ours (RFC 5321 section 4.2.5).

    message_id is ours and clean, so the head is made without the checks of __init__.
    """
    answer = Reply.__new__(Reply)
    text = f"Ok: accepted as {message_id}"
    answer.code = 250
    answer.enhanced = "2.0.0"
    answer.lines = (text,)
    answer.head = f"250 2.0.0 {text}".encode()
    return answer


def chunk_received(size_bytes: int) -> Reply:
    """250 to a BDAT that is not the last (RFC 3030 section 2)."""
    return Reply(250, "2.0.0", f"{size_bytes} octets received")


def handed_over(message_id: str, said: str) -> Reply:
    """250 to the end of data: the next hop has taken the message, and said so."""
    return Reply(250, "2.0.0", f"Ok: {message_id} handed over: {said[:200]}")


def qmail_accepted(unix_s: int, queued: str) -> Reply:
    """250 to the end of data in qmail-smtpd's words, which log tools read; queued is "qp PID"."""
    return Reply(250, "", f"ok {unix_s} {queued}")


def qmail_queue(status: int) -> Reply:
    """The answer to a message that qmail-queue ended with this exit status, not 0."""
    if status in QMAIL_QUEUE:
        return QMAIL_QUEUE[status]
    return _QUEUE_REFUSES if 11 <= status <= 40 else _QUEUE_FAILS


def qmail_queue_said(said: bytes) -> Reply | None:
    """The answer that qmail-queue gives in its own words (exit status 82); None when it said nothing that counts.

    D or Z, then a text; an enhanced code of the same class in it, as "(#5.7.1)" or at its beginning, is taken.
    """
    kind, text = said[:1], said[1:QUEUE_SAYS].decode("utf-8", "replace")
    if kind not in (b"D", b"Z"):
        return None
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    digit = "5" if kind == b"D" else "4"
    enhanced = f"{digit}.3.0"
    import re  # a compiled pattern would be made at each start of `fastsmtp smtpd`

    found = re.search(r"\(#([45]\.\d{1,3}\.\d{1,3})\)$|^#?([45]\.\d{1,3}\.\d{1,3})(?= )", words)
    if found is not None and (found[1] or found[2]).startswith(digit):
        enhanced = found[1] or found[2]
        words = (words[: found.start()] + words[found.end() :]).strip()
    return Reply(554 if kind == b"D" else 451, enhanced, words or "Message not taken")


def signature_found(signature: str, part: int) -> Reply:
    """554 5.7.1: a part of the message begins with what the operator refuses; signature is printable ASCII."""
    return Reply(
        554, "5.7.1", f"Part {part} of the message begins with {signature}, which is not accepted here"
    )


def client_listed(address: str, zone: str, reason: str = "") -> Reply:
    """550 5.7.1: a list names the client's address (RFC 5782); reason is the list's own text."""
    return Reply(550, "5.7.1", f"Your address {address} is listed by {zone}{_colon(reason)}")


def domain_listed(what: str, domain: str, zone: str, reason: str = "") -> Reply:
    """550 5.7.1: a list names a domain of the client's; what is "sender", "HELO" or "reverse name"."""
    return Reply(550, "5.7.1", f"The domain {domain} ({what}) is listed by {zone}{_colon(reason)}")


def by_rule(code: int, enhanced: str, text: str) -> Reply:
    """What the operator's own rule says (RBLSMTPD); an empty text gets one."""
    return Reply(code, enhanced, text[:400] or "Not allowed")


def no_relaying(reason: str) -> Reply:
    """550 5.7.1 to a client that was asked for a certificate; reason says why it gives no right to relay."""
    return Reply(550, "5.7.1", f"Relaying denied: {reason}")


def _colon(reason: str) -> str:
    return f": {reason[:200]}" if reason else ""


def passed_on(code: int, enhanced: str, lines: Sequence[bytes]) -> Reply:
    """A next hop's 4xx or 5xx as our own answer.

    Its enhanced code where that is of the same class, else X.0.0 (RFC 3463 section 3.1).  The text
    as UTF-8, in at most PASSED_LINES lines; Reply lets no control character through.
    """
    if not 400 <= code <= 599:
        raise ValueError(f"not a refusal: {code}")
    if not enhanced.startswith(f"{code // 100}."):
        enhanced = f"{code // 100}.0.0"
    return Reply(code, enhanced, *[line.decode("utf-8", "replace") for line in lines[:PASSED_LINES]])


# --- the session's own (RFC 5321 section 4.1.1 and 4.2) ---------------------------------------------
OK = Reply(250, "2.0.0", "Ok")
SENDER_OK = Reply(250, "2.1.0", "Ok")
RECIPIENT_OK = Reply(250, "2.1.5", "Ok")
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")
BYE = Reply(221, "2.0.0", "Bye")
HELP = Reply(214, "2.0.0", "Commands: HELO EHLO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP STARTTLS QUIT")
CANNOT_VERIFY = Reply(252, "2.5.2", "Cannot VRFY, but will take mail for a user it knows")  # RFC 5321 3.5.3
START_TLS = Reply(220, "2.0.0", "Ready to start TLS")  # RFC 3207 section 4

UNKNOWN_COMMAND = Reply(500, "5.5.2", "Command unknown")
LINE_TOO_LONG = Reply(500, "5.5.2", "Line too long")  # RFC 5321 4.5.3.1.9
SYNTAX_ERROR = Reply(501, "5.5.4", "Syntax error in parameters or arguments")
NOT_OFFERED = Reply(502, "5.5.1", "Command not offered")
BAD_SEQUENCE = Reply(503, "5.5.1", "Bad sequence of commands")
SEND_HELO_FIRST = Reply(503, "5.5.1", "Send HELO or EHLO first")
NEED_MAIL = Reply(503, "5.5.1", "Need MAIL before this")
NEED_RCPT = Reply(503, "5.5.1", "Need RCPT before this")
NO_VALID_RECIPIENTS = Reply(554, "5.5.1", "No valid recipients")  # RFC 5321 3.3, RFC 2920 3.1
NESTED_MAIL = Reply(503, "5.5.1", "A transaction is open already")
NO_PARAMETERS_AFTER_HELO = Reply(555, "5.5.4", "Parameters need EHLO")
BAD_SENDER_SYNTAX = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_RECIPIENT_SYNTAX = Reply(501, "5.1.3", "Bad recipient address syntax")
BAD_PARAMETER = Reply(501, "5.5.4", "Bad parameter value")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "Parameter not recognized")  # RFC 5321 4.1.1.11
NEED_SMTPUTF8 = Reply(553, "5.6.7", "Address needs SMTPUTF8")  # RFC 6531 3.5
TOO_BIG = Reply(552, "5.3.4", "Message is bigger than allowed here")  # RFC 1870 6.1
BARE_NEWLINE = Reply(550, "5.6.0", "Bare <CR> or <LF> received")  # RFC 5321 2.3.8
NUL_RECEIVED = Reply(550, "5.6.0", "NUL received")
NOT_SMTP = Reply(554, "5.5.1", "This is SMTP")
BAD_CHUNK = Reply(501, "5.5.4", "Bad BDAT argument")  # RFC 3030
TLS_OFF = Reply(454, "4.7.0", "TLS not available")  # RFC 3207 section 4
TLS_ACTIVE = Reply(503, "5.5.1", "TLS is active already")
NEED_TLS = Reply(530, "5.7.0", "Must issue a STARTTLS command first")  # RFC 3207 section 4
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "Too many commands without a message")
XCLIENT_DENIED = Reply(550, "5.7.0", "XCLIENT not allowed")

# --- limits and time (RFC 5321 section 4.5.3) --------------------------------------------------------
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients")  # RFC 5321 4.5.3.1.10
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections from you")
CONNECTION_RATE = Reply(421, "4.7.0", "You connect too often")
MESSAGE_RATE = Reply(450, "4.7.1", "You send too many messages a minute")
RECIPIENT_RATE = Reply(452, "4.7.1", "You name too many recipients a minute")
HANDSHAKE_RATE = Reply(454, "4.7.0", "You start TLS too often")
OVERLOADED = Reply(421, "4.3.2", "Busy, try again later")
SHUTTING_DOWN = Reply(421, "4.3.2", "Shutting down")
IDLE_TOO_LONG = Reply(421, "4.4.2", "Timed out waiting for you")
TOO_SLOW = Reply(421, "4.4.2", "You send too slowly")
TRANSACTION_TOO_LONG = Reply(421, "4.4.2", "The transaction takes too long")
SESSION_TOO_LONG = Reply(421, "4.4.2", "The session takes too long")

# --- policy ----------------------------------------------------------------------------------------------
NO_RELAYING = Reply(550, "5.7.1", "Relaying denied")
UNKNOWN_RECIPIENT = Reply(550, "5.1.1", "No such recipient here")
EARLY_TALKER = Reply(554, "5.5.1", "You spoke before the greeting")  # RFC 5321 4.3.1
MAIL_LOOP = Reply(554, "5.4.6", "Mail is looping: too many hops")  # RFC 5321 6.3
DENIED = Reply(550, "5.7.1", "Not allowed")
CLIENT_DENIED = Reply(550, "5.7.1", "Your address is not allowed to send here")
SCORE = Reply(550, "5.7.1", "Too many signs of unwanted mail")
BAD_SENDER = Reply(550, "5.7.1", "Mail from this sender is not wanted here")
NO_BOUNCES = Reply(550, "5.7.1", "Bounces are not taken here")
SENDER_NO_ADDRESS = Reply(550, "5.1.7", "Sender is no address that could be answered")  # RFC 3463 3.2
SENDER_HAS_NO_MAIL = Reply(550, "5.1.8", "Sender's domain does not exist, or takes no mail")  # RFC 3463 3.2
SENDER_NULL_MX = Reply(550, "5.7.27", "Sender's domain says that it takes no mail")  # RFC 7505 4.2
SENDER_UNKNOWN_YET = Reply(451, "4.4.3", "Sender's domain cannot be looked up now")  # RFC 3463 3.5
HELO_NO_NAME = Reply(550, "5.7.1", "HELO needs a host name or an address literal")  # RFC 5321 4.1.1.1
HELO_BARE_NAME = Reply(550, "5.7.1", "HELO needs a fully-qualified name")  # RFC 5321 2.3.5
HELO_IS_OURS = Reply(550, "5.7.1", "HELO with my own name")  # RFC 5321 4.1.1.1
HELO_LIES = Reply(550, "5.7.1", "HELO with another address than yours")  # RFC 5321 4.1.3
HELO_UNRESOLVABLE = Reply(550, "5.7.1", "HELO with a name that does not exist")  # RFC 5321 2.3.5
NO_REVERSE_NAME = Reply(550, "5.7.25", "Your address has no reverse name")  # RFC 7372 3.3
REVERSE_UNCONFIRMED = Reply(550, "5.7.25", "Your reverse name does not lead back to your address")
REVERSE_GENERIC = Reply(550, "5.7.1", "Your reverse name looks like a dial-up's; use your provider's server")
HEADER_TOO_LONG = Reply(552, "5.3.4", "The header is too long")

# --- the world -----------------------------------------------------------------------------------------
OUR_DEFECT = Reply(451, "4.3.0", "Internal error, try again later")
STORAGE_FULL = Reply(452, "4.3.1", "No room, try again later")
STORAGE_FAILED = Reply(451, "4.3.0", "Can't store the message, try again later")
NEXT_HOP_DOWN = Reply(451, "4.4.1", "Next hop does not answer, try again later")
NEXT_HOP_GARBLED = Reply(451, "4.4.0", "Next hop answers nonsense, try again later")
NEXT_HOP_BUSY = Reply(451, "4.4.5", "Next hop is busy, try again later")
NEXT_HOP_NOT_UTF8 = Reply(553, "5.6.7", "Next hop does not take SMTPUTF8")  # RFC 6531 3.5
NEXT_HOP_NOT_8BIT = Reply(554, "5.6.3", "Next hop does not take 8BITMIME")  # RFC 6152 3
# What we say of a destination, in reports; no client hears it live but through the direct sink.
DOMAIN_UNKNOWN = Reply(550, "5.1.2", "The domain does not exist")  # RFC 3463 3.2
NULL_MX = Reply(556, "5.1.10", "The domain takes no mail")  # RFC 7505 4.1
BEST_MX_IS_US = Reply(554, "5.4.6", "The domain's best mail server is this one, which does not know it")
NO_ROUTE = Reply(550, "5.4.4", "The domain has no mail server")  # RFC 3463 3.5
DNS_FAILED = Reply(451, "4.4.3", "The domain cannot be looked up now")
NEXT_HOP_NO_TLS = Reply(451, "4.7.4", "Next hop does not offer the TLS that is asked of it")
NEXT_HOP_BAD_TLS = Reply(451, "4.7.5", "Next hop's TLS fails, or its certificate is not the right one")
NEXT_HOP_TOO_SMALL = Reply(552, "5.3.4", "Message is bigger than the next hop takes")  # RFC 1870 6.1
SITE_PAUSED = Reply(451, "4.4.1", "The domain's mail servers could not be reached just now")
SOURCE_UNUSABLE = Reply(451, "4.3.0", "The address to send from cannot be used now")
BAD_BODY = Reply(554, "5.6.0", "The message cannot be sent on as it is")  # RFC 3463 3.7
BAD_ENVELOPE = Reply(553, "5.1.3", "The address cannot be sent on as it is")
BOUNCED_BY_OPERATOR = Reply(554, "5.7.0", "Returned by the operator")  # in reports only
OTHER_NEXT_HOP = Reply(452, "4.5.3", "Send this recipient in another transaction")

QUEUE_NOT_STARTED = Reply(451, "4.3.0", "Can't start the queue's program, try again later")
QUEUE_CRASHED = Reply(451, "4.3.0", "The queue's program crashed, try again later")
QUEUE_TIMED_OUT = Reply(451, "4.3.0", "The queue's program took too long, try again later")
_QUEUE_REFUSES = Reply(554, "5.3.0", "The queue does not take this message")
_QUEUE_FAILS = Reply(451, "4.3.0", "The queue can't take the message now")
_QUEUE_FILES = Reply(451, "4.3.0", "The queue can't make its files, try again later")
_QUEUE_DEFECT = Reply(451, "4.3.0", "The queue has an internal error, try again later")
_QUEUE_ADDRESS = Reply(554, "5.1.3", "An address is too long for the queue")
# By exit status, as man 8 qmail-queue and the filters in its place have them; see qmail_queue().
QMAIL_QUEUE: dict[int, Reply] = {
    11: _QUEUE_ADDRESS,
    31: Reply(554, "5.3.0", "The message is refused for good"),
    51: Reply(451, "4.3.0", "The queue is out of memory, try again later"),
    52: Reply(451, "4.3.0", "The queue timed out, try again later"),
    53: Reply(451, "4.3.0", "The queue can't write, its disk may be full"),
    54: Reply(451, "4.3.0", "The queue can't read the message, try again later"),
    55: Reply(451, "4.3.0", "The queue can't read its configuration, try again later"),
    56: Reply(451, "4.3.0", "The queue has trouble with the network, try again later"),
    61: Reply(451, "4.3.0", "The queue has trouble with its home directory, try again later"),
    62: _QUEUE_FILES, 63: _QUEUE_FILES, 64: _QUEUE_FILES, 65: _QUEUE_FILES, 66: _QUEUE_FILES,
    71: Reply(451, "4.3.0", "The message is refused for now"),
    72: Reply(451, "4.4.1", "The mail server behind the queue does not answer, try again later"),
    73: Reply(451, "4.4.1", "The mail server behind the queue refuses the connection, try again later"),
    74: Reply(451, "4.4.2", "The connection to the mail server behind the queue broke, try again later"),
    81: _QUEUE_DEFECT, 91: _QUEUE_DEFECT,
    115: _QUEUE_ADDRESS,
    120: QUEUE_NOT_STARTED,
}  # fmt: skip


# In the dialogue itself qmail-smtpd and tls.patch have other codes (compatible = true).  A bare CR or LF stays
# 5xx: qmail's 451 keeps clients coming back for days.
QMAIL_DIALOGUE: dict[Reply, Reply] = {
    UNKNOWN_COMMAND: Reply(502, "5.5.1", *UNKNOWN_COMMAND.lines),
    LINE_TOO_LONG: Reply(555, "5.5.4", *LINE_TOO_LONG.lines),
    BAD_SENDER_SYNTAX: Reply(555, "5.5.4", *BAD_SENDER_SYNTAX.lines),
    BAD_RECIPIENT_SYNTAX: Reply(555, "5.5.4", *BAD_RECIPIENT_SYNTAX.lines),
    NO_VALID_RECIPIENTS: Reply(503, "5.5.1", *NO_VALID_RECIPIENTS.lines),
    TLS_ACTIVE: Reply(502, "5.5.1", *TLS_ACTIVE.lines),
    IDLE_TOO_LONG: Reply(451, "4.4.2", *IDLE_TOO_LONG.lines),
    TOO_SLOW: Reply(451, "4.4.2", *TOO_SLOW.lines),
}

PROGRAM_NOT_STARTED = Reply(451, "4.3.0", "Can't start the program that takes this mail, try again later")
ACCOUNT_UNNAMED = Reply(
    451, "4.3.5", "The account that takes this mail is not configured now, try again later"
)
PROGRAM_TIMED_OUT = Reply(451, "4.3.0", "The program that takes this mail took too long, try again later")
PROGRAM_FAILED = Reply(451, "4.3.0", "The program that takes this mail failed, try again later")
_PROGRAM_REFUSES = Reply(554, "5.3.0", "The message is refused")
# By exit status of a pipe: program; what isn't here is PROGRAM_FAILED.  100 and 112 are qmail-command's, the others
# sysexits.h's; EX_USAGE, EX_CONFIG and the like are mistakes that the operator may mend.
PROGRAM: dict[int, Reply] = {
    65: Reply(554, "5.6.0", "The message is refused for what is in it"),  # EX_DATAERR
    67: UNKNOWN_RECIPIENT,  # EX_NOUSER
    68: Reply(550, "5.1.2", "No such host"),  # EX_NOHOST
    69: Reply(554, "5.3.0", "What takes this mail is not available"),  # EX_UNAVAILABLE
    75: Reply(451, "4.3.0", "Try again later"),  # EX_TEMPFAIL
    76: Reply(554, "5.5.0", "The message is refused"),  # EX_PROTOCOL
    77: Reply(550, "5.7.1", "Not allowed"),  # EX_NOPERM
    100: _PROGRAM_REFUSES,
    112: _PROGRAM_REFUSES,
}


def of_error(error: Exception) -> Reply:
    """The reply to a failure of the world; to any other exception 451 4.3.0: that one is our defect."""
    for kind in type(error).__mro__:
        if kind in _OF_ERROR:
            return _OF_ERROR[kind]
    return OUR_DEFECT


def is_of_error(answer: Reply) -> bool:
    """Whether of_error gave it: then no server said it."""
    return answer is OUR_DEFECT or answer in _OF_ERROR.values()


_OF_ERROR: dict[type, Reply] = {
    errors.StorageFull: STORAGE_FULL,
    errors.StorageFailed: STORAGE_FAILED,
    errors.HostUnknown: NEXT_HOP_DOWN,
    errors.NextHopDown: NEXT_HOP_DOWN,
    errors.NextHopBusy: NEXT_HOP_BUSY,
    errors.NextHopGarbled: NEXT_HOP_GARBLED,
    errors.NextHopInsecure: NEXT_HOP_BAD_TLS,
    errors.NextHopWithoutTls: NEXT_HOP_NO_TLS,
    errors.SourceUnusable: SOURCE_UNUSABLE,
}

# Said by us of the way to a server: the reason behind it is what a sender, too, should read.
OF_THE_WAY = frozenset((
    NEXT_HOP_DOWN, NEXT_HOP_GARBLED, NEXT_HOP_BUSY, NEXT_HOP_NO_TLS, NEXT_HOP_BAD_TLS, DNS_FAILED, SITE_PAUSED,
    SOURCE_UNUSABLE,
))  # fmt: skip
# Said by us of this machine: the reason is for its operator, and for nobody else.
OF_THIS_MACHINE = frozenset((
    OUR_DEFECT, STORAGE_FULL, STORAGE_FAILED, PROGRAM_NOT_STARTED, ACCOUNT_UNNAMED, PROGRAM_TIMED_OUT, PROGRAM_FAILED,
    QUEUE_NOT_STARTED, QUEUE_CRASHED, QUEUE_TIMED_OUT, *QMAIL_QUEUE.values(), PROGRAM[75],
))  # fmt: skip
