"""When a domain's server is ourselves."""

from __future__ import annotations

import pytest

from fastsmtp.delivery.ourselves import Ours, is_local

LOCAL = {"192.0.2.1", "2001:db8::1", "127.0.0.1"}


@pytest.mark.parametrize(
    ("listening", "name", "addresses", "is_us"),
    [
        # where we listen, a server's name, its addresses
        ([("192.0.2.1", 25)], "mx.example.org", ("192.0.2.1",), True),
        ([("192.0.2.1", 25)], "mx.example.org", ("192.0.2.9", "192.0.2.1"), True),
        ([("192.0.2.1", 25)], "mx.example.org", ("2001:db8::1",), False),
        ([("192.0.2.1", 2525)], "mx.example.org", ("192.0.2.1",), False),
        ([("0.0.0.0", 25)], "mx.example.org", ("192.0.2.1",), True),
        ([("::", 25)], "mx.example.org", ("2001:db8::1",), True),
        ([("0.0.0.0", 25)], "mx.example.org", ("192.0.2.9",), False),
        ([("0.0.0.0", 587)], "mx.example.org", ("192.0.2.1",), False),
        # by name: we may be behind a translator of addresses
        ([("10.0.0.1", 25)], "MX.home.example", ("192.0.2.9",), True),
        ([], "mx.home.example", (), True),
        ([], "", ("192.0.2.1",), False),
    ],
)
def test_a_server_is_us(
    listening: list[tuple[str, int]], name: str, addresses: tuple[str, ...], is_us: bool
) -> None:
    ours = Ours("mx.home.example", listening, has_address=LOCAL.__contains__)
    assert ours(name, addresses) == is_us


@pytest.mark.parametrize(
    ("address", "is_here"),
    [("127.0.0.1", True), ("192.0.2.99", False), ("2001:db8::99", False)],
)
def test_the_kernel_knows_which_addresses_are_ours(address: str, is_here: bool) -> None:
    assert is_local(address) == is_here
