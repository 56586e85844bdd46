"""The power fails between journal, done-log and index, anywhere: nothing accepted is lost, nothing held goes out.

Seeded runs as in test_journal_crash.py, with the index beside the journal.  A
commit of the index is one step, which is SQLite's promise: a cut within it finds
the database before it or after it.  The index and the done-log are written in
either order.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from fastsmtp import _journal, _record
from fastsmtp._payload import decode
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.done import DoneLog, Outcome, read_done
from fastsmtp.queue.fileheader import Purpose
from fastsmtp.queue.index import IndexFile, Opened
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.model import Origins, QueuedMessage, encode
from fastsmtp.queue.place import Place
from fastsmtp.queue.reconcile import Reconciled, Reconciler
from fastsmtp.queue.recovery import recover
from fastsmtp.queue.row import Filter, Key, Row, State, row_of
from fastsmtp.queue.store import Store
from tests.fakes.files import Files, Tree, images

QUEUE = "/queue"
NOW = 1_800_000_000_000


class MemoryIndex(IndexFile):
    """The database in memory; committed() is told of each commit before and after it."""

    def __init__(self, image: bytes = b"", committed: Any = None) -> None:
        super().__init__("/queue/deferred", version="0.1.0")
        self._image = image
        self._committed = committed

    def open(self) -> Opened:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        if self._image:
            self._connection.deserialize(self._image)
        else:
            self._connection.execute("PRAGMA page_size = 512")
            self._migrate(0)
        return Opened()

    def commit(self, work: Any, *arguments: Any) -> Any:
        with self.transaction():
            found = work(*arguments)
        after = self._db.serialize()
        if self._committed is not None:
            self._committed("committing", after)
            self._committed("committed", after)
        return found


def stores(dice: random.Random) -> tuple[Store, Store]:
    common: dict[str, Any] = {"version": "0.1.0", "wall": lambda: NOW / 1000, "random": dice.randbytes}
    return (
        Store(QUEUE, size_bytes=32_768, spare=2, **common),
        Store(QUEUE, purpose=Purpose.DONE, size_bytes=16_384, **common),
    )


def message(name: str, recipients: int) -> QueuedMessage:
    to = [Recipient(b"r%d@there.example" % at, b"there.example") for at in range(recipients)]
    return QueuedMessage(name, NOW, Envelope(b"a@b.example", b"b.example", recipients=to), Origins(address=""),
                         b"", (b"body\r\n",), 6)  # fmt: skip


class Life:
    """Messages come in; each recipient is delivered, deferred, held or deleted, some of them again and again."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.files = Files()
        self.files.mkdir(QUEUE)
        self.index = MemoryIndex(committed=self.files.mark)
        self.names: dict[Key, str] = {}
        self.waiting: dict[Key, Row] = {}
        self.indexed: set[Key] = set()
        self.operated: set[Key] = set()

    async def live(self, steps: int) -> list[tuple[Any, ...]]:
        loop = asyncio.get_running_loop()
        self.index.open()
        self.index.commit(lambda: None)
        writers: list[Any] = [_journal.Writer(system=self.files, is_threaded=False) for _ in range(2)]
        journals = []
        for store, writer, kind in zip(
            stores(self.dice), writers, (_record.MESSAGE, _record.DONE), strict=True
        ):
            recover(self.files, store)
            source = LocalSource(store, InlineDisk(self.files))
            journals.append(Journal(source, loop=loop, clock=lambda: 0.0, writer=writer, kind=kind))
            await journals[-1].start()
        done_found = recover(Files(self.files.tree), stores(self.dice)[1])
        done = read_done(self.files, stores(self.dice)[1], done_found)
        self.log = DoneLog(journals[1], done, loop=loop, clock=lambda: 0.0, report=lambda error: None)

        async def step() -> None:
            for writer, journal in zip(writers, journals, strict=True):
                writer.step()
                journal.reap()
            for _ in range(4):
                await asyncio.sleep(0)

        told: list[asyncio.Task[None]] = []
        for number in range(steps):
            what = self.dice.random()
            if what < 0.25:
                told.append(loop.create_task(self._accept(journals[0], f"m{number}")))
            elif what < 0.85 and self.waiting:
                self._attempt()
            elif what < 0.95 and self.waiting:
                self._operate()
            else:
                flushed = loop.create_task(self.log.flush())
                while not flushed.done():
                    await step()
                self.files.mark("remembered")
            await asyncio.sleep(0)
            if self.dice.random() < 0.6:
                await step()
        for _ in range(6):
            await step()
        await asyncio.gather(*told)
        for task in (self.log.flush(), journals[0].close(), journals[1].close()):
            closing = loop.create_task(task)
            while not closing.done():
                await step()
        self.index.close()
        return self.files.trace

    async def _accept(self, journal: Journal, name: str) -> None:
        made = message(name, self.dice.randrange(1, 4))
        place = await journal.append(encode(made))
        for recipient in range(len(made.envelope.recipients)):
            row = row_of(place, made, recipient, next_ms=NOW)
            self.waiting[row.key] = row
            self.names[row.key] = f"{name}.{recipient}"
            self.files.mark("accepted", self.names[row.key])

    def _attempt(self) -> None:
        key = self.dice.choice(list(self.waiting))
        if key in self.operated:
            return
        row, name = self.waiting[key], self.names[key]
        place = row.place
        if self.dice.random() < 0.4:
            self.files.mark("delivered", name)
            del self.waiting[key]
            self._both(
                lambda: self.log.add(place, key.recipient, Outcome.DELIVERED),
                lambda: self.index.commit(self.index.remove, [key]) if key in self.indexed else None,
            )
            return
        self.waiting[key] = row = row._replace(attempts=row.attempts + 1, next_ms=NOW + 1_000)
        self._both(
            lambda: self.log.add(place, key.recipient, Outcome.DEFERRED),
            lambda: self.index.commit(self.index.put, [row]),
        )
        self.indexed.add(key)
        self.files.mark("deferred", name, row.attempts)

    def _both(self, *steps: Any) -> None:
        """In either order: the done-log's entry is only on its way when this comes back."""
        for step in self.dice.sample(steps, len(steps)):
            step()

    def _operate(self) -> None:
        key = self.dice.choice(list(self.waiting))
        if key in self.operated:
            return
        state = self.dice.choice((State.HELD, State.BOUNCE, State.DELETE))
        row = self.waiting[key]
        self.index.commit(self.index.pin, [row._replace(state=state)])
        self.indexed.add(key)
        self.operated.add(key)
        # Only now it is answered.
        self.files.mark("operated", self.names[key], state)


