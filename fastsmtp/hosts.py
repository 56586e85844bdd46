"""Host names of the configuration to addresses: next hops, stores, submission peers.

The way the system does it: hosts file, search list, resolv.conf; names that
mail brings along are the Resolver's.  Rank 3.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from fastsmtp.cares import LoopChannel, reason
from fastsmtp.errors import HostUnknown, TemporaryError

if TYPE_CHECKING:
    from pycares import AddrInfoResult


class Hosts:
    """Addresses of configured host names by c-ares: the hosts file, then DNS with the search list."""

    def __init__(self, servers: tuple[str, ...] = ()) -> None:
        """servers: as [dns] servers, () for resolv.conf."""
        self._channel = LoopChannel(servers=servers)

    async def addresses(self, host: str, *, timeout_s: float = 5.0) -> tuple[str, ...]:
        """The IPv4 and IPv6 addresses of a host as text, in the order of RFC 6724; an address is itself.

        Raises HostUnknown when the name does not exist or has no address,
        TemporaryError when that could not be found out within timeout_s.
        """
        if _is_address(host):
            return (host,)
        from pycares import errno

        answer: asyncio.Future[tuple[AddrInfoResult | None, int | None]] = (
            asyncio.get_running_loop().create_future()
        )

        def answered(result: AddrInfoResult | None, error: int | None) -> None:
            if not answer.done():
                answer.set_result((result, error))

        try:
            # SOCK_STREAM: otherwise every address comes once for each kind of socket.
            self._channel.channel().getaddrinfo(host, None, type=socket.SOCK_STREAM, callback=answered)
        except (RuntimeError, UnicodeError) as fault:
            raise TemporaryError(f"{host}: {fault}") from None
        self._channel.keep_time()
        try:
            async with asyncio.timeout(timeout_s):
                result, error = await answer
        except TimeoutError:
            raise TemporaryError(f"{host}: no answer in {timeout_s:g} s") from None
        if error in (errno.ARES_ENOTFOUND, errno.ARES_ENODATA, errno.ARES_ENONAME, errno.ARES_EBADNAME):
            raise HostUnknown(f"{host}: {reason(error)}")
        if error is not None or result is None:
            raise TemporaryError(f"{host}: {reason(error)}")
        texts = [node.addr[0].decode("ascii") for node in result.nodes]
        return tuple(dict.fromkeys(texts))

    def close(self) -> None:
        self._channel.close()


def _is_address(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host.partition("%")[0])
    except (OSError, UnicodeError, ValueError):
        return False
    return True
