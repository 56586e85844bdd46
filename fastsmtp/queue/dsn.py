"""Delivery status notifications: what a sender is told of a message that failed, is late, or arrived.

    report = reporter.report(message, fates, id=..., now_ms=..., original=...)    a message for the queue, or None

RFC 3464 multipart/report, in three parts: words for a person (dsn_text.py), fields for a program, and the
original message or its header.  Who is told what: RFC 3461 (NOTIFY, RET, ENVID,
ORCPT); addresses beyond ASCII: RFC 6533; the marks of a machine: RFC 3834.

Never a loop: a report has the null sender, and what has the null sender is
reported to nobody but the postmaster, and never a failure to reach him.

What others chose (replies of next hops, addresses, ENVID, the original) is cut
to a length, freed of line ends and control characters, and can't end a field or
a part.  Rank 5: pure.
"""

from __future__ import annotations

import re
from binascii import b2a_qp
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import Enum
from typing import Final, NamedTuple

from fastsmtp._parser import decode_xtext
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.dsn_text import subject, text_of
from fastsmtp.queue.model import Origins, QueuedMessage
from fastsmtp.queue.row import Said

# Of the original, with RET=FULL (Postfix: bounce_size_limit = 50000), and of its header otherwise.
FULL_BYTES: Final = 51_200
HEADER_BYTES: Final = 32_768
# Of what a next hop said.
REPLY_CHARACTERS: Final = 1_000
# RFC 5321 section 4.5.3.1.3 has 256 for a path; ORCPT and ENVID have 500 and 100 (RFC 3461).
VALUE_CHARACTERS: Final = 600
# Of the recipients that one report names; a message may have 1,000.
RECIPIENTS: Final = 1_000
# qmail's mark of a double bounce: a message that has it as its sender fails in silence.
DOUBLE_BOUNCE_SENDER: Final = b"#@[]"

_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_MESSAGE_ID: Final = re.compile(rb"(?im)^message-id:[ \t]*(<[\x21-\x3b\x3d\x3f-\x7e]{1,300}>)[ \t]*\r\n")


