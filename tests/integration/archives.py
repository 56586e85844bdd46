"""Queues of tests/data/queue, each as a crash left it, put where a server can be started on them.

Their mail goes to a port of 127.0.0.1.  So that two runs on one machine don't meet there each takes a port of its own:
it is written over the archive's, which has as many digits, and what is summed over it is summed again.  All else stays
octet by octet as that release left it.

Only the standard library: .ci/upgrade.py runs this with nothing else of the tree.
"""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

PORT = 25_093
"""In every archive: queue_archive.py."""

_HEADER_BYTES = 32
_MAGIC = b"\x89rec"


def unpack(archive: Path, state: Path, port: int) -> None:
    """The queue of an archive below the state directory, its mail for this port, which has five digits."""
    old, new = (b"127.0.0.1:%d" % number for number in (PORT, port))
    if len(old) != len(new):
        raise ValueError(f"{port} has not five digits")
    with tarfile.open(archive) as file:
        # By hand: extractall() of Python 3.11 knows no filter, and that of 3.14 wants one.
        for member in file.getmembers():
            path = state / member.name
            if member.isdir():
                path.mkdir(member.mode)
            elif found := file.extractfile(member):
                path.write_bytes(_moved(path.name, bytearray(found.read()), old, new))
                path.chmod(member.mode)


def _moved(name: str, data: bytearray, old: bytes, new: bytes) -> bytearray:
    places = []
    at = data.find(old)
    while at >= 0:
        data[at : at + len(new)] = new
        places.append(at)
        at = data.find(old, at)
    if places and name.startswith("mail-"):
        for record in {data.rindex(_MAGIC, 0, place) for place in places}:
            _sum_record(data, record)
    elif places and name.endswith("-wal"):
        _sum_wal(data)
    return data


def _sum_record(data: bytearray, at: int) -> None:
    """docs/queue.md, "Records": CRC-32C of the header but for itself, and of the payload."""
    (size,) = struct.unpack_from("<I", data, at + 4)
    summed = data[at : at + _HEADER_BYTES - 4] + data[at + _HEADER_BYTES : at + _HEADER_BYTES + size]
    crc = 0xFFFF_FFFF
    for byte in summed:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    struct.pack_into("<I", data, at + _HEADER_BYTES - 4, crc ^ 0xFFFF_FFFF)


def _sum_wal(data: bytearray) -> None:
    """SQLite's file format, section 4.2: each frame has the sum of all that stands before it in frames."""
    words = "<2I" if data[3] == 0x82 else ">2I"
    (page_bytes,) = struct.unpack_from(">I", data, 8)
    first, second = struct.unpack_from(">2I", data, 24)
    for at in range(32, len(data) - 24 - page_bytes + 1, 24 + page_bytes):
        for one, two in struct.iter_unpack(words, data[at : at + 8] + data[at + 24 : at + 24 + page_bytes]):
            first = first + one + second & 0xFFFF_FFFF
            second = second + two + first & 0xFFFF_FFFF
        struct.pack_into(">2I", data, at + 16, first, second)
