"""The deferred index: rows in, due ones out, each once; found, held, released; damaged, too new, upgraded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from fastsmtp import errors
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.index import MIGRATIONS, IndexFile
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import TEXT_CHARACTERS, Counts, Filter, Key, Said, State, matches
from tests.waiting import EPOCH, NOW, row, rows


@contextlib.asynccontextmanager
async def an_index(path: pathlib.Path) -> AsyncIterator[DeferredIndex]:
    index = DeferredIndex(str(path / "deferred"), loop=asyncio.get_running_loop(), version="0.1.0")
    await index.open()
    try:
        yield index
    finally:
        await index.close()


Work = Callable[[DeferredIndex], Coroutine[Any, Any, None]]


def run(path: pathlib.Path, work: Work) -> None:
    async def whole() -> None:
        async with an_index(path) as index:
            await work(index)

    asyncio.run(whole())


def test_a_row_comes_back_as_it_went_in(tmp_path: pathlib.Path) -> None:
    full = row(
        8192, 3, epoch=2**64 - 1, site="smtp://[::1]:24", source="b", state=State.HELD, next_ms=NOW + 5, attempts=7,
        last_ms=NOW - 2, waited_ms=99, is_warned=True, address=b"\xc3\xbc@b\xc3\xbccher.example",
        said=Said(451, "4.7.1", "try läter", "mx.there.example [192.0.2.1]"),
    )  # fmt: skip

    async def work(index: DeferredIndex) -> None:
        await index.defer([full, row()])
        assert await index.get([full.key]) == [full]
        assert (await index.find(Filter())).rows == [full, row()]

    run(tmp_path, work)
    with IndexOpened(tmp_path) as file:
        assert file.get([full.key]) == [full]


class IndexOpened:
    """The file of a stopped server."""

    def __init__(self, path: pathlib.Path, **options: Any) -> None:
        self.file = IndexFile(str(path / "deferred"), version="0.1.0", **options)

    def __enter__(self) -> IndexFile:
        self.opened = self.file.open()
        return self.file

    def __exit__(self, *_: object) -> None:
        self.file.close()


def test_the_file_is_for_its_owner_only_and_nothing_is_left_beside_it(tmp_path: pathlib.Path) -> None:
    os.umask(before := os.umask(0))

    async def work(index: DeferredIndex) -> None:
        await index.defer([row()])
        for name in os.listdir(tmp_path):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name

    os.umask(0)
    try:
        run(tmp_path, work)
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["deferred"]


def test_due_ones_come_once_the_longest_due_first(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer([row(4096 * at, next_ms=NOW + 10 - at) for at in range(1, 6)])
        assert await index.next_due() == NOW + 5
        assert await index.due(NOW + 4, 10) == []
        first = await index.due(NOW + 7, 2)
        assert [found.next_ms for found in first] == [NOW + 5, NOW + 6]
        assert [found.next_ms for found in await index.due(NOW + 7, 2)] == [NOW + 7]
        assert await index.due(NOW + 7, 2) == []
        assert index.taken == 3
        assert await index.next_due() == NOW + 8

    run(tmp_path, work)


def test_what_was_handed_out_comes_again_only_when_it_is_deferred_or_given_back(
    tmp_path: pathlib.Path,
) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer(rows(4))
        one, two, three, four = await index.due(NOW, 10)
        await index.defer([one._replace(next_ms=NOW - 5, attempts=1)])
        index.give_back([two.key])
        assert await index.finished([three.key]) == 1
        assert await index.finished([three.key]) == 0
        again = await index.due(NOW, 10)
        assert [(found.key, found.attempts) for found in again] == [(one.key, 1), (two.key, 0)]
        assert index.is_taken(four.key)
        assert not index.is_taken(three.key)
        assert await index.due(NOW, 10) == []
        assert await index.skipped() == 0

    run(tmp_path, work)


def test_a_result_that_is_on_its_way_while_due_is_asked_hands_nothing_out_twice(
    tmp_path: pathlib.Path,
) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer(rows(50))
        taken = await index.due(NOW, 50)
        # All in one transaction: given back, asked for, finished.
        index.give_back([taken[0].key])
        asked = asyncio.ensure_future(index.due(NOW, 50))
        await asyncio.sleep(0)
        finished = index.finished([taken[1].key, taken[2].key])
        assert [found.key for found in await asked] == [taken[0].key]
        await finished
        assert await index.due(NOW, 50) == []

    run(tmp_path, work)


def test_what_is_deferred_behind_the_cursor_is_due_all_the_same(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer([row(4096, next_ms=NOW)])
        await index.due(NOW, 1)
        for at in range(2, 40):
            await index.defer([row(4096 * at, next_ms=NOW - at % 7)])
            assert len(await index.due(NOW, 5)) == 1, at
        assert await index.skipped() == 0

    run(tmp_path, work)


def test_a_hold_stays_whatever_the_attempt_that_was_under_way_says(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer(rows(3))
        (taken,) = await index.due(NOW, 1)
        assert await index.hold(Filter()) == 3
        assert await index.hold(Filter()) == 0
        await index.defer([taken._replace(attempts=1, next_ms=NOW + 1)])
        assert await index.due(NOW + 99, 10) == []
        assert await index.next_due() is None
        (held,) = await index.get([taken.key])
        assert (held.state, held.attempts) == (State.HELD, 1)
        assert await index.flush(Filter(), NOW) == 0
        assert await index.release(Filter(ids=(taken.id,)), NOW + 50) == 1
        assert [found.key for found in await index.due(NOW + 50, 10)] == [taken.key]
        assert await index.counts() == Counts(due=1, held=2, messages=3)

    run(tmp_path, work)


def test_a_flush_makes_due_what_waits_and_never_later(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer([row(4096, next_ms=NOW - 9), row(8192, next_ms=NOW + 9_000)])
        assert await index.flush(Filter(domain=b"there.example"), NOW) == 2
        assert [found.next_ms for found in await index.due(NOW, 9)] == [NOW - 9, NOW]

    run(tmp_path, work)


def test_when_the_clock_was_set_back_no_attempt_is_far_away(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer(rows(5, next_ms=NOW + 10**12))
        await index.defer([row(4096 * 9, next_ms=NOW + 3)])
        assert await index.pull_in(NOW + 4_000_000) == 5
        assert await index.pull_in(NOW + 4_000_000) == 0
        assert await index.next_due() == NOW + 3
        assert len(await index.due(NOW + 4_000_000, 99)) == 6

    run(tmp_path, work)


def test_more_rows_than_one_piece_are_changed_in_pieces(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("index", "deferred"):
        monkeypatch.setattr(f"fastsmtp.queue.{module}.CHUNK", 10)

    async def work(index: DeferredIndex) -> None:
        await index.defer(rows(34))
        assert await index.hold(Filter()) == 34
        assert await index.release(Filter(), NOW) == 34
        assert await index.flush(Filter(sender=b"@sender.example"), NOW - 1) == 34
        assert await index.pull_in(NOW - 20) == 34
        assert len(await index.due(NOW - 20, 99)) == 34

    run(tmp_path, work)


FOUND = [
    (Filter(), "abcde"),
    (Filter(ids=("idb", "idd", "nobody")), "bd"),
    (Filter(sender=b""), "c"),
    (Filter(sender=b"Joe@One.EXAMPLE"), "a"),
    (Filter(sender=b"@one.example"), "abe"),
    (Filter(recipient=b"x@there.example"), "a"),
    (Filter(recipient=b"@there.example"), "acd"),
    (Filter(domain=b"there.example"), "acd"),
    (Filter(source="b"), "de"),
    (Filter(state=State.HELD), "ce"),
    (Filter(state=State.DUE), "abd"),
    (Filter(domain=b"there.example", source="a", state=State.DUE), "a"),
    (Filter(domain=b"nowhere.example"), ""),
    (Filter(sender=b"'; DROP TABLE waiting; --"), ""),
    (Filter(recipient="ü@bücher.example".encode()), "e"),
]


def test_what_the_operator_has_condemned_is_given_out_for_that_and_stays_so(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer(rows(4, next_ms=NOW + 999))
        await index.hold(Filter(ids=("id4096",)))
        assert await index.condemn(Filter(ids=("id4096", "id8192")), State.BOUNCE, NOW) == 2
        assert await index.condemn(Filter(ids=("id8192", "id12288")), State.DELETE, NOW) == 2
        assert await index.hold(Filter(ids=("id4096", "id8192"))) == 0
        found = await index.due(NOW, 9)
        assert [(row.id, row.state) for row in found] == [
            ("id4096", State.BOUNCE), ("id8192", State.DELETE), ("id12288", State.DELETE),
        ]  # fmt: skip
        # An attempt that was under way meanwhile changes nothing about that.
        await index.defer([found[1]._replace(state=State.DUE, attempts=3)])
        assert [(row.attempts, row.state) for row in await index.due(NOW + 999, 1)] == [(3, State.DELETE)]
        assert await index.counts() == Counts(4, 0, 4)

    run(tmp_path, work)


def test_what_is_in_the_dispatcher_s_hands_can_be_held_and_deleted(tmp_path: pathlib.Path) -> None:
    held, deleted, arrived = row(4096, state=State.HELD), row(8192, state=State.DELETE), row(12_288)

    async def work(index: DeferredIndex) -> None:
        mine = {held.key, deleted.key, arrived.key}
        gone = row(16_384)
        assert await index.pin([held, deleted, arrived, gone], lambda: mine) == [gone.key]
        await index.finished([gone.key])
        assert index.pinned == {held.key, deleted.key, arrived.key}
        assert await index.due(NOW, 9) == []
        # One is not tried, one fails, one arrives.
        index.give_back([held.key])
        await index.defer([deleted._replace(state=State.DUE, attempts=1)])
        assert await index.finished([arrived.key]) == 1
        assert not index.pinned
        assert [(found.key, found.state) for found in await index.due(NOW, 9)] == [
            (deleted.key, State.DELETE)
        ]
        assert (await index.find(Filter(state=State.HELD))).rows == [held]

    run(tmp_path, work)


@pytest.mark.parametrize(("filter", "names"), FOUND)
def test_rows_are_found_by_each_condition_and_by_all_together(
    tmp_path: pathlib.Path, filter: Filter, names: str
) -> None:
    one, null, two = (b"JOE@one.example", b"one.example"), (b"", b""), (b"j@two.example", b"two.example")
    table = [
        ("a", one, b"x@there.example", "a", State.DUE),
        ("b", (b"j@one.example", b"one.example"), b"x@else.example", "a", State.DUE),
        ("c", null, b"y@there.example", "a", State.HELD),
        ("d", two, b"z@there.example", "b", State.DUE),
        ("e", (b"k@one.example", b"one.example"), "ü@bücher.example".encode(), "b", State.HELD),
    ]
    made = [
        row(
            4096 * at, id="id" + name, sender=sender, sender_domain=domain, address=to, source=source, state=state,
            domain=to.rpartition(b"@")[2],
        )
        for at, (name, (sender, domain), to, source, state) in enumerate(table, 1)
    ]  # fmt: skip

    async def work(index: DeferredIndex) -> None:
        await index.defer(made)
        found: list[str] = []
        after = 0
        while True:
            page = await index.find(filter, after, limit=2)
            found += [one.id[2:] for one in page.rows]
            after = page.after
            if not after:
                break
        assert "".join(found) == names
        assert "".join(one.id[2:] for one in made if matches(filter, one)) == names

    run(tmp_path, work)


def test_a_reply_is_cut_and_a_moved_record_takes_its_rows_along(tmp_path: pathlib.Path) -> None:
    new = Place(9, 77, 12_288, 701)

    async def work(index: DeferredIndex) -> None:
        await index.defer([row(4096, to, said=Said(450, "4.2.0", "x" * 9_000)) for to in range(3)])
        assert await index.segments() == {(1, EPOCH): 3}
        assert await index.copy(row().place, new) == 3
        assert await index.segments() == {(1, EPOCH): 3, (9, 77): 3}
        assert await index.call(index.file.has_other, row())
        assert await index.remove_record(row().place) == 3
        assert await index.segments() == {(9, 77): 3}
        assert not await index.call(index.file.has_other, row()._replace(place=new))
        (found,) = await index.get([Key(9, 77, 12_288, 2)])
        assert found.place == new
        assert len(found.said.text) == TEXT_CHARACTERS

    run(tmp_path, work)


# --- damage, versions -----------------------------------------------------------------------------------------


def fill(path: pathlib.Path, count: int = 2_000) -> None:
    with IndexOpened(path) as file, file.transaction():
        file.put(rows(count))


def test_what_the_system_refuses_changes_nothing_and_is_told_to_who_asked(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer([row()])
        index.file._db.execute("PRAGMA max_page_count = 20").fetchone()
        with pytest.raises(errors.StorageFull):
            await index.defer(rows(5_000))
        assert await index.counts() == Counts(1, 0, 1)
        await index.defer([row(8192)])
        assert await index.counts() == Counts(2, 0, 2)

    run(tmp_path, work)


def test_one_bad_call_does_not_take_the_others_of_its_transaction_along(tmp_path: pathlib.Path) -> None:
    def bad() -> None:
        raise errors.StorageFailed("mine")

    async def work(index: DeferredIndex) -> None:
        futures = [index.defer([row()]), index.call(bad), index.defer([row(8192)])]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), errors.StorageFailed, type(None)]
        assert (await index.counts()).messages == 2

    run(tmp_path, work)


def damage_page(path: pathlib.Path, at: int) -> None:
    with open(path / "deferred", "r+b") as file:
        file.seek(4096 * at)
        file.write(b"\xa5" * 4096)


def test_a_damaged_file_is_set_aside_and_what_can_be_read_is_kept(tmp_path: pathlib.Path) -> None:
    fill(tmp_path)
    size = (tmp_path / "deferred").stat().st_size // 4096
    for at in range(size // 2, size // 2 + 8):
        damage_page(tmp_path, at)
    (tmp_path / "deferred.damaged").touch()
    opened = IndexOpened(tmp_path)
    with opened as file:
        assert opened.opened.quarantine == str(tmp_path / "quarantine/deferred-1")
        assert opened.opened.reason.startswith(f"{tmp_path}/deferred: ")
        left = file.counts().due
        assert left >= opened.opened.salvaged * 0.9 > 100
    assert sorted(os.listdir(tmp_path)) == ["deferred", "quarantine"]
    with IndexOpened(tmp_path) as file:
        assert file.counts().due == left


NO_DATABASE = {
    "no database": b"this is no database at all\n" * 400,
    "a header and nothing": b"SQLite format 3\0" + bytes(4_080),
    "cut off": None,
}


@pytest.mark.parametrize("contents", NO_DATABASE.values(), ids=NO_DATABASE)
def test_what_is_no_database_is_set_aside(tmp_path: pathlib.Path, contents: bytes | None) -> None:
    file = tmp_path / "deferred"
    if contents is None:
        fill(tmp_path)
        contents = file.read_bytes()[:5_000]
    file.write_bytes(contents)
    (tmp_path / "deferred.damaged").touch()
    opened = IndexOpened(tmp_path)
    with opened as index:
        assert opened.opened.quarantine
        assert index.counts() == Counts(0, 0, 0)
    assert (tmp_path / "quarantine/deferred-1").read_bytes()[: len(contents)] == contents


def test_another_program_s_database_is_not_written_to(tmp_path: pathlib.Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "deferred")) as other:
        other.execute("CREATE TABLE theirs (a)")
        other.commit()
    opened = IndexOpened(tmp_path)
    with opened:
        assert "no deferred index" in opened.opened.reason
    with contextlib.closing(sqlite3.connect(tmp_path / "quarantine/deferred-1")) as other:
        assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


def test_damage_met_while_running_is_told_and_the_next_start_looks_at_every_page(
    tmp_path: pathlib.Path,
) -> None:
    fill(tmp_path, 20_000)
    size = (tmp_path / "deferred").stat().st_size // 4096

    async def work(index: DeferredIndex) -> None:
        for at in range(2, size):
            damage_page(tmp_path, at)
        index.file._db.execute("PRAGMA shrink_memory").fetchone()
        with pytest.raises(errors.QueueDamaged):
            await index.find(Filter(), limit=20_000)

    run(tmp_path, work)
    assert (tmp_path / "deferred.damaged").exists()
    opened = IndexOpened(tmp_path)
    with opened:
        assert opened.opened.quarantine


LATER = (*MIGRATIONS, ("ALTER TABLE waiting ADD COLUMN later INTEGER NOT NULL DEFAULT 7",))


def test_an_older_format_is_brought_up_and_keeps_its_rows(tmp_path: pathlib.Path) -> None:
    fill(tmp_path, 3)
    with IndexOpened(tmp_path, migrations=LATER) as file:
        assert file.counts().due == 3
        assert file._db.execute("SELECT DISTINCT later FROM waiting").fetchall() == [(7,)]


def test_a_newer_format_stops_the_start_by_name_and_is_left_alone(tmp_path: pathlib.Path) -> None:
    with IndexOpened(tmp_path, migrations=LATER):
        pass
    before = (tmp_path / "deferred").read_bytes()
    file = IndexFile(str(tmp_path / "deferred"), version="0.0.9")
    with pytest.raises(errors.QueueTooNew) as caught:
        file.open()
    assert str(caught.value) == (
        f"{tmp_path}/deferred: written by fastsmtp 0.1.0 in format 2; "
        "this is fastsmtp 0.0.9, which reads formats up to 1"
    )
    assert (tmp_path / "deferred").read_bytes() == before
    assert os.listdir(tmp_path) == ["deferred"]


def test_a_looker_on_sees_what_the_owner_committed_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex) -> None:
        await index.defer(rows(3))
        looker = IndexFile(str(tmp_path / "deferred"), version="0.1.0")
        looker.open_read_only()
        assert looker.counts() == Counts(3, 0, 3)
        with pytest.raises(errors.StorageFailed), looker.transaction():
            looker.put([row()])
        looker.close()

    run(tmp_path, work)
