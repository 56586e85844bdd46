"""A process that writes to a journal as a worker does, and says on its standard output what is accepted.

    python journal_process.py DIRECTORY [--count N] [--seed N] [--without SYNC]

One line for each message, written when it is accepted and not before:

    ack NAME NUMBER OFFSET SIZE BODY        BODY is the number of its body file, or -

Runs until it is killed, or has sent --count messages from each of its senders.  --without leaves one kind of
sync out, so that a test can show that leaving it out is noticed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import time
from typing import Any

from fastsmtp import _journal, _record
from fastsmtp.queue.bodies import Bodies, BodyFile
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.fileheader import SIZE_BYTES
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.recovery import recover
from fastsmtp.queue.store import Store

SENDERS = 20
SEGMENT_BYTES = 262_144

# What --without leaves out, by the name of the file.
SYNCS = {
    "batch": "/mail-",
    "segment": "/new-",
    "directory": "/queue",
    "body": "/bodies/",
    "bodies": "/bodies",
}


class Forgetful:
    """os, but for the syncs of some files, which only seem to be done."""

    def __init__(self, what: str) -> None:
        self._what = SYNCS[what]
        self._is_directory = not self._what.endswith(("-", "/"))
        # As they are now: forgetful.py puts ours in their place.
        self._fsync, self._fdatasync = os.fsync, os.fdatasync

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _is_forgotten(self, fd: int) -> bool:
        path = os.readlink(f"/proc/self/fd/{fd}")
        return path.endswith(self._what) if self._is_directory else self._what in path

    def fsync(self, fd: int) -> None:
        if not self._is_forgotten(fd):
            self._fsync(fd)

    def fdatasync(self, fd: int) -> None:
        if not self._is_forgotten(fd):
            self._fdatasync(fd)


def queue_store(directory: str) -> Store:
    return Store(
        directory, size_bytes=SEGMENT_BYTES, spare=4, version="0.1.0", wall=time.time, random=os.urandom
    )


def queue_bodies(directory: str) -> Bodies:
    return Bodies(f"{directory}/bodies", version="0.1.0", wall=time.time, random=os.urandom)


def content(name: str, size: int) -> bytes:
    """Says its own name and checksum, so that a torn one is known."""
    text = f"{name} ".encode() + random.Random(name).randbytes(size)
    return hashlib.sha256(text).digest() + text


def is_whole(data: bytes, name: str) -> bool:
    return hashlib.sha256(data[32:]).digest() == data[:32] and data[32:].startswith(f"{name} ".encode())


def body_name(name: str, number: int, epoch: int, crc: int, size: int) -> bytes:
    """A record whose body is in a file of its own."""
    text = f"{name} body {number} {epoch} {crc} {size}".encode()
    return hashlib.sha256(text).digest() + text


async def send(
    journal: Journal, sender: int, count: int | None, seed: int, spooled: list[BodyFile], system: Any
) -> None:
    dice = random.Random(f"{seed} {sender}")
    turn = 0
    while count is None or turn < count:
        name = f"{seed}.{sender}.{turn}"
        turn += 1
        if spooled and dice.random() < 0.02:
            file = spooled.pop()
            text = content(name, 70_000)
            system.pwrite(file.fd, text, SIZE_BYTES)
            record = body_name(name, file.number, file.epoch, _record.crc32c(text), len(text))
            future = journal.append([record], file.fd)
            os.close(file.fd)
            body = str(file.number)
        else:
            record = content(name, dice.choice((20, 400, 1_500)))
            future = journal.append([record[:40], record[40:]])
            body = "-"
        place = await future
        os.write(1, f"ack {name} {place.number} {place.offset} {len(record)} {body}\n".encode())


async def main(options: argparse.Namespace) -> None:
    system = Forgetful(options.without) if options.without else os
    store, disk = queue_store(options.directory), ThreadDisk(system)
    recovery = recover(os, store)
    loop = asyncio.get_running_loop()
    writer: Any = _journal.Writer(system=system if options.without else None)
    journal = Journal(
        LocalSource(store, disk), loop=loop, clock=time.monotonic, writer=writer, seals=recovery.seals
    )
    await journal.start()
    spooled = queue_bodies(options.directory).make(system, 20)
    await asyncio.gather(
        *(send(journal, number, options.count, options.seed, spooled, system) for number in range(SENDERS))
    )
    await journal.close()
    disk.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", choices=SYNCS)
    asyncio.run(main(parser.parse_args()))
