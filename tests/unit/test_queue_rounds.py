"""The minute's rounds: a clock that was set back, what is stranded; and what the sender hears of success."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import pytest

from fastsmtp.delivery import wire
from fastsmtp.delivery.job import Job, Result, Told
from fastsmtp.delivery.outcome import Delivered, Retry
from fastsmtp.delivery.rounds import Rounds
from fastsmtp.delivery.shard import _for_sender
from fastsmtp.log import ListLog
from fastsmtp.message import Recipient
from fastsmtp.queue.deferred import DeferredIndex
from fastsmtp.queue.keeper import Kept, Message
from fastsmtp.queue.place import Place
from fastsmtp.queue.row import row_of
from fastsmtp.queue.schedule import Patience
from fastsmtp.reply import Reply
from tests.queued import message
from tests.waiting import EPOCH, NOW, row, rows

PATIENCE = Patience(300_000, 4_000_000, 432_000_000, 0)


class Books:
    """The dispatcher's and its keeper's, as far as the rounds look into them."""

    def __init__(self) -> None:
        self.keeper = self
        self.store = self
        self.segments: dict[int, Kept] = {}

    def path(self, number: int) -> str:
        return f"mail-{number}"

    async def heal(self, kept: Kept, stranded: int) -> int:
        return stranded

    def segment(self, opened: int, in_hand: int) -> None:
        kept = self.segments[EPOCH] = Kept(1, EPOCH, 65_536, -1)
        kept.open = opened
        kept.messages = {4096: Message(700, None, in_hand)}


def walk(path: pathlib.Path, work: Any, wall_ms: int = NOW) -> list[dict[str, Any]]:
    """What the rounds log while `work` goes on."""

    async def whole() -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        index = DeferredIndex(str(path / "deferred.sqlite"), loop=loop, version="0.1.0")
        await index.open()
        log, books = ListLog(), Books()
        rounds = Rounds(
            books, index, patience=PATIENCE, wall=lambda: wall_ms / 1000, log=log, loop=loop,  # type: ignore[arg-type]
            failed=lambda error: None, heal=books.heal,
        )  # fmt: skip
        try:
            await work(index, books, rounds)
        finally:
            await index.close()
        return [{"event": name, **fields} for name, fields in log.lines]

    return asyncio.run(whole())


def test_a_clock_that_was_set_back_is_seen_and_told(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex, books: Books, rounds: Rounds) -> None:
        await index.defer(rows(3, next_ms=NOW + 10**10))
        await rounds.once()
        assert await index.next_due() == NOW + 4_001_000
        await rounds.once()

    assert walk(tmp_path, work) == [{"event": "clock_set_back", "found": 3}]


BALANCED = [
    ("all in hand", 5, 5, 0),
    ("all in the index", 3, 0, 0),
    ("taken ones are in both", 3, 2, 2),
    ("some of each", 6, 3, 0),
]


@pytest.mark.parametrize(
    ("opened", "in_hand", "taken"), [case[1:] for case in BALANCED], ids=[c[0] for c in BALANCED]
)
def test_what_adds_up_is_not_told(tmp_path: pathlib.Path, opened: int, in_hand: int, taken: int) -> None:
    async def work(index: DeferredIndex, books: Books, rounds: Rounds) -> None:
        if opened != in_hand:
            await index.defer(rows(3))
        assert len(await index.due(NOW, taken)) == taken
        books.segment(opened, in_hand)
        for _ in range(3):
            await rounds.once()

    assert walk(tmp_path, work) == []


def test_what_nobody_will_look_at_is_told_at_the_second_look(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex, books: Books, rounds: Rounds) -> None:
        await index.defer(rows(3))
        books.segment(6, 1)
        await rounds.once()
        await rounds.once()

    assert walk(tmp_path, work) == [
        {"event": "stranded", "found": 2, "healed": 2, "file": "mail-1", "reason": "accepted, and nobody's"}
    ]


def test_a_row_that_was_passed_over_is_due_again_and_told(tmp_path: pathlib.Path) -> None:
    async def work(index: DeferredIndex, books: Books, rounds: Rounds) -> None:
        await index.defer([row()])
        (taken,) = await index.due(NOW, 5)
        # A defect: it is nobody's, and the cursor is behind it.
        index._taken.clear()
        assert await index.due(NOW, 5) == []
        await rounds.once()
        assert await index.due(NOW, 5) == [taken]
        await rounds.once()

    (event,) = walk(tmp_path, work)
    assert (event["event"], event["reason"]) == ("stranded", "due, and nobody's")


# --- success --------------------------------------------------------------------------------------------------

TOLD = [
    ("maildir:/m", (b"SUCCESS",), False, False),
    ("lmtp://127.0.0.1:24", (b"FAILURE", b"SUCCESS"), False, False),
    ("smtp://127.0.0.1:25", (b"SUCCESS",), False, True),
    ("mx", (b"SUCCESS",), False, True),
    ("qmail-queue", (b"SUCCESS",), False, True),
    ("smtp://127.0.0.1:25", (b"SUCCESS",), True, None),
    ("smtp://127.0.0.1:25", (b"FAILURE",), False, None),
    ("smtp://127.0.0.1:25", (), False, None),
]


@pytest.mark.parametrize(("deliver", "notify", "has_dsn", "is_relayed"), TOLD)
def test_success_is_told_where_nobody_else_does(
    deliver: str, notify: tuple[bytes, ...], has_dsn: bool, is_relayed: bool | None
) -> None:
    ann = Recipient(b"ann@there.example", b"there.example", notify)
    job = Job(Place(1, 2, 4096, 10), deliver, deliver, (0,), 1)
    arrived = Delivered("Ok", "mx [192.0.2.1]", "a", "2.0.0", has_dsn=has_dsn)
    found = _for_sender(job, ann, arrived)
    assert found == (arrived if is_relayed is None else Told(arrived, is_relayed))
    later = Retry(Reply(451, "4.3.0", "later"), "later")
    assert _for_sender(job, ann, later) is later


@pytest.mark.parametrize("is_relayed", [False, True])
def test_it_goes_over_the_shard_s_line(is_relayed: bool) -> None:
    result = Result(
        Place(1, 2, 4096, 10), 3, Told(Delivered("Ök", "mx [192.0.2.1]", "a", "2.0.0"), is_relayed)
    )
    assert wire.read_results(wire.results(7, [result])) == (7, [result])


def test_a_row_of_a_message_says_where_it_goes() -> None:
    """Also one that a start makes from the journal alone: nobody else would say."""
    made = message("ID", "ann@bücher.example", deliver="mx")
    assert row_of(Place(1, 2, 4096, 10), made, 0, next_ms=NOW).site == "mx:bücher.example"
    made = message("ID", "ann@there.example", deliver="lmtp://127.0.0.1:24")
    assert row_of(Place(1, 2, 4096, 10), made, 0, next_ms=NOW).site == "lmtp://127.0.0.1:24"
