"""Where an accepted message goes: the interface, and what joins queue and delivery.

A sink opens a Transaction with the first accepted recipient.  Every step
answers at once or with an awaitable; the connection waits only for the
awaitable, so a sink that needs no waiting costs no task.

    transaction = sink.open(envelope, facts)     never waits
    transaction.add(recipient)  -> Reply | None   None: taken; a Reply refuses this recipient (RCPT's answer)
    transaction.begin(facts)    -> Reply | None   at DATA or the first BDAT; a Reply refuses the message
    transaction.write(chunk)    -> None           back-pressure when it is an awaitable
    transaction.cut(ranges)                      before commit: leave these header fields out of what is passed on
    transaction.commit(prefix)  -> Reply          the client's answer; 2xx only when the message is safe there
                                                  (or a Promise of it: an awaitable that costs no task)
    transaction.abort()                           any time before commit's answer; never waits, never fails

A sink may have `refusal() -> Reply | None`, which is asked at MAIL: why no mail is taken now.

The prefix is the header block that we add (Received and so on), known only now.
Any exception out of a sink is ours: 451 4.3.0, logged, never 250 - but
errors.TemporaryError, which has a reply of its own: reply.of_error.

Here: DirectSink, which delivers before the 250.  The queue's sink is queue_sink.py,
that of a program which fastsmtp is a part of callable_sink.py.

Rank 7: may import queue/ and delivery/.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from fastsmtp import errors, reply
from fastsmtp.config.dest import Dest, parse_dest
from fastsmtp.delivery.maildir import MaildirPath, MaildirWriter, Target
from fastsmtp.delivery.outcome import Delivered, Outcome, Retry
from fastsmtp.delivery.qmail_queue import DEFAULT_HOME, QmailQueue
from fastsmtp.message import Envelope, Recipient
from fastsmtp.metrics import Board, Cell, Counter, Sheet
from fastsmtp.policy.facts import Facts
from fastsmtp.queue.disk import Disk
from fastsmtp.queue.spool import Body, Budget
from fastsmtp.reply import Reply

# What only some places need is imported with the first of them: `fastsmtp smtpd` starts for each connection.
if TYPE_CHECKING:
    from fastsmtp.delivery.handover import HandOver
    from fastsmtp.delivery.pipe import Pipe
    from fastsmtp.delivery.pool import Limits, NextHop, Pool, Resolve
    from fastsmtp.delivery.printer import Printer
    from fastsmtp.log import Log
    from fastsmtp.resolver import Hosts


HANDED_OVER = Counter(
    "fastsmtp_handed_over_total",
    "Messages that were delivered before the 250, without a queue, by kind of DEST: delivered, or the client was told "
    "failed (5xx) or retry (4xx)",
    "transport",
    "outcome",
)


class Transaction(Protocol):
    """One message on its way; see the module's text."""

    def add(self, recipient: Recipient) -> Reply | Awaitable[Reply | None] | None: ...
    def begin(self, facts: Facts) -> Reply | Awaitable[Reply | None] | None: ...
    def write(self, chunk: bytes) -> Awaitable[None] | None: ...
    def cut(self, ranges: Sequence[tuple[int, int]]) -> None: ...
    def commit(self, prefix: bytes) -> Reply | Awaitable[Reply]: ...
    def abort(self) -> None: ...


class Sink(Protocol):
    """Opens transactions."""

    def open(self, envelope: Envelope, facts: Facts) -> Transaction: ...
    async def close(self) -> None:
        """Give back connections and files; open transactions have been aborted."""


def message_id(facts: Facts) -> str:
    """The session's id and the message's number in it: as the client, the log and Received have it."""
    return f"{facts.session_id}.{facts.messages + 1}"


class Place:
    """What a Recipient's `deliver` comes to, made ready once.

    hop      the next hop of smtp: and lmtp: places, else None
    maildir  of maildir: places, else None
    queue    of qmail-queue: places the program's path, "" for the qmail home's; else None
    pipe     of pipe: places the command, else None
    text     the DEST, for the log
    """

    __slots__ = ("hop", "is_printed", "maildir", "pipe", "queue", "text")

    def __init__(self, dest: Dest, pass_client: str) -> None:
        if dest.kind not in _LOCAL and dest.kind not in (*_HOPS, *_PROGRAMS):
            raise ValueError(f"{dest}: nothing is delivered there directly")
        self.is_printed = dest.kind == "print"
        self.maildir = MaildirPath(dest.path) if dest.kind == "maildir" else None
        self.queue = dest.path if dest.kind == "qmail-queue" else None
        self.text = str(dest)
        self.pipe = dest.path if dest.kind == "pipe" else None
        self.hop: NextHop | None = None
        if dest.kind in _HOPS:
            from fastsmtp.delivery.pool import NextHop

            self.hop = NextHop(dest.kind, dest.host, dest.port, dest.path, pass_client)


