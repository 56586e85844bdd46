"""The programs that tests talk to, and the Debian package that brings each.

The one table of them: `needs` names a program of it, the summary at the end of
`make test` says which packages would run what was left out, and .ci/run asks
this file what to install:

    python3 tests/peers.py          packages of the programs that are missing
    python3 tests/peers.py --all    every package of the table

Only the standard library is imported here; .ci/run reads it before anything
is installed.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PACKAGES = {
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "fail2ban-regex": "fail2ban",
    "mpop": "mpop",
    "nsd": "nsd",
    "nsd-control": "nsd",
    "openssl": "openssl",
    "p0f": "p0f",
    "postconf": "postfix",
    "postfix": "postfix",
    "postqueue": "postfix",
    "sendmail": "postfix",
    "smtp-sink": "postfix",
    "smtp-source": "postfix",
    "strace": "strace",
    "swaks": "swaks",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
    "tcprules": "ucspi-tcp-ipv6",
    "tcprulescheck": "ucspi-tcp-ipv6",
    "tcpserver": "ucspi-tcp-ipv6",
    "unbound": "unbound",
}

# Daemons stand in sbin, which is not on everybody's PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find(program: str) -> str | None:
    """The full path of a program of the table, or None when this machine lacks it."""
    if program not in PACKAGES:
        raise KeyError(f"{program} has no line in tests/peers.py: add its Debian package there")
    return shutil.which(program, path=SEARCH_PATH)


def path(program: str) -> str:
    """The full path of a program that the test has asked for with `needs`."""
    found = find(program)
    if found is None:
        raise FileNotFoundError(f"{program} is not installed: apt-get install {PACKAGES[program]}")
    return found


def missing(*programs: str) -> list[str]:
    """Those of the programs that this machine lacks, sorted."""
    return sorted(program for program in set(programs) if find(program) is None)


def packages(programs: list[str]) -> list[str]:
    """The Debian packages that bring these programs, sorted, each once."""
    return sorted({PACKAGES[program] for program in programs})


def needs(*programs: str) -> pytest.MarkDecorator:
    """Mark a test that talks to these programs.

    Where one is missing the test is skipped and the summary names its package;
    with FASTSMTP_ALL_PEERS=1 it fails instead (see conftest.py).
    """
    import pytest

    missing(*programs)  # a program without a package is a mistake wherever the test runs
    return pytest.mark.needs(*programs)


if __name__ == "__main__":
    asked = list(PACKAGES) if sys.argv[1:] == ["--all"] else missing(*PACKAGES)
    print(" ".join(packages(asked)))
