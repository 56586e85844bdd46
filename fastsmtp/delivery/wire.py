"""What the dispatcher and a shard say to each other; docs/queue.md, "The shards' line".

    shard -> dispatcher   hello (queue/frames.py), HELD*, READY, then DELIVERED and RESULTS with rising numbers;
                          CLOSING: no more jobs, and what was said is to be durable soon
    dispatcher -> shard   JOBS; ACK: results up to this number are safe, forget them; WAKE: try sites that pause

A recipient of a record is named by (epoch, offset, recipient), which stays true
over any restart: so results may be told twice.  Rank 6: pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from fastsmtp.delivery.job import Damaged, Job, Result, Told
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import site_of
from fastsmtp.reply import Reply

# Behind those of frames.py.
JOBS = 32
ACK = 33
HELD = 34
READY = 35
RESULTS = 36
CLOSING = 37
WAKE = 38
DELIVERED = 39

# A packet is filled up to here; PACKET_BYTES of queue/line.py is the most that one may have.
FULL_BYTES = 24_000
# Of a reply or a reason: what a report shows and a log line has room for.
TEXT_BYTES = 1_000
# Recipients of one job: RFC 5321 section 4.5.3.1.8 lets every server take so many.
RECIPIENTS = 100

_TAKEN, _RETRY, _FAILED, _DAMAGED, _TOLD = 1, 2, 3, 4, 5

_JOB = struct.Struct("<QQIIHHHH")
_NUMBER = struct.Struct("<BI")
_NAMED = struct.Struct("<QII")
_RECIPIENT = struct.Struct("<I")
# Of these in a packet.
NAMED_MOST = FULL_BYTES // _NAMED.size
# number, epoch, offset, size; recipient, kind, may have arrived or is relayed, code; lengths of the texts
_RESULT = struct.Struct("<QQIIIBBH5H")


def jobs(batch: Iterable[Job]) -> Iterator[bytes]:
    """Packets with these jobs."""
    parts = [bytes((JOBS,))]
    size = 1
    words: dict[str, tuple[bytes, bytes]] = {}
    for (number, epoch, offset, bytes_), deliver, site, recipients, attempt in batch:
        known = words.get(site)
        if known is None:
            known = words[site] = deliver.encode(), site[3:].encode() if deliver == "mx" else b""
        there, domain = known
        head = _JOB.pack(number, epoch, offset, bytes_, attempt, len(recipients), len(there), len(domain))
        if len(recipients) == 1:
            part = head + _RECIPIENT.pack(recipients[0]) + there + domain
        else:
            part = head + struct.pack(f"<{len(recipients)}I", *recipients) + there + domain
        if size + len(part) > FULL_BYTES:
            yield b"".join(parts)
            parts, size = [bytes((JOBS,))], 1
        parts.append(part)
        size += len(part)
    if len(parts) > 1:
        yield b"".join(parts)


def read_jobs(packet: bytes) -> Iterator[Job]:
    at, end = 1, len(packet)
    sites: dict[tuple[bytes, int], tuple[str, str]] = {}
    while at < end:
        number, epoch, offset, size, attempt, count, there, domain = _JOB.unpack_from(packet, at)
        at += _JOB.size
        recipients = (
            _RECIPIENT.unpack_from(packet, at) if count == 1 else struct.unpack_from(f"<{count}I", packet, at)
        )
        at += 4 * count
        words = packet[at : at + there + domain], there
        at += there + domain
        known = sites.get(words)
        if known is None:
            deliver = words[0][:there].decode()
            known = sites[words] = deliver, site_of(deliver, words[0][there:].decode())
        yield Job(Place(number, epoch, offset, size), *known, recipients, attempt)


def ack(number: int) -> bytes:
    return _NUMBER.pack(ACK, number)


def ready() -> bytes:
    return bytes((READY,))


def closing() -> bytes:
    return bytes((CLOSING,))


def wake() -> bytes:
    return bytes((WAKE,))


def read_ack(packet: bytes) -> int:
    number: int = _NUMBER.unpack(packet)[1]
    return number


def held(named: Sequence[tuple[int, int, int]]) -> Iterator[bytes]:
    """Packets with (epoch, offset, recipient) of what the shard is working on."""
    for start in range(0, len(named), NAMED_MOST):
        yield bytes((HELD,)) + b"".join([_NAMED.pack(*one) for one in named[start : start + NAMED_MOST]])


def read_held(packet: bytes) -> Iterator[tuple[int, int, int]]:
    return _NAMED.iter_unpack(packet[1:])


def delivered(number: int, named: Sequence[tuple[int, int, int]]) -> bytes:
    """One packet: the (epoch, offset, recipient) of what was delivered, and nobody wants to hear more of.

    The caller sees to it that there are at most NAMED_MOST.
    """
    return _NUMBER.pack(DELIVERED, number) + b"".join([_NAMED.pack(*one) for one in named])


def read_delivered(packet: bytes) -> tuple[int, Iterator[tuple[int, int, int]]]:
    """Raises struct.error for what is none."""
    number: int = _NUMBER.unpack_from(packet)[1]
    return number, _NAMED.iter_unpack(packet[_NUMBER.size :])


def results(number: int, batch: Sequence[Result]) -> bytes:
    """One packet; the caller keeps it below FULL_BYTES with size_of()."""
    return _NUMBER.pack(RESULTS, number) + b"".join(_encode(one) for one in batch)


def size_of(result: Result) -> int:
    return len(_encode(result))


def _encode(result: Result) -> bytes:
    outcome = result.outcome
    code, flags, texts = 0, 0, ["", "", "", "", ""]
    if isinstance(outcome, Delivered):
        kind = _TAKEN
        texts = ["", outcome.said, "", outcome.remote, outcome.source]
    elif isinstance(outcome, Told):
        kind, flags = _TOLD, int(outcome.is_relayed)
        delivered = outcome.delivered
        texts = [delivered.enhanced, delivered.said, "", delivered.remote, delivered.source]
    elif isinstance(outcome, Damaged):
        kind = _DAMAGED
        texts[2] = outcome.reason
    else:
        kind = _RETRY if isinstance(outcome, Retry) else _FAILED
        flags = int(isinstance(outcome, Retry) and outcome.may_have_arrived)
        answer = outcome.reply
        code = answer.code
        texts = [
            answer.enhanced,
            "\n".join(answer.lines),
            outcome.reason,
            outcome.remote,
            outcome.source,
        ]
    encoded = [_cut(text) for text in texts]
    return b"".join((
        _RESULT.pack(*result.place, result.recipient, kind, flags, code, *map(len, encoded)), *encoded,
    ))  # fmt: skip


def _cut(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return data if len(data) <= TEXT_BYTES else data[:TEXT_BYTES].decode("utf-8", "ignore").encode()


def read_results(packet: bytes) -> tuple[int, list[Result]]:
    """Raises struct.error or ValueError for what is none."""
    number = _NUMBER.unpack_from(packet)[1]
    found = []
    at = _NUMBER.size
    while at < len(packet):
        *place, recipient, kind, flags, code, a, b, c, d, e = _RESULT.unpack_from(packet, at)
        at += _RESULT.size
        texts = []
        for length in (a, b, c, d, e):
            texts.append(packet[at : at + length].decode())
            at += length
        found.append(Result(Place(*place), recipient, _outcome(kind, flags, code, texts)))
    return number, found


def _outcome(kind: int, flags: int, code: int, texts: list[str]) -> Outcome | Damaged | Told:
    enhanced, text, reason, remote, source = texts
    if kind == _TAKEN:
        return Delivered(text, remote, source)
    if kind == _TOLD:
        return Told(Delivered(text, remote, source, enhanced), bool(flags))
    if kind == _DAMAGED:
        return Damaged(reason)
    answer = Reply(code, enhanced, *text.split("\n"))
    if kind == _RETRY:
        return Retry(answer, reason, bool(flags), remote, source)
    if kind == _FAILED:
        return Failed(answer, reason, remote, source)
    raise ValueError(f"no outcome has the number {kind}")
