"""The first 64 bytes of every file of the queue; docs/queue.md has the table.

They say by whom and in which format a file was written, in every format that
there will be.  Rank 5: pure; imports errors and the checksum.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from fastsmtp import errors
from fastsmtp._record import BLOCK, crc32c

SIZE_BYTES = 64
FORMAT = 1
MAGIC = b"\x89FSQUE\r\n"

_FIELDS = struct.Struct("<8sHHIQQQQ12s")
_CHECKSUM = struct.Struct("<I")


class Purpose(IntEnum):
    """What a file is for; the numbers stand in the files."""

    MAIL = 1
    DONE = 2
    BODY = 3


class FileHeader:
    """What the 64 bytes say.

    purpose, epoch, number   identity; the number is the one in the file's name
    size_bytes               of a segment; 0 in a body
    made_ms                  milliseconds since 1970
    writer                   version of the program that wrote the file
    """

    __slots__ = ("epoch", "made_ms", "number", "purpose", "size_bytes", "writer")

    def __init__(
        self, purpose: Purpose, epoch: int, number: int, size_bytes: int, made_ms: int, writer: str
    ) -> None:
        self.purpose = purpose
        self.epoch = epoch
        self.number = number
        self.size_bytes = size_bytes
        self.made_ms = made_ms
        self.writer = writer

    def encode(self) -> bytes:
        block = 0 if self.purpose is Purpose.BODY else BLOCK
        fields = _FIELDS.pack(
            MAGIC, FORMAT, self.purpose, block, self.epoch, self.number, self.size_bytes, self.made_ms,
            self.writer.encode("ascii", "replace")[:12],
        )  # fmt: skip
        return fields + _CHECKSUM.pack(crc32c(fields))


def read_header(data: bytes, name: str, purpose: Purpose, running: str) -> FileHeader:
    """The header in the first bytes of the file `name`, read by version `running`.

    Raises errors.QueueTooNew for a later format, errors.QueueDamaged for everything else that is wrong.
    """
    head = data[:SIZE_BYTES]
    if len(head) < SIZE_BYTES:
        raise errors.QueueDamaged(f"{name}: shorter than its header")
    if head[:8] != MAGIC:
        raise errors.QueueDamaged(f"{name}: not a file of the queue")
    if _CHECKSUM.unpack(head[-4:])[0] != crc32c(head[:-4]):
        raise errors.QueueDamaged(f"{name}: the checksum of its header is wrong")
    _, version, found, _, epoch, number, size_bytes, made_ms, padded = _FIELDS.unpack(head[:-4])
    writer = padded.rstrip(b"\0").decode("ascii", "replace")
    if version > FORMAT:
        raise errors.QueueTooNew(
            f"{name}: written by fastsmtp {writer} in format {version}; "
            f"this is fastsmtp {running}, which reads formats up to {FORMAT}"
        )
    if found != purpose:
        raise errors.QueueDamaged(f"{name}: its purpose is {found}, not {purpose.value}")
    if not epoch:
        raise errors.QueueDamaged(f"{name}: it has no epoch")
    return FileHeader(purpose, epoch, number, size_bytes, made_ms, writer)
