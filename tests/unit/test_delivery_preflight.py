"""What `check --live` says of a source, by what the DNS and the kernel say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastsmtp._dns import Status
from fastsmtp.config.routes import Source
from fastsmtp.delivery.preflight import look_at_sources
from tests.delivering import ZoneAsker
from tests.fakes.zone import AAAA, PTR, A

FOUR = Source("a", "192.0.2.10", "", "out.example")
SIX = Source("a", "", "2001:db8::10", "out.example")
POINTER = "10.2.0.192.in-addr.arpa"
POINTER6 = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
WELL = {(POINTER, PTR): ["out.example"], ("out.example", A): ["192.0.2.10"]}


@pytest.mark.parametrize(
    ("source", "zone", "cannot", "fault"),
    [
        (FOUR, WELL, "", ""),
        (SIX, {(POINTER6, PTR): ["out.example"], ("out.example", AAAA): ["2001:db8::10"]}, "", ""),
        (FOUR, WELL, "Cannot assign", "can't be bound: Cannot assign"),
        (FOUR, {("out.example", A): ["192.0.2.10"]}, "", "it has no reverse name"),
        (FOUR, {**WELL, (POINTER, PTR): Status.TIMEOUT}, "", "its reverse name can't be looked up (timeout)"),
        (
            FOUR,
            {(POINTER, PTR): ["other.example"], ("out.example", A): ["192.0.2.10"]},
            "",
            "its reverse name other.example does not lead back to it (no such name)",
        ),
        (
            FOUR,
            {(POINTER, PTR): ["rev.example"], ("rev.example", A): ["192.0.2.10"]},
            "",
            "its EHLO name out.example does not lead to it (no such name)",
        ),
        (
            FOUR,
            {**WELL, (POINTER, PTR): ["rev.example"], ("rev.example", A): ["192.0.2.10"]},
            "",
            "its EHLO name out.example is not its reverse name rev.example",
        ),
        # one of several reverse names is enough
        (FOUR, {**WELL, (POINTER, PTR): ["rev.example", "out.example"]}, "", ""),
        (
            FOUR,
            {(POINTER, PTR): ["out.example"], ("out.example", A): ["192.0.2.11"]},
            "",
            "its reverse name out.example does not lead back to it; its EHLO name out.example does not lead to it",
        ),
    ],
)
def test_a_source_is_in_order_or_it_is_said_why_not(
    source: Source, zone: Any, cannot: str, fault: str
) -> None:
    (finding,) = asyncio.run(look_at_sources([source], ZoneAsker(zone), binding=lambda _: cannot))
    assert finding.fault == fault
    assert str(finding).startswith(f"source a, {source.ipv4 or source.ipv6}: ")


def test_each_address_of_each_source_is_looked_at() -> None:
    both = Source("b", "192.0.2.10", "2001:db8::10", "out.example")
    findings = asyncio.run(look_at_sources([both, FOUR], ZoneAsker(WELL), binding=lambda _: ""))
    assert [bool(finding.fault) for finding in findings] == [False, True, False]
