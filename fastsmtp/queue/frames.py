"""What an SMTP worker and the owner of the queue say to each other; docs/queue.md, "The workers' line".

Few words and fixed fields: a worker can ask for files to write to and say what
it is done with, and nothing else.  The first packet names the version.  Rank 5: pure.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

VERSION = 1

# The first byte of a packet.
HELLO = 1
WANT_SEGMENT = 2
WANT_BODIES = 3
RELEASED = 4
UNUSED = 5
LOOK = 6
SEGMENT = 7
BODIES = 8
REFUSED = 9

_HELLO = struct.Struct("<BHBII")
_WANT = struct.Struct("<BI")
_RELEASED = struct.Struct("<BQQQ")
_UNUSED = struct.Struct("<BQ")
_SEGMENT = struct.Struct("<BIQQQ")
_BODY = struct.Struct("<QQ")
_REFUSED = struct.Struct("<BI?")

LOOK_PACKET = bytes((LOOK,))


class Role(IntEnum):
    """Who calls."""

    WORKER = 1
    SHARD = 2


class Hello(NamedTuple):
    """number: the worker's place in the shared progress, or the shard's number; of: how many shards there are."""

    version: int
    role: Role
    number: int
    of: int


class Released(NamedTuple):
    """The segment gets no further record; `end` is synced."""

    number: int
    epoch: int
    end: int


class Given(NamedTuple):
    """A segment to write to; its descriptor comes along."""

    request: int
    number: int
    epoch: int
    size_bytes: int


def hello(role: Role, number: int, of: int = 0) -> bytes:
    return _HELLO.pack(HELLO, VERSION, role, number, of)


def read_hello(packet: bytes) -> Hello:
    """Raises ValueError for anything else."""
    try:
        word, version, role, number, of = _HELLO.unpack(packet)
    except struct.error:
        raise ValueError("the first packet is no greeting") from None
    if word != HELLO:
        raise ValueError("the first packet is no greeting")
    if version != VERSION:
        raise ValueError(f"speaks version {version}, and this is version {VERSION}")
    return Hello(version, Role(role), number, of)


def want_segment(request: int) -> bytes:
    return _WANT.pack(WANT_SEGMENT, request)


def want_bodies(request: int) -> bytes:
    return _WANT.pack(WANT_BODIES, request)


def read_want(packet: bytes) -> int:
    request: int = _WANT.unpack(packet)[1]
    return request


def released(number: int, epoch: int, end: int) -> bytes:
    return _RELEASED.pack(RELEASED, number, epoch, end)


def read_released(packet: bytes) -> Released:
    return Released(*_RELEASED.unpack(packet)[1:])


def unused(number: int) -> bytes:
    """A body file that no record names."""
    return _UNUSED.pack(UNUSED, number)


def read_unused(packet: bytes) -> int:
    number: int = _UNUSED.unpack(packet)[1]
    return number


def segment(request: int, number: int, epoch: int, size_bytes: int) -> bytes:
    return _SEGMENT.pack(SEGMENT, request, number, epoch, size_bytes)


def read_segment(packet: bytes) -> Given:
    return Given(*_SEGMENT.unpack(packet)[1:])


def bodies(request: int, files: list[tuple[int, int]]) -> bytes:
    """(number, epoch) of each; their descriptors come along in this order."""
    return _WANT.pack(BODIES, request) + b"".join(_BODY.pack(*file) for file in files)


def read_bodies(packet: bytes) -> tuple[int, list[tuple[int, int]]]:
    request: int = _WANT.unpack_from(packet)[1]
    return request, list(_BODY.iter_unpack(packet[_WANT.size :]))


def refused(request: int, *, is_full: bool) -> bytes:
    """There is no segment, or no body file; is_full: for want of room."""
    return _REFUSED.pack(REFUSED, request, is_full)


def read_refused(packet: bytes) -> tuple[int, bool]:
    _, request, is_full = _REFUSED.unpack(packet)
    return request, is_full
