"""The queue in the real server: any of its processes may die, the disk may be full, and workers can't read mail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pathlib
import re
import signal
import smtplib
import subprocess
import sys

import pytest

from fastsmtp.queue.line import connect
from tests.integration.daemon import Daemon
from tests.integration.servers import until
from tests.nexthop import NextHop

CONFIG = """
queue_user = "daemon"
[queue]
free_bytes = 0
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

MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"


def send(daemon: Daemon, *recipients: str, content: bytes = MESSAGE, sender: str = "a@example.org") -> None:
    with smtplib.SMTP("127.0.0.1", daemon.port, "client.example.org", timeout=60) as client:
        assert client.sendmail(sender, list(recipients), content) == {}


def wait_for(daemon: Daemon, recipient: str, count: int = 1) -> None:
    until(lambda: len(daemon.mail(recipient)) >= count, f"{count} letters for {recipient}")


def pid_of(daemon: Daemon, name: str) -> int:
    """The latest process of an aside or of a worker, from the log."""
    if name == "worker":
        return int(daemon.wait_for_logs("worker_start", 1)[-1]["pid"])
    return int(daemon.wait_for_logs("aside_start", 1, what=name)[-1]["pid"])


def test_mail_for_several_places_is_delivered_and_takes_no_room_then() -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        send(daemon, "joe@example.org", "ann@example.org")
        send(daemon, "joe@example.org", content=b"Subject: big\r\n\r\n" + b"0123456789\r\n" * 30_000)
        wait_for(daemon, "joe@example.org", 2)
        wait_for(daemon, "ann@example.org")
        assert sorted(len(letter.text) for letter in daemon.mail("joe@example.org")) == [23, 330_014]
        lines = daemon.wait_for_logs("delivered", 3)
        assert {line["rcpt"] for line in lines} == {"joe@example.org", "ann@example.org"}
        bodies = daemon.folder / "state" / "queue" / "bodies"
        until(
            lambda: all(path.stat().st_size == 64 for path in bodies.iterdir()), "the body's file is removed"
        )
    left = [path.name for path in (daemon.folder / "state" / "queue").glob("mail-*")]
    assert left == []


@pytest.mark.parametrize("name", ["queue", "delivery-0", "worker"])
def test_any_process_may_die_and_no_mail_is_lost(name: str) -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        send(daemon, "joe@example.org")
        before = pid_of(daemon, name)
        os.kill(before, signal.SIGKILL)
        until(lambda: pid_of(daemon, name) != before, "it was started again")
        if name != "worker":
            # The worker goes on in the segment that it has, whoever is there to read it.
            send(daemon, "ann@example.org")
        event = "worker_ready" if name == "worker" else "aside_ready"
        daemon.wait_for_log(event, pid=pid_of(daemon, name))
        send(daemon, "eve@example.org")
        for recipient in ("joe@example.org", "eve@example.org"):
            wait_for(daemon, recipient)
        if name != "worker":
            wait_for(daemon, "ann@example.org")
        assert daemon.log("queue_damaged") == []
        assert daemon.log("defect") == []


def modes_of_open_files(pid: int, below: str) -> dict[str, int]:
    """The files below a directory that a process has open now, each with its O_ACCMODE."""
    modes = {}
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            target = os.readlink(entry)
            if target.startswith(below):
                info = pathlib.Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
                modes[target] = int(re.findall(r"^flags:\s+(\d+)", info, re.MULTILINE)[0], 8) & os.O_ACCMODE
    return modes


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_who_takes_mail_cannot_read_it() -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        send(daemon, "joe@example.org", content=b"Subject: big\r\n\r\n" + b"0123456789\r\n" * 30_000)
        wait_for(daemon, "joe@example.org")
        worker = pid_of(daemon, "worker")
        status = pathlib.Path(f"/proc/{worker}/status").read_text()
        user = int(re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)[0])
        assert user != 0
        queue = daemon.folder / "state" / "queue"
        # What it has open of the queue is open for writing only; body files come a moment after one was used.
        modes: dict[str, int] = {}

        def has_both() -> bool:
            modes.update(modes_of_open_files(worker, str(queue)))
            return all(any(kind in name for name in modes) for kind in ("/mail-", "/bodies/"))

        until(has_both, "it has a segment and a reserve of body files")
        assert set(modes.values()) == {os.O_WRONLY}
        # And it can't open any of it by name: it doesn't even get into the directory.
        program = (
            "import os, sys\n"
            f"os.setgid({user}); os.setuid({user})\n"
            "for path in sys.argv[1:]:\n"
            "    try:\n"
            "        os.close(os.open(path, os.O_RDONLY)); print('read', path)\n"
            "    except OSError as error:\n"
            "        print(error.errno, path)\n"
        )
        paths = [str(queue), *map(str, queue.iterdir()), *map(str, (queue / "bodies").iterdir())]
        said = subprocess.run(
            [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True, timeout=60
        )
        assert {line.split()[0] for line in said.stdout.splitlines()} == {str(errno.EACCES)}
        assert len(said.stdout.splitlines()) == len(paths) > 4


def test_a_stranger_on_the_socket_is_sent_away() -> None:
    with Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        with connect(str(daemon.folder / "state" / "queue.socket")) as sock:
            sock.settimeout(60)
            sock.send(b"let me in")
            assert sock.recv(100) == b""
        assert "no greeting" in daemon.wait_for_log("queue_caller_refused")["reason"]
        send(daemon, "joe@example.org")
        wait_for(daemon, "joe@example.org")


def test_below_the_low_water_mark_mail_is_refused_at_mail() -> None:
    config = CONFIG.replace("free_bytes = 0", f"free_bytes = {1 << 62}")
    daemon = Daemon(config, accept=ACCEPT, workers=1)
    try:
        # Nothing can be made, so nothing can be taken: the operator hears that at once.
        with pytest.raises(AssertionError):
            daemon.start()
        assert any("queue" in line for line in daemon.process.lines)
    finally:
        daemon.remove()


def test_a_next_hop_that_says_later_and_one_that_says_no() -> None:
    answers: dict[bytes, bytes | list[bytes]] = {
        b"RCPT TO:<later@": [b"450 4.2.0 later"],
        b"RCPT TO:<no@": b"550 5.1.1 nobody of that name",
    }

    async def run() -> None:
        async with NextHop(answers=answers) as hop:
            await asyncio.to_thread(relay, hop.dest)

    def relay(dest: str) -> None:
        accept = f'[[accept]]\ndomain = ["example.net"]\nrecipients = "any"\ndeliver = "{dest}"\n' + ACCEPT
        with Daemon(CONFIG, accept=accept, workers=1) as daemon:
            send(daemon, "later@example.net", "no@example.net", sender="joe@example.org")
            assert daemon.wait_for_log("deferred", rcpt="later@example.net")["attempt"] == 1
            assert daemon.wait_for_log("delivered", rcpt="later@example.net")["attempt"] == 2
            daemon.wait_for_log("bounced", rcpt="no@example.net")
            new = daemon.mailboxes / "example.org" / "joe" / "new"
            until(lambda: new.is_dir() and any(new.iterdir()), "the report has come")
            (report,) = [path.read_bytes() for path in new.iterdir()]
            assert report.startswith(b"Return-Path: <>\n")
            assert b"no@example.net" in report
            assert b"nobody of that name" in report
            assert b"later@example.net" not in report.partition(b"Subject: hello")[0]

    asyncio.run(run())
