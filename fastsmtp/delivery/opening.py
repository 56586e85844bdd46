"""What an earlier life left in the files of the queue: done-log, journal and index, and what they make together.

    opening = Opening(...)
    opening.look()               which files there are; none is of a later release
    found = opening.read()       all of them; tens of seconds for a million messages

Both block, and read() may run in a thread while segments and body files are
made and written to that were not there when look() looked: it opens those that
were.  Running it twice, or half of it, changes nothing (queue/reconcile.py).

Not here: what the dispatcher makes of it (owner.py).  Rank 6.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from fastsmtp import errors
from fastsmtp._glance import destinations_of
from fastsmtp._journal import Progress
from fastsmtp._payload import decode
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.done import Done, read_done
from fastsmtp.queue.index import IndexFile, Opened
from fastsmtp.queue.keeper import Destinations, is_held
from fastsmtp.queue.place import Place
from fastsmtp.queue.reconcile import Reconciled, Reconciler
from fastsmtp.queue.recovery import Recovery, recover, refuse_later
from fastsmtp.queue.store import Store


class Pending(NamedTuple):
    """A message with something left to do.

    body      number of its body file
    pending   recipients that are to be tried now;  indexed: how many others are rows of the index
    """

    place: Place
    body: int | None
    destinations: Destinations
    pending: list[int]
    indexed: int


class Found(NamedTuple):
    """What the files say.

    indexed   (number, epoch) of segments -> how many rows of the index are in them
    named     body files that records name
    """

    mail: Recovery
    log: Recovery
    done: Done
    opened: Opened
    reconciled: Reconciled
    messages: list[Pending]
    indexed: dict[tuple[int, int], int]
    named: set[int]


class Stopped(Exception):
    """stop() was called while read() was at work."""


class Opening:
    """See the module's text.  wall: seconds since 1970."""

    def __init__(
        self,
        *,
        store: Store,
        done_store: Store,
        bodies: Bodies,
        index: IndexFile,
        progress: Progress,
        wall: Callable[[], float],
    ) -> None:
        self._store = store
        self._done_store = done_store
        self._bodies = bodies
        self._index = index
        self._progress = progress
        self._wall = wall
        self._mails: list[int] = []
        self._logs: list[int] = []
        self._is_stopped = False

    def look(self) -> int:
        """Which files there are; how many bytes read() has to look at, at most.

        Raises errors.QueueTooNew, OSError.
        """
        self._bodies.count(os)
        self._logs = self._done_store.open(os)
        self._mails = self._store.open(os)
        size_bytes = self._index.refuse_later()
        for store, numbers in ((self._done_store, self._logs), (self._store, self._mails)):
            size_bytes += refuse_later(os, store, numbers)
        return size_bytes

    def stop(self) -> None:
        """From any thread: read() raises Stopped soon."""
        self._is_stopped = True

    def read(self) -> Found:
        """Raises errors.QueueTooNew, errors.StorageFull, errors.StorageFailed, OSError, Stopped.

        The index is open when this returns, and only then.
        """
        try:
            return self._read()
        except BaseException:
            self._index.close()
            raise

    def _read(self) -> Found:
        log = recover(os, self._done_store, numbers=self._logs, held=self._nobody)
        done = read_done(os, self._done_store, log)
        in_use = dict(self._progress.read(number)[1:] for number in range(self._progress.workers))
        mail = recover(
            os, self._store, numbers=self._mails, in_use=in_use, ends=done.ends, held=self._is_held
        )
        epochs = {segment.header.epoch for segment in mail.segments}
        for number in done.keep_only(epochs):
            done.forget_file(number)
            self._done_store.retire(os, number)
        opened = self._index.open()
        now_ms = int(self._wall() * 1000)
        reconciler = Reconciler(self._index, done, now_ms=now_ms, is_new=bool(opened.quarantine))
        found: list[Pending] = []
        named: set[int] = set()
        spooled: dict[Place, Pending] = {}
        kept = {segment.header.epoch: segment.kept for segment in mail.segments}
        for place, payload in mail.messages(os, self._store):
            self._go_on()
            try:
                body, destinations = destinations_of(payload)
            except ValueError as error:
                # A later layout stops the start, by name; anything else is damage.
                self._undecodable(mail, place, payload, error)
                continue
            pending = reconciler.record(
                place, len(destinations), lambda payload=payload: decode(payload),  # type: ignore[misc]
                is_copy=place.offset in kept[place.epoch],
            )  # fmt: skip
            if place.offset in kept[place.epoch]:
                pending = []
            if body is not None:
                named.add(body)
            if pending or body is not None:
                one = Pending(place, body, destinations, pending, 0)
                found.append(one)
                if body is not None:
                    spooled[place] = one
        self._bodies.refuse_later(os, named)
        reconciled = reconciler.finish(mail)
        indexed = self._index.segments()
        if spooled:
            found = self._with_indexed(found, spooled)
        return Found(mail, log, done, opened, reconciled, found, indexed, named)

    def _go_on(self) -> None:
        if self._is_stopped:
            raise Stopped

    def _is_held(self, fd: int) -> bool:
        self._go_on()
        return is_held(fd)

    def _nobody(self, fd: int) -> bool:
        """The done-log is ours alone."""
        self._go_on()
        return False

    def _undecodable(self, mail: Recovery, place: Place, payload: bytes, error: ValueError) -> None:
        try:
            decode(payload)
        except errors.QueueDamaged as damage:
            mail.fault(self._store, place, str(damage))
        else:
            mail.fault(self._store, place, str(error))

    def _with_indexed(self, found: list[Pending], spooled: dict[Place, Pending]) -> list[Pending]:
        """Messages with a body file, and how many of their recipients are in the index: it goes with the last."""
        counts: dict[tuple[int, int], int] = {}
        for number, epoch in {(place.number, place.epoch) for place in spooled}:
            for offset, _ in self._index.keys_of(number, epoch):
                counts[epoch, offset] = counts.get((epoch, offset), 0) + 1
        found = [
            one._replace(indexed=counts.get((one.place.epoch, one.place.offset), 0))
            if one.body is not None
            else one
            for one in found
        ]
        # A record and its copy name the same file: it goes with the one of them that has something left.
        needed = {one.body for one in found if one.pending or one.indexed}
        return [one for one in found if one.pending or one.indexed or one.body not in needed]
