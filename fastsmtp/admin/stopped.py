"""The queue of a stopped server as the operator sees it: its state directory, with the server's lock taken.

    with StoppedQueue(state, version=...) as queue:
        for entries in queue.entries(Filter(), ""): ...

It does what a start does with journal, done-log and index, and puts whatever
is unfinished into the index; so all that the operator wants is a change of
rows, which the next start finds.  As root, it becomes the queue's owner first:
nothing here is left behind that the server can't open.  Rank 9.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from fastsmtp import errors
from fastsmtp._payload import decode
from fastsmtp.admin.protocol import ENTRIES, STATES, Entry, brief_entries, description
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.done import read_done
from fastsmtp.queue.fileheader import Purpose
from fastsmtp.queue.index import NAME, IndexFile
from fastsmtp.queue.model import BodyReference, QueuedMessage
from fastsmtp.queue.place import Place
from fastsmtp.queue.reconcile import Reconciler
from fastsmtp.queue.recovery import Fault, read_record, recover
from fastsmtp.queue.row import Filter, Row, State, row_of
from fastsmtp.queue.spool import Cutter
from fastsmtp.queue.store import DONE_SEGMENT_BYTES, Store
from fastsmtp.supervisor.statefile import PidFile

# Rows put into the index at a time.
ADOPTED = 10_000

_STATES = {"deferred": State.DUE, "held": State.HELD, "bouncing": State.BOUNCE, "deleting": State.DELETE}


class StoppedQueue:
    """See the module's text.

    faults   what was damaged, for the operator
    lost     recipients that waited, and whose message was in what is damaged
    Raises errors.ConfigError when a server has the state directory, when there is no queue, or when it is
    not ours to read; errors.QueueTooNew.
    """

    def __init__(self, state: str, *, version: str) -> None:
        self._directory = f"{state}/queue"
        try:
            owner = os.stat(self._directory)
        except OSError as error:
            raise errors.ConfigError(f"{self._directory}: {error.strerror}: there is no queue") from None
        if owner.st_uid != os.geteuid() and os.geteuid() != 0:
            raise errors.ConfigError(
                f"{self._directory}: permission denied; the queue is for root and the account it belongs to"
            )
        self._lock = PidFile(state)
        try:
            if os.geteuid() == 0 and owner.st_uid != 0:
                os.setegid(owner.st_gid)
                os.seteuid(owner.st_uid)
            self._open(version)
        except BaseException:
            self._unlock()
            raise

    def _open(self, version: str) -> None:
        options: dict[str, Any] = {"version": version, "wall": time.time, "random": os.urandom}
        self._store = Store(self._directory, **options)
        self._bodies = Bodies(f"{self._directory}/bodies", **options)
        done_store = Store(self._directory, purpose=Purpose.DONE, size_bytes=DONE_SEGMENT_BYTES, **options)
        self._file = IndexFile(f"{self._directory}/{NAME}", version=version)
        try:
            done_found = recover(os, done_store)
            done = read_done(os, done_store, done_found)
            found = recover(os, self._store, ends=done.ends)
            opened = self._file.open()
            now_ms = int(time.time() * 1000)
            reconciler = Reconciler(self._file, done, now_ms=now_ms, is_new=bool(opened.quarantine))
            # Records that count only where the index names them.
            kept = {(one.header.epoch, offset) for one in found.segments for offset in one.kept}
            pending: list[Row] = []
            for place, payload in found.messages(os, self._store):
                try:
                    message = decode(payload)
                except errors.QueueDamaged as error:
                    found.fault(self._store, place, str(error))
                    continue
                count = len(message.envelope.recipients)
                is_copy = (place.epoch, place.offset) in kept
                now = reconciler.record(place, count, partial(_given, message), is_copy=is_copy)
                pending += [row_of(place, message, recipient, next_ms=now_ms) for recipient in now]
                if len(pending) >= ADOPTED:
                    self._adopt(pending)
            self.lost = reconciler.finish(found).lost
            self._adopt(pending)
        except OSError as error:
            self._file.close()
            raise errors.ConfigError(f"{error.filename or self._directory}: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise
        self.faults: list[Fault] = [*done_found.faults, *found.faults]

    def _adopt(self, rows: list[Row]) -> None:
        with self._file.transaction():
            self._file.put(rows)
        rows.clear()

    def close(self) -> None:
        self._file.close()
        self._unlock()

    def _unlock(self) -> None:
        if os.getuid() == 0 != os.geteuid():
            os.seteuid(0)
            os.setegid(0)
        self._lock.remove()

    def entries(self, filter: Filter, state: str) -> Iterator[list[Entry]]:
        if state and state not in _STATES:
            # Nothing is active, and nobody waits for a connection.
            return
        filter = filter._replace(state=_STATES.get(state))
        after = 0
        while True:
            rows, after = self._file.brief(filter, after, ENTRIES)
            yield brief_entries(rows)
            if not after:
                return

    def act(self, action: str, filter: Filter) -> int:
        now_ms = int(time.time() * 1000)
        count, after = 0, 0
        while True:
            with self._file.transaction():
                changed, after = self._act(action, filter, now_ms, after)
            count += changed
            if not after:
                return count

    def _act(self, action: str, filter: Filter, now_ms: int, after: int) -> tuple[int, int]:
        match action:
            case "hold":
                return self._file.hold(filter, after)
            case "release":
                return self._file.release(filter, now_ms, after)
            case "flush":
                return self._file.flush(filter, now_ms, after)
            case "delete":
                return self._file.condemn(filter, State.DELETE, now_ms, after)
            case _:
                return self._file.condemn(filter, State.BOUNCE, now_ms, after)

    def describe(self, id: str) -> dict[str, Any] | None:
        message = self._read(id)
        return None if message is None else description(message)

    def message(self, id: str) -> Iterator[bytes]:
        message = self._read(id)
        if message is None:
            return
        yield message.prefix
        if not isinstance(message.body, BodyReference):
            yield from message.body
            return
        pieces = self._bodies.pieces(os, message.body, message.body_bytes)
        yield from filter_cuts(pieces, message) if message.cuts else pieces

    def counts(self) -> dict[str, int]:
        found = self._file.counts()
        none = dict.fromkeys(STATES[:2], 0)
        return {**none, "deferred": found.due, "held": found.held, "messages": found.messages}

    def _read(self, id: str) -> QueuedMessage | None:
        page = self._file.find(Filter(ids=(id,)), limit=1)
        return None if not page.rows else self._message(page.rows[0].place)

    def _message(self, place: Place) -> QueuedMessage:
        name = self._store.path(place.number)
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.closing(os.fdopen(fd, "rb", buffering=0)):
            return decode(read_record(os, fd, place, name))

    def __enter__(self) -> StoppedQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def filter_cuts(pieces: Iterator[bytes], message: QueuedMessage) -> Iterator[bytes]:
    """The body without the header fields that were cut out of it."""
    return filter(None, map(Cutter(message.cuts).take, pieces))


def _given(message: QueuedMessage) -> QueuedMessage:
    return message
