"""IP addresses and networks as the hot path needs them: packed bytes and integers.

The standard library's ipaddress does the parsing; this file adds what it lacks:
one packed form for both families, a per-client key, and a set of networks that
is asked in a few dictionary look-ups however many networks it holds.

Rank 1: pure.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from collections.abc import Iterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

_MAPPED = b"\0" * 10 + b"\xff\xff"
_EVERYBODY = frozenset({"0.0.0.0/0", "::/0"})
_LOOPBACK = bytes(15) + b"\1"  # ::1


class Address:
    """One IPv4 or IPv6 address.

    text     canonical text; an IPv4-mapped IPv6 address is its IPv4 address
    packed   16 bytes, IPv4 as ::ffff:a.b.c.d
    is_ipv4, is_loopback
    key      16 bytes that stand for "this client": the IPv4 address, or the IPv6 /64
    """

    __slots__ = ("is_ipv4", "is_loopback", "key", "packed", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError when text is no address.  A zone (%eth0) is dropped."""
        if "%" in text:
            text = text[: text.index("%")]
        try:
            if ":" in text:
                packed = inet_pton(AF_INET6, text)
                if packed.startswith(_MAPPED):
                    text = inet_ntop(AF_INET, packed[12:])
            else:
                packed = _MAPPED + inet_pton(AF_INET, text)
        except OSError:
            raise ValueError(f"no IP address: {text!r}") from None
        self.packed = packed
        self.is_ipv4 = packed.startswith(_MAPPED)
        self.text = text if self.is_ipv4 else inet_ntop(AF_INET6, packed)
        self.is_loopback = packed[12] == 127 if self.is_ipv4 else packed == _LOOPBACK
        self.key = packed if self.is_ipv4 else packed[:8] + b"\0" * 8

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def __repr__(self) -> str:
        return f"Address({self.text!r})"

    @property
    def literal(self) -> str:
        """As an RFC 5321 address literal: [192.0.2.1], [IPv6:2001:db8::1]."""
        return f"[{self.text}]" if self.is_ipv4 else f"[IPv6:{self.text}]"


class Networks:
    """A frozen set of addresses and CIDR networks.  A look-up costs one step a prefix length in use.

    The families are apart: ::/0 is every IPv6 address, and no IPv4 address.
    """

    __slots__ = ("_ipv4", "_ipv6", "texts")
    _ipv4: tuple[tuple[int, frozenset[int]], ...]
    _ipv6: tuple[tuple[int, frozenset[int]], ...]

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Raises ValueError naming the first text that is no address and no network (host bits must be zero)."""
        self.texts = tuple(texts)
        if all(text in _EVERYBODY for text in self.texts):
            # None, or all there are: ipaddress costs `fastsmtp smtpd` 2 ms of its start.
            everybody = frozenset((0,))
            self._ipv4 = ((32, everybody),) if "0.0.0.0/0" in self.texts else ()
            self._ipv6 = ((128, everybody),) if "::/0" in self.texts else ()
            return
        from ipaddress import ip_network

        networks = [ip_network(text) for text in self.texts]
        self._ipv4 = _by_shift([n for n in networks if n.version == 4])
        self._ipv6 = _by_shift([n for n in networks if n.version == 6])

    def __contains__(self, address: Address) -> bool:
        # Not kept in the address: 48 bytes a connection, for a look-up or two at its beginning.
        if address.is_ipv4:
            number = int.from_bytes(address.packed[12:])
            networks = self._ipv4
        else:
            number = int.from_bytes(address.packed)
            networks = self._ipv6
        # A loop, since a generator costs more than all look-ups together: this runs for every connection.
        for shift, numbers in networks:  # noqa: SIM110
            if number >> shift in numbers:
                return True
        return False

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __repr__(self) -> str:
        return f"Networks({self.texts!r})"


def _by_shift(networks: list[IPv4Network | IPv6Network]) -> tuple[tuple[int, frozenset[int]], ...]:
    """Network numbers without their host bits, by how many bits those are."""
    found: dict[int, set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        found.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return tuple((shift, frozenset(numbers)) for shift, numbers in sorted(found.items()))
