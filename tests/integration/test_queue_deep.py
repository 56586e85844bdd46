"""The real server over a deep queue: mail is taken while it is read, and it is killed in the middle of that."""

from __future__ import annotations

import os
import pathlib
import socket
import time

import pytest

from fastsmtp.delivery.owner import DEEP_BYTES
from fastsmtp.queue.fileheader import FileHeader, Purpose
from fastsmtp.queue.store import SEGMENT_BYTES
from tests.integration.daemon import Daemon
from tests.integration.servers import until
from tests.integration.test_queue_kill import ACCEPT, Arrived, Sender, kill_all

LIVES = 2
SENDERS = 4


def deepen(queue: pathlib.Path) -> None:
    """Segments of an earlier life without a record; holes take no room, and have to be read all the same."""
    numbers = [
        int(path.name[-16:], 16) for path in queue.iterdir() if path.name.startswith(("mail-", "free-"))
    ]
    owner = queue.stat()
    first = max(numbers, default=0) + 1
    for number in range(first, first + DEEP_BYTES // SEGMENT_BYTES + 1):
        header = FileHeader(Purpose.MAIL, number, number, SEGMENT_BYTES, int(time.time() * 1000), "0.1.0")
        path = queue / f"mail-{number:016x}"
        with path.open("xb") as file:
            file.write(header.encode())
            file.truncate(SEGMENT_BYTES)
        os.chown(path, owner.st_uid, owner.st_gid)


@pytest.mark.slow
def test_every_250_is_delivered_though_a_deep_queue_was_being_read() -> None:
    senders: list[Sender] = []
    with Daemon(accept=ACCEPT, workers=1) as daemon:
        queue = daemon.folder / "state" / "queue"
        for life in range(LIVES):
            kill_all(daemon)
            daemon.process.close()
            deepen(queue)
            daemon.start()
            fresh = [Sender(daemon.port, f"m{life}.{number}") for number in range(SENDERS)]
            for sender in fresh:
                sender.start()
            until(lambda fresh=fresh: all(len(one.accepted) > 1 for one in fresh), "mail is taken")  # type: ignore[misc]
            senders += fresh
        for sender in fresh:
            sender.sock.shutdown(socket.SHUT_RDWR)
        for sender in senders:
            sender.join(30)
        wanted = {name for sender in senders for name in sender.accepted}
        arrived = Arrived(daemon)
        until(lambda: wanted <= arrived.names().keys(), "all that was accepted is delivered")
        until(lambda: bool(daemon.log("queue_open")), "all of it was read")
        assert daemon.log("queue_reading")
        assert daemon.log("queue_damaged") == []
        assert daemon.log("defect") == []
