"""What a delivery process asks of the process that keeps root, lspawn, and what it hears; shapes only.

One connection an errand (SOCK_SEQPACKET), one packet each way:

    shard -> lspawn   version and key; descriptors, read-only: the record, and the body's file where it has one
    lspawn -> shard   one outcome, for all recipients of it, from the child that has delivered

The key names a DEST and the account that delivers to it.  lspawn has those of its configuration and takes no
others; it looks at nothing else of an errand.  The record is a message as the journal keeps it
(queue/model.py), with no recipients but the errand's; only the child reads it, and by then it is nobody
special.  Rank 6: pure.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from fastsmtp.delivery import wire
from fastsmtp.delivery.job import Damaged, Result, Told
from fastsmtp.delivery.outcome import Outcome
from fastsmtp.queue.place import Place

VERSION: Final = 1
_HEAD: Final = struct.Struct("<B32s")
ERRAND_BYTES: Final = _HEAD.size

DESCRIPTORS: Final = 2
"""The record, and a body's file."""

RECORD_BYTES: Final = 17 << 20
"""The most that a record has (docs/queue.md: 16 MiB of payload), and some."""

_NOWHERE: Final = Place(0, 0, 0, 0)


def key_of(user: str, deliver: str) -> bytes:
    """The key of one account and one DEST as written."""
    return hashlib.sha256(f"{user}\0{deliver}".encode()).digest()


def errand(key: bytes) -> bytes:
    """The packet."""
    return _HEAD.pack(VERSION, key)


def read_errand(packet: bytes) -> bytes:
    """Its key; ValueError for what is none."""
    if len(packet) != ERRAND_BYTES:
        raise ValueError(f"an errand has {ERRAND_BYTES} bytes, not {len(packet)}")
    version, key = _HEAD.unpack(packet)
    if version != VERSION:
        raise ValueError(f"version {version} is not known")
    found: bytes = key
    return found


def answer(outcome: Outcome | Damaged) -> bytes:
    """The packet of an answer."""
    return wire.results(0, [Result(_NOWHERE, 0, outcome)])


def read_answer(packet: bytes) -> Outcome | Damaged:
    """ValueError for what is none."""
    try:
        _, results = wire.read_results(packet)
    except struct.error as error:
        raise ValueError(f"no answer: {error}") from None
    if len(results) != 1 or isinstance(results[0].outcome, Told):
        raise ValueError("an answer is one outcome, and leaves reports to the queue")
    return results[0].outcome
