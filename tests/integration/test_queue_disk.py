"""The queue in the real server on a disk that is full: nothing acknowledged is lost, and it goes on.

The state directory is a file system of its own, in memory, which a test fills and empties.
"""

from __future__ import annotations

import os
import re
import signal
import smtplib
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.integration.daemon import Daemon
from tests.integration.servers import until

MIB = 1_048_576
SIZE_MIB = 80

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a file system")

CONFIG = """
[queue]
free_bytes = {free_bytes}
retry_min_s = 0.2
retry_max_s = 0.4
"""

ACCEPT = """
[[accept]]
domain = ["example.org"]
deliver = "maildir:{folder}/mail/{domain}/{local}"
[deliver]
queue = true
"""


class Disk:
    """A file system in memory at a path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filling = path / "filling"
        path.mkdir(mode=0o755)
        options = f"size={SIZE_MIB}m,mode=755"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "fastsmtp-test", str(path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"root of a container that may not mount: {done.stderr.strip()}")

    def fill(self, left_bytes: int = 0) -> None:
        """Until there is room for so much and no more."""
        with self._filling.open("ab") as file:
            while (more_bytes := self.free_bytes() - left_bytes) > 0:
                # The server may take some of it at the same time: then there is less, and it is looked again.
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(more_bytes, MIB))

    def empty(self) -> None:
        self._filling.unlink()

    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, timeout=60)


class SmallDisk:
    """A server whose state is on a small disk: `with` starts and ends it; `accepted` are numbers of messages."""

    def __init__(self, free_bytes: int = 0) -> None:
        self.daemon = Daemon(CONFIG.replace("{free_bytes}", str(free_bytes)), accept=ACCEPT, workers=1)
        self.accepted: list[int] = []
        self._count = 0

    def __enter__(self) -> Self:
        try:
            self.disk = Disk(self.daemon.folder / "state")
        except BaseException:
            self.daemon.remove()
            raise
        try:
            self.daemon.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.daemon.process.signal(signal.SIGTERM)
            assert self.daemon.process.end() == 0, self.daemon.process.lines
        finally:
            self._remove()

    def _remove(self) -> None:
        try:
            self.daemon.process.close()
        finally:
            self.disk.unmount()
            self.daemon.remove()

    def send(self, count: int = 1, size_bytes: int = 1_000) -> tuple[str, int]:
        """Messages over one connection, up to the first refusal: who got it, and its code."""
        with smtplib.SMTP("127.0.0.1", self.daemon.port, "client.example.org", timeout=60) as client:
            client.ehlo()
            for _ in range(count):
                self._count += 1
                name = b"Subject: %d\r\n\r\n" % self._count
                filling = (b"x" * 998 + b"\r\n") * (size_bytes // 1_000)
                for verb, line in (
                    ("mail", "MAIL FROM:<a@example.net>"),
                    ("rcpt", "RCPT TO:<b@example.org>"),
                ):
                    code, _ = client.docmd(line)
                    if code != 250:
                        return verb, code
                code, _ = client.data(name + filling)
                if code != 250:
                    return "data", code
                self.accepted.append(self._count)
        return "", 0

    def are_taken(self) -> bool:
        return self.send() == ("", 0)

    def delivered(self) -> list[int]:
        new = self.daemon.mailboxes / "example.org" / "b" / "new"
        paths = list(new.iterdir()) if new.is_dir() else []
        found = [re.search(rb"^Subject: (\d+)$", path.read_bytes(), re.MULTILINE) for path in paths]
        return [int(one[1]) for one in found if one is not None]

    def all_arrive(self) -> None:
        until(lambda: set(self.accepted) <= set(self.delivered()), "all that was accepted is delivered")

    def segments(self) -> list[str]:
        return sorted(
            name for name in os.listdir(self.disk.path / "queue") if name.startswith(("mail-", "new-"))
        )


@pytest.mark.slow
def test_below_the_low_water_mark_mail_waits_outside() -> None:
    with SmallDisk(free_bytes=20 * MIB) as server:
        assert server.send() == ("", 0)
        server.disk.fill(left_bytes=10 * MIB)
        until(lambda: server.send() == ("mail", 452), "MAIL is refused")
        server.disk.empty()
        until(server.are_taken, "there is room again")
        server.all_arrive()


@pytest.mark.slow
def test_a_disk_that_fills_up_refuses_at_the_dot_and_loses_nothing() -> None:
    with SmallDisk() as server:
        # Nothing can be delivered for now, so that no segment is used again.
        blocked = server.daemon.mailboxes / "example.org"
        blocked.touch()
        until(
            lambda: len(server.segments()) == 2 and "new" not in "".join(server.segments()),
            "segments are ready",
        )
        server.disk.fill()
        assert server.send(count=1_000, size_bytes=100_000) == ("data", 452)
        assert len(server.accepted) > 20
        # A body that needs a file of its own has no room for it either.
        assert server.send(size_bytes=400_000) == ("data", 452)
        assert server.send(size_bytes=100_000) == ("data", 452)
        server.disk.empty()
        until(server.are_taken, "there is room again")
        blocked.unlink()
        server.all_arrive()
        assert server.daemon.log("queue_damaged") == []
        assert server.daemon.log("defect") == []
