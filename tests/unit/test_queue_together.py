"""Failures of one message wait for each other, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastsmtp.delivery.dispatcher import Case
from fastsmtp.delivery.outcome import Failed, Retry
from fastsmtp.delivery.together import MOST, Together
from fastsmtp.queue.keeper import Kept, Message
from fastsmtp.reply import Reply

NO = Failed(Reply(550, "5.1.1", "no"), "no")
LATER = Retry(Reply(451, "4.3.0", "later"), "later")


class After:
    """Takes what is passed on."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int]] = []
        self.pinned: set[Any] = set()

    def take(self, cases: Sequence[Case]) -> None:
        for case in cases:
            self.taken.append((case.place.offset, case.recipient))
            message = case.kept.messages[case.place.offset]
            message.settling -= 1
            message.left -= 1


class Scene:
    """Messages with so many recipients in hand."""

    def __init__(self, patience_s: float = 3_600.0, **left: int) -> None:
        self.after = After()
        loop = asyncio.get_running_loop()
        self.together = Together(self.after, loop=loop, patience_s=patience_s)  # type: ignore[arg-type]
        self.kept = Kept(1, 2, 65_536, -1)
        for name, count in left.items():
            self.kept.messages[int(name[1:])] = Message(700, None, count)

    def come(self, *cases: tuple[int, int, Failed | Retry]) -> None:
        made = []
        for offset, recipient, outcome in cases:
            self.kept.messages[offset].settling += 1
            place = self.kept.place(offset, 700)
            made.append(Case(self.kept, place, recipient, "site", outcome, None, lambda: None))
        self.together.take(made)

    def taken(self) -> list[tuple[int, int]]:
        found, self.after.taken = self.after.taken, []
        return found


def test_only_failures_of_a_message_that_has_others_in_hand_wait() -> None:
    async def work() -> None:
        scene = Scene(m1=1, m2=3, m3=2)
        scene.come((1, 0, NO))
        assert scene.taken() == [(1, 0)]
        scene.come((2, 0, NO))
        assert scene.taken() == []
        scene.come((2, 1, LATER))
        assert scene.taken() == [(2, 1)]
        scene.come((2, 2, NO))
        assert scene.taken() == [(2, 2), (2, 0)]
        scene.come((3, 0, NO), (3, 1, NO))
        assert scene.taken() == [(3, 0), (3, 1)]
        scene.together.close()
        assert scene.taken() == []

    asyncio.run(work())


def test_they_wait_for_what_is_delivered_too_and_not_for_ever() -> None:
    async def work() -> None:
        scene = Scene(m1=2)
        scene.come((1, 0, NO))
        scene.kept.messages[1].left -= 1
        while not (found := scene.taken()):
            await asyncio.sleep(0.01)
        assert found == [(1, 0)]
        scene = Scene(patience_s=0.05, m1=2)
        scene.come((1, 0, NO))
        while not (found := scene.taken()):
            await asyncio.sleep(0.01)
        assert found == [(1, 0)]

    asyncio.run(work())


def test_at_the_end_nothing_is_kept_back() -> None:
    async def work() -> None:
        scene = Scene(m1=2)
        scene.come((1, 0, NO))
        scene.together.close()
        assert scene.taken() == [(1, 0)]

    asyncio.run(work())


def test_so_many_are_kept_back_and_no_more() -> None:
    async def work() -> None:
        scene = Scene(**{f"m{at}": 2 for at in range(MOST + 3)})
        scene.come(*[(at, 0, NO) for at in range(MOST + 3)])
        assert scene.taken() == [(MOST, 0), (MOST + 1, 0), (MOST + 2, 0)]
        scene.together.close()
        assert len(scene.taken()) == MOST

    asyncio.run(work())
