"""What a trusted front says with XCLIENT about the client behind it.

Source: Postfix, XCLIENT_README.  The session has decoded xtext already.
"""

from __future__ import annotations

from fastsmtp.address import Address
from fastsmtp.policy.facts import Client, Origin

_UNKNOWN = (b"[UNAVAILABLE]", b"[TEMPUNAVAIL]")
_IPV6 = b"IPV6:"


class Told:
    """The client as told; local_address and helo are empty when not told."""

    __slots__ = ("client", "helo", "local_address")

    def __init__(self, client: Client, local_address: str, helo: bytes) -> None:
        self.client = client
        self.local_address = local_address
        self.helo = helo


def read(attributes: tuple[tuple[bytes, bytes], ...], known: Client) -> Told | None:
    """The new client, or None when an attribute's value can't be one.  What is not told stays as known."""
    values = {name: value for name, value in attributes if value not in _UNKNOWN}
    try:
        address = _address(values[b"ADDR"]) if b"ADDR" in values else known.address
        local_address = _address(values[b"DESTADDR"]).text if b"DESTADDR" in values else ""
        port = _port(values[b"PORT"]) if b"PORT" in values else known.port
        name = values.get(b"NAME", known.name.encode()).decode("ascii")
    except ValueError:
        return None
    client = Client(address, port, Origin.XCLIENT)
    client.name = name
    return Told(client, local_address, values.get(b"HELO", b""))


def _address(value: bytes) -> Address:
    """ADDR is 192.0.2.1 or IPV6:2001:db8::1; ValueError else."""
    if value[: len(_IPV6)].upper() == _IPV6:
        value = value[len(_IPV6) :]
    return Address(value.decode("ascii"))


def _port(value: bytes) -> int:
    if not value.isdigit() or int(value) > 65535:
        raise ValueError("no port")
    return int(value)