_LOCAL = frozenset({"discard", "print", "maildir"})
_PROGRAMS = ("qmail-queue", "pipe")
_HOPS = frozenset({"smtp", "lmtp", "lmtp+unix"})


class DirectSink:
    """Delivers before the 250: to nowhere, standard output, Maildirs, qmail-queue, or a next hop.

    disk              where blocking jobs run
    programs          where programs run, each as long as it takes; by default `disk`, which they would keep busy
    budget            memory for bodies, of the worker
    spool_directory   where bodies that are over it go; must exist
    hostname          for file names in Maildirs, and EHLO to next hops
    resolve           host name of a next hop -> its addresses; by default resolver.Hosts
    qmail_home        as /var/qmail: for qmail-queue
    is_compatible     what qmail-queue took is accepted in qmail-smtpd's words
    wall              wall clock, seconds
    metrics           where outcomes are counted
    """

    def __init__(
        self,
        *,
        disk: Disk,
        budget: Budget,
        spool_directory: str,
        hostname: str,
        resolve: Resolve | None = None,
        limits: Limits | None = None,
        log: Log | None = None,
        printer: Printer | None = None,
        programs: Disk | None = None,
        qmail_home: str = DEFAULT_HOME,
        is_compatible: bool = False,
        wall: Callable[[], float] = time.time,
        metrics: Sheet | None = None,
    ) -> None:
        self._disk = disk
        self._programs = programs or disk
        self._budget = budget
        self._spool_directory = spool_directory
        self._places: dict[tuple[str, str], Place] = {}
        self._hosts: Hosts | None = None
        self._untold: set[NextHop] = set()
        self.log = log
        self.maildirs = MaildirWriter(disk, hostname)
        self._metrics = metrics or Board(1).sheet(0)
        self._outcomes: dict[tuple[str, str], Cell] = {}
        self._hostname = hostname
        self._printer = printer
        self._pool: Pool | None = None
        self._resolve = resolve or self._addresses
        self._limits = limits
        self.qmail_queue = QmailQueue(self._programs, hostname=hostname, home=qmail_home)
        self._pipe: Pipe | None = None
        self._is_compatible = is_compatible
        self._wall = wall

    def open(self, envelope: Envelope, facts: Facts) -> DirectTransaction:
        return DirectTransaction(self, envelope, facts)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        if self._hosts is not None:
            self._hosts.close()
        self._programs.close()
        self._disk.close()

    @property
    def pool(self) -> Pool:
        """The connections to next hops."""
        if self._pool is None:
            from fastsmtp.delivery.pool import Pool

            self._pool = Pool(hostname=self._hostname, resolve=self._resolve, limits=self._limits)
        return self._pool

    @property
    def printer(self) -> Printer:
        if self._printer is None:
            from fastsmtp.delivery.printer import Printer

            self._printer = Printer(self._disk)
        return self._printer

    def place(self, recipient: Recipient) -> Place:
        """Raises ValueError for what is no DEST; the configuration has checked all that it names."""
        key = (recipient.deliver, recipient.pass_client)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(parse_dest(recipient.deliver), recipient.pass_client)
        return place

    def new_body(self) -> Body:
        return Body(self._disk, self._budget, self._spool_directory)

    @property
    def pipe(self) -> Pipe:
        if self._pipe is None:
            from fastsmtp.delivery.pipe import Pipe

            self._pipe = Pipe(self._programs)
        return self._pipe

    def queued(self, facts: Facts, said: str) -> Reply:
        """The 250 to what qmail-queue has taken; said is "qp PID"."""
        if self._is_compatible:
            return reply.qmail_accepted(int(self._wall()), said)
        return reply.handed_over(message_id(facts), said)

    def note_untold(self, hop: NextHop) -> None:
        """Say once of a next hop that it doesn't want to know who the client is, though it should."""
        if hop not in self._untold:
            self._untold.add(hop)
            if self.log is not None:
                self.log.line("notice", what=str(hop), reason=f"does not offer {hop.tells.upper()} to us")

    def count(self, transport: str, answer: Reply) -> Reply:
        """Count what became of a message that was to be delivered before the 250."""
        outcome = "delivered" if answer.is_positive else "failed" if answer.is_permanent else "retry"
        cell = self._outcomes.get((transport, outcome))
        if cell is None:
            self._outcomes[transport, outcome] = cell = HANDED_OVER.of(self._metrics, transport, outcome)
        cell.inc()
        return answer

    async def _addresses(self, host: str) -> tuple[str, ...]:
        if self._hosts is None:
            from fastsmtp.resolver import Hosts

            self._hosts = Hosts()
        return await self._hosts.addresses(host)


