"""A queue on a real disk, as a stopped server leaves it: messages in a journal, rows in the index."""

from __future__ import annotations

import asyncio
import os
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

from fastsmtp import _record
from fastsmtp._journal import Writer
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.done import Done, DoneLog, Outcome
from fastsmtp.queue.fileheader import Purpose
from fastsmtp.queue.index import NAME, IndexFile
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.model import Origins, QueuedMessage, encode
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Row
from fastsmtp.queue.store import Store

ACCEPTED_MS = 1_800_000_000_000
BODY = b"From: joe@sender.example\r\nSubject: a question\r\n\r\nHello,\r\nwhen?\r\n"


def message(
    id: str,
    *to: str,
    sender: str = "joe@sender.example",
    body: bytes = BODY,
    deliver: str = "smtp://127.0.0.1:1",
) -> QueuedMessage:
    recipients = [
        Recipient(one.encode(), one.rpartition("@")[2].encode(), deliver=deliver)
        for one in to or ("ann@there.example",)
    ]
    envelope = Envelope(sender.encode(), sender.rpartition("@")[2].encode(), recipients=recipients)
    origins = Origins(address="192.0.2.9", name="client.example", helo=b"client", listener="mx")
    return QueuedMessage(id, ACCEPTED_MS, envelope, origins, b"Received: by us\r\n", (body,), len(body))


def store_of(directory: pathlib.Path, purpose: Purpose = Purpose.MAIL) -> Store:
    return Store(
        str(directory),
        purpose=purpose,
        size_bytes=131_072,
        version="0.1.0",
        wall=time.time,
        random=os.urandom,
    )


def fill(
    state: pathlib.Path,
    messages: Sequence[QueuedMessage],
    *,
    over: Iterable[tuple[int, int, Outcome]] = (),
) -> list[Place]:
    """Write them as a server would; over: (which message, which recipient, how) for the done-log."""
    queue = state / "queue"
    (queue / "bodies").mkdir(parents=True, mode=0o700, exist_ok=True)

    async def work() -> list[Place]:
        loop = asyncio.get_running_loop()
        journals = []
        for purpose, kind in ((Purpose.MAIL, _record.MESSAGE), (Purpose.DONE, _record.DONE)):
            store = store_of(queue, purpose)
            store.open(os)
            writer: Writer[Any] = Writer()
            journal = Journal(
                LocalSource(store, InlineDisk()), loop=loop, clock=time.monotonic, writer=writer, kind=kind
            )
            await journal.start()
            journals.append(journal)
        places = [await journals[0].append(encode(one)) for one in messages]
        log = DoneLog(journals[1], Done(), loop=loop, clock=time.monotonic, report=lambda error: None)
        for number, recipient, outcome in over:
            log.add(places[number], recipient, outcome)
        await log.flush()
        for journal in journals:
            await journal.close()
        return places

    return asyncio.run(work())


def index_rows(state: pathlib.Path, rows: Sequence[Row]) -> None:
    file = IndexFile(str(state / "queue" / NAME), version="0.1.0")
    file.open()
    with file.transaction():
        file.put(rows)
    file.close()
