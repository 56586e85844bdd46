"""Postfix's smtp-sink for tests: a server over SMTP or LMTP that keeps what it gets.

    sink = SmtpSink("-L")
    ... sink.dest ...
    [text] = sink.new()
    sink.stop()

Mark tests with `needs("smtp-sink")`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.integration.postfix import PATIENCE_S
from tests.peers import SEARCH_PATH
from tests.ports import free_port


class SmtpSink:
    """smtp-sink on a loopback port; new() brings the texts that it has dumped, with LF."""

    def __init__(self, *options: str, host: str = "127.0.0.1", port: int = 0) -> None:
        # Not pytest's directory: that is closed to the account that smtp-sink runs as.
        self._directory = directory = Path(tempfile.mkdtemp(prefix="smtp-sink-"))
        self._seen: set[Path] = set()
        self.host = host
        self.port = port or free_port()
        self.kind = "lmtp" if "-L" in options else "smtp"
        program = shutil.which("smtp-sink", path=SEARCH_PATH)
        assert program is not None
        # Without -u it takes the account of whoever starts it, but not root's.
        account = ["-u", "postfix"] if _is_root() else []
        directory.chmod(0o777)
        command = [
            program,
            *account,
            *options,
            "-d",
            f"{directory}/m-%s.",
            f"{_bracketed(host)}:{self.port}",
            "100",
        ]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)
        end_s = time.monotonic() + PATIENCE_S
        while not _is_open(host, self.port):
            assert self._process.poll() is None, self._process.stderr.read() if self._process.stderr else b""
            assert time.monotonic() < end_s
            time.sleep(0.01)

    @property
    def dest(self) -> str:
        return f"{self.kind}://{_bracketed(self.host)}:{self.port}"

    def clients(self) -> list[bytes]:
        """The addresses that mail came from, in no order."""
        dumps = [path.read_bytes() for path in self._directory.iterdir()]
        return [dump.split(b"X-Client-Addr: ")[1].split(b"\n")[0] for dump in dumps]

    def new(self) -> list[bytes]:
        """The texts that came since the last call."""
        files = set(self._directory.iterdir()) - self._seen
        self._seen |= files
        return [_text(path.read_bytes()) for path in files]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        if self._process.stderr is not None:
            self._process.stderr.close()
        shutil.rmtree(self._directory)


def _is_root() -> bool:
    return os.geteuid() == 0


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_open(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        return sock.connect_ex((host, port)) == 0


def _text(dump: bytes) -> bytes:
    """What was sent: behind its own X- fields and Received of three lines, and before the empty line at the end."""
    at = dump.index(b"Received: from ")
    for _ in range(3):
        at = dump.index(b"\n", at) + 1
    return dump[at:].removesuffix(b"\n")
