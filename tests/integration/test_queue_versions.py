"""Queues that other releases left: every older format is read, a newer one stops the start by file and version.

tests/data/queue has a queue of each format, as a crash of the release that brought it left it: bob has his mail, ann,
cyd and dan were put off, eve's is held, and fay's was under way.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastsmtp._record import HEADER_BYTES, crc32c
from fastsmtp.queue.fileheader import FORMAT
from tests.integration.archives import PORT, unpack
from tests.integration.daemon import Daemon, ran
from tests.integration.hop import Hop
from tests.integration.queue_archive import ACCEPT, BIG, MESSAGE
from tests.integration.servers import until
from tests.nexthop import NextHop
from tests.ports import free_port

pytestmark = pytest.mark.slow

ARCHIVES = Path(__file__).parent.parent / "data" / "queue"

# What still waits when fay's has been delivered.
LEFT = {"ann": "deferred", "cyd": "deferred", "dan": "deferred", "eve": "held"}

CONFIG = """
[queue]
free_bytes = 0
retry_min_s = 900
"""


@contextlib.contextmanager
def unpacked(format: int = FORMAT) -> Iterator[tuple[Daemon, NextHop]]:
    """A server on a copy of that queue, not started and ended by the test, and the next hop of its mail."""
    port = free_port()
    daemon = Daemon(CONFIG, accept=ACCEPT.replace(str(PORT), str(port)), workers=1)
    try:
        state = daemon.folder / "state"
        state.mkdir(mode=0o755)
        unpack(ARCHIVES / f"format-{format}.tar.xz", state, port)
        with Hop(port=port) as hop:
            yield daemon, hop
    finally:
        daemon.remove()


def command(daemon: Daemon, *arguments: str) -> str:
    return ran(sys.executable, "-m", "fastsmtp", "queue", *arguments, "--state", f"{daemon.folder}/state")


def listed(daemon: Daemon) -> dict[str, str]:
    """Recipient -> state."""
    found = map(json.loads, command(daemon, "list", "--json").splitlines())
    return {one["recipient"].partition("@")[0]: one["state"] for one in found}


def stop(daemon: Daemon) -> None:
    daemon.process.signal(15)
    assert daemon.process.end() == 0, daemon.process.lines
    daemon.process.close()


def recipients(hop: NextHop) -> list[bytes]:
    return sorted(line[9 : line.index(b"@")] for line in hop.lines if line.startswith(b"RCPT TO:<"))


@pytest.mark.parametrize("format", range(1, FORMAT + 1))
def test_mail_in_a_queue_of_each_format_is_delivered(format: int) -> None:
    assert (ARCHIVES / f"format-{FORMAT}.tar.xz").exists(), "see queue_archive.py"
    with unpacked(format) as (daemon, hop):
        daemon.start()
        # Of fay's nobody knew when to try it again: at once.
        until(lambda: recipients(hop) == [b"fay"], "what was under way is tried")
        until(lambda: listed(daemon) == LEFT, "")
        # A stop and a start in between changes nothing.
        stop(daemon)
        assert listed(daemon) == LEFT
        daemon.start()
        command(daemon, "flush", "--all")
        until(lambda: recipients(hop) == [b"ann", b"cyd", b"dan", b"fay"], "what was put off is tried")
        command(daemon, "release", "--recipient", "eve@there.example")
        until(lambda: listed(daemon) == {}, "all is delivered")
        assert recipients(hop) == [b"ann", b"cyd", b"dan", b"eve", b"fay"]
        texts = sorted((text[text.index(b"From: ") :] for text in hop.messages), key=len)
        # On the wire, with dots stuffed.
        assert texts == [one.replace(b"\r\n..", b"\r\n...") for one in (*[MESSAGE] * 4, BIG)]
        assert daemon.log("queue_damaged") == []
        stop(daemon)


def set_version(path: Path, version: int) -> None:
    """In a header of 64 bytes, with its checksum."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 8, version)
    struct.pack_into("<I", data, 60, crc32c(bytes(data[:60])))
    path.write_bytes(data)


def set_index_version(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")


def set_layout(path: Path, version: int) -> None:
    """Of the first message of a segment: the first byte of its payload; the checksum of a record is over all of it."""
    data = bytearray(path.read_bytes())
    at = 4096
    (size,) = struct.unpack_from("<I", data, at + 4)
    data[at + HEADER_BYTES] = version
    summed = bytes(data[at : at + 28]) + bytes(data[at + HEADER_BYTES : at + HEADER_BYTES + size])
    struct.pack_into("<I", data, at + 28, crc32c(summed))
    path.write_bytes(data)


def body_of(queue: Path) -> Path:
    """The body file that has a body."""
    return max((queue / "bodies").iterdir(), key=lambda path: path.stat().st_size)


Change = Callable[[Path, int], None]

# What is looked for, which file it is in, how its version is changed, and what it is.
FILES: list[tuple[str, Callable[[Path], Path], Change, int]] = [
    ("{path}: written by fastsmtp ", lambda queue: queue / "mail-0000000000000001", set_version, FORMAT),
    ("{path}: written by fastsmtp ", lambda queue: queue / "done-0000000000000001", set_version, FORMAT),
    ("{path}: written by fastsmtp ", body_of, set_version, FORMAT),
    ("{path}: written by fastsmtp ", lambda queue: queue / "deferred.sqlite", set_index_version, 1),
    ("a message in layout 9, ", lambda queue: queue / "mail-0000000000000001", set_layout, 1),
]


def test_a_file_of_a_later_release_stops_the_start_and_is_left_for_that_release() -> None:
    with unpacked() as (daemon, hop):
        for words, find, change, ours in FILES:
            path = find(daemon.folder / "state" / "queue")
            change(path, 9)
            done = subprocess.run(
                [sys.executable, "-m", "fastsmtp", "serve", "--config", str(daemon.file)],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode != 0, path
            said = done.stdout + done.stderr
            assert words.replace("{path}", str(path)) in said
            assert "layout 9" in said or "in format 9" in said
            assert find(daemon.folder / "state" / "queue") == path
            change(path, ours)
        # That release is installed again: all its mail is there.
        daemon.start()
        until(lambda: recipients(hop) == [b"fay"], "what was under way is tried")
        until(lambda: listed(daemon) == LEFT, "the others wait")
        stop(daemon)
