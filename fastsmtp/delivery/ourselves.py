"""Whether a server is this very machine: mail for a domain whose best exchange we are must not go round in circles.

Rank 6: asks the system which addresses are its own.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence


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
    return address not in ("0.0.0.0", "::")  # noqa: S104 - every machine's
