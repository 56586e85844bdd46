"""Which servers a domain's mail goes to, by what the DNS says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp._dns import Status
from fastsmtp.delivery.mx import Found, find_hosts, in_order
from fastsmtp.delivery.outcome import Failed, Outcome, Retry
from tests.fakes.zone import AAAA, MX, A, Zone, answer


def reverse(names: list[bytes]) -> None:
    names.reverse()


def find(
    zone: Zone, domain: bytes = b"example.org", ours: frozenset[str] = frozenset()
) -> tuple[Found | Outcome, int]:
    """What comes of it, and how many rounds of questions that took."""

    def is_us(name: str, addresses: Sequence[str]) -> bool:
        return name in ours or not ours.isdisjoint(addresses)

    script = find_hosts(domain, is_us=is_us, shuffle=reverse)
    rounds = 0
    try:
        questions = next(script)
        while True:
            rounds += 1
            questions = script.send(tuple(answer(zone, question) for question in questions))
    except StopIteration as stop:
        return stop.value, rounds


def mx(*records: tuple[int, str]) -> dict[tuple[str, int], Any]:
    return {("example.org", MX): list(records)}


ONE: Zone = {("a.example", A): ["192.0.2.1"]}
TWO: Zone = {**ONE, ("b.example", A): ["192.0.2.2"]}


@pytest.mark.parametrize(
    ("zone", "hosts"),
    [
        # the zone, and the servers with their addresses in the order in which they are tried
        (
            {**mx((20, "b.example"), (10, "a.example")), **TWO},
            [("a.example", "192.0.2.1"), ("b.example", "192.0.2.2")],
        ),
        # equal ones are shuffled (here: turned round)
        (
            {**mx((10, "a.example"), (10, "b.example")), **TWO},
            [("b.example", "192.0.2.2"), ("a.example", "192.0.2.1")],
        ),
        # both families, by turns
        (
            {
                **mx((10, "a.example")),
                ("a.example", A): ["192.0.2.1", "192.0.2.2"],
                ("a.example", AAAA): ["2001:db8::1"],
            },
            [("a.example", "2001:db8::1"), ("a.example", "192.0.2.1"), ("a.example", "192.0.2.2")],
        ),
        # no MX: the domain's own addresses (RFC 5321 section 5.1)
        ({("example.org", A): ["192.0.2.1"]}, [("example.org", "192.0.2.1")]),
        ({("example.org", AAAA): ["2001:db8::1"]}, [("example.org", "2001:db8::1")]),
        # a server that is not there, or can't be looked up, leaves the others
        ({**mx((10, "a.example"), (20, "b.example")), ("b.example", A): ["192.0.2.2"]}, [("b.example", "192.0.2.2")]),
        (
            {
                **mx((10, "a.example"), (20, "b.example")),
                ("a.example", A): Status.SERVFAIL,
                ("a.example", AAAA): Status.TIMEOUT,
                ("b.example", A): ["192.0.2.2"],
            },
            [("b.example", "192.0.2.2")],
        ),
        # one family that fails is not the other
        (
            {**mx((10, "a.example")), ("a.example", A): Status.SERVFAIL, ("a.example", AAAA): ["2001:db8::1"]},
            [("a.example", "2001:db8::1")],
        ),
        # a null MX beside others means nothing
        ({**mx((0, ""), (10, "a.example")), ("a.example", A): ["192.0.2.1"]}, [("a.example", "192.0.2.1")]),
        # one server named twice is one
        (
            {**mx((10, "a.example"), (10, "a.example")), ("a.example", A): ["192.0.2.1"]},
            [("a.example", "192.0.2.1")],
        ),
    ],
)  # fmt: skip
def test_servers_come_in_their_order(zone: Zone, hosts: list[tuple[str, str]]) -> None:
    found, _ = find(zone)
    assert isinstance(found, Found)
    assert [(host.name, address) for host, address in in_order(found.hosts, prefers_ipv4=False)] == hosts


@pytest.mark.parametrize(
    ("zone", "kind", "answered", "words"),
    [
        ({}, Failed, reply.DOMAIN_UNKNOWN, "does not exist"),
        (mx((0, "")), Failed, reply.NULL_MX, "takes no mail"),
        ({("example.org", MX): Status.SERVFAIL}, Retry, reply.DNS_FAILED, "MX of example.org"),
        ({("example.org", MX): Status.TIMEOUT}, Retry, reply.DNS_FAILED, "MX of example.org"),
        ({("example.org", MX): Status.NODATA}, Failed, reply.NO_ROUTE, "neither MX nor address"),
        (mx((10, "a.example")), Failed, reply.NO_ROUTE, "none of its servers has an address"),
        (
            {**mx((10, "a.example")), ("a.example", A): Status.SERVFAIL},
            Retry,
            reply.DNS_FAILED,
            "a.example: ",
        ),
        (
            {("example.org", MX): Status.NODATA, ("example.org", AAAA): Status.TIMEOUT},
            Retry,
            reply.DNS_FAILED,
            "can be looked up",
        ),
    ],
)
def test_what_the_dns_says_is_final_and_what_it_cannot_say_is_not(
    zone: Zone, kind: type, answered: reply.Reply, words: str
) -> None:
    found, _ = find(zone)
    assert isinstance(found, Retry | Failed)
    assert type(found) is kind
    assert found.reply == answered
    assert words in found.reason


THREE: Zone = {
    **mx((10, "a.example"), (20, "b.example"), (20, "c.example"), (30, "d.example")),
    ("a.example", A): ["192.0.2.1"],
    ("b.example", A): ["192.0.2.2"],
    ("c.example", A): ["192.0.2.3"],
    ("d.example", A): ["192.0.2.4"],
}


@pytest.mark.parametrize("ours", ["b.example", "192.0.2.2", "192.0.2.3"])
def test_from_our_own_preference_on_nobody_is_tried(ours: str) -> None:
    found, _ = find(THREE, ours=frozenset({ours}))
    assert isinstance(found, Found)
    assert [host.name for host in found.hosts] == ["a.example"]


def test_when_we_are_the_best_server_the_mail_would_go_round() -> None:
    found, _ = find(THREE, ours=frozenset({"192.0.2.1"}))
    assert isinstance(found, Failed)
    assert found.reply == reply.BEST_MX_IS_US


def test_when_a_better_server_cannot_be_looked_up_it_is_too_early_to_say_so() -> None:
    found, _ = find({**THREE, ("a.example", A): Status.TIMEOUT}, ours=frozenset({"192.0.2.2"}))
    assert isinstance(found, Retry)


@pytest.mark.parametrize(
    ("domain", "address"),
    [(b"[192.0.2.1]", "192.0.2.1"), (b"[ipv6:2001:db8::1]", "2001:db8::1")],
)
def test_an_address_literal_is_its_own_server(domain: bytes, address: str) -> None:
    found, rounds = find({}, domain)
    assert isinstance(found, Found)
    assert rounds == 0
    assert [one for _, one in in_order(found.hosts, prefers_ipv4=True)] == [address]
    assert found.hosts[0].name == ""
    ours, _ = find({}, domain, frozenset({address}))
    assert isinstance(ours, Failed)


@pytest.mark.parametrize("domain", [b"[192.0.2.256]", b"[x]", b"[ipv6:192.0.2.1]", b"a..b", b"-", b"\xff"])
def test_what_is_no_domain_has_no_server(domain: bytes) -> None:
    found, rounds = find({}, domain)
    assert isinstance(found, Failed)
    assert found.reply == reply.DOMAIN_UNKNOWN
    assert rounds == 0


def test_a_domain_in_unicode_is_asked_for_in_ascii() -> None:
    found, _ = find({("xn--bcher-kva.example", A): ["192.0.2.1"]}, "bücher.example".encode())
    assert isinstance(found, Found)


def test_a_set_of_hundreds_is_looked_up_only_as_far_as_it_is_used() -> None:
    zone: dict[tuple[str, int], Any] = mx(*[(10 * (1 + at // 10), f"h{at}.example") for at in range(400)])
    zone |= {(f"h{at}.example", A): [f"192.0.{at // 250}.{at % 250}"] for at in range(400)}
    found, rounds = find(zone)
    assert isinstance(found, Found)
    assert 64 <= len(found.hosts) < 80
    assert rounds < 10
    assert {host.preference for host in found.hosts[:10]} == {10}


def test_ipv4_first_where_ipv6_has_no_way() -> None:
    found, _ = find({**mx((10, "a.example")), ("a.example", A): ["192.0.2.1"], ("a.example", AAAA): ["::1"]})
    assert isinstance(found, Found)
    assert [one for _, one in in_order(found.hosts, prefers_ipv4=True)] == ["192.0.2.1", "::1"]


def test_answers_hold_as_long_as_the_shortest_of_them_within_bounds() -> None:
    found, _ = find(THREE)
    assert isinstance(found, Found)
    assert found.ttl_s == 300