class Action(Enum):
    """RFC 3464 section 2.3.3.  RELAYED: taken by a system that sends no reports of its own."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"


class Fate(NamedTuple):
    """What became of one recipient.

    recipient    its place in the envelope, from 0
    status       RFC 3463; "" for what said.enhanced or said.code makes of it; "4.4.7" when time is up
    said         the last answer
    attempt_ms   when that was, milliseconds since 1970
    until_ms     of a delay: how long it will be tried
    """

    recipient: int
    action: Action
    said: Said
    attempt_ms: int
    status: str = ""
    until_ms: int = 0


class Part(NamedTuple):
    """A fate with its recipient, in words that may be printed."""

    fate: Fate
    address: str
    status: str
    diagnostic: str
    host: str


def is_wanted(recipient: Recipient, action: Action) -> bool:
    """Whether the sender asked to be told (RFC 3461 section 4.1); without NOTIFY: of failures and delays."""
    notify = recipient.notify
    if not notify:
        return action in (Action.FAILED, Action.DELAYED)
    word = {Action.FAILED: b"FAILURE", Action.DELAYED: b"DELAY"}.get(action, b"SUCCESS")
    return word in notify


def original_bytes(message: QueuedMessage, fates: Sequence[Fate]) -> int:
    """How many bytes of the body report() wants, from its beginning."""
    return min(message.body_bytes, FULL_BYTES if _is_full(message, fates) else HEADER_BYTES)


class Reporter:
    """Writes the reports of one host.

    postmaster     gets what can't be told to a sender, and is named as who helps
    double_bounce  "postmaster", or "drop": then nobody gets it
    """

    def __init__(self, hostname: str, postmaster: str, *, double_bounce: str = "postmaster") -> None:
        self._hostname = hostname
        self._postmaster = postmaster
        self._double_bounce = double_bounce

    def report(
        self, message: QueuedMessage, fates: Sequence[Fate], *, id: str, now_ms: int, original: bytes
    ) -> QueuedMessage | None:
        """One report about some recipients of a message; None when nobody wants one, or nobody may get one.

        id        of the report
        original  the body's first original_bytes(), or less when it can't be read
        Its recipient has no `deliver` yet: that is the routes' to say.
        """
        to, fates = self._told(message, fates)
        if not fates:
            return None
        # Without SMTPUTF8 no address has anything else than ASCII, and no header should.
        is_utf8 = message.envelope.is_smtputf8
        parts = [self._part(message, fate) for fate in fates]
        is_double = not message.envelope.sender
        body = self._write(message, parts, to, id, now_ms, original, is_double=is_double)
        is_8bit = not body.isascii()
        domain = to.rpartition(b"@")[2].lower()
        envelope = Envelope(
            b"", b"", len(body), b"8BITMIME" if is_8bit else b"", is_utf8 and is_8bit,
            recipients=[Recipient(to, domain, (b"NEVER",))],
        )  # fmt: skip
        # RFC 5321 section 4.4: the way begins here.
        prefix = f"Received: by {self._hostname} (fastsmtp)\r\n\tid {id}; {_date(now_ms)}\r\n".encode()
        origins = Origins(address="", helo=self._hostname.encode())
        return QueuedMessage(id, now_ms, envelope, origins, prefix, (body,), len(body))

    def _told(self, message: QueuedMessage, fates: Sequence[Fate]) -> tuple[bytes, list[Fate]]:
        """Who is told, and of what."""
        sender, recipients = message.envelope.sender, message.envelope.recipients
        if sender == DOUBLE_BOUNCE_SENDER:
            return b"", []
        if sender:
            return sender, [fate for fate in fates if is_wanted(recipients[fate.recipient], fate.action)]
        postmaster = self._postmaster.encode()
        if self._double_bounce != "postmaster":
            return b"", []
        # A report that has NOTIFY=NEVER is ours, and the postmaster shall see it all the same.
        return postmaster, [
            fate
            for fate in fates
            if fate.action is Action.FAILED
            and recipients[fate.recipient].address.lower() != postmaster.lower()
        ]

    def _part(self, message: QueuedMessage, fate: Fate) -> Part:
        said = fate.said
        status = fate.status or said.enhanced or (f"{said.code // 100}.0.0" if said.code else "")
        if not re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", status):
            status = {Action.FAILED: "5.0.0", Action.DELAYED: "4.0.0"}.get(fate.action, "2.0.0")
        if fate.action in (Action.DELIVERED, Action.RELAYED) and status[0] != "2":
            status = "2.0.0"
        words = [str(said.code)] if said.code else []
        if said.code and said.enhanced:
            words.append(said.enhanced)
        words.append(said.text)
        return Part(
            fate,
            clean(message.envelope.recipients[fate.recipient].address.decode("utf-8", "replace")),
            status,
            clean(" ".join(words), REPLY_CHARACTERS),
            clean(said.host),
        )

    def _write(
        self, message: QueuedMessage, parts: Sequence[Part], to: bytes, id: str, now_ms: int, original: bytes,
        *, is_double: bool,
    ) -> bytes:  # fmt: skip
        envelope = message.envelope
        is_utf8 = envelope.is_smtputf8
        returned, is_all = _returned(message, [part.fate for part in parts], original)
        text = text_of(
            message, parts, hostname=self._hostname, postmaster=self._postmaster, is_double=is_double,
            returned="all" if is_all else "header" if returned else "",
        )  # fmt: skip
        status = self._status(message, parts, is_utf8=is_utf8)
        global_ = "global" if is_utf8 and not status.isascii() else ""
        is_8bit_original = not returned.isascii()
        is_8bit = is_8bit_original or bool(global_) or (is_utf8 and not text.isascii())
        boundary = _boundary(id, returned + text.encode())
        found = _MESSAGE_ID.search(returned)
        threading = (
            f"In-Reply-To: {found[1].decode()}\r\nReferences: {found[1].decode()}\r\n" if found else ""
        )
        head = (
            f"Date: {_date(now_ms)}\r\n"
            f"From: Mail Delivery System <MAILER-DAEMON@{self._hostname}>\r\n"
            f"To: <{clean(to.decode('utf-8', 'replace'))}>\r\n"
            f"Subject: {subject(parts, is_double=is_double)}\r\n"
            f"Message-ID: <{id}.report@{self._hostname}>\r\n"
            f"{threading}"
            "MIME-Version: 1.0\r\n"
            "Auto-Submitted: auto-replied\r\n"
            'Content-Type: multipart/report; report-type="delivery-status";\r\n'
            f'\tboundary="{boundary}"\r\n'
            f"Content-Transfer-Encoding: {'8bit' if is_8bit else '7bit'}\r\n"
            "\r\n"
            "This is a report in the format of RFC 3464.\r\n"
        )
        pieces = [
            head.encode(),
            _opened(boundary),
            *_text_part(text, may_be_8bit=is_utf8),
            _opened(boundary),
            f"Content-Type: message/{'global-' if global_ else ''}delivery-status\r\n".encode(),
            b"Content-Transfer-Encoding: 8bit\r\n\r\n" if global_ else b"\r\n",
            status,
        ]
        if returned:
            is_global = is_utf8 and is_8bit_original
            if is_all:
                kind = "message/global" if is_global else "message/rfc822"
            else:
                kind = "message/global-headers" if is_global else "text/rfc822-headers"
            encoding = "Content-Transfer-Encoding: 8bit\r\n" if is_8bit_original else ""
            pieces += [
                _opened(boundary),
                f"Content-Type: {kind}\r\n{encoding}\r\n".encode(),
                returned,
            ]
        pieces.append(f"\r\n--{boundary}--\r\n".encode())
        return b"".join(pieces)

    def _status(self, message: QueuedMessage, parts: Sequence[Part], *, is_utf8: bool) -> bytes:
        """The part for programs: RFC 3464 section 2, RFC 6533 section 3."""
        fields: list[tuple[str, str]] = [("Reporting-MTA", f"dns; {self._hostname}")]
        envid = _xtext(message.envelope.envid)
        if envid:
            fields.append(("Original-Envelope-Id", envid))
        fields.append(("Arrival-Date", _date(message.accepted_ms)))
        blocks = [_fields(fields, is_utf8=is_utf8)]
        for part in parts[:RECIPIENTS]:
            fate = part.fate
            recipient = message.envelope.recipients[fate.recipient]
            fields = []
            kind, semicolon, value = recipient.orcpt.partition(b";")
            if semicolon:
                fields.append(
                    (
                        "Original-Recipient",
                        f"{clean(kind.decode('ascii', 'replace'))};{_xtext(value, is_utf8=is_utf8)}",
                    )
                )
            kind_of = "rfc822" if part.address.isascii() else "utf-8"
            fields.append(("Final-Recipient", f"{kind_of};{part.address}"))
            fields.append(("Action", fate.action.value))
            fields.append(("Status", part.status))
            if part.host:
                fields.append(("Remote-MTA", f"dns; {part.host}"))
            if part.diagnostic:
                kind_of = "smtp" if fate.said.code else "x-fastsmtp"
                fields.append(("Diagnostic-Code", f"{kind_of}; {part.diagnostic}"))
            fields.append(("Last-Attempt-Date", _date(fate.attempt_ms)))
            if fate.until_ms:
                fields.append(("Will-Retry-Until", _date(fate.until_ms)))
            fields.append(("Final-Log-Id", message.id))
            blocks.append(_fields(fields, is_utf8=is_utf8))
        return b"\r\n".join(blocks)


def clean(text: str, most: int = VALUE_CHARACTERS) -> str:
    """One line that can be printed: what can't is a blank, and it is cut."""
    text = _UNPRINTABLE.sub(" ", text[: most * 4]).strip()
    return text if len(text) <= most else text[: most - 4] + " ..."


