"""Addresses and networks: one form for both families."""

import pytest

from fastsmtp.address import Address, Networks


@pytest.mark.parametrize(
    ("text", "canonical", "is_loopback", "literal"),
    [
        ("192.0.2.1", "192.0.2.1", False, "[192.0.2.1]"),
        ("127.9.9.9", "127.9.9.9", True, "[127.9.9.9]"),
        ("::1", "::1", True, "[IPv6:::1]"),
        ("2001:DB8:0::1", "2001:db8::1", False, "[IPv6:2001:db8::1]"),
        ("::ffff:192.0.2.1", "192.0.2.1", False, "[192.0.2.1]"),
        ("::ffff:127.0.0.1", "127.0.0.1", True, "[127.0.0.1]"),
        ("fe80::1%eth0", "fe80::1", False, "[IPv6:fe80::1]"),
    ],
)
def test_an_address_has_one_form(text: str, canonical: str, is_loopback: bool, literal: str) -> None:
    address = Address(text)
    assert (address.text, address.is_loopback, address.literal) == (canonical, is_loopback, literal)


@pytest.mark.parametrize(
    "text", ["", "192.0.2", "192.0.2.256", "01.2.3.4.5", "host.example", "::g", "1.2.3.4\n"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no IP address"):
        Address(text)


def test_an_ipv6_client_is_its_slash_64() -> None:
    assert Address("2001:db8:1:2:3::4").key == Address("2001:db8:1:2:ffff::").key
    assert Address("2001:db8:1:2::").key != Address("2001:db8:1:3::").key
    assert Address("192.0.2.1").key != Address("192.0.2.2").key


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (["192.0.2.0/24"], ["192.0.2.0", "192.0.2.255", "::ffff:192.0.2.7"], ["192.0.3.0", "::192.0.2.1"]),
        (["192.0.2.1"], ["192.0.2.1"], ["192.0.2.2"]),
        (["2001:db8::/32", "::1"], ["2001:db8:ffff::1", "::1"], ["2001:db9::", "::2", "127.0.0.1"]),
        (["0.0.0.0/0"], ["1.2.3.4", "255.255.255.255"], ["::1", "2001:db8::1"]),
        (["::/0"], ["2001:db8::1"], ["192.0.2.1"]),
        ([], [], ["127.0.0.1", "::1"]),
    ],
)
def test_networks(networks: list[str], inside: list[str], outside: list[str]) -> None:
    found = Networks(networks)
    assert [text for text in inside if Address(text) not in found] == []
    assert [text for text in outside if Address(text) in found] == []


def test_a_network_with_host_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="host bits"):
        Networks(["192.0.2.1/24"])
