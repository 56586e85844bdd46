"""Accounts and limits: who the workers are, and what they may open."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import pwd
import resource
import struct
from collections.abc import Callable, Collection, Iterable
from functools import cache
from typing import Final

from fastsmtp.errors import ConfigError
from fastsmtp.records import dataclass
from fastsmtp.supervisor.sockets import Address

PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
MADV_DONTFORK: Final = 10
CAPABILITY_VERSION_3: Final = 0x2008_0522
CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
MOST_CAPABILITIES: Final = 64
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
M_MMAP_THRESHOLD: Final = -3
MMAP_THRESHOLD_BYTES: Final = 65_536
"""Buffers of this size go back to the system when freed: an idle TLS connection holds 24 kB instead of 46."""

_CAPABILITIES: Final = struct.Struct("6I")


@dataclass(frozen=True, slots=True)
class Account:
    """Who a worker becomes."""

    name: str
    uid: int
    gid: int


def account_for(
    user: str,
    addresses: Iterable[Address],
    *,
    uid: int | None = None,
    look_up: Callable[[str], pwd.struct_passwd] = pwd.getpwnam,
) -> tuple[Account | None, str]:
    """(the account that workers change to or None, a warning or "").

    None when we are not root: then everything runs as who we are.  Started as root the account must
    exist; only where all addresses are loopback ones with high ports may a trial run as root.
    ConfigError otherwise, and for an account that is root itself.
    """
    if (os.geteuid() if uid is None else uid) != 0:
        return None, ""
    try:
        entry = look_up(user)
    except KeyError:
        make = f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {user}"
        exposed = [(host, port) for host, port in addresses if not _is_private(host, port)]
        if exposed:
            raise ConfigError(
                f"user: there is no account {user!r}, and nothing is served as root on a port below 1024 "
                f"or off loopback. Make it with:  {make}"
            ) from None
        return None, f"there is no account {user!r}, so everything runs as root. Make it with:  {make}"
    if entry.pw_uid == 0:
        raise ConfigError(f"user: {user!r} is root; workers need an account without rights")
    return Account(user, entry.pw_uid, entry.pw_gid), ""


def _is_private(host: str, port: int) -> bool:
    try:
        return (port == 0 or port >= 1024) and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return port >= 1024 and host.lower().rstrip(".") == "localhost"


def become(account: Account | None, *, runs_programs: bool = False) -> None:
    """Change to the account for good, and give up every way back.

    runs_programs  what it starts may be set-uid: qmail-queue is, and without that it can't write the queue
    """
    if account is not None:
        os.initgroups(account.name, account.gid)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    if not runs_programs:
        _libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Person:
    """An account that mail is delivered as: its groups are looked up once, so that nothing is parsed as root later."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def person_for(user: str) -> Person:
    """ConfigError where there is no such account, or it is root."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no account {user!r}") from None
    if entry.pw_uid == 0:
        raise ConfigError(f"{user!r} is root: mail is never delivered as root")
    groups = tuple(sorted(os.getgrouplist(user, entry.pw_gid)))
    return Person(user, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def prepare_to_become() -> None:
    """What become_person() needs of the C library, for a process whose children will call it."""
    _libc_call("prctl", PR_GET_DUMPABLE, 0, 0, 0, 0)


def become_person(person: Person, *, runs_programs: bool) -> None:
    """Be this account for good, in a process of its own; raises OSError when that isn't so afterwards.

    No terminal to type into, no core file, and nobody of this account may look into our memory, where root's
    secrets may still be.  Whether what it starts may be set-uid says runs_programs, as become() has it.
    """
    os.setsid()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups(person.groups)
    os.setresgid(person.gid, person.gid, person.gid)
    os.setresuid(person.uid, person.uid, person.uid)
    if not runs_programs:
        _libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc_call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getresuid() != (person.uid,) * 3 or os.getresgid() != (person.gid,) * 3:
        raise PermissionError(errno.EPERM, "the account was not taken on")
    for way_back in (os.setuid, os.seteuid):
        try:
            way_back(0)
        except PermissionError:
            continue
        raise PermissionError(errno.EPERM, "there is a way back to root")


def keep_capabilities(kept: Collection[int], *, runs_programs: bool) -> None:
    """Give up all that root may do but these capabilities, for this thread and what it forks; Linux only.

    runs_programs  what children start may be set-uid, and have what root may do then; else nobody ever can again

    Raises OSError where the kernel refuses.
    """
    capget, capset = _libc_function("capget"), _libc_function("capset")
    if capget is None or capset is None or os.geteuid() != 0:
        return
    _libc_call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if not runs_programs:
        # A kernel has as many as it has; one more is an error, as each is where CAP_SETPCAP is missing, and then
        # NoNewPrivs has to do.
        for number in range(MOST_CAPABILITIES):
            _libc_call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(_CAPABILITIES.size)
    if capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    _, low, _, _, high, _ = _CAPABILITIES.unpack(data.raw)
    permitted = (low | high << 32) & sum(1 << number for number in kept)
    low, high = permitted & 0xFFFF_FFFF, permitted >> 32
    # Effective, permitted, inheritable.
    if capset(header, _CAPABILITIES.pack(low, low, 0, high, high, 0)):
        raise OSError(ctypes.get_errno(), "capset")


def withhold_shared_memory() -> None:
    """Processes that we fork don't get what we share with others (counters, metrics); Linux only."""
    madvise = _libc_function("madvise")
    try:
        with open("/proc/self/maps") as file:
            lines = file.readlines()
    except OSError:
        return
    for line in lines:
        where, rights = line.split(maxsplit=2)[:2]
        if madvise is not None and rights == "rw-s":
            start, end = (int(one, 16) for one in where.split("-"))
            if madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTFORK):
                raise OSError(ctypes.get_errno(), "madvise")


def raise_descriptors() -> int:
    """RLIMIT_NOFILE to its hard limit; how many files may be open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 30


def return_memory_early() -> None:
    """Set M_MMAP_THRESHOLD, mallopt(3), for us and our children, where the C library has it."""
    _libc_call("mallopt", M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


@cache
def _libc_function(name: str) -> Callable[..., object] | None:
    """Looked up once: that costs more than all else that a child of lspawn does."""
    found: Callable[..., object] | None = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return found


def _libc_call(name: str, *arguments: int) -> None:
    """Call a function of the C library if it has it; failures are no reason not to serve."""
    function = _libc_function(name)
    if function is not None:
        function(*(ctypes.c_ulong(one) if name == "prctl" else ctypes.c_int(one) for one in arguments))