def _is_full(message: QueuedMessage, fates: Sequence[Fate]) -> bool:
    """RFC 3461 section 4.3: RET is about failures; other reports have the header only, and so have big messages."""
    return (
        message.envelope.ret == b"FULL"
        and len(message.prefix) + message.body_bytes <= FULL_BYTES
        and any(fate.action is Action.FAILED for fate in fates)
    )


def _returned(message: QueuedMessage, fates: Sequence[Fate], original: bytes) -> tuple[bytes, bool]:
    """What of the original goes back, ending in CRLF, and whether it is all of it."""
    if _is_full(message, fates) and len(original) == message.body_bytes:
        whole = message.prefix + original
        return (whole if whole.endswith(b"\r\n") else whole + b"\r\n"), True
    if not original:
        return message.prefix, False
    header = message.prefix + original
    end = len(message.prefix) - 2 if original.startswith(b"\r\n") else header.find(b"\r\n\r\n")
    if end >= -2 and end != -1:
        header = header[: end + 2]
    elif len(original) == message.body_bytes and not header.endswith(b"\r\n"):
        # A header and no body, without its last line end.
        header += b"\r\n"
    if len(header) > HEADER_BYTES or (end == -1 and len(original) < message.body_bytes):
        # Not within a field: what is left of it would be taken for another one.
        header = header[:HEADER_BYTES]
        ends = [found.start() + 2 for found in re.finditer(rb"\r\n(?=[^ \t])", header)]
        header = header[: ends[-1]] if ends else b""
    return header, False


