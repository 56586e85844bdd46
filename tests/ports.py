"""A port for a server that can't take port 0, or that has to be found at the same one again."""

from __future__ import annotations

import contextlib
import pathlib
import random
import socket

_LOWEST = 15_000


def free_port() -> int:
    """Free just now for TCP and UDP, on every address of this machine.

    It lies below those that the system gives to whoever asks for any, so that no outgoing connection and no
    server on port 0 takes it before its own server does.
    """
    given = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
    above = int(given.read_text().split()[0]) if given.exists() else 32_768
    pick = random.SystemRandom()
    while True:
        port = pick.randrange(_LOWEST, max(above, _LOWEST + 1_000))
        with (
            socket.socket() as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
            contextlib.suppress(OSError),
        ):
            tcp.bind(("0.0.0.0", port))
            udp.bind(("0.0.0.0", port))
            return port
