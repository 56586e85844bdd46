"""The programs that tests talk to, and the Debian package that brings each.

The one table of them: `needs` names a program of it, the summary at the end of
`make test` says which packages would run what was left out, and .ci/run asks
this file what to install:

    python3 tests/peers.py            packages of the programs that are missing
    python3 tests/peers.py --all      every package of the table
    python3 tests/peers.py --unpack   download what conflicts with another package of the table (one mail server
                                      does with the next) and unpack it into .peers/ of this checkout

Only the standard library is imported here; .ci/run reads it before anything
is installed.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pytest

PACKAGES = {
    "curl": "curl",
    "/usr/lib/dovecot/lmtp": "dovecot-lmtpd",
    "dig": "bind9-dnsutils",
    "dovecot": "dovecot-core",
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


class Unpacked(NamedTuple):
    """What is unpacked, not installed.

    package  that has the program
    inside   the program's path in it
    beside   packages that are unpacked into the same folder, for tests to start it with
    """

    package: str
    inside: str
    beside: tuple[str, ...] = ()


# Packages that can't be installed beside the others.
UNPACKED = {
    "chasquid": Unpacked("chasquid", "usr/bin/chasquid"),
    # Its account is made when it is installed; without that it doesn't start, unless it is told of one.
    "exim4": Unpacked("exim4-daemon-light", "usr/sbin/exim4", ("libnss-wrapper",)),
}
CACHE = pathlib.Path(__file__).resolve().parent.parent / ".peers"

# Daemons stand in sbin, which is not on everybody's PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find(program: str) -> str | None:
    """The full path of a program of the table, or None when this machine lacks it."""
    if program in UNPACKED:
        one = UNPACKED[program]
        return shutil.which(program, path=SEARCH_PATH) or shutil.which(CACHE / one.package / one.inside)
    if program not in PACKAGES:
        raise KeyError(f"{program} has no line in tests/peers.py: add its Debian package there")
    return shutil.which(program, path=SEARCH_PATH)


def path(program: str) -> str:
    """The full path of a program that the test has asked for with `needs`."""
    found = find(program)
    if found is None:
        raise FileNotFoundError(f"{program} is missing: {' or '.join(advice([program]))}")
    return found


def missing(*programs: str) -> list[str]:
    """Those of the programs that this machine lacks, sorted."""
    return sorted(program for program in set(programs) if find(program) is None)


def packages(programs: list[str]) -> list[str]:
    """The Debian packages that bring these programs, sorted, each once."""
    return sorted(
        {UNPACKED[program].package if program in UNPACKED else PACKAGES[program] for program in programs}
    )


def advice(programs: list[str]) -> list[str]:
    """The commands that bring these programs."""
    installed = [program for program in programs if program not in UNPACKED]
    found = [f"apt-get install {' '.join(packages(installed))}"] if installed else []
    return found + ["python3 tests/peers.py --unpack"] * (len(installed) < len(programs))


def libraries(program: str) -> list[pathlib.Path]:
    """Where the shared libraries of an unpacked program are that this machine hasn't; for LD_LIBRARY_PATH."""
    folder = CACHE / UNPACKED[program].package
    return sorted({found.parent for found in folder.glob("**/*.so*")})


def unpack() -> None:
    """Download and unpack what is missing of UNPACKED; needs no rights.  Raises subprocess.CalledProcessError."""
    for program, one in UNPACKED.items():
        if find(program) is not None:
            continue
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            whole = pathlib.Path(name) / "whole"
            _unpack([one.package, *one.beside], whole, pathlib.Path(name))
            # Whole when it has its last name.
            shutil.rmtree(CACHE / one.package, ignore_errors=True)
            whole.rename(CACHE / one.package)


def _unpack(wanted: list[str], target: pathlib.Path, folder: pathlib.Path) -> None:
    """These packages, and of what they depend on the libraries that are not installed."""
    taken: set[str] = set()
    while wanted:
        package = wanted.pop()
        taken.add(package)
        print("unpacking", package, flush=True)
        subprocess.run(["apt-get", "-q", "download", package], cwd=folder, check=True)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)
        depends = _output("dpkg-deb", "-f", str(archive), "Depends")
        archive.unlink()
        # "libc6 (>= 2.34), debconf (>= 0.5) | debconf-2.0": of alternatives the first.
        for clause in depends.split(","):
            name = re.split(r"[\s(|:]", clause.strip())[0]
            if (
                name.startswith("lib")
                and name not in taken
                and name not in wanted
                and not _is_installed(name)
            ):
                wanted.append(name)


def _is_installed(package: str) -> bool:
    return "installed" in _output("dpkg-query", "-W", "-f", "${db:Status-Status} ", package).split()


def _output(*command: str) -> str:
    """What it says; nothing when it fails."""
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    ).stdout


def needs(*programs: str) -> pytest.MarkDecorator:
    """Mark a test that talks to these programs.

    Where one is missing the test is skipped and the summary names its package;
    with FASTSMTP_ALL_PEERS=1 it fails instead (see conftest.py).
    """
    import pytest

    missing(*programs)  # a program without a package is a mistake wherever the test runs
    return pytest.mark.needs(*programs)


if __name__ == "__main__" and sys.argv[1:] == ["--unpack"]:
    CACHE.mkdir(exist_ok=True)
    unpack()
elif __name__ == "__main__":
    asked = list(PACKAGES) if sys.argv[1:] == ["--all"] else missing(*PACKAGES)
    print(" ".join(packages(asked)))
