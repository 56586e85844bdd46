"""The records of a cdb, D. J. Bernstein's constant database: what tcprules and qmail-newmrh write.

    256 pairs of u32: where a hash table begins, how many slots it has
    records: u32 length of the key, u32 length of the data, key, data
    the 256 hash tables, slots of two u32

All little-endian.  The hash is h = h * 33 ^ octet, from 5381; its low 8 bits choose the table, the rest the slot
where the search begins.  Nothing is believed: whatever the file holds, what comes out is records or one
ValueError.  The tables stand at the end, so a file that was cut is seen without a look at its records.

A reader of our own: what is on PyPI (pure-cdb) takes a file that was cut for one without the key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fastsmtp.typed import Final

_TABLES: Final = struct.Struct("<512I")
_SLOT: Final = struct.Struct("<II")
_DAMAGED: Final = "is damaged: a record lies in the hash tables"


def is_cdb(data: bytes) -> bool:
    """A text has no NUL, and the header of a cdb has nearly nothing else."""
    return b"\0" in data[: _TABLES.size]


class Cdb:
    """A cdb in memory, asked key by key: nothing is read but what a look-up needs, so opening one costs nothing."""

    __slots__ = ("_data", "_header", "_records_end", "_slots")

    def __init__(self, data: bytes) -> None:
        """ValueError with one clause when it is none, or cut."""
        if len(data) < _TABLES.size:
            raise ValueError("is no cdb, or cut: it is shorter than a cdb's header")
        header = _TABLES.unpack_from(data)
        slots = 0
        end = len(data)
        for start, count in zip(header[::2], header[1::2], strict=True):
            if start < _TABLES.size or start + count * _SLOT.size > len(data):
                raise ValueError("is damaged or cut: a hash table lies outside of the file")
            slots += count
            end = min(end, start)
        self._data = data
        self._header = header
        self._slots = slots
        self._records_end = end

    def get(self, key: bytes) -> bytes | None:
        """The data of the key's first record, None when there is none; ValueError when the file is damaged there."""
        hashed = 5381
        for octet in key:
            hashed = hashed * 33 & 0xFFFFFFFF ^ octet
        table = (hashed & 255) * 2
        start, count = self._header[table], self._header[table + 1]
        for step in range(count):
            slot = start + ((hashed >> 8) + step) % count * _SLOT.size
            found, at = _SLOT.unpack_from(self._data, slot)
            if not at:
                return None
            if found == hashed:
                record = self._record(at)
                if record[0] == key:
                    return record[1]
        return None

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and data of each record, in the order of the file; ValueError with one clause when it is damaged."""
        at = _TABLES.size
        records = 0
        while at < self._records_end:
            key, value = self._record(at)
            records += 1
            if records > self._slots:
                raise ValueError(_DAMAGED)
            yield key, value
            at += _SLOT.size + len(key) + len(value)

    def _record(self, at: int) -> tuple[bytes, bytes]:
        if at + _SLOT.size > self._records_end:
            raise ValueError(_DAMAGED)
        key_bytes, data_bytes = _SLOT.unpack_from(self._data, at)
        at += _SLOT.size
        middle = at + key_bytes
        if middle + data_bytes > self._records_end:
            raise ValueError(_DAMAGED)
        return self._data[at:middle], self._data[middle : middle + data_bytes]


def read_cdb(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All records of a cdb; ValueError with one clause when it is none, cut or damaged."""
    return Cdb(data).records()
