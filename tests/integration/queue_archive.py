"""Makes an archive of a queue with mail in it, as a crash leaves it: later releases must read what this one wrote.

    python -m tests.integration.queue_archive tests/data/queue/format-1.tar.xz

A release that changes a format of the queue adds one under the new number, and touches none of the old.  Where the
mail goes stands in the records, so the archive names a port; archives.py puts another one there.
"""

from __future__ import annotations

import smtplib
import sys
import tarfile
import time

from tests.integration.archives import PORT
from tests.integration.daemon import Daemon, ran
from tests.integration.hop import Hop
from tests.integration.test_queue_kill import kill_all
from tests.nexthop import SILENCE

CONFIG = """
[queue]
free_bytes = 0
retry_min_s = 86400
retry_max_s = 86400
lifetime_h = 1000000
"""

ACCEPT = f"""
[[accept]]
domain = ["there.example"]
recipients = "any"
deliver = "smtp://127.0.0.1:{PORT}"
[deliver]
queue = true
"""

MESSAGE = b"From: joe@sender.example\r\nSubject: kept\r\n\r\nA line.\r\n..and dots\r\n"
BIG = MESSAGE + b"0123456789" * 9 + b"\r\n" + (b"fills it up " * 7 + b"\r\n") * 4_000


def main(archive: str) -> None:
    """bob is delivered; ann, cyd, dan (in a body file) and eve (held) are deferred; fay is under way."""
    answers = {
        b"RCPT TO:": b"451 4.2.0 later",
        b"RCPT TO:<bob@": b"250 2.1.5 Ok",
        b"RCPT TO:<fay@": SILENCE,
    }
    with Hop(port=PORT, answers=answers), Daemon(CONFIG, accept=ACCEPT, workers=1) as daemon:
        send(daemon, MESSAGE, "ann")
        send(daemon, MESSAGE, "bob", "cyd")
        send(daemon, BIG, "dan")
        send(daemon, MESSAGE, "eve")
        daemon.wait_for_logs("deferred", 4)
        daemon.wait_for_logs("delivered", 1)
        state = f"{daemon.folder}/state"
        ran(
            sys.executable,
            "-m",
            "fastsmtp",
            "queue",
            "hold",
            "--recipient",
            "eve@there.example",
            "--state",
            state,
        )
        send(daemon, MESSAGE, "fay")
        # Until it is under way, and the done-log is synced.
        time.sleep(3)
        kill_all(daemon)
        with tarfile.open(archive, "w:xz", preset=9) as file:
            file.add(f"{state}/queue", "queue", filter=clean)
        daemon.process.close()
        daemon.start()


def clean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return None if info.name == "queue/admin" else info


def send(daemon: Daemon, text: bytes, *names: str) -> None:
    with smtplib.SMTP("127.0.0.1", daemon.port, "client.example.org", timeout=60) as client:
        assert client.sendmail("joe@sender.example", [f"{name}@there.example" for name in names], text) == {}


if __name__ == "__main__":
    main(sys.argv[1])
