"""The choice of a source, and rates."""

from __future__ import annotations

import random

import pytest

from fastsmtp.config.dest import Dest
from fastsmtp.config.routes import Route, Source
from fastsmtp.delivery.rate import Rate
from fastsmtp.delivery.source import Sources, SourceState, fault_of_binding

A, B = Source("a", "192.0.2.1", "2001:db8::1"), Source("b", "192.0.2.2", may_pass_on=True)


def sources() -> Sources:
    return Sources("mx.example", random.Random(1).random)


def pool(*weighted: tuple[Source, int]) -> Route:
    return Route("mx", Dest("mx"), sources=weighted)


def test_without_sources_it_is_the_systems_choice() -> None:
    one = sources()
    state = one.choose(pool(), 0.0)
    assert state is one.default
    assert (state.name, state.helo, state.local_address("192.0.2.9"), state.is_full) == (
        "",
        "mx.example",
        "",
        False,
    )


def test_each_family_has_its_address() -> None:
    state = sources().of(A)
    assert state.local_address("198.51.100.1") == "192.0.2.1"
    assert state.local_address("2001:db8:1::1") == "2001:db8::1"
    assert not sources().of(B).has_family("2001:db8:1::1")


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 9), (5, 1)])
def test_weights_are_shares(a: int, b: int) -> None:
    one = sources()
    route = pool((A, a), (B, b))
    count = sum(one.choose(route, 0.0) is one.of(A) for _ in range(2_000))
    assert abs(count / 2_000 - a / (a + b)) < 0.05


def test_who_may_pass_on_leaves_the_pool_while_it_is_bad_and_who_defers_keeps_its_share() -> None:
    one = sources()
    route = pool((A, 1), (B, 1))
    one.of(B).bad_until_s = 60.0
    assert {one.choose(route, 30.0) for _ in range(50)} == {one.of(A)}
    assert {one.choose(route, 61.0) for _ in range(50)} == {one.of(A), one.of(B)}
    one.of(B).bad_until_s = 0.0
    one.of(A).bad_until_s = 60.0
    assert {one.choose(route, 30.0) for _ in range(50)} == {one.of(A), one.of(B)}


def test_what_was_tried_is_not_chosen_again() -> None:
    one = sources()
    route = pool((A, 1), (B, 1))
    assert one.choose(route, 0.0, (one.of(A),)) is one.of(B)
    assert one.choose(route, 0.0, (one.of(A), one.of(B))) is None


def test_limits_are_of_all_processes() -> None:
    state = SourceState(Source("c", "192.0.2.1", connections=10, messages_per_s=8.0), "mx.example", 4)
    assert (state.connections, state.rate.per_s) == (2, 2.0)
    assert SourceState(Source("c", "192.0.2.1", connections=1), "mx.example", 4).connections == 1


def test_an_address_of_nobody_cannot_be_bound() -> None:
    assert fault_of_binding("127.0.0.3") == ""
    assert fault_of_binding("192.0.2.99")
    assert fault_of_binding("fe80::1%nowhere")


def test_a_rate_allows_a_seconds_worth_at_once_and_then_so_many_a_second() -> None:
    rate = Rate(2.0)
    taken = []
    for tenth in range(50):
        while rate.wait_s(100.0 + tenth / 10) == 0.0:
            rate.take()
            taken.append(tenth / 10)
    assert taken[:2] == [0.0, 0.0]
    assert len(taken) == 2 + 9
    assert Rate(0.0).wait_s(5.0) == 0.0
    slow = Rate(0.1)
    assert slow.wait_s(1.0) == 0.0
    slow.take()
    assert slow.wait_s(1.0) == pytest.approx(10.0)
