"""What the configuration must know of the machine it runs on: files, environment, accounts, limits.

The one seam between config/ and the world, so that everything else here is a
function of values; tests pass a Host of their own.  Never asks the network.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping


class Host:
    """The real machine."""

    @property
    def environ(self) -> Mapping[str, str]:
        return os.environ

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def directory(self) -> str:
        """The current directory, for paths of the command line."""
        return os.getcwd()

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; OSError when it can't be read."""
        return sorted(os.listdir(path))

    def read(self, path: str) -> bytes:
        """A file's contents; OSError when it can't be read."""
        with open(path, "rb") as file:
            return file.read()

    def mode(self, path: str) -> tuple[int, int]:
        """Permission bits and owner's uid of a file, links followed; OSError when it isn't there."""
        status = os.stat(path)
        return stat.S_IMODE(status.st_mode), status.st_uid

    def has_account(self, name: str) -> bool:
        import pwd

        try:
            pwd.getpwnam(name)
        except KeyError:
            return False
        return True

    def account(self, name: str) -> int | None:
        """The uid of an account, None when there is none."""
        import pwd

        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            return None

    def cores(self) -> int:
        """Cores that this process may use."""
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def open_files(self) -> int:
        """The hard limit of open files a process."""
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return 2**31 if hard == resource.RLIM_INFINITY else hard

    def name(self) -> str:
        """The system's full name, as far as the machine itself knows it: /etc/hosts may have the domain."""
        import socket

        name = socket.gethostname()
        if "." in name:
            return name
        try:
            return _full_name(name, self.read("/etc/hosts"))
        except OSError:
            return name


def _full_name(name: str, hosts: bytes) -> str:
    """The first name with a dot on a line of a hosts file that has `name`; else `name`."""
    for line in hosts.decode(errors="replace").splitlines():
        names = line.partition("#")[0].split()[1:]
        if name in names:
            for full in names:
                if full.startswith(name + "."):
                    return full
    return name
