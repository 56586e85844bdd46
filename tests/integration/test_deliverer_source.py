"""From which address mail leaves: seen from the receiving side, over several addresses of loopback and over IPv6."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp.config.routes import Source
from fastsmtp.delivery.outcome import Delivered, Retry
from fastsmtp.log import ListLog
from fastsmtp.queue.model import Origins
from tests.delivering import Stored, make, route, to
from tests.fakes.zone import AAAA, MX, A, Zone
from tests.integration.test_deliverer import scenario, shown
from tests.nexthop import SILENCE, NextHop
from tests.ports import free_port

JOE = to(b"joe@example.org")
TWO = Source("two", "127.0.0.2", "::1", "two.home.example")
THREE = Source("three", "127.0.0.3", "", "three.home.example")
SIX = Source("six", "", "::1", "six.home.example")
# TEST-NET-1 is on no machine.
GONE = Source("gone", "192.0.2.99", "2001:db8::99")
PASSING = Source("passing", "192.0.2.98", "", may_pass_on=True)


def test_without_a_source_the_system_chooses() -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), JOE, hop.dest)
        assert isinstance(outcome, Delivered)
        assert outcome.source == ""
        assert hop.peers == ["127.0.0.1"]
        assert hop.lines[0] == b"EHLO mx.home.example"


@pytest.mark.parametrize(
    ("source", "host", "peer"),
    [
        (TWO, "127.0.0.1", "127.0.0.2"),
        (THREE, "127.0.0.1", "127.0.0.3"),
        (TWO, "::1", "::1"),
        (SIX, "::1", "::1"),
    ],
)
def test_the_destination_s_family_says_which_address_is_bound(source: Source, host: str, peer: str) -> None:
    hop = NextHop(host=host)
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), JOE, route(hop.dest, source))
        assert isinstance(outcome, Delivered)
        assert outcome.source == source.name
        assert outcome.hop is not None
        assert outcome.hop.source == source.name
        assert hop.peers == [peer]
        assert hop.lines[0] == b"EHLO " + source.helo.encode()


def test_each_source_has_its_own_connections() -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for source in (TWO, THREE, TWO, THREE):
            assert shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, source))) == "D"
        assert hop.peers == ["127.0.0.2", "127.0.0.3"]


def test_a_pool_is_used_by_weight() -> None:
    hop = NextHop()
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        used = []
        for _ in range(200):
            (outcome,) = await deliverer.deliver(Stored(), JOE, route(hop.dest, (TWO, 1), (THREE, 3)))
            used.append(outcome.source)
        assert 25 <= used.count("two") <= 75
        assert set(hop.peers) == {"127.0.0.2", "127.0.0.3"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_that_cannot_be_bound_defers_and_nothing_leaves_from_another(host: str) -> None:
    hop = NextHop(host=host)
    log = ListLog()
    deliverer = make(log=log)

    @scenario(deliverer, hop)
    async def _() -> None:
        work = [deliverer.deliver(Stored(), JOE, route(hop.dest, GONE)) for _ in range(5)]
        for (outcome,) in [
            *await asyncio.gather(*work),
            await deliverer.deliver(Stored(), JOE, route(hop.dest, GONE)),
        ]:
            assert isinstance(outcome, Retry)
            assert outcome.reply == reply.SOURCE_UNUSABLE
            assert outcome.source == "gone"
            assert "Cannot assign" in outcome.reason
        assert hop.connections == 0
        assert [(event, fields["source"]) for event, fields in log.lines] == [("source_failed", "gone")]


def test_the_next_source_is_taken_only_where_the_configuration_says_so() -> None:
    hop = NextHop()
    log = ListLog()
    deliverer = make(log=log)

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(20):
            assert (
                shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, (PASSING, 50), (THREE, 1))))
                == "D"
            )
        assert set(hop.peers) == {"127.0.0.3"}
        assert [event for event, _ in log.lines] == ["source_failed"]
        # Alone it has no next one.
        assert shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, PASSING))) == "R"
        # In a pool with one that waits, the share of that one waits.
        became = [
            shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, (GONE, 1), (THREE, 1))))
            for _ in range(20)
        ]
        assert {"D", "R"} == set(became)
        assert set(hop.peers) == {"127.0.0.3"}


def test_a_source_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    hop = NextHop()
    log = ListLog()
    deliverer = make(log=log)

    @scenario(deliverer, hop)
    async def _() -> None:
        state = deliverer.sources.of(THREE)
        monkeypatch.setattr("fastsmtp.delivery.source.bind", _refuse)
        assert shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, THREE))) == "R"
        monkeypatch.undo()
        assert shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, THREE))) == "R"
        state.bad_until_s = 0.0
        assert shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, THREE))) == "D"
        assert [event for event, _ in log.lines] == ["source_failed", "source_restored"]


def _refuse(*_: Any) -> None:
    raise OSError(99, "Cannot assign requested address")


def test_a_family_that_the_source_has_not_is_left_out() -> None:
    port = free_port()
    four, six = NextHop(host="127.0.0.2", port=port), NextHop(host="::1", port=port)
    zone: Zone = {("example.org", MX): [(1, "mx.x")], ("mx.x", A): ["127.0.0.2"], ("mx.x", AAAA): ["::1"]}
    deliverer = make(zone, port=port)

    @scenario(deliverer, four, six)
    async def _() -> None:
        for source, hop in ((THREE, four), (SIX, six), (TWO, six)):
            (outcome,) = await deliverer.deliver(Stored(), JOE, route("mx", source))
            assert isinstance(outcome, Delivered)
            assert len(hop.messages) >= 1
        assert (len(four.messages), len(six.messages)) == (1, 2)


def test_a_site_of_the_other_family_alone_is_put_off_or_passed_on() -> None:
    hop = NextHop(host="::1")
    deliverer = make()
    four_only = Source("four", "127.0.0.3", may_pass_on=True)

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), JOE, route(hop.dest, THREE))
        assert isinstance(outcome, Retry)
        assert "family" in outcome.reason
        assert hop.connections == 0
        assert shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, four_only, SIX))) == "D"
        # That is no fault of the source: elsewhere it is used as ever.
        assert deliverer.sources.of(four_only).bad_until_s == 0.0


def test_a_source_s_connections_are_counted_over_all_sites() -> None:
    one, two = NextHop(answers={b"DATA": SILENCE}), NextHop()
    lean = Source("lean", "127.0.0.2", connections=1)
    deliverer = make()

    @scenario(deliverer, one, two)
    async def _() -> None:
        first = asyncio.ensure_future(deliverer.deliver(Stored(), JOE, route(one.dest, lean)))
        await one.seen(b"DATA")
        second = asyncio.ensure_future(deliverer.deliver(Stored(), JOE, route(two.dest, lean)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert two.connections == 0
        one.hang_up()
        assert shown(await first) == "R"
        assert shown(await second) == "D"
        assert two.connections == 1


def test_an_idle_connection_makes_room_for_another_site() -> None:
    one, two = NextHop(), NextHop()
    lean = Source("lean", "127.0.0.2", connections=1)
    deliverer = make(remote={"idle_s": 60.0})

    @scenario(deliverer, one, two)
    async def _() -> None:
        for hop in (one, two, one):
            assert shown(await deliverer.deliver(Stored(), JOE, route(hop.dest, lean))) == "D"


def test_the_rate_of_a_source_is_kept() -> None:
    hop = NextHop()
    slow = Source("slow", "127.0.0.2", messages_per_s=20.0)
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        work = [deliverer.deliver(Stored(), JOE, route(hop.dest, slow)) for _ in range(26)]
        assert {shown(one) for one in await asyncio.gather(*work)} == {"D"}
        assert loop.time() - began_s >= 0.25


# --- who the client was --------------------------------------------------------------------------------

ORIGINS = Origins(
    address="192.0.2.77",
    port=4321,
    name="client.example",
    helo=b"client",
    is_extended=True,
    local_address="192.0.2.1",
)


def test_the_next_hop_is_told_who_the_client_was() -> None:
    hop = NextHop(extensions=(b"PIPELINING", b"XFORWARD NAME ADDR", b"XCLIENT NAME ADDR"))
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            message = Stored(origins=ORIGINS)
            assert (
                shown(await deliverer.deliver(message, JOE, route(hop.dest, pass_client="xforward"))) == "D"
            )
        assert hop.lines[1] == b"XFORWARD NAME=client.example ADDR=192.0.2.77"
        assert (hop.connections, hop.verbs.count(b"XFORWARD")) == (1, 2)
        for _ in range(2):
            assert (
                shown(
                    await deliverer.deliver(
                        Stored(origins=ORIGINS), JOE, route(hop.dest, pass_client="xclient")
                    )
                )
                == "D"
            )
        assert hop.lines.count(b"XCLIENT ADDR=192.0.2.77 NAME=client.example") == 2
        assert hop.connections == 3


def test_the_proxy_header_stands_first() -> None:
    hop = NextHop(has_proxy=True)
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            assert (
                shown(
                    await deliverer.deliver(
                        Stored(origins=ORIGINS), JOE, route(hop.dest, pass_client="proxy")
                    )
                )
                == "D"
            )
        assert hop.proxies == [b"PROXY TCP4 192.0.2.77 192.0.2.1 4321 25\r\n"] * 2


def test_a_connection_that_is_put_to_work_by_the_end_of_another_one_is_not_ended_as_idle() -> None:
    """The deadlines of three have passed: of one that waits for an answer, and of two that were idle."""
    hop = NextHop()
    deliverer = make(remote={"connections_at_first": 3, "connections": 3}, tick_s=600.0)

    def start(count: int) -> list[asyncio.Future[Any]]:
        return [
            asyncio.ensure_future(deliverer.deliver(Stored(), JOE, route(hop.dest, TWO)))
            for _ in range(count)
        ]

    @scenario(deliverer, hop)
    async def _() -> None:
        while deliverer.open_count < 3:
            await asyncio.gather(*start(3))
        [site] = deliverer._sites.values()
        links = list(site._needs)
        hop.answers[b"MAIL"] = [b"250 2.1.0 Ok"] * 3 + [SILENCE]
        work = start(4)
        await hop.seen(b"MAIL", hop.verbs.count(b"MAIL") + 4)
        await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        while sum(one.done() for one in work) < 3:
            await asyncio.wait([one for one in work if not one.done()], return_when=asyncio.FIRST_COMPLETED)
        for link in links:
            link.deadline_s = 0.0
        site.tick(deliverer.now())
        assert [shown(one) for one in await asyncio.gather(*work)] == ["D"] * 4
