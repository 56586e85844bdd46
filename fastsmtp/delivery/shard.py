"""A delivery process: takes jobs from the dispatcher, reads the messages itself, and says what became of them.

A result is kept until the dispatcher says that it is safe; a dispatcher that
starts anew is told what is under way, so nothing is delivered twice because it
died.  Not here: how anything is delivered (a Deliverer does that).  Rank 6.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from fastsmtp import errors, reply
from fastsmtp.delivery import wire
from fastsmtp.delivery.job import Damaged, Deliverer, Job, Result, Told
from fastsmtp.delivery.meters import DeliveryMeter
from fastsmtp.delivery.outcome import Delivered, Outcome, Retry
from fastsmtp.delivery.stored import Reader, StoredMessage
from fastsmtp.log import Log, log_defect
from fastsmtp.message import Recipient
from fastsmtp.queue import frames
from fastsmtp.queue.line import Line, connect

RECONNECT_S = 0.25
TIDY_S = 1.0


class Shard:
    """One of `of` delivery processes, with the number `number`.

    path   of the dispatcher's socket
    log    gets a line for every recipient
    meter  counts what became of them
    """

    def __init__(
        self,
        path: str,
        number: int,
        of: int,
        *,
        reader: Reader,
        deliverer: Deliverer,
        log: Log,
        loop: asyncio.AbstractEventLoop,
        meter: DeliveryMeter | None = None,
    ) -> None:
        self._meter = meter
        self._path = path
        self._number = number
        self._of = of
        self._reader = reader
        self._deliverer = deliverer
        self._log = log
        self._loop = loop
        self._line: Line | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._tidying: asyncio.TimerHandle | None = None
        self._jobs: dict[int, Job] = {}
        self._number_of_job = 0
        # Since the last packet: what was delivered, by its name, and all else.
        self._delivered: list[tuple[int, int, int]] = []
        self._fresh: list[Result] = []
        self._sent: deque[tuple[int, bytes, list[tuple[int, int, int]]]] = deque()
        self._results = 0
        self._is_flushing = False
        self._is_closed = False
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        # All that was said is durable; or nobody is there any more who could see to that.
        self._is_safe = asyncio.Event()
        self._is_alone = False
        self._has_come_back = False
        self._is_safe.set()

    def start(self) -> None:
        """Connect, and go on until close()."""
        self._tidy()
        self.connect()

    def _tidy(self) -> None:
        self._reader.tidy()
        self._tidying = self._loop.call_later(TIDY_S, self._tidy)

    def connect(self) -> None:
        """Reach the dispatcher, now or as soon as it can be reached."""
        self._retry = None
        try:
            sock = connect(self._path)
        except OSError as error:
            if self._is_draining and not isinstance(error, BlockingIOError):
                # The socket is the master's, and he is gone.
                self._be_alone()
                return
            self._retry = self._loop.call_later(RECONNECT_S, self.connect)
            return
        line = self._line = Line(sock, self._loop, self._heard, self._ended)
        line.send(frames.hello(frames.Role.SHARD, self._number, self._of))
        held = [
            (job.place.epoch, job.place.offset, recipient)
            for job in self._jobs.values()
            for recipient in job.recipients
        ]
        held += self._delivered
        held += [(one.place.epoch, one.place.offset, one.recipient) for one in self._fresh]
        held += [named for _, _, names in self._sent for named in names]
        for packet in wire.held(held):
            line.send(packet)
        if not self._is_draining:
            line.send(wire.ready())
        for _, packet, _ in self._sent:
            line.send(packet)
        if self._is_draining:
            line.send(wire.closing())

    @property
    def jobs(self) -> int:
        """How many are under way."""
        return len(self._jobs)

    async def drain(self) -> None:
        """Take no more, and wait until what is under way has ended and is durable.

        At a reload the dispatcher goes as well: what it didn't hear any more its successor must, or it comes twice.
        """
        self._is_draining = True
        self._say_closing()
        await self._is_idle.wait()
        self._flush()
        self._say_closing()
        await self._is_safe.wait()

    def _say_closing(self) -> None:
        if self._line is not None:
            self._line.send(wire.closing())

    async def close(self) -> None:
        """Stop everything; what was under way will be tried again."""
        self._is_closed = True
        for timer in (self._retry, self._tidying):
            if timer is not None:
                timer.cancel()
        self._flush()
        await self._deliverer.close()
        self._reader.close()
        if self._line is not None:
            self._line.flush()
            self._line.close()
            self._line = None

    def _ended(self) -> None:
        self._line = None
        if self._is_closed:
            return
        if self._is_draining and self._has_come_back:
            # Not for ever: somebody else has our place by now.
            self._be_alone()
            return
        self._has_come_back = self._is_draining
        self.connect()

    def _be_alone(self) -> None:
        self._is_alone = True
        self._is_safe.set()

    def _heard(self, packet: bytes, descriptors: list[int]) -> None:
        if packet[0] == wire.JOBS:
            for job in wire.read_jobs(packet):
                self._begin(job)
        elif packet[0] == wire.ACK:
            number = wire.read_ack(packet)
            while self._sent and self._sent[0][0] <= number:
                self._sent.popleft()
            if not self._sent:
                self._is_safe.set()
        elif packet[0] == wire.WAKE:
            self._deliverer.wake()

    def _begin(self, job: Job) -> None:
        """One job; whatever happens, there will be a result for each of its recipients."""
        self._number_of_job = number = self._number_of_job + 1
        self._jobs[number] = job
        self._is_idle.clear()
        began_s = self._loop.time()
        stored: StoredMessage | None = None

        def done(outcomes: Sequence[Outcome | Damaged]) -> None:
            self._done(number, job, stored, outcomes, began_s)

        try:
            stored = self._reader.read(job.place)
            recipients = [stored.envelope.recipients[at] for at in job.recipients]
            self._deliverer.put(stored, recipients, job.deliver, done)
        except (errors.QueueDamaged, IndexError) as error:
            done([Damaged(str(error))] * len(job.recipients))
        except errors.TemporaryError as error:
            done([Retry(reply.of_error(error), str(error))] * len(job.recipients))
        except Exception as error:  # noqa: BLE001 - ours: the message is tried again, and the log says where it broke
            self._log_defect(stored, error)
            done([Retry(reply.OUR_DEFECT, repr(error))] * len(job.recipients))

    def _done(
        self,
        number: int,
        job: Job,
        stored: StoredMessage | None,
        outcomes: Sequence[Outcome | Damaged],
        began_s: float,
    ) -> None:
        if self._jobs.pop(number, None) is None or self._is_closed:
            return
        took_ms = round((self._loop.time() - began_s) * 1000)
        place = job.place
        for recipient, outcome in zip(job.recipients, outcomes, strict=True):
            found: Outcome | Damaged | Told = outcome
            if stored is not None and not isinstance(outcome, Damaged):
                self._tell(job, stored, recipient, outcome, took_ms)
                found = _for_sender(job, stored.envelope.recipients[recipient], outcome)
            if type(found) is Delivered:
                self._delivered.append((place.epoch, place.offset, recipient))
            else:
                self._fresh.append(Result(place, recipient, found))
        if self._meter is not None:
            age_s = 0.0 if stored is None else max(time.time() - stored.accepted_ms / 1000, 0.0)
            self._meter.attempted(job.deliver, outcomes, age_s)
        if not self._jobs:
            self._is_idle.set()
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _log_defect(self, stored: StoredMessage | None, error: Exception) -> None:
        log_defect(self._log, error, id="" if stored is None else stored.id, what="delivery")

    def _tell(self, job: Job, stored: StoredMessage, recipient: int, outcome: Outcome, took_ms: int) -> None:
        envelope, hop, log = stored.envelope, outcome.hop, self._log
        tls = cipher = None
        if hop is not None and hop.tls:
            tls, cipher = hop.tls, hop.cipher or None
        address = envelope.recipients[recipient].address
        if isinstance(outcome, Delivered):
            log.line(
                "delivered", id=stored.id, from_=envelope.sender, rcpt=address, deliver=job.deliver,
                remote=outcome.remote or None, source=outcome.source or None, tls=tls, cipher=cipher,
                attempt=job.attempt, took_ms=took_ms, said=outcome.said, size=stored.size_bytes,
            )  # fmt: skip
            return
        answer = outcome.reply
        log.line(
            "deferred" if isinstance(outcome, Retry) else "bounced", id=stored.id, from_=envelope.sender,
            rcpt=address, deliver=job.deliver, remote=outcome.remote or None, source=outcome.source or None,
            tls=tls, cipher=cipher, attempt=job.attempt, took_ms=took_ms, code=answer.code,
            enhanced=answer.enhanced, reason=outcome.reason,
        )  # fmt: skip

    def _flush(self) -> None:
        """Send what is known; all of one turn of the loop together."""
        self._is_flushing = False
        done, self._delivered = self._delivered, []
        for start in range(0, len(done), wire.NAMED_MOST):
            named = done[start : start + wire.NAMED_MOST]
            self._send(wire.delivered(self._next_number(), named), named)
        fresh, self._fresh = self._fresh, []
        batch: list[Result] = []
        size = 0
        for result in fresh:
            one = wire.size_of(result)
            if size + one > wire.FULL_BYTES:
                self._send_results(batch)
                batch, size = [], 0
            batch.append(result)
            size += one
        if batch:
            self._send_results(batch)

    def _send_results(self, batch: list[Result]) -> None:
        names = [(one.place.epoch, one.place.offset, one.recipient) for one in batch]
        self._send(wire.results(self._next_number(), batch), names)

    def _next_number(self) -> int:
        self._results = self._results + 1 & 0xFFFF_FFFF
        return self._results

    def _send(self, packet: bytes, names: list[tuple[int, int, int]]) -> None:
        self._sent.append((self._results, packet, names))
        if not self._is_alone:
            self._is_safe.clear()
        if self._line is not None:
            self._line.send(packet)


def _for_sender(job: Job, recipient: Recipient, outcome: Outcome) -> Outcome | Told:
    """Who asked to be told of success is told by us, unless the next hop does it (RFC 3461 section 5.2.2)."""
    if not recipient.notify or b"SUCCESS" not in recipient.notify:
        return outcome
    if not isinstance(outcome, Delivered) or outcome.has_dsn:
        return outcome
    return Told(outcome, job.deliver.startswith(("mx", "smtp:", "qmail-queue")))
