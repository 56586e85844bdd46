"""Records of the journal: their checksum, and how they are found again.  docs/queue.md has the format.

Offsets, sizes and lengths are bytes.
"""

from typing import Final

MESSAGE: Final[int]  # kinds of records
SEAL: Final[int]
END: Final[int]
DONE: Final[int]
KEPT: Final[int]  # a message that the deferred index names, and nothing else: copied out of a segment with little left
HEADER_BYTES: Final[int]  # 32, before each payload
BLOCK: Final[int]  # 4096: where batches begin
MAX_PAYLOAD: Final[int]  # 16 MiB

def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """CRC32C (Castagnoli) of the data; `value` is that of what came before it."""

def crc32c_by_table(data: bytes, value: int = 0) -> int:
    """The same as it is computed where the processor has no instruction for it."""

def scan(data: bytes, *, base: int, epoch: int, start: int, at_batch: bool = True) -> tuple[list[tuple[int, int, int, int]], int, bool, int]:
    """Read records one behind the other, from the segment's offset `start`; data begins at its offset `base`.

    at_batch   what stands at `start` must begin a batch

    Gives (records, offset, at_batch, wanted).  A record is (kind, offset, length of the payload, offset of its batch);
    end records are among them.  `offset` and `at_batch` are where it stopped: with wanted > 0 so many bytes are
    needed from there, with 0 there is no valid record.
    """

def holds(data: bytes, epoch: int, offset: int) -> bool:
    """Whether data is one record of this segment and place, from its header to the end of its payload, and whole."""

def find(data: bytes, *, base: int, epoch: int, start: int) -> int:
    """Offset of the first header at or behind `start` that may be a record's, -1 for none; its checksum is not looked at."""
