"""The listening sockets.  The master binds and holds them all; workers are given some.

An address gets a fixed number of SO_REUSEPORT sockets, among which the kernel
spreads connections evenly; each is assigned to exactly one worker.  With fewer
workers one takes several.  A socket is never closed while its address stays
configured: what waits in its queue would be reset.  One that systemd hands over
is a single socket, shared by all workers.

Descriptors are plain numbers here, so that nothing closes one behind our back
after a fork.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Final

from fastsmtp.errors import ConfigError
from fastsmtp.records import dataclass, field
from fastsmtp.supervisor.shapes import Listener

SPREAD: Final = 24
"""Sockets an address: divisible by 1, 2, 3, 4, 6, 8, 12 and 24 workers."""

BACKLOG: Final = 4096
"""Connections that wait in each socket's queue; the kernel's own ceiling is net.core.somaxconn (4096)."""

FIRST_HANDED_OVER: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

Address = tuple[str, int]
Key = tuple[str, int, int]


@dataclass(slots=True)
class Bound:
    """One address and its sockets.

    key      what the configuration says (port 0 stays 0), and which of several such it is
    actual   where it listens
    fds      the sockets
    shared   all workers take all of them
    """

    key: Key
    actual: Address
    fds: list[int] = field(default_factory=list)
    shared: bool = False


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A socket from systemd: its name (LISTEN_FDNAMES) and where it listens."""

    fd: int
    name: str
    address: Address


def handed_over(environment: MutableMapping[str, str], pid: int) -> list[HandedOver]:
    """The sockets of systemd's socket activation, sd_listen_fds(3).

    The variables are removed: what we start has no use for them.
    ConfigError if one of them is no listening TCP socket.
    """
    count, owner = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdigit() or owner != str(pid):
        return []
    found = []
    for at in range(int(count)):
        fd = FIRST_HANDED_OVER + at
        os.set_inheritable(fd, False)
        name = names[at] if at < len(names) else ""
        try:
            found.append(HandedOver(fd, name, _listening_at(fd)))
        except OSError as error:
            raise ConfigError(
                f"descriptor {fd} ({name or 'without a name'}) from systemd is no listening TCP socket: "
                f"{error.strerror}"
            ) from None
    return found


def _listening_at(fd: int) -> Address:
    sock = socket.socket(fileno=fd)
    try:
        is_stream = sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM
        if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.ENOTSOCK, "the unit needs ListenStream=PORT")
        return _address_of(sock)
    finally:
        sock.detach()


