"""The client's side of SMTP and LMTP, sans-IO: what to say next, and what the answer means.

Each step is a script: a generator that yields an Ask (bytes to send, and how
many replies they want) and is sent the replies.  Whoever drives it owns the
socket and the clock.  A script raises errors.NextHopDown and NextHopGarbled
when the session is no good any more; what the next hop has against a sender,
a recipient or a message is a value.

Commands of one group leave together where the next hop has PIPELINING.

Rank 6: pure; may import ranks 0 to 5.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from fastsmtp import errors, reply
from fastsmtp._parser import NextHopReply
from fastsmtp._stuff import command_of
from fastsmtp.delivery.identity import Identity, xclient_command, xforward_commands
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.message import Envelope, Recipient
from fastsmtp.reply import Reply

T = TypeVar("T")


class Ask(NamedTuple):
    """What to send, and how many replies that wants."""

    data: bytes
    replies: int


Script = Generator[Ask, list[NextHopReply], T]


class Started(NamedTuple):
    """The answers to MAIL and the RCPTs after it, None is yes; behind a refused MAIL there are no others."""

    mail: Reply | None
    recipients: list[Reply | None]


class Dialogue:
    """What we know of one session with a next hop.

    extensions   keyword -> parameters, upper-case, as EHLO gave them; empty after HELO
    has_told     the last transaction's client was named to the next hop, as far as it was to be
    """

    __slots__ = ("_hostname", "_identified", "extensions", "has_told", "is_lmtp")

    def __init__(self, hostname: str, *, is_lmtp: bool) -> None:
        self._hostname = hostname.encode("ascii")
        self._identified: dict[bytes, bytes] | None = None
        self.is_lmtp = is_lmtp
        self.has_told = True
        self.extensions: dict[bytes, bytes] = {}

    @property
    def has_chunking(self) -> bool:
        return b"CHUNKING" in self.extensions

    @property
    def has_pipelining(self) -> bool:
        return b"PIPELINING" in self.extensions

    @property
    def size_max(self) -> int:
        """The biggest message that it takes, in bytes (RFC 1870 section 3); 0: it doesn't say."""
        parameter = self.extensions.get(b"SIZE", b"").split(b" ")[0]
        return int(parameter) if parameter.isdigit() and len(parameter) <= 20 else 0

    def fits(self, identity: Identity | None) -> bool:
        """Whether the session can stand for this client.

        Behind an XCLIENT most servers judge the next one by whom it named, and no longer offer it.
        """
        if self._identified is None:
            return True
        return identity is not None and (
            self._identified == identity.attributes or b"XCLIENT" in self.extensions
        )

    def open(self) -> Script[None]:
        """Greeting and EHLO, with HELO behind it (RFC 5321 section 3.2); LHLO on LMTP (RFC 2033 section 4.1).

        A refusal here is about us, never about the client's mail: NextHopDown.
        """
        yield from self.greeted()
        yield from self._hello()

    def greeted(self) -> Script[None]:
        """The greeting alone; hello() comes next."""
        (greeting,) = yield Ask(b"", 1)
        if greeting.code != 220:
            raise errors.NextHopDown(f"greeted us with {shown(greeting)}")

    def _hello(self, name: bytes = b"") -> Script[None]:
        name = name or self._hostname
        verb = b"LHLO" if self.is_lmtp else b"EHLO"
        (answer,) = yield Ask(command_of([verb, name]), 1)
        if answer.code == 250:
            self.extensions = _extensions(answer.lines[1:])
            return
        self.extensions = {}
        if answer.code >= 500 and not self.is_lmtp:
            (answer,) = yield Ask(command_of([b"HELO", name]), 1)
            if answer.code == 250:
                return
        raise errors.NextHopDown(f"answered our {verb.decode()} with {shown(answer)}")

    def identify(self, identity: Identity) -> Script[None]:
        """XCLIENT, unless the session stands for this client already, or it isn't offered.

        The session starts over behind it, with EHLO.
        """
        if self._identified == identity.attributes:
            return
        command = xclient_command(identity.attributes, self.extensions.get(b"XCLIENT", b"").split())
        self.has_told = bool(command)
        if not command:
            return
        (answer,) = yield Ask(command, 1)
        if answer.code != 220:
            raise errors.NextHopDown(f"answered our XCLIENT with {shown(answer)}")
        self._identified = identity.attributes
        # Postfix lets EHLO's name win over the HELO of XCLIENT.
        yield from self._hello(identity.helo)

    def start(
        self, envelope: Envelope, recipients: Sequence[Recipient], forwarded: Identity | None = None
    ) -> Script[Started]:
        """MAIL and the recipients, with XFORWARD before them when there is somebody to forward."""
        refusal = self._unable(envelope)
        if refusal is not None:
            return Started(refusal, [])
        commands = []
        if forwarded is not None:
            commands = xforward_commands(forwarded.attributes, self.extensions.get(b"XFORWARD", b"").split())
            self.has_told = bool(commands)
        # What the next hop says to XFORWARD is for its own log: the mail goes either way.
        before = len(commands)
        commands.append(self.mail(envelope, envelope.size_bytes, envelope.body))
        commands += [self.rcpt(recipient) for recipient in recipients]
        if self.has_pipelining:
            answers = yield Ask(b"".join(commands), len(commands))
        else:
            answers = []
            for command in commands:
                answers += yield Ask(command, 1)
                if len(answers) == before + 1 and answers[-1].code >= 400:
                    break
        for answer in answers:
            _check_alive(answer)
        mail = _refusal(answers[before])
        return Started(mail, [] if mail else [_refusal(answer) for answer in answers[before + 1 :]])

    def add(self, recipient: Recipient) -> Script[Reply | None]:
        """One more RCPT."""
        (answer,) = yield Ask(self.rcpt(recipient), 1)
        _check_alive(answer)
        return _refusal(answer)

    def upgrade(self) -> Script[Reply | None]:
        """STARTTLS (RFC 3207); None when the handshake may begin, else why not.

        Behind the handshake the session starts over: hello().
        """
        (answer,) = yield Ask(b"STARTTLS\r\n", 1)
        _check_alive(answer)
        if answer.code == 220:
            self.extensions = {}
            return None
        if answer.code < 400:
            raise errors.NextHopGarbled(f"answered STARTTLS with {shown(answer)}")
        return reply.passed_on(answer.code, answer.enhanced, answer.lines)

    def hello(self) -> Script[None]:
        """EHLO, and HELO behind it: after greeted(), and once more behind a handshake."""
        yield from self._hello()

    def data(self) -> Script[Outcome | None]:
        """DATA; None when the next hop waits for the text."""
        (answer,) = yield Ask(b"DATA\r\n", 1)
        if answer.code == 354:
            return None
        if answer.code < 400:
            raise errors.NextHopGarbled(f"answered DATA with {shown(answer)}")
        return outcome(answer)

    def _unable(self, envelope: Envelope) -> Reply | None:
        """What the message needs and the next hop has not."""
        if envelope.is_smtputf8 and b"SMTPUTF8" not in self.extensions:
            return reply.NEXT_HOP_NOT_UTF8
        if envelope.body == b"8BITMIME" and b"8BITMIME" not in self.extensions:
            return reply.NEXT_HOP_NOT_8BIT
        return None

    def mail(self, envelope: Envelope, size_bytes: int, body: bytes) -> bytes:
        """MAIL with what the next hop offers.  size_bytes 0: not known;  body  b"", 7BIT or 8BITMIME.

        Raises ValueError for an address that can't stand in a command; so does rcpt().
        """
        extensions = self.extensions
        words = [b"MAIL FROM:<%b>" % envelope.sender]
        if size_bytes and b"SIZE" in extensions:
            words.append(b"SIZE=%d" % size_bytes)
        if body and b"8BITMIME" in extensions:
            words.append(b"BODY=" + body)
        if envelope.is_smtputf8 and b"SMTPUTF8" in extensions:
            words.append(b"SMTPUTF8")
        if b"DSN" in extensions:
            if envelope.ret:
                words.append(b"RET=" + envelope.ret)
            if envelope.envid:
                words.append(b"ENVID=" + envelope.envid)
        return command_of(words)

    def rcpt(self, recipient: Recipient) -> bytes:
        words = [b"RCPT TO:<%b>" % recipient.address]
        if b"DSN" in self.extensions:
            if recipient.notify:
                words.append(b"NOTIFY=" + b",".join(recipient.notify))
            if recipient.orcpt:
                words.append(b"ORCPT=" + recipient.orcpt)
        return command_of(words)


