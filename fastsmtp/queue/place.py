"""Where a record stands, and the line that ends a segment.  Rank 5: pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

_SEAL = struct.Struct("<QQQQ")


class Place(NamedTuple):
    """Where a record stands.  The epoch is its segment's identity, the number its name; size_bytes of the payload."""

    number: int
    epoch: int
    offset: int
    size_bytes: int


class Seal(NamedTuple):
    """A segment's end: what stands at or behind it is void; what stands before `accepted` was accepted."""

    number: int
    epoch: int
    end: int
    accepted: int

    def encode(self) -> bytes:
        return _SEAL.pack(*self)


def decode_seal(payload: bytes) -> Seal:
    """Raises ValueError for what is no seal."""
    if len(payload) != _SEAL.size:
        raise ValueError("a seal has 32 bytes")
    return Seal(*_SEAL.unpack(payload))
