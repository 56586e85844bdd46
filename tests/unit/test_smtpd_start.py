"""What `fastsmtp smtpd` has imported when its greeting leaves: it starts once for each connection.

Modules are looked at, never the time: that is `make bench`'s (bench/bench_startup.py).
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from tests.programs import environment

# Each costs 0.5 to 60 ms, and no session needs it for a greeting; re, enum and functools are what is left.
ABSENT = {
    "asyncio", "uvloop", "ssl", "_ssl", "cryptography", "OpenSSL", "pycares", "idna", "msgspec",
    "typing", "dataclasses", "contextlib", "copy", "inspect", "ast", "logging", "subprocess", "concurrent.futures",
    "threading", "tempfile", "hashlib", "random", "socket", "selectors", "ipaddress", "json", "tomllib", "argparse",
    "difflib", "traceback", "pathlib",
    "urllib.parse", "datetime", "decimal", "signal", "shutil", "pickle", "sqlite3",
    "fastsmtp._dns", "fastsmtp.resolver", "fastsmtp.tls", "fastsmtp.log", "fastsmtp.sink", "fastsmtp._journal",
    "fastsmtp.policy.mfcheck", "fastsmtp.policy.dnsbl", "fastsmtp.policy.helo", "fastsmtp.policy.reverse_dns",
    "fastsmtp.supervisor", "fastsmtp.smtp.connection", "fastsmtp.smtp.service",
}  # fmt: skip

SCRIPT = """
import os, sys
import fastsmtp.smtp.wire as wire
from fastsmtp.cli import main

def write(self, data, deadline_s):
    os.write(1, b" ".join([data.split()[0], *sorted(name.encode() for name in sys.modules)]))
    os._exit(0)

wire.Wire.write = write
sys.exit(main(["smtpd"]))
"""


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """A qmail home with checks that ask the DNS: nobody is asked for a greeting."""
    control = tmp_path / "control"
    control.mkdir()
    (tmp_path / "bin").mkdir()
    queue = tmp_path / "bin" / "qmail-queue"
    queue.write_text("#!/bin/sh\n")
    queue.chmod(0o755)
    for name, text in (
        ("me", "mx.example.org"),
        ("rcpthosts", "example.org"),
        ("badmailfrom", "a@example.net"),
    ):
        (control / name).write_text(f"{text}\n")
    return tmp_path


def test_nothing_heavy_is_there_at_the_greeting(home: pathlib.Path) -> None:
    given = environment(QMAILHOME=str(home), TCPREMOTEIP="192.0.2.1", TCPLOCALIP="192.0.2.2", PROTO="TCP")
    # -S: no site-packages, whose .pth files may import whatever they like; but fastsmtp must be found.
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT], env=given, stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.stderr == b""
    code, *modules = done.stdout.decode().split()
    assert code == "220"
    found = {name for name in modules if name in ABSENT or name.split(".")[0] in ABSENT}
    assert found == set()
