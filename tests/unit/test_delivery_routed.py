"""Out of the queue, the routes of now say where mail goes: here, or to which server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from fastsmtp.config.load import load
from fastsmtp.config.routes import Route
from fastsmtp.delivery.deliverer import Deliverer
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.local import Deliveries, LocalDeliverer
from fastsmtp.delivery.outcome import Delivered, Outcome
from fastsmtp.message import Recipient
from fastsmtp.queue.model import Origins
from tests.delivering import Stored, to
from tests.unit.config_host import FakeHost

CONFIG: dict[str, Any] = {
    "hostname": "mx.example",
    "listen": [{"name": "mx"}],
    "accept": [{"domain": "here.example", "deliver": "maildir:/mail"}],
    "source": [{"name": "a", "ipv4": "192.0.2.1"}],
    "route": [
        {"destination": "drop.example", "deliver": "discard"},
        {"sender": "@home.example", "listener": "mx", "sources": {"a": 1}, "deliver": "mx"},
    ],
}


class Recorder:
    """Stands for either deliverer: says where each recipient went."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.got: list[tuple[str, list[bytes]]] = []

    def put(self, stored: Stored, recipients: Sequence[Recipient], where: str | Route, done: Any) -> None:
        deliver = where.deliver if isinstance(where, Route) else where
        sources = [source.name for source, _ in where.sources] if isinstance(where, Route) else []
        self.got.append((" ".join([deliver, *sources]), [one.address for one in recipients]))
        done([Delivered(self.name) for _ in recipients])

    async def close(self) -> None:
        pass


def deliver(dest: str, *addresses: bytes, listener: str = "mx") -> tuple[list[str], Recorder, Recorder]:
    routing = load(values=CONFIG, host=FakeHost()).settings[0].routing
    local, other = Recorder("local"), Recorder("other")
    both = Deliveries(cast(LocalDeliverer, local), cast(Deliverer, other), routing)
    heard: list[Outcome | Damaged] = []
    both.put(
        Stored(origins=Origins(address="192.0.2.9", listener=listener)), to(*addresses), dest, heard.extend
    )
    asyncio.run(both.close())
    return [one.said for one in heard if isinstance(one, Delivered)], local, other


def test_the_configuration_of_now_decides() -> None:
    said, local, other = deliver("smtp://old.example", b"a@here.example")
    assert (said, local.got, other.got) == (["local"], [("maildir:/mail", [b"a@here.example"])], [])
    said, local, other = deliver("smtp://old.example", b"a@far.example", b"b@far.example")
    assert (said, local.got) == (["other"] * 2, [])
    assert other.got == [("mx a", [b"a@far.example", b"b@far.example"])]


def test_mail_without_a_way_goes_where_it_was_to_go() -> None:
    said, _, other = deliver("smtp://old.example", b"a@far.example", listener="other")
    assert (said, other.got) == (["other"], [("smtp://old.example", [b"a@far.example"])])


def test_a_program_that_no_table_names_is_not_run() -> None:
    """The table that is gone may have said as whom."""
    dest = "pipe:/bin/cat"
    said, local, other = deliver(dest, b"a@far.example", listener="other")
    assert (said, local.got, other.got) == ([], [], [])
    routes = [*CONFIG["route"], {"sender": "@home.example", "destination": "x.example", "deliver": dest}]
    routing = (
        load(values={**CONFIG, "route": routes}, host=FakeHost({"/bin/cat": ""}, modes={"/bin/cat": 0o755}))
        .settings[0]
        .routing
    )
    assert routing.find(b"", b"far.example", "other", dest).deliver == dest


def test_recipients_that_part_are_answered_in_their_order() -> None:
    said, local, other = deliver(
        "mx", b"a@far.example", b"b@drop.example", b"c@far.example", b"d@here.example"
    )
    assert said == ["other", "local", "other", "local"]
    assert other.got == [("mx a", [b"a@far.example", b"c@far.example"])]
    assert local.got == [("discard", [b"b@drop.example"]), ("maildir:/mail", [b"d@here.example"])]
