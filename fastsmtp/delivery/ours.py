"""Is a domain's server ourselves?  By name, by the addresses that we listen on, and by what the machine has.

Rank 6: asks the kernel whether an address is local, by binding a socket to it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence

EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - a word of the configuration


class Ours:
    """Called with a server's name and addresses: whether mail sent there would come back to us.

    hostname   our own name: a server of that name is us, wherever we are seen (behind NAT, too)
    listening  (address, port) of every listener
    port       that mail is sent to
    is_local   whether an address is one of this machine's
    """

    def __init__(
        self,
        hostname: str,
        listening: Iterable[tuple[str, int]],
        *,
        port: int = 25,
        is_local: Callable[[str], bool] | None = None,
    ) -> None:
        self._hostname = hostname.lower()
        addresses = {host for host, known in listening if known == port}
        self._listens_everywhere = not EVERYWHERE.isdisjoint(addresses)
        self._addresses = addresses - EVERYWHERE
        self._is_local = is_local or is_local_address

    def __call__(self, name: str, addresses: Sequence[str]) -> bool:
        if name and name.lower() == self._hostname:
            return True
        if not self._addresses.isdisjoint(addresses):
            return True
        return self._listens_everywhere and any(map(self._is_local, addresses))


def is_local_address(address: str) -> bool:
    """Whether the address is one of this machine's; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True
