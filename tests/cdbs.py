"""A cdb made by hand, for tests: D. J. Bernstein's format, written from its description."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def make_cdb(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    body = bytearray()
    slots: list[list[tuple[int, int]]] = [[] for _ in range(256)]
    for key, data in records:
        hashed = 5381
        for octet in key:
            hashed = (hashed << 5) + hashed & 0xFFFFFFFF ^ octet
        slots[hashed & 255].append((hashed, 2048 + len(body)))
        body += struct.pack("<II", len(key), len(data)) + key + data
    header = bytearray()
    tables = bytearray()
    for found in slots:
        size = 2 * len(found)
        header += struct.pack("<II", 2048 + len(body) + len(tables), size)
        table: list[tuple[int, int]] = [(0, 0)] * size
        for hashed, place in found:
            at = (hashed >> 8) % size
            while table[at][1]:
                at = (at + 1) % size
            table[at] = (hashed, place)
        for slot in table:
            tables += struct.pack("<II", *slot)
    return bytes(header + body + tables)
