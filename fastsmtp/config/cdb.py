"""The records of a cdb, D. J. Bernstein's constant database: what tcprules and qmail-newmrh write.

    256 pairs of u32: where a hash table begins, how many slots it has
    records: u32 length of the key, u32 length of the data, key, data
    the 256 hash tables, slots of two u32

All little-endian.  We read all records once, at start and when the file changes, and look up in a dict: so the
hash tables only tell where the records end.  Nothing is believed: whatever the file holds, what comes out is
its records or one ValueError.

A reader of our own: what is on PyPI (pure-cdb) looks single keys up, and takes a file that was cut for one
without the key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

_TABLES: Final = struct.Struct("<512I")
_LENGTHS: Final = struct.Struct("<II")
_SLOT_BYTES: Final = 8


def is_cdb(data: bytes) -> bool:
    """A text has no NUL, and the header of a cdb has nearly nothing else."""
    return b"\0" in data[: _TABLES.size]


def read_cdb(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and data of each record, in the order of the file; ValueError with one clause when it is damaged."""
    if len(data) < _TABLES.size:
        raise ValueError("is no cdb, or cut: it is shorter than a cdb's header")
    header = _TABLES.unpack_from(data)
    slots = 0
    end = len(data)
    for start, count in zip(header[::2], header[1::2], strict=True):
        if start < _TABLES.size or start + count * _SLOT_BYTES > len(data):
            raise ValueError("is damaged or cut: a hash table lies outside of the file")
        slots += count
        end = min(end, start)
    at = _TABLES.size
    records = 0
    while at < end:
        if at + _LENGTHS.size > end:
            raise ValueError("is damaged: a record lies in the hash tables")
        key_bytes, data_bytes = _LENGTHS.unpack_from(data, at)
        at += _LENGTHS.size
        middle = at + key_bytes
        following = middle + data_bytes
        records += 1
        if following > end or records > slots:
            raise ValueError("is damaged: a record lies in the hash tables")
        yield data[at:middle], data[middle:following]
        at = following
