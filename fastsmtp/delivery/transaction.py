"""One message's transaction with a next hop, sans-IO: what to send, and what each reply makes of the recipients.

    transaction = Transaction(dialogue, envelope, recipients, size_bytes=..., hop=...)
    data = transaction.opening()            with PIPELINING all up to DATA; else the first command
    step = transaction.take(reply)          for each reply: WAIT, SAY (next_command()), TEXT, DONE
    transaction.sent()                      the text is with the kernel, its end included
    transaction.outcomes, .again, .needs_reset

With CHUNKING a text that is at hand goes out in the same write, behind BDAT: then nothing is waited for but
the replies.  take() raises errors.NextHopDown and NextHopGarbled when the session is no good any more; who has
no outcome by then is undecided, and `may_have_arrived` says whether the message may be there.

Rank 6: pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from fastsmtp import errors, reply
from fastsmtp._parser import NextHopReply
from fastsmtp.delivery.dialogue import Dialogue, shown
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.outcome import Delivered, Failed, Hop, Outcome, Retry
from fastsmtp.message import Envelope, Recipient
from fastsmtp.reply import Reply


class Step(IntEnum):
    """What a reply asks for."""

    WAIT = 0  # there are more to come
    SAY = 1  # the next command
    TEXT = 2  # the message, or with is_empty a lone dot
    DONE = 3


WAIT, SAY, TEXT, DONE = Step
RESET: Final = b"RSET\r\n"


class Transaction:
    """See the module's text.

    outcomes      one a recipient, in order; None: undecided
    again         recipients that the next hop has no room for in this transaction: another one, at once
    accepted      places of those that it took, in order
    mail_refusal  MAIL was refused
    needs_reset   a transaction is left open: RSET before the next one
    is_empty      the next hop wants a text though it took nobody: a lone dot ends that (RFC 2920 section 3.1)
    may_have_arrived   all of the text was sent, and its answer isn't there
    is_ahead      its commands went out behind the last message's text, and it is not known that they were read
    heard         replies taken
    """

    __slots__ = (
        "_answers", "_at", "_before", "_commands", "_has_dsn", "_hop", "_in_text", "_is_lmtp", "_is_pipelined",
        "_remote", "_text", "accepted", "again", "heard", "is_ahead", "is_empty", "mail_refusal",
        "may_have_arrived", "needs_reset", "outcomes",
    )  # fmt: skip

    def __init__(
        self,
        dialogue: Dialogue,
        envelope: Envelope,
        recipients: Sequence[Recipient],
        *,
        size_bytes: int,
        hop: Hop,
        remote: str = "",
        body: bytes = b"",
        forwarded: Sequence[bytes] = (),
        resets: bool = False,
    ) -> None:
        """size_bytes of prefix and body; body b"8BITMIME" when there is 8-bit in it; forwarded: XFORWARD commands.

        resets: say RSET first.  Raises ValueError for an address that can't stand in a command.
        """
        commands = [RESET] if resets else []
        commands += forwarded
        self._before = len(commands)
        commands.append(dialogue.mail(envelope, size_bytes, body))
        for recipient in recipients:
            commands.append(dialogue.rcpt(recipient))
        self._commands = commands
        self._at = 0
        self._hop = hop
        self._remote = remote or str(hop)
        self._is_lmtp = dialogue.is_lmtp
        self._has_dsn = b"DSN" in dialogue.extensions
        self._is_pipelined = dialogue.has_pipelining
        self._in_text = False
        self._text = b""
        self._answers = 0
        self.outcomes: list[Outcome | Damaged | None] = [None] * len(recipients)
        self.again: list[int] = []
        self.accepted: list[int] = []
        self.mail_refusal: Reply | None = None
        self.needs_reset = False
        self.is_empty = False
        self.may_have_arrived = False
        self.heard = 0
        self.is_ahead = False

    def opening(self, text: bytes | None = None, *, in_chunks: bool = False) -> bytes:
        """What is sent first.

        text       the whole message, for a next hop with CHUNKING: it goes along as one chunk (RFC 3030)
        in_chunks  the message follows as one chunk when a recipient was taken, without DATA
        """
        commands = self._commands
        if in_chunks:
            pass
        elif text is None:
            commands.append(b"DATA\r\n")
        elif self._is_pipelined:
            # The chunk is no command of its own: its octets follow in the same write.
            self._text = text
            self.may_have_arrived = True
            commands.append(b"BDAT %d LAST\r\n" % len(text))
            commands.append(text)
            data = b"".join(commands)
            commands.pop()
            return data
        else:
            self._text = text
            commands.append(b"BDAT %d LAST\r\n%b" % (len(text), text))
        return b"".join(commands) if self._is_pipelined else commands[0]

    @property
    def replies(self) -> int:
        """How many replies the opening wants."""
        return len(self._commands)

    def next_command(self) -> bytes:
        """After SAY."""
        command = self._commands[self._at]
        if self._at == len(self._commands) - 1 and self._text:
            self.may_have_arrived = True
        return command

    def sent(self) -> None:
        """The text is with the kernel, its end included."""
        self.may_have_arrived = not self.is_empty

    def take(self, answer: NextHopReply) -> Step:
        """One reply.  Raises NextHopDown, NextHopGarbled, NextHopOutOfStep."""
        self.heard += 1
        if self._in_text:
            return self._text_answered(answer)
        code = answer.code
        if code == 421:
            self.may_have_arrived = False  # it hangs up, and says so: what follows it hasn't read
            raise errors.NextHopDown(f"said {shown(answer)}")
        at = self._at
        self._at = at + 1
        place = at - self._before - 1
        if place >= len(self.outcomes):
            return self._data_answered(answer)
        if self.is_ahead and place < 0:
            if code >= 400:
                # There are servers that throw away what has come with the dot: the first thing they read of the
                # group may be half a command, and their answer to it is nothing that MAIL was told.
                raise errors.NextHopOutOfStep(f"said {shown(answer)}")
            self.is_ahead = place < -1
        if code >= 400:
            self._refused(place, answer)
        elif code >= 300:
            raise errors.NextHopGarbled(f"answered MAIL or RCPT with {shown(answer)}")
        elif place >= 0 and self.mail_refusal is None:
            self.accepted.append(place)
        is_last = self._at == len(self._commands)
        if self._is_pipelined and not is_last:
            return WAIT
        if self.mail_refusal is not None:
            return DONE
        if not self.accepted and place == len(self.outcomes) - 1:
            self.needs_reset = True
            return DONE
        if is_last:
            self._in_text = True
            return TEXT
        return SAY

    @property
    def is_doubtful(self) -> bool:
        """When the session ends now: whether the message may be there, for those who are undecided."""
        is_known = self._at > self._before + len(self.outcomes)
        return self.may_have_arrived and self.mail_refusal is None and (bool(self.accepted) or not is_known)

    def fail(self, answer: NextHopReply) -> None:
        """A refusal that came while the text was still on its way."""
        self._decide(self.accepted, answer)

    def _refused(self, place: int, answer: NextHopReply) -> None:
        if place < -1:
            return  # XFORWARD is for its own log; a refused RSET shows at MAIL
        refused = _refusal(answer, self._remote, self._hop)
        if place == -1:
            self.mail_refusal = refused.reply
            self.outcomes[:] = [refused] * len(self.outcomes)
        elif self.mail_refusal is None:
            if self.accepted and _is_full(answer):
                self.again.append(place)
            else:
                self.outcomes[place] = refused

    def _data_answered(self, answer: NextHopReply) -> Step:
        if answer.code == 354 and not self._text:
            self.is_empty = self.mail_refusal is not None or not self.accepted
            self._in_text = True
            return TEXT
        if self._text:
            # The answer to BDAT is the message's.
            self._in_text = True
            self.needs_reset = (
                answer.code >= 400
                and self.mail_refusal is None
                and not (self._is_lmtp and bool(self.accepted))
            )
            return self._text_answered(answer)
        if answer.code < 400:
            raise errors.NextHopGarbled(f"answered DATA with {shown(answer)}")
        self.needs_reset = self.mail_refusal is None
        self._decide(self.accepted, answer)
        return DONE

    def _text_answered(self, answer: NextHopReply) -> Step:
        if 300 <= answer.code < 400:
            raise errors.NextHopGarbled(f"answered a message with {shown(answer)}")
        if self.is_empty:
            if answer.code == 421:
                raise errors.NextHopDown(f"said {shown(answer)}")
            return DONE
        accepted = self.accepted
        if not self._is_lmtp or not accepted:
            self.may_have_arrived = False
            self._decide(accepted, answer)
        else:
            self._decide(accepted[self._answers : self._answers + 1], answer)
            self._answers += 1
            if self._answers < len(accepted) and answer.code != 421:
                return WAIT
            self.may_have_arrived = False
        if answer.code == 421:
            raise errors.NextHopDown(f"said {shown(answer)}")
        return DONE

    def _decide(self, places: Sequence[int], answer: NextHopReply) -> None:
        result: Outcome
        if answer.code < 300:
            result = Delivered(
                _text(answer), self._remote, self._hop.source, answer.enhanced, self._hop, self._has_dsn
            )
        else:
            result = _refusal(answer, self._remote, self._hop)
        for place in places:
            self.outcomes[place] = result


def _refusal(answer: NextHopReply, remote: str, hop: Hop) -> Retry | Failed:
    refusal = reply.passed_on(answer.code, answer.enhanced, answer.lines)
    if answer.code >= 500:
        return Failed(refusal, shown(answer), remote, hop.source, hop)
    return Retry(refusal, shown(answer), False, remote, hop.source, hop)


def _is_full(answer: NextHopReply) -> bool:
    """It takes no more recipients in this transaction (RFC 5321 section 4.5.3.1.10, with the old 552)."""
    if answer.code == 452:
        return answer.enhanced in ("", "4.5.3")
    return answer.code == 552 and answer.enhanced in ("", "5.5.3")


def _text(answer: NextHopReply) -> str:
    lines = answer.lines
    text = lines[0] if len(lines) == 1 else b" ".join(lines)
    return text.decode("utf-8", "replace")