class DirectTransaction:
    """One message on its way to Maildirs, standard output, nowhere, or one next hop, or qmail-queue."""

    __slots__ = (
        "_body", "_envelope", "_facts", "_handover", "_has_local", "_hop", "_printed", "_program", "_sink",
        "_targets",
    )  # fmt: skip

    def __init__(self, sink: DirectSink, envelope: Envelope, facts: Facts) -> None:
        self._sink = sink
        self._envelope = envelope
        self._facts = facts
        self._has_local = False
        self._targets: list[Target] | None = None
        self._printed: list[Recipient] | None = None
        self._program: Place | None = None
        self._hop: NextHop | None = None
        self._handover: HandOver | None = None
        self._body: Body | None = None

    def add(self, recipient: Recipient) -> Reply | Awaitable[Reply | None] | None:
        place = self._sink.place(recipient)
        if place.hop is not None:
            return self._add_remote(recipient, place.hop)
        if self._handover is not None:
            if self._handover.accepted:
                return reply.OTHER_NEXT_HOP
            self._drop_handover()
        if place.queue is not None or place.pipe is not None:
            return self._add_program(place)
        if self._program is not None:
            return reply.OTHER_NEXT_HOP
        self._has_local = True
        if place.maildir is not None:
            target = Target(place.maildir.directory(recipient.address), place.maildir.root, recipient.address)
            if self._targets is None:
                self._targets = []
            self._targets.append(target)
        elif place.is_printed:
            if self._printed is None:
                self._printed = []
            self._printed.append(recipient)
        return None

    def begin(self, facts: Facts) -> Reply | Awaitable[Reply | None] | None:
        if self._handover is not None:
            refusal = self._handover.check()
            if refusal is not None:
                return refusal
            self._body = self._sink.new_body()
        elif self._program is not None:
            return self._begin_program(self._program, facts)
        elif self._targets is not None or self._printed is not None:
            self._body = self._sink.new_body()
        return None

    def _add_program(self, place: Place) -> Reply | None:
        """Whoever takes a message may refuse it: then nobody else may have it.  pipe: programs have one recipient."""
        if self._has_local or self._program not in (None, place):
            return reply.OTHER_NEXT_HOP
        if place.pipe is not None and self._program is not None:
            return reply.OTHER_NEXT_HOP
        self._program = place
        return None

    def _begin_program(self, place: Place, facts: Facts) -> Reply | Awaitable[Reply | None] | None:
        self._body = self._sink.new_body()
        if place.pipe is not None:
            found = self._sink.pipe.check(place.pipe)
        else:
            # facts as they are now: what the client's environment says goes for this message.
            found = self._sink.qmail_queue.check(place.queue or "", facts)
        if isinstance(found, bool):
            return None if found else self._no_program(place)
        return self._checked_program(place, found)

    async def _checked_program(self, place: Place, found: Awaitable[bool]) -> Reply | None:
        return None if await found else self._no_program(place)

    def _no_program(self, place: Place) -> Reply:
        answer = reply.PROGRAM_NOT_STARTED if place.pipe is not None else reply.QUEUE_NOT_STARTED
        self._log_hop(place.text, "there is no such program that can be run", answer)
        return answer

    def write(self, chunk: bytes) -> Awaitable[None] | None:
        return None if self._body is None else self._body.write(chunk)

    def cut(self, ranges: Sequence[tuple[int, int]]) -> None:
        if self._body is not None:
            self._body.cut(ranges)

    def commit(self, prefix: bytes) -> Reply | Awaitable[Reply]:
        if self._body is None:
            return self._sink.count("discard", reply.accepted(message_id(self._facts)))
        if self._handover is not None:
            return self._hand_over(self._handover, prefix, self._body)
        if self._program is not None:
            return self._run(self._program, prefix, self._body)
        return self._store(prefix, self._body)

    def abort(self) -> None:
        self._drop_handover()
        if self._body is not None:
            self._body.release()

    def _add_remote(self, recipient: Recipient, hop: NextHop) -> Reply | Awaitable[Reply | None]:
        if self._has_local or self._program is not None:
            return reply.OTHER_NEXT_HOP
        handover = self._handover
        if handover is not None and hop != self._hop:
            if handover.accepted:
                return reply.OTHER_NEXT_HOP
            # The first one took nobody: the transaction is free for another.
            self._drop_handover()
            handover = None
        if handover is None:
            from fastsmtp.delivery.handover import HandOver
            from fastsmtp.delivery.identity import Identity

            identity = None if hop.tells == "none" else Identity(self._facts)
            handover = HandOver(self._sink.pool, hop, self._envelope, identity)
            self._handover = handover
            self._hop = hop
        return self._asked(handover, hop, recipient)

    async def _asked(self, handover: HandOver, hop: NextHop, recipient: Recipient) -> Reply | None:
        had_failed = handover.failure is not None
        answer = await handover.add(recipient)
        if not handover.has_told:
            self._sink.note_untold(hop)
        if answer is not None and handover.failure is not None and not had_failed:
            self._log_hop(str(hop), str(handover.failure), answer)
        return answer

    def _drop_handover(self) -> None:
        if self._handover is not None:
            self._handover.abort()
            self._handover = None

    async def _hand_over(self, handover: HandOver, prefix: bytes, body: Body) -> Reply:
        try:
            outcome = await handover.finish(prefix, body)
        finally:
            body.release()
        transport = "" if self._hop is None else self._hop.kind
        if isinstance(outcome, Delivered):
            return self._sink.count(transport, reply.handed_over(message_id(self._facts), outcome.said))
        if isinstance(outcome, Retry) and self._hop is not None:
            also = "; it may have arrived all the same" if outcome.may_have_arrived else ""
            self._log_hop(str(self._hop), outcome.reason + also, outcome.reply)
        return self._sink.count(transport, outcome.reply)

    async def _run(self, place: Place, prefix: bytes, body: Body) -> Reply:
        """Give it to qmail-queue, or to a program of the operator's."""
        sink, envelope = self._sink, self._envelope
        is_queue = place.pipe is None
        kind = "qmail-queue" if is_queue else "pipe"
        variables = sink.qmail_queue.environment(self._facts)
        found: Outcome | Awaitable[Outcome]
        try:
            if place.pipe is not None:
                [recipient] = envelope.recipients
                found = sink.pipe.store(
                    place.pipe, envelope.sender, recipient.address, variables, prefix, body
                )
            else:
                found = sink.qmail_queue.store(
                    place.queue or "", envelope.sender, envelope.recipients, variables, prefix, body
                )
            outcome = await found if isinstance(found, Awaitable) else found
        finally:
            body.release()
        if isinstance(outcome, Delivered):
            facts = self._facts
            return sink.count(
                kind, sink.queued(facts, outcome.said) if is_queue else reply.accepted(message_id(facts))
            )
        also = ""
        if isinstance(outcome, Retry) and outcome.may_have_arrived:
            also = "; it may have arrived all the same"
        self._log_hop(place.text, outcome.reason + also, outcome.reply)
        return sink.count(kind, outcome.reply)

    def _log_hop(self, deliver: str, reason: str, answer: Reply) -> None:
        if self._sink.log is not None:
            self._sink.log.line(
                "sink_failed", id=self._facts.session_id, what="next hop", deliver=deliver, reason=reason,
                code=answer.code, enhanced=answer.enhanced,
            )  # fmt: skip

    async def _store(self, prefix: bytes, body: Body) -> Reply:
        """Maildirs first: what is printed has arrived."""
        sink = self._sink
        what = "maildir" if self._printed is None else "print"
        try:
            if self._targets is not None:
                done = sink.maildirs.store(self._targets, self._envelope.sender, prefix, body)
                if done is not None:
                    await done
            if self._printed is not None:
                done = sink.printer.store(self._printed, self._envelope, prefix, body)
                if done is not None:
                    await done
        except errors.TemporaryError as error:
            return sink.count(what, world_failed(sink.log, self._facts, what, error))
        finally:
            body.release()
        return sink.count(what, reply.accepted(message_id(self._facts)))


def world_failed(log: Log | None, facts: Facts, what: str, error: Exception) -> Reply:
    """The reply for an error of the world, which the log tells in its own words."""
    answer = reply.of_error(error)
    if log is not None:
        log.line(
            "sink_failed", id=facts.session_id, what=what, reason=str(error), code=answer.code,
            enhanced=answer.enhanced,
        )  # fmt: skip
    return answer
