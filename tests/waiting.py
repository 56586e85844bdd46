"""Rows of the deferred index, as the tests make them."""

from __future__ import annotations

from typing import Any

from fastsmtp.queue.place import Place
from fastsmtp.queue.row import Row

NOW = 1_800_000_000_000
# The highest bit is set: SQLite's integers have a sign.
EPOCH = 0xF234_5678_9ABC_DEF0


def row(offset: int = 4096, recipient: int = 0, **changes: Any) -> Row:
    made = Row(
        Place(changes.pop("number", 1), changes.pop("epoch", EPOCH), offset, 700), recipient, f"id{offset}",
        b"joe@sender.example", b"sender.example", b"ann@there.example", b"there.example", 500, NOW - 1_000,
        "mx:there.example", "a", next_ms=NOW, last_ms=NOW - 1_000,
    )  # fmt: skip
    return made._replace(**changes)


def rows(count: int, **changes: Any) -> list[Row]:
    return [row(4096 * (at + 1), **changes) for at in range(count)]