def outcome(answer: NextHopReply) -> Outcome:
    """What the answer to DATA or a message means; NextHopGarbled when it is none, NextHopDown for 421."""
    if answer.code < 300:
        return Delivered(_text(answer))
    if answer.code < 400:
        raise errors.NextHopGarbled(f"answered a message with {shown(answer)}")
    _check_alive(answer)
    refusal = reply.passed_on(answer.code, answer.enhanced, answer.lines)
    return Failed(refusal, shown(answer)) if answer.code >= 500 else Retry(refusal, shown(answer))


def shown(answer: NextHopReply) -> str:
    """A reply for the log."""
    return " ".join(filter(None, (str(answer.code), answer.enhanced, _text(answer))))


def _text(answer: NextHopReply) -> str:
    return b" ".join(answer.lines).decode("utf-8", "replace")


def _refusal(answer: NextHopReply) -> Reply | None:
    """None for yes (250, 251, 252); a 4xx or 5xx as the client will hear it."""
    if answer.code >= 400:
        return reply.passed_on(answer.code, answer.enhanced, answer.lines)
    if answer.code >= 300:
        raise errors.NextHopGarbled(f"answered MAIL or RCPT with {shown(answer)}")
    return None


def _check_alive(answer: NextHopReply) -> None:
    """421 at any time means that the next hop hangs up (RFC 5321 section 3.8)."""
    if answer.code == 421:
        raise errors.NextHopDown(f"said {shown(answer)}")


def _extensions(lines: Sequence[bytes]) -> dict[bytes, bytes]:
    extensions: dict[bytes, bytes] = {}
    for text in lines:
        keyword, _, parameters = text.strip().upper().partition(b" ")
        extensions[keyword] = parameters
    return extensions
