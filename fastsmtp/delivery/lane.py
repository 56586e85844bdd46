"""One connection of a site, ready for mail: one transaction after the other, driven by callbacks and without a task.

Where the next hop has PIPELINING, the commands of the next message go out behind the text of the last one: one
write and one read a message.  Only a body that lies in a file is sent by a task.

What becomes of messages when the connection ends is the site's business (site.py), as is which one comes next.

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from fastsmtp import errors, reply
from fastsmtp._parser import NextHopReply, ReplyParser
from fastsmtp._stuff import text_of
from fastsmtp._transaction import DONE, SAY, TEXT, WAIT, Step, Transaction
from fastsmtp.config.routes import Route
from fastsmtp.delivery.dialogue import Dialogue, shown
from fastsmtp.delivery.dot import DotEncoder
from fastsmtp.delivery.handover import WRITE_BYTES
from fastsmtp.delivery.identity import Identity, xforward_commands
from fastsmtp.delivery.job import Damaged, Stored
from fastsmtp.delivery.link import NEVER_S, Link
from fastsmtp.delivery.outcome import Failed, Hop, Outcome, Retry
from fastsmtp.message import Recipient
from fastsmtp.reply import Reply

if TYPE_CHECKING:
    from fastsmtp.delivery.source import SourceState

# Until the first answer to commands that went ahead, in seconds: most that don't answer by then never will.
AHEAD_S = 5.0


class Times(Protocol):
    """Of config.outgoing.Remote, all in seconds."""

    @property
    def command_s(self) -> float: ...
    @property
    def data_s(self) -> float: ...
    @property
    def block_s(self) -> float: ...
    @property
    def message_s(self) -> float: ...
    @property
    def age_s(self) -> float: ...
    @property
    def messages_per_connection(self) -> int: ...


class Pending:
    """Recipients of one message, to be delivered in one transaction.

    places     of the recipients, in the answer of who waits
    route      where it goes, and from which sources
    identity   who the client was, where the next hop is told;  forwards  by XFORWARD
    settle     called once with each place's outcome: settle(places, outcomes)
    source     which address it is sent from;  tried  those that could not be used
    avoid      addresses that it has failed at;  failures  how often;  last  what they said
    """

    __slots__ = (
        "avoid", "failures", "forwards", "identity", "last", "message", "places", "recipients", "route",
        "settle", "source", "tried",
    )  # fmt: skip

    def __init__(
        self,
        message: Stored,
        recipients: Sequence[Recipient],
        places: Sequence[int],
        settle: Callable[[Sequence[int], Sequence[Outcome | Damaged]], None],
        source: SourceState,
        route: Route,
        identity: Identity | None = None,
    ) -> None:
        self.route = route
        self.forwards = route.pass_client == "xforward"
        self.message = message
        self.recipients = recipients
        self.places = places
        self.settle = settle
        self.source = source
        self.identity = identity
        self.tried: tuple[SourceState, ...] = ()
        self.avoid: frozenset[str] = frozenset()
        self.failures = 0
        self.last: Retry | None = None

    def finish(self, outcome: Outcome | Damaged) -> None:
        """The same outcome for all."""
        self.settle(self.places, [outcome] * len(self.places))

    def part(self, at: Sequence[int]) -> Pending:
        """Some of its recipients, as a transaction of their own."""
        rest = Pending(
            self.message, [self.recipients[i] for i in at], [self.places[i] for i in at], self.settle, self.source,
            self.route, self.identity,
        )  # fmt: skip
        rest.tried, rest.avoid, rest.failures, rest.last = self.tried, self.avoid, self.failures, self.last
        return rest


class Crew(Protocol):
    """What a lane asks of its site."""

    def next_for(self, lane: Lane) -> Pending | None:
        """The next message, or None."""

    def may_go_ahead(self, lane: Lane) -> bool:
        """Whether its server reads what comes behind the end of a message, for all that is known."""

    def put_back(self, lane: Lane, pending: Pending) -> None:
        """Not this time: it is the first of those that wait again."""

    def rest(self, lane: Lane) -> None:
        """There is none: keep the lane, or let it go."""

    def done(self, lane: Lane, pending: Pending, transaction: Transaction) -> None:
        """A transaction came to its end; the connection is good."""

    def say_defect(self, error: Exception) -> None:
        """Log an error of ours."""

    def lost(self, link: Link) -> None:
        """The connection has ended; lane.given_up() says what was under way."""


class Lane(Link):
    """See the module's text.

    hop         what stands in outcomes
    pending, current   the message whose replies come next, and its transaction
    served      messages so far
    """

    def __init__(
        self, dialogue: Dialogue, loop: asyncio.AbstractEventLoop, crew: Crew, times: Times, hop: Hop
    ) -> None:
        super().__init__(dialogue, loop, crew.lost)
        self.hop = hop
        self.remote = str(hop)
        self.current: Transaction | None = None
        self.pending: Pending | None = None
        self.served = 0
        self._crew = crew
        self._times = times
        self._ahead: tuple[Pending, Transaction] | None = None
        self._needs_reset = False
        self._size_max = 0
        self._is_streaming = False
        self._is_unsure = False
        # Begun while what was read is worked on.
        self._begun: Transaction | None = None
        self._task: asyncio.Task[None] | None = None

    def start_over(self, transport: asyncio.Transport) -> None:
        """Behind a handshake: nothing that came in clear counts (RFC 3207 section 4.2)."""
        self._transport = transport
        self._parser = ReplyParser()
        self._replies = []

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._transport

    def ready(self, hop: Hop) -> None:
        """The session stands: mail may come."""
        self.hop = hop
        self.remote = str(hop)
        self.may_speak = False
        self._size_max = self.dialogue.size_max

    def go(self) -> None:
        """Take messages for as long as there are any."""
        while self.current is None and self.error is None and self._task is None:
            times = self._times
            if self.served >= times.messages_per_connection or self._loop.time() - self.born_s >= times.age_s:
                self.quit()
                return
            pending = self._crew.next_for(self)
            if pending is None:
                self._crew.rest(self)
                return
            self.is_reused = self.served > 0
            self._start(pending)

    def given_up(self) -> list[tuple[Pending, Transaction]]:
        """What was under way when the connection ended, the oldest first; forgotten here."""
        found = []
        if self.current is not None and self.pending is not None:
            found.append((self.pending, self.current))
        if self._ahead is not None:
            found.append(self._ahead)
        self.current = self.pending = self._ahead = None
        return found

    # --- the transport calls ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.current is None:
            super().data_received(data)
            return
        if self.error is not None:
            return
        self._begun = None
        try:
            for answer in self._parser.feed(data):
                transaction = self.current
                if transaction is None or self._is_streaming:
                    self._take_unasked(answer)
                elif transaction is self._begun and answer.code != 421:
                    # It came before we had asked: every answer behind it would be taken for another one's.
                    raise errors.NextHopGarbled(f"said unasked {shown(answer)}")
                elif (step := transaction.take(answer)) is not WAIT:
                    self._go_on(transaction, step)
                elif self._is_unsure:
                    self._is_unsure = False
                    self.deadline_s = self._loop.time() + self._times.command_s
            if (transaction := self.current) is not None and transaction.awaits_last:
                times = self._times
                self.deadline_s = self._loop.time() + (
                    times.message_s if transaction.has_text else times.data_s
                )
        except errors.ProtocolError as error:
            self.fail(errors.NextHopGarbled(str(error)))
        except errors.TemporaryError as error:
            self.fail(error)

    def _take_unasked(self, answer: NextHopReply) -> None:
        """An answer that nothing waits for, or that comes while the message is still on its way."""
        transaction = self.current
        if transaction is None:
            self._replies.append(answer)
            self._spoke_unasked()
            return
        if self._is_streaming:
            self._take_early(transaction, answer)

    def _go_on(self, transaction: Transaction, step: Step) -> None:
        """What a reply asks for."""
        if step is DONE:
            self._finish()
        elif step is TEXT:
            self._send_text(transaction)
        elif step is SAY:
            self._write(transaction.next_command())
            self.deadline_s = self._loop.time() + self._times.command_s

    def _take_early(self, transaction: Transaction, answer: NextHopReply) -> None:
        """An answer before the end of the message: a refusal is one, "yes" can't be."""
        if answer.code < 400:
            raise errors.NextHopGarbled("took a message before its end")
        transaction.fail(answer)
        raise errors.NextHopDown("refused the message before its end")

    # --- a message ------------------------------------------------------------------------------------

    def _start(self, pending: Pending) -> None:
        """Open its transaction, now or when its body has been looked at; or settle it at once."""
        envelope = pending.message.envelope
        extensions = self.dialogue.extensions
        is_lacking = (envelope.is_smtputf8 and b"SMTPUTF8" not in extensions) or (
            envelope.body == b"8BITMIME" and b"8BITMIME" not in extensions
        )
        chunks = _chunks(pending.message)
        if is_lacking and chunks is None:
            self._task = self._loop.create_task(self._guarded(self._look_first(pending), pending))
            return
        if is_lacking:
            whole = pending.message.prefix + b"".join(chunks or ())
            welcome = self._welcome(
                pending, has_8bit=not whole.isascii(), has_utf8=not header_of(whole).isascii()
            )
            if welcome is None:
                return
            pending = welcome
        made = self._make(pending, resets=self._needs_reset)
        if made is None:
            return
        self._needs_reset = False
        self.pending, self.current, self._begun = pending, made, made
        self._write(self._opening(pending, made, chunks))
        self.deadline_s = self._loop.time() + self._times.command_s

    async def _guarded(self, work: Awaitable[None], pending: Pending) -> None:
        """An error of ours ends the connection: nobody may wait for ever because of it."""
        try:
            await work
        except Exception as error:  # noqa: BLE001
            self._task = None
            self._is_streaming = False
            self._crew.say_defect(error)
            if self.current is None:
                pending.finish(Retry(reply.OUR_DEFECT, repr(error)))
            self.fail(errors.NextHopDown("given up by us"))

    async def _look_first(self, pending: Pending) -> None:
        """Whether a body in a file really needs what the next hop has not."""
        has_8bit = has_utf8 = False
        head = b""
        is_in_header = True
        try:
            async for piece in _pieces(pending.message):
                has_8bit = has_8bit or not piece.isascii()
                if is_in_header:
                    head += piece
                    header = header_of(head)
                    is_in_header = len(header) == len(head)
                    has_utf8 = has_utf8 or not header.isascii()
                    head = head[-3:]
        except errors.FastsmtpError as error:
            self._task = None
            pending.finish(_unread(error))
            self.go()
            return
        self._task = None
        welcome = self._welcome(pending, has_8bit=has_8bit, has_utf8=has_utf8)
        if self.error is not None:
            if welcome is not None:
                self._give_back(welcome)
            return
        if welcome is not None:
            made = self._make(welcome, resets=self._needs_reset)
            if made is not None:
                self._needs_reset = False
                self.pending, self.current = welcome, made
                self._write(self._opening(welcome, made, None))
                self.deadline_s = self._loop.time() + self._times.command_s
                return
        self.go()

    def _give_back(self, pending: Pending) -> None:
        error = self.error or errors.NextHopDown("closed by us")
        pending.finish(
            Retry(reply.of_error(error), str(error), False, self.remote, self.hop.source, self.hop)
        )

    def _welcome(self, pending: Pending, *, has_8bit: bool, has_utf8: bool) -> Pending | None:
        """Those of its recipients that a next hop without the extensions can have; the others are told."""
        envelope = pending.message.envelope
        extensions = self.dialogue.extensions
        if envelope.body == b"8BITMIME" and has_8bit and b"8BITMIME" not in extensions:
            self._refuse(pending, reply.NEXT_HOP_NOT_8BIT)
            return None
        if not envelope.is_smtputf8 or b"SMTPUTF8" in extensions:
            return pending
        if has_utf8 or not envelope.sender.isascii():
            self._refuse(pending, reply.NEXT_HOP_NOT_UTF8)
            return None
        able = [at for at, recipient in enumerate(pending.recipients) if recipient.address.isascii()]
        if len(able) == len(pending.recipients):
            return pending
        unable = [at for at, recipient in enumerate(pending.recipients) if not recipient.address.isascii()]
        self._refuse(pending.part(unable), reply.NEXT_HOP_NOT_UTF8)
        return pending.part(able) if able else None

    def _refuse(self, pending: Pending, refusal: Reply) -> None:
        pending.finish(Failed(refusal, refusal.lines[0], self.remote, self.hop.source, self.hop))

    def _make(self, pending: Pending, *, resets: bool = False) -> Transaction | None:
        """Its transaction; None when it can't be sent at all, and that is settled."""
        message = pending.message
        envelope = message.envelope
        dialogue = self.dialogue
        size_bytes = len(message.prefix) + message.size_bytes
        if 0 < self._size_max < size_bytes:
            self._refuse(pending, reply.NEXT_HOP_TOO_SMALL)
            return None
        forwarded: Sequence[bytes] = ()
        identity = pending.identity
        if identity is not None and pending.forwards and b"XFORWARD" in dialogue.extensions:
            forwarded = xforward_commands(identity.attributes, dialogue.extensions[b"XFORWARD"].split())
        try:
            return Transaction(
                dialogue, envelope, pending.recipients, size_bytes=size_bytes, hop=self.hop, remote=self.remote,
                body=envelope.body, forwarded=forwarded, resets=resets,
            )  # fmt: skip
        except ValueError:
            self._refuse(pending, reply.BAD_ENVELOPE)
            return None

    def _opening(self, pending: Pending, transaction: Transaction, chunks: Sequence[bytes] | None) -> bytes:
        if not self.dialogue.has_chunking:
            return transaction.opening()
        if chunks is None:
            return transaction.opening(in_chunks=True)
        return transaction.opening(b"".join((pending.message.prefix, *chunks)))

    def _send_text(self, transaction: Transaction) -> None:
        """The message, and behind it the next one's commands."""
        pending = self.pending
        if pending is None:
            raise AssertionError("a text without its message")
        if transaction.is_empty:
            self._write(b".\r\n")
            self.deadline_s = self._loop.time() + self._times.command_s
            return
        chunks = _chunks(pending.message)
        if chunks is None:
            self._is_streaming = True
            self._task = self._loop.create_task(self._guarded(self._stream(pending, transaction), pending))
            return
        try:
            text = text_of(b"".join((pending.message.prefix, *chunks)))
        except ValueError:
            # Not sent: to a lax server it could be the end of the message.  Nor can anything else be said here.
            self._spoilt(transaction, pending)
            return
        transaction.sent()
        self.deadline_s = self._loop.time() + self._times.message_s
        if self.dialogue.has_pipelining and self._is_good_for_another and self._crew.may_go_ahead(self):
            text += self._open_ahead()
        self._write(text)

    @property
    def _is_good_for_another(self) -> bool:
        return self.served + 1 < self._times.messages_per_connection

    def _open_ahead(self) -> bytes:
        """The commands of the next message that can simply be sent."""
        extensions = self.dialogue.extensions
        while (pending := self._crew.next_for(self)) is not None:
            envelope = pending.message.envelope
            if (envelope.is_smtputf8 and b"SMTPUTF8" not in extensions) or (
                envelope.body == b"8BITMIME" and b"8BITMIME" not in extensions
            ):
                self._crew.put_back(self, pending)
                return b""
            made = self._make(pending)
            if made is not None:
                made.is_ahead = True
                self._ahead = (pending, made)
                return made.opening()
        return b""

    def _spoilt(self, transaction: Transaction, pending: Pending) -> None:
        bad = Failed(reply.BAD_BODY, "a bare CR or LF in the message", self.remote, self.hop.source, self.hop)
        for at in transaction.accepted:
            transaction.outcomes[at] = bad
        self.fail(errors.NextHopDown("given up by us"))

    def _finish(self) -> None:
        transaction, pending = self.current, self.pending
        if transaction is None or pending is None:
            raise AssertionError("the end of no transaction")
        self.served += 1
        self._needs_reset = transaction.needs_reset
        if self._ahead is not None:
            self.pending, self.current = self._ahead
            self._ahead = None
            self.is_reused = self._is_unsure = True
            self.deadline_s = self._loop.time() + min(AHEAD_S, self._times.command_s)
        else:
            self.pending = self.current = None
            self.deadline_s = NEVER_S
        self._crew.done(self, pending, transaction)
        if self.current is None:
            self.go()

    async def _stream(self, pending: Pending, transaction: Transaction) -> None:
        """A body that lies in a file, piece by piece."""
        message = pending.message
        block_s = self._times.block_s
        try:
            gathered: list[bytes] = []
            size = 0
            encoder: DotEncoder | None = None
            if self.dialogue.has_chunking:
                gathered.append(b"BDAT %d LAST\r\n" % (len(message.prefix) + message.size_bytes))
            else:
                encoder = DotEncoder()
            async for piece in _pieces(message):
                gathered.append(piece if encoder is None else encoder.feed(piece))
                size += len(piece)
                if size >= WRITE_BYTES:
                    await self.write(b"".join(gathered), self._loop.time() + block_s)
                    gathered, size = [], 0
            if encoder is not None:
                gathered.append(encoder.finish())
        except ValueError:
            self._task = None
            self._spoilt(transaction, pending)
            return
        except errors.NextHopDown:
            self._task = None
            return  # the site knows
        except errors.FastsmtpError as error:
            self._task = None
            broken = _unread(error)
            for at in transaction.accepted:
                transaction.outcomes[at] = broken
            self.fail(errors.NextHopDown("given up by us"))
            return
        finally:
            self._is_streaming = False
        self._task = None
        if self.error is None:
            transaction.sent()
            self._write(b"".join(gathered))
            self.deadline_s = self._loop.time() + self._times.message_s


def _chunks(message: Stored) -> Sequence[bytes] | None:
    """A body that lies in memory, None for one in a file."""
    chunks: Sequence[bytes] | None = getattr(message, "chunks", None)
    return chunks


async def _pieces(message: Stored) -> AsyncIterator[bytes]:
    if message.prefix:
        yield message.prefix
    async for piece in message.pieces():
        yield piece


def _unread(error: errors.FastsmtpError) -> Retry | Damaged:
    """A body that could not be read: now, or as it was written."""
    if isinstance(error, errors.QueueDamaged):
        return Damaged(str(error))
    return Retry(reply.of_error(error), str(error))


def header_of(message: bytes) -> bytes:
    """All up to the first empty line, or all of it."""
    if message.startswith(b"\r\n"):
        return b""
    at = message.find(b"\r\n\r\n")
    return message if at < 0 else message[: at + 2]
