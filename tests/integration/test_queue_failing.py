"""The queue in the real server when its disk says EIO, and when the wall clock jumps."""

from __future__ import annotations

import re
import smtplib
import sys
import time

import pytest

from fastsmtp.queue_sink import RECORD_BYTES
from tests.integration.daemon import Daemon
from tests.integration.servers import until

CONFIG = """
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

YEARS_50_S = 50 * 365 * 86_400


def failing() -> Daemon:
    """A file in its folder breaks a call: see failing.py."""
    program = (sys.executable, "-m", "tests.integration.failing", "{folder}")
    return Daemon(CONFIG, accept=ACCEPT, workers=1, program=program)


def send(daemon: Daemon, name: str, size_bytes: int = 100) -> int:
    """The code that its dot got."""
    filling = b"0123456789\r\n" * (size_bytes // 12)
    with smtplib.SMTP("127.0.0.1", daemon.port, "client.example.org", timeout=60) as client:
        client.ehlo()
        assert client.mail("a@example.net")[0] == 250
        assert client.rcpt("b@example.org")[0] == 250
        return client.data(f"Subject: {name}\r\n\r\n".encode() + filling)[0]


def arrived(daemon: Daemon) -> list[str]:
    """Subjects, sorted."""
    found = [re.match(rb"Subject: (\S+)\n", letter.text) for letter in daemon.mail("b@example.org")]
    return sorted(one[1].decode() for one in found if one is not None)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
def test_a_disk_that_breaks_takes_no_mail_and_loses_none(call: str) -> None:
    with failing() as daemon:
        assert send(daemon, "before") == 250
        (daemon.folder / call).write_text("/mail-")
        assert [send(daemon, f"broken-{number}") for number in range(3)] == [451] * 3
        (daemon.folder / call).unlink()
        until(lambda: send(daemon, "after") == 250, "the disk is mended")
        until(lambda: "after" in arrived(daemon), "mail is delivered again")
        # What a client was told to try again isn't delivered behind its back.
        assert {"before", "after"} == set(arrived(daemon))
        assert daemon.log("defect") == []
        assert daemon.log("worker_exit") == []


@pytest.mark.slow
def test_a_body_that_cannot_be_synced_is_refused_and_the_others_are_taken() -> None:
    with failing() as daemon:
        (daemon.folder / "fdatasync").write_text("/bodies/")
        assert send(daemon, "small") == 250
        assert send(daemon, "big-1", 2 * RECORD_BYTES) == 451
        assert send(daemon, "small-2") == 250
        (daemon.folder / "fdatasync").unlink()
        assert send(daemon, "big-2", 2 * RECORD_BYTES) == 250
        until(
            lambda: arrived(daemon) == ["big-2", "small", "small-2"],
            "what was taken is delivered, and only that",
        )


@pytest.mark.slow
def test_while_the_done_log_cannot_be_written_nothing_is_delivered_twice_or_lost() -> None:
    with failing() as daemon:
        (daemon.folder / "fdatasync").write_text("/done-")
        assert send(daemon, "first") == 250
        until(lambda: arrived(daemon) == ["first"], "it is delivered")
        # That it was can't be written down: what comes now is taken and kept, and not sent out.
        daemon.wait_for_log("queue_failed")
        names = [f"m{number}" for number in range(5)]
        assert [send(daemon, name) for name in names] == [250] * 5
        (daemon.folder / "fdatasync").unlink()
        until(lambda: len(arrived(daemon)) >= 6, "all is delivered")
        assert arrived(daemon) == ["first", *names]
        assert daemon.log("defect") == []


@pytest.mark.slow
def test_a_clock_that_jumps_by_fifty_years_gives_up_no_mail() -> None:
    with failing() as daemon:
        blocked = daemon.mailboxes / "example.org"
        blocked.touch()
        assert send(daemon, "waiting") == 250
        daemon.wait_for_log("deferred", rcpt="b@example.org")
        (daemon.folder / "clock").write_text(str(YEARS_50_S))
        then = time.time() + YEARS_50_S
        until(lambda: any(stamp(line) > then for line in daemon.log("deferred")), "it was tried then")
        blocked.unlink()
        until(lambda: arrived(daemon) == ["waiting"], "it is delivered")
        assert daemon.log("bounced") == []


def stamp(line: dict[str, str]) -> float:
    """When a line of the log was written."""
    return time.mktime(time.strptime(line["ts"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
