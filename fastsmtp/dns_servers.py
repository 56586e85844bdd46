"""Which name servers to ask: those of the configuration, else resolv.conf's.

pycares reads the servers of resolv.conf; the options that it does not tell of
are read here (resolv.conf(5)).  Rank 3.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from fastsmtp._dns import Server
from fastsmtp.errors import ConfigError
from fastsmtp.records import dataclass

RESOLV_CONF = "/etc/resolv.conf"


@dataclass(frozen=True, slots=True)
class Options:
    """What the options line says: timeout, attempts (for each server), rotate, trust-ad, use-vc.

    None where nothing is said; timeout_s is for the first try.
    """

    timeout_s: float | None = None
    attempts: int | None = None
    is_rotated: bool = False
    trusts_ad: bool = False
    uses_tcp: bool = False


def options_of(text: str) -> Options:
    """The options of a resolv.conf; the last line counts, unknown ones are for others, bounds as in glibc."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word == "options":
            found = {name: value for name, _, value in (option.partition(":") for option in rest)}
    timeout, attempts = _number(found.get("timeout"), 30), _number(found.get("attempts"), 5)
    return Options(
        timeout_s=None if timeout is None else float(timeout),
        attempts=attempts,
        is_rotated="rotate" in found,
        trusts_ad="trust-ad" in found,
        uses_tcp="use-vc" in found,
    )


def _number(text: str | None, most: int) -> int | None:
    return max(1, min(int(text), most)) if text and text.isdecimal() else None


def split_server(text: str) -> tuple[str, int]:
    """ "192.0.2.1", "192.0.2.1:5353", "2001:db8::1" or "[2001:db8::1]:53" as address and port.

    Raises ConfigError for anything else; a server is an address, since a name would need a server.
    """
    address, port = text, "53"
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigError(f"no name server: {text!r}")
        port = rest[1:] or "53"
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        ip_address(address)
    except ValueError:
        raise ConfigError(f"a name server is an address with or without port: {text!r}") from None
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"no port: {text!r}")
    return address, int(port)


def servers_of(texts: tuple[str, ...], *, trusts_ad: bool = False, mixes_case: bool = True) -> list[Server]:
    """Servers in the order in which they are asked.

    The AD bit counts where nobody between the server and us can set it, on loopback, or with trusts_ad.
    """
    servers = []
    for text in dict.fromkeys(texts):
        address, port = split_server(text)
        is_near = ip_address(address).is_loopback
        servers.append(Server(address, port, trusts_ad=trusts_ad or is_near, mixes_case=mixes_case))
    return servers


def system_servers() -> tuple[tuple[str, ...], Options]:
    """The servers and options of resolv.conf; 127.0.0.1 where it names none.  Call it after the fork.

    The path is c-ares' own: pycares 5.2.1 frees the one that it is given before c-ares reads it.
    """
    from pycares import AresError, Channel

    try:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            options = options_of(file.read())
    except OSError:
        options = Options()
    try:
        # The callback is never called: it only keeps c-ares from starting an event thread.
        channel = Channel(sock_state_cb=lambda fd, readable, writable: None)
    except AresError:
        return ("127.0.0.1",), options
    texts = tuple(channel.servers)
    channel.close()
    return texts or ("127.0.0.1",), options


def connected_socket(server: Server) -> socket.socket:
    """A UDP socket on a port that the kernel draws, which hears nobody but this server.  Raises OSError."""
    family, kind, protocol, _, where = socket.getaddrinfo(
        server.address, server.port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        # Room for a burst: the kernel counts a small packet as some 800 bytes.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_048_576)
        sock.connect(where)
    except OSError:
        sock.close()
        raise
    return sock
