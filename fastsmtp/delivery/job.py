"""What the dispatcher hands to a delivery worker, and what it hears of it; shapes only.

    dispatcher  --Job-->  shard            the message stays where it is: the shard reads segment and body file itself
    dispatcher  <--Result--  shard         one a recipient

A shard is a process; a site always goes to the same one, so every limit of a
site lives in one place.  In the shard a Deliverer does the work:

    deliverer.put(stored, recipients, dest, done)

Rank 6: pure.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from fastsmtp.delivery.outcome import Delivered, Outcome
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.model import Origins
from fastsmtp.queue.place import Place


class Job(NamedTuple):
    """Recipients of one message that go to the same site.

    place       of the message's record
    deliver     their DEST, as Recipient.deliver has it
    site        what they have in common: site_of(deliver, domain)
    recipients  their places in the envelope, from 0, rising
    attempt     1 the first time
    """

    place: Place
    deliver: str
    site: str
    recipients: tuple[int, ...]
    attempt: int


class Damaged(NamedTuple):
    """The message can't be read as it was written.  reason: which file, where, what."""

    reason: str


class Told(NamedTuple):
    """Delivered, and the sender wants to hear of it (NOTIFY=SUCCESS) from us.

    is_relayed   to a next hop that will not tell him (no DSN); else to where mail ends
    """

    delivered: Delivered
    is_relayed: bool


class Result(NamedTuple):
    """What became of one recipient of a job.

    outcome   delivery.outcome: Delivered, Retry or Failed, with `remote` and `source` where there were any;
              Damaged where there is no message to be delivered
    """

    place: Place
    recipient: int
    outcome: Outcome | Damaged | Told


class Stored(Protocol):
    """A message of the queue as a Deliverer reads it.  It can be read more than once, and by several at a time.

    id           as the client heard it
    accepted_ms  milliseconds since 1970
    origins      who the client was: enough for XCLIENT, XFORWARD, PROXY, and for choosing a source
    prefix       the header fields that we add, CRLF
    size_bytes   of the body as it is read
    tail         its last two bytes; b"" of an empty one
    chunks       the body, where it is in memory; None: only pieces() brings it
    """

    id: str
    accepted_ms: int
    envelope: Envelope
    origins: Origins
    prefix: bytes

    @property
    def size_bytes(self) -> int: ...
    @property
    def tail(self) -> bytes: ...
    @property
    def chunks(self) -> Sequence[bytes] | None: ...
    @property
    def ends_with_crlf(self) -> bool: ...
    def pieces(self) -> AsyncIterator[bytes]:
        """The body in pieces, CRLF, none empty.  Raises errors.QueueDamaged, errors.StorageFailed: deliver nothing."""

    def blocking_pieces(self, system: Any) -> Iterator[bytes]:
        """The same for a job that runs on the disk already; `system` is os."""


class Deliverer(Protocol):
    """Delivers to one kind of site or to all; one a shard.

    put() calls done() once, with one Outcome a recipient, in order, perhaps from within.  What the world does
    is a Retry; a message that can't be read as it was written is Damaged.  It keeps the site's limits
    (connections, rate, back-off) itself and may wait for them as long as it likes: the dispatcher sends no
    more jobs of a site than its window.  After close() done() means nothing: the job is repeated with the next
    start.
    """

    def put(
        self,
        stored: Stored,
        recipients: Sequence[Recipient],
        dest: str,
        done: Callable[[Sequence[Outcome | Damaged]], object],
    ) -> None: ...

    def wake(self) -> None:
        """The operator wants everything tried now: sites that pause are asked again with the next job."""

    async def close(self) -> None:
        """Give back connections and files."""


def deliver_of(site: str) -> str:
    """The DEST of a site's recipients."""
    return "mx" if site.startswith("mx:") else site


def shard_of(site: str, shards: int) -> int:
    """Which shard has this site: the same in every process and after every start."""
    return zlib.crc32(site.encode()) % shards