def _boundary(id: str, contents: bytes) -> str:
    """One that is in none of the parts."""
    number = 0
    while True:
        boundary = f"report_{id}_{number}"
        if boundary.encode() not in contents:
            return boundary
        number += 1


def _opened(boundary: str) -> bytes:
    return f"\r\n--{boundary}\r\n".encode()


def _text_part(text: str, *, may_be_8bit: bool) -> tuple[bytes, bytes]:
    if text.isascii():
        return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n", text.encode()
    if may_be_8bit:
        kind = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        return kind, text.encode()
    kind = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    encoded = b2a_qp(text.replace("\r\n", "\n").encode(), istext=True)
    return kind, encoded.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _fields(fields: Sequence[tuple[str, str]], *, is_utf8: bool) -> bytes:
    """Header fields, folded; without SMTPUTF8 everything beyond ASCII is a question mark."""
    lines = []
    for name, value in fields:
        line = f"{name}: {value}"
        lines.append(_folded(line if is_utf8 else line.encode("ascii", "replace").decode()))
    return "".join(lines).encode("utf-8", "replace")


def _folded(line: str) -> str:
    """RFC 5322 section 2.2.3: lines of 78 where there are blanks, 900 where there are none."""
    lines = [""]
    for word in line.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > 78:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] or len(lines) > 1 else word
    pieces = [line[at : at + 900] for line in lines for at in range(0, len(line), 900)]
    return "".join(
        f"{piece if piece[:1] == ' ' or not at else ' ' + piece}\r\n" for at, piece in enumerate(pieces)
    )


def _xtext(value: bytes, *, is_utf8: bool = False) -> str:
    """What an ENVID or an ORCPT stands for, as one line; as it was sent where it can't be decoded."""
    decoded = decode_xtext(value)
    if isinstance(decoded, int):
        decoded = value
    elif is_utf8:
        decoded = _UNICODE.sub(_character, decoded)
    return clean(decoded.decode("utf-8", "replace"))


# RFC 6533 section 3: utf-8-addr-xtext, \x{HEXPOINT}.
_UNICODE: Final = re.compile(rb"\\x\{([0-9A-F]{2,6})\}")


def _character(found: re.Match[bytes]) -> bytes:
    point = int(found[1], 16)
    return chr(point).encode("utf-8", "replace") if point <= 0x10FFFF else found[0]


def _date(ms: int) -> str:
    return format_datetime(datetime.fromtimestamp(max(0, min(ms // 1000, 253_402_300_799)), UTC))
