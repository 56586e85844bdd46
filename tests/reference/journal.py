"""The journal's records as docs/queue.md has them, in a few slow lines."""

from __future__ import annotations

import struct

HEADER = struct.Struct("<4sIQIIB3x")
MAGIC = b"\x89rec"


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record(epoch: int, offset: int, batch: int, kind: int, payload: bytes) -> bytes:
    """One record with the zeros behind it."""
    head = HEADER.pack(MAGIC, len(payload), epoch, offset, batch, kind)
    whole = head + struct.pack("<I", crc32c(head + payload)) + payload
    return whole + bytes(-len(whole) % 8)


def payload_at(image: bytes, epoch: int, offset: int) -> bytes | None:
    """The payload of the record at an offset, None when it isn't whole."""
    head = image[offset : offset + HEADER.size]
    if len(head) < HEADER.size:
        return None
    magic, length, found, place, batch, kind = HEADER.unpack(head)
    payload = image[offset + 32 : offset + 32 + length]
    if (
        (magic, found, place, len(payload)) != (MAGIC, epoch, offset, length)
        or not 1 <= kind <= 4
        or batch > place
    ):
        return None
    (crc,) = struct.unpack_from("<I", image, offset + HEADER.size)
    return payload if crc == crc32c(head + payload) else None


def whole(image: bytes, epoch: int, written: dict[int, bytes]) -> dict[int, bytes]:
    """Those of the records written that can be read."""
    return {
        offset: payload for offset in written if (payload := payload_at(image, epoch, offset)) is not None
    }