def started(
    tree: Tree, image: bytes, *, is_lost: bool = False
) -> tuple[set[str], dict[str, Row], Reconciled, bytes]:
    """What a start makes of it: names that are tried now, rows by name, the report, and the index afterwards."""
    files = Files(tree)
    mail, done_store = stores(random.Random(5))
    done = read_done(files, done_store, recover(files, done_store))
    recovery = recover(files, mail, ends=done.ends)
    index = MemoryIndex(b"" if is_lost else image)
    index.open()
    reconciler = Reconciler(index, done, now_ms=NOW + 5, is_new=is_lost)
    now: set[str] = set()
    names: dict[tuple[Place, int], str] = {}
    for place, payload in recovery.messages(files, mail):
        found = decode(payload)
        for recipient in range(len(found.envelope.recipients)):
            names[place, recipient] = f"{found.id}.{recipient}"
        for recipient in reconciler.record(
            place,
            len(found.envelope.recipients),
            lambda found=found: found,  # type: ignore[misc]
        ):
            now.add(f"{found.id}.{recipient}")
    report = reconciler.finish(recovery)
    rows = {names[row.place, row.recipient]: row for row in index.find(Filter(), limit=10_000).rows}
    after = index._db.serialize()
    index.close()
    return now, rows, report, after


def cuts(seed: int, steps: int = 70) -> Iterator[tuple[int, list[tuple[Any, ...]], Tree, bytes]]:
    dice = random.Random(seed)
    trace = asyncio.run(Life(seed).live(steps))
    for count, marks, tree in images(trace, dice):
        image = b""
        for mark in marks:
            if mark[0] == "committed" or (mark[0] == "committing" and dice.random() < 0.5):
                image = mark[1]
        if image:
            yield count, marks, tree, image


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_nothing_is_lost_or_let_go_wherever_the_power_fails(seed: int) -> None:
    for count, marks, tree, image in cuts(seed):
        now, rows, report, after = started(tree.copy(), image)
        accepted = {mark[1] for mark in marks if mark[0] == "accepted"}
        delivered = {mark[1] for mark in marks if mark[0] == "delivered"}
        lost = accepted - delivered - now - rows.keys()
        assert not lost, f"step {count}: {lost} have no next event"
        assert not now & rows.keys(), f"step {count}: would be tried twice"
        assert not report.lost_count, f"step {count}: a row without a record"
        attempts = {mark[1]: mark[2] for mark in marks if mark[0] == "deferred"}
        operated = {mark[1]: mark[2] for mark in marks if mark[0] == "operated"}
        for name, made in attempts.items():
            if name in rows and name not in delivered:
                assert rows[name].attempts >= made, f"step {count}: {name} forgot an attempt"
        for name, state in operated.items():
            assert rows[name].state is state, f"step {count}: {name} was {state.name}"
        remembered = [at for at, mark in enumerate(marks) if mark[0] == "remembered"]
        if remembered:
            over = {mark[1] for mark in marks[: remembered[-1]] if mark[0] == "delivered"}
            assert not over & (now | rows.keys()), (
                f"step {count}: comes again, though the done-log was synced"
            )
        # A start that stops half-way, or comes again, finds the same.
        again = started(tree.copy(), after)
        assert (again[0], again[1], again[2].waiting) == (now, rows, report.waiting)
        assert again[2].adopted == again[2].finished == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16, 20))
def test_an_index_that_is_lost_is_made_anew_and_nothing_with_it(seed: int) -> None:
    for count, marks, tree, image in cuts(seed, steps=40):
        now, rows, report, _ = started(tree, image, is_lost=True)
        accepted = {mark[1] for mark in marks if mark[0] == "accepted"}
        delivered = {mark[1] for mark in marks if mark[0] == "delivered"}
        assert not now
        assert accepted - delivered <= rows.keys(), f"step {count}"
        assert all(row.next_ms == NOW + 5 for row in rows.values())
        assert report.adopted == report.waiting == len(rows)


@pytest.mark.slow
def test_an_answer_before_the_commit_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test sees what it is for: an operator's word that was answered too early is lost at some cut."""

    def early(self: Life) -> None:
        key = self.dice.choice(list(self.waiting))
        self.operated.add(key)
        self.files.mark("operated", self.names[key], State.HELD)
        self.files.mark("accepted", self.names[key])
        self.index.commit(self.index.pin, [self.waiting[key]._replace(state=State.HELD)])
        self.indexed.add(key)

    monkeypatch.setattr(Life, "_operate", early)
    for seed in range(10):
        for _, marks, tree, image in cuts(seed):
            _, rows, _, _ = started(tree, image)
            operated = {mark[1] for mark in marks if mark[0] == "operated"}
            if any(name not in rows or rows[name].state is not State.HELD for name in operated):
                return
    pytest.fail("nothing was lost: the test sees nothing")
