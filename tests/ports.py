"""A port for a server that can't take port 0, or that has to be found at the same one again."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import random
import socket

_LOWEST = 15_000


def free_port() -> int:
    """Free just now for TCP and UDP, on every address of this machine.

    It lies below those that the system gives to whoever asks for any, so that no outgoing connection and no
    server on port 0 takes it before its own server does.  It has five digits.
    """
    given = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
    above = int(given.read_text().split()[0]) if given.exists() else 32_768
    pick = random.SystemRandom()
    while True:
        port = pick.randrange(_LOWEST, max(above, _LOWEST + 1_000))
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for family, address in _families():
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = stack.enter_context(socket.socket(family, kind))
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    sock.bind((address, port))
            return port


@functools.cache
def _families() -> list[tuple[int, str]]:
    """Those that this machine has, each with its address for all."""
    found = [(int(socket.AF_INET), "0.0.0.0")]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        found.append((int(socket.AF_INET6), "::"))
    return found
