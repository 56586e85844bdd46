"""One message handed over live: the next hop's transaction runs beside our client's.

Its MAIL goes out with our first recipient, each RCPT gets the next hop's own
answer, the body goes on when ours is complete, and the next hop's answer to
it is our client's.  No answer is made up: 2xx only where the next hop said so.

Until the body is on its way a lost connection costs nothing: the transaction
is opened anew on another one.  From then on nothing is repeated: a connection
that dies between the dot and its answer is 451, and when the client tries
again, there may be a second copy (RFC 1047).

Rank 6: may import ranks 0 to 5; I/O on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from fastsmtp import errors, reply
from fastsmtp.delivery.dialogue import Script, Started, outcome
from fastsmtp.delivery.dot import DotEncoder
from fastsmtp.delivery.identity import Identity
from fastsmtp.delivery.link import Link
from fastsmtp.delivery.outcome import Outcome, Retry
from fastsmtp.delivery.pool import NextHop, Pool
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.spool import Body
from fastsmtp.reply import Reply

T = TypeVar("T")

# What is gathered for one write: small chunks of a body leave together.
WRITE_BYTES = 65_536


class HandOver:
    """The transaction with one next hop.

    accepted   the recipients that it has taken
    failure    why it can't go on, for the log; None while it can
    has_told   the next hop knows who the client was, as far as it was to be told
    """

    __slots__ = (
        "_envelope", "_hop", "_identity", "_is_aborted", "_link", "_pool", "_refusal", "accepted", "failure",
        "has_told",
    )  # fmt: skip

    def __init__(self, pool: Pool, hop: NextHop, envelope: Envelope, identity: Identity | None) -> None:
        self._pool = pool
        self._hop = hop
        self._envelope = envelope
        self._identity = identity
        self._link: Link | None = None
        self._refusal: Reply | None = None
        self._is_aborted = False
        self.accepted: list[Recipient] = []
        self.failure: errors.TemporaryError | None = None
        self.has_told = True

    async def add(self, recipient: Recipient) -> Reply | None:
        """The next hop's answer to this recipient; None is yes."""
        if self._refusal is not None:
            return self._refusal
        if self._hop.is_lmtp and self.accepted:
            # LMTP answers the dot for each recipient, SMTP once: only one can share our client's transaction.
            return reply.OTHER_NEXT_HOP
        deadline_s = self._now() + self._pool.limits.recipient_s
        try:
            if self._link is None or self._link.error is not None:
                # The first one, or the next hop hung up while our client was thinking.
                started = await self._start([*self.accepted, recipient], deadline_s)
                lost = started.mail or next(filter(None, started.recipients[:-1]), None)
                if lost is not None:
                    # Not about this recipient when others were taken before: then 5xx would be too much.
                    return self._refused(lost.softened() if self.accepted else lost)
                answer = started.recipients[-1]
            else:
                answer = await self._link.run(self._link.dialogue.add(recipient), deadline_s)
        except errors.TemporaryError as error:
            return self._failed(error)
        if answer is None:
            self.accepted.append(recipient)
        return answer

    def check(self) -> Reply | None:
        """At DATA: why the message can't be taken, if that is known already."""
        return self._refusal

    async def finish(self, prefix: bytes, body: Body) -> Outcome:
        """Hand the message over, and bring the next hop's answer."""
        if self._refusal is not None:
            return Retry(self._refusal, str(self.failure))
        limits = self._pool.limits
        deadline_s = self._now() + limits.message_s
        may_reopen = True
        while True:
            try:
                lost = await self._reopened(deadline_s)
            except errors.TemporaryError as error:
                return Retry(self._failed(error), str(error))
            if lost is not None:
                return Retry(self._refused(lost.softened()), "changed its mind about the envelope")
            link = self._link
            if link is None:
                raise errors.NextHopDown("given up by us")
            sending = _Sending(link, deadline_s, limits.data_s, limits.block_s)
            try:
                result = await sending.message(prefix, body)
            except errors.NextHopDown as error:
                if sending.is_in_text or link.has_expired or self._is_aborted or not may_reopen:
                    return Retry(self._failed(error), str(error), may_have_arrived=sending.may_have_arrived)
                # Nothing of the message has left: a connection that was dead all the time is as good as none.
                self._pool.drop(link)
                may_reopen = False
                continue
            except errors.TemporaryError as error:
                return Retry(self._failed(error), str(error), may_have_arrived=sending.may_have_arrived)
            except BaseException:
                self._pool.drop(link)
                raise
            self._link = None
            if sending.is_complete:
                self._pool.give_back(link)
            elif sending.is_in_text:
                # Refused within the text: nothing else can be said on this connection.
                self._pool.drop(link)
            else:
                self._pool.reset(link)
            return result

    async def _reopened(self, deadline_s: float) -> Reply | None:
        """Open the transaction anew if its connection is lost; a Reply when the envelope isn't welcome now."""
        if self._link is not None and self._link.error is None:
            return None
        opening_s = min(deadline_s, self._now() + self._pool.limits.recipient_s)
        started = await self._start(self.accepted, opening_s)
        return started.mail or next(filter(None, started.recipients), None)

    def abort(self) -> None:
        """Give the transaction up.  Never waits, never fails."""
        self._is_aborted = True
        self._end()

    def _end(self) -> None:
        link, self._link = self._link, None
        if link is None or link.error is not None:
            return
        if link.is_waiting or link.may_speak:
            self._pool.drop(link)
        else:
            self._pool.reset(link)

    async def _start(self, recipients: list[Recipient], deadline_s: float) -> Started:
        """A transaction with these recipients; a kept connection that turns out dead is replaced once."""
        link = await self._take(deadline_s)
        try:
            return await self._opened(link, recipients, deadline_s)
        except errors.NextHopDown:
            self._pool.drop(link)
            if not link.is_reused or link.has_expired or self._is_aborted:
                raise
        link = await self._take(deadline_s, fresh=True)
        return await self._opened(link, recipients, deadline_s)

    async def _take(self, deadline_s: float, *, fresh: bool = False) -> Link:
        link = await self._pool.take(self._hop, self._identity, deadline_s, fresh=fresh)
        if self._is_aborted:
            self._pool.give_back(link)
            raise errors.NextHopDown("given up by us")
        self._link = link
        return link

    async def _opened(self, link: Link, recipients: list[Recipient], deadline_s: float) -> Started:
        started = await link.run(self._opening(link, recipients), deadline_s)
        self.has_told = link.dialogue.has_told
        if started.mail is not None:
            # No transaction is open: the connection is good for another one.
            self._link = None
            self._pool.give_back(link)
        return started

    def _opening(self, link: Link, recipients: list[Recipient]) -> Script[Started]:
        dialogue = link.dialogue
        forwarded = None
        if self._identity is not None:
            if self._hop.tells == "xclient":
                yield from dialogue.identify(self._identity)
            elif self._hop.tells == "xforward":
                forwarded = self._identity
        return (yield from dialogue.start(self._envelope, recipients, forwarded))

    def _refused(self, refusal: Reply) -> Reply:
        """MAIL, or a recipient taken before, was refused: so is all that follows."""
        self._refusal = refusal
        self._end()
        return refusal

    def _failed(self, error: errors.TemporaryError) -> Reply:
        self.failure = error
        if self._link is not None:
            self._pool.drop(self._link)
        return self._refused(reply.of_error(error))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _Sending:
    """The message on its way over one link.

    is_in_text   the next hop takes what we send for the message: nothing else can be said
    is_complete  all of it was handed to the kernel
    may_have_arrived   so it was, and there is no answer
    """

    __slots__ = (
        "_block_s",
        "_data_s",
        "_deadline_s",
        "_link",
        "is_complete",
        "is_in_text",
        "may_have_arrived",
    )

    def __init__(self, link: Link, deadline_s: float, data_s: float, block_s: float) -> None:
        self._link = link
        self._deadline_s = deadline_s
        self._data_s = data_s
        self._block_s = block_s
        self.is_in_text = False
        self.is_complete = False
        self.may_have_arrived = False

    async def message(self, prefix: bytes, body: Body) -> Outcome:
        """BDAT where it is offered: no waiting for 354, and the body arrives as it is.  Else DATA."""
        link = self._link
        if link.dialogue.has_chunking:
            head = b"BDAT %d LAST\r\n" % (len(prefix) + body.size_bytes)
            pieces = _joined(_chunk(head, prefix, body))
        else:
            refusal = await link.run(link.dialogue.data(), self._step(self._data_s))
            if refusal is not None:
                return refusal
            pieces = _joined(_text(prefix, body))
        self.is_in_text = True
        link.may_speak = True
        last = b""
        async for piece in pieces:
            if last:
                await link.write(last, self._step(self._block_s))
            if link.has_spoken_early:
                return await self._early()
            last = piece
        link.may_speak = False
        self.is_complete = self.may_have_arrived = True
        (answer,) = await link.ask(last, 1, self._deadline_s)
        self.may_have_arrived = False
        return outcome(answer)

    async def _early(self) -> Outcome:
        """An answer before the end of the message: a refusal is one, "yes" can't be."""
        (answer,) = await self._link.ask(b"", 1, self._deadline_s)
        result = outcome(answer)
        if answer.code < 400:
            raise errors.NextHopGarbled("took a message before its end")
        return result

    def _step(self, step_s: float) -> float:
        return min(self._deadline_s, asyncio.get_running_loop().time() + step_s)


async def _chunk(head: bytes, prefix: bytes, body: Body) -> AsyncIterator[bytes]:
    yield head + prefix
    async for piece in body.pieces():
        yield piece


async def _text(prefix: bytes, body: Body) -> AsyncIterator[bytes]:
    encoder = DotEncoder()
    yield encoder.feed(prefix)
    async for piece in body.pieces():
        yield encoder.feed(piece)
    yield encoder.finish()


async def _joined(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about WRITE_BYTES; a small message is one."""
    gathered: list[bytes] = []
    size = 0
    async for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= WRITE_BYTES:
            yield b"".join(gathered)
            gathered.clear()
            size = 0
    if size:
        yield b"".join(gathered)