def _address_of(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return host, port


class Sockets:
    """Every listening socket of the master.

    `adopt` takes what systemd brought, `bind` opens what a configuration needs, `assign` deals them out,
    `keep` closes what is not needed any more.
    """

    def __init__(self, adopted: Sequence[HandedOver] = ()) -> None:
        self._adopted = list(adopted)
        self._bound: dict[Key, Bound] = {}

    def fds(self) -> list[int]:
        """All that are open."""
        return [fd for bound in self._bound.values() for fd in bound.fds] + [one.fd for one in self._adopted]

    def bind(self, listeners: Sequence[Listener], workers: int) -> list[list[Bound]]:
        """The sockets of each listener, those that exist and new ones.

        All or nothing: on ConfigError what was open stays open, and nothing else does.
        """
        before = dict(self._bound)
        try:
            given = match(self._adopted, listeners)
            plan: list[list[Bound]] = []
            seen: Counter[Address] = Counter()
            for at, listener in enumerate(listeners):
                if given[at]:
                    plan.append([Bound((*one.address, 0), one.address, [one.fd], True) for one in given[at]])
                    continue
                plan.append([])
                for address in listener.addresses:
                    if seen[address] and address[1]:
                        raise ConfigError(f"{show(*address)} is listed twice")
                    plan[at].append(self._open((*address, seen[address]), workers))
                    seen[address] += 1
            return plan
        except ConfigError:
            for key, bound in self._bound.items():
                if key not in before:
                    _close(bound.fds)
            self._bound = before
            raise

    def _open(self, key: Key, workers: int) -> Bound:
        bound = self._bound.get(key)
        wanted = key[:2]
        if bound is None:
            # Where we listen on this port already (127.0.0.1:25, and now 0.0.0.0:25), the port is ours.
            is_ours = any(wanted[1] and one.actual[1] == wanted[1] for one in self._bound.values())
            bound = self._bound[key] = Bound(key, wanted if is_ours else free_address(wanted))
        while len(bound.fds) < max(SPREAD, workers):
            # A socket that joins later takes nothing away from the others.
            bound.fds.append(open_one(bound.actual))
        return bound

    def keep(self, wanted: Iterable[Key]) -> None:
        """Close the sockets of all other addresses.  Only when no worker needs them."""
        wanted = set(wanted)
        for key in [key for key in self._bound if key not in wanted]:
            _close(self._bound.pop(key).fds)

    def close(self) -> None:
        self.keep(())
        _close([one.fd for one in self._adopted])
        self._adopted.clear()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def match(adopted: Sequence[HandedOver], listeners: Sequence[Listener]) -> list[list[HandedOver]]:
    """Which listener a handed-over socket belongs to: by name, else by address, else the only one.

    A listener that is given sockets binds none itself.
    """
    given: list[list[HandedOver]] = [[] for _ in listeners]
    for one in adopted:
        fits = [at for at, listener in enumerate(listeners) if listener.name == one.name]
        fits = fits or [at for at, listener in enumerate(listeners) if one.address in listener.addresses]
        fits = fits or ([0] if len(listeners) == 1 else [])
        if not fits:
            host, port = one.address
            raise ConfigError(
                f"the socket {one.name!r} from systemd ({show(host, port)}) belongs to no [[listen]]: "
                "FileDescriptorName= in the socket unit names one"
            )
        given[fits[0]].append(one)
    return given


def assign(plan: Sequence[Sequence[Bound]], workers: int) -> list[list[tuple[int, int]]]:
    """For each worker its (index of the listener, descriptor): a socket has one owner, a shared one all."""
    seats: list[list[tuple[int, int]]] = [[] for _ in range(workers)]
    for at, addresses in enumerate(plan):
        for bound in addresses:
            for number, fd in enumerate(bound.fds):
                owners = range(workers) if bound.shared else [number % workers]
                for owner in owners:
                    seats[owner].append((at, fd))
    return seats


def free_address(wanted: Address) -> Address:
    """The address with its port, found free by a socket that would share it with nobody.

    SO_REUSEPORT lets a second server of the same account join silently; this finds it.
    """
    sock = _socket(wanted)
    try:
        _bind(sock, wanted)
        return wanted[0], sock.getsockname()[1]
    except OSError as error:
        raise ConfigError(_explain(wanted, error)) from None
    finally:
        sock.close()


def open_one(address: Address) -> int:
    """One more listening SO_REUSEPORT socket at an address; its descriptor."""
    sock = _socket(address)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(sock, address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return sock.detach()
    except OSError as error:
        sock.close()
        raise ConfigError(_explain(address, error)) from None


def _socket(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ConfigError(_explain(address, error)) from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # [::]:25 and 0.0.0.0:25 are two addresses, whatever net.ipv6.bindv6only says.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _bind(sock: socket.socket, address: Address) -> None:
    host, port = address
    sock.bind(socket.getaddrinfo(host, port, sock.family, sock.type, flags=socket.AI_PASSIVE)[0][4])


_EXPLAINED: Final[Mapping[int, Callable[[str, int], str]]] = {
    errno.EADDRINUSE: lambda where, port: f"cannot listen on {where}: something else listens there already",
    errno.EACCES: lambda where, port: (
        f"cannot listen on {where}: a port below 1024 needs root, CAP_NET_BIND_SERVICE or systemd's socket"
        if port < 1024
        else f"cannot listen on {where}: not permitted"
    ),
    errno.EADDRNOTAVAIL: lambda where, port: f"cannot listen on {where}: this machine has no such address",
    errno.EAFNOSUPPORT: lambda where, port: (
        f"cannot listen on {where}: this machine has no such protocol (IPv6 off?)"
    ),
    errno.EMFILE: lambda where, port: f"cannot listen on {where}: the limit of open files is reached",
}


def _explain(address: Address, error: OSError) -> str:
    where = show(*address)
    explain = _EXPLAINED.get(error.errno or 0)
    return explain(where, address[1]) if explain else f"cannot listen on {where}: {error.strerror or error}"


def show(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
