"""Whether a server is this very machine: mail for a domain whose best exchange we are must not go round in circles.

Rank 6: asks the system which addresses are its own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence

EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - a word of the configuration


def is_ours(name: str, addresses: Sequence[str]) -> bool:
    """deliverer.is_us: any of the addresses is one of the machine's own; names are not compared (RFC 5321 5.1)."""
    return any(map(is_local, addresses))


def is_local(address: str) -> bool:
    """Only an address of an interface can be bound.  Of 127.0.0.0/8 it is 127.0.0.1 alone: others are for tests."""
    if address.startswith("127.") and address != "127.0.0.1":
        return False
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return address not in EVERYWHERE  # every machine's


class Ours:
    """Called with a server's name and addresses: whether mail sent there would come back to us.

    hostname   our own name: a server of that name is us, wherever we are seen (behind NAT, too)
    listening  (address, port) of every listener
    port       that mail is sent to
    has_address   whether an address is one of this machine's
    """

    def __init__(
        self,
        hostname: str,
        listening: Iterable[tuple[str, int]],
        *,
        port: int = 25,
        has_address: Callable[[str], bool] = is_local,
    ) -> None:
        self._hostname = hostname.lower()
        addresses = {host for host, known in listening if known == port}
        self._listens_everywhere = not EVERYWHERE.isdisjoint(addresses)
        self._addresses = addresses - EVERYWHERE
        self._has_address = has_address

    def __call__(self, name: str, addresses: Sequence[str]) -> bool:
        if name and name.lower() == self._hostname:
            return True
        if not self._addresses.isdisjoint(addresses):
            return True
        return self._listens_everywhere and any(map(self._has_address, addresses))
