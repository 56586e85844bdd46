"""One message's transaction with a next hop, sans-IO: what to send, and what each reply makes of the recipients.

    transaction = Transaction(dialogue, envelope, recipients, size_bytes=..., hop=...)
    data = transaction.opening()            with PIPELINING all up to DATA; else the first command
    step = transaction.take(reply)          for each reply: WAIT, SAY (next_command()), TEXT, DONE
    transaction.sent()                      the text is with the kernel, its end included
    transaction.outcomes, .again, .needs_reset

With CHUNKING a text that is at hand goes out in the same write, behind BDAT: then nothing is waited for but
the replies.  take() raises errors.NextHopDown and NextHopGarbled when the session is no good any more; who has
no outcome by then is undecided, and `may_have_arrived` says whether the message may be there.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, final

from fastsmtp._parser import NextHopReply
from fastsmtp.delivery.dialogue import Dialogue
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.outcome import Hop, Outcome
from fastsmtp.message import Envelope, Recipient
from fastsmtp.reply import Reply

class Step(IntEnum):
    """What a reply asks for."""

    WAIT = 0  # there are more to come
    SAY = 1  # the next command
    TEXT = 2  # the message, or with is_empty a lone dot
    DONE = 3

WAIT: Final = Step.WAIT
SAY: Final = Step.SAY
TEXT: Final = Step.TEXT
DONE: Final = Step.DONE

@final
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
    is_dismissed  421 came before it said yes to anything: this connection has served its time, and the server need
                  not be at fault
    """

    is_ahead: bool

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

    @property
    def outcomes(self) -> list[Outcome | Damaged | None]: ...
    @property
    def again(self) -> list[int]: ...
    @property
    def accepted(self) -> list[int]: ...
    @property
    def mail_refusal(self) -> Reply | None: ...
    @property
    def needs_reset(self) -> bool: ...
    @property
    def is_empty(self) -> bool: ...
    @property
    def may_have_arrived(self) -> bool: ...
    @property
    def heard(self) -> int: ...
    @property
    def is_dismissed(self) -> bool: ...
    def opening(self, text: bytes | None = None, *, in_chunks: bool = False) -> bytes:
        """What is sent first.

        text       the whole message, for a next hop with CHUNKING: it goes along as one chunk (RFC 3030)
        in_chunks  the message follows as one chunk when a recipient was taken, without DATA
        """

    @property
    def replies(self) -> int:
        """How many replies the opening wants."""

    def next_command(self) -> bytes:
        """After SAY."""

    def sent(self) -> None:
        """The text is with the kernel, its end included."""

    def take(self, answer: NextHopReply) -> Step:
        """One reply.  Raises NextHopDown, NextHopGarbled, NextHopOutOfStep."""

    @property
    def awaits_last(self) -> bool:
        """MAIL and RCPT are answered; what is to come is the answer to DATA, or with has_text to the message."""

    @property
    def has_text(self) -> bool:
        """The message goes along with the commands, as a chunk."""

    @property
    def is_doubtful(self) -> bool:
        """When the session ends now: whether the message may be there, for those who are undecided."""

    def fail(self, answer: NextHopReply) -> None:
        """A refusal that came while the text was still on its way."""
