"""The oracle of the syncs on the real server: for each 250 to an end of data, everything that it needs was synced.

strace follows all processes of `fastsmtp serve` while clients send; afterwards the journal says where each
message stands.  The same oracle must fail for a server that leaves one kind of sync out.
"""

from __future__ import annotations

import os
import re
import smtplib
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from fastsmtp._payload import decode
from fastsmtp.queue.model import BodyReference
from fastsmtp.queue.recovery import recover
from fastsmtp.queue.store import Store
from fastsmtp.queue_sink import RECORD_BYTES
from tests.conftest import needs
from tests.integration.daemon import Daemon
from tests.integration.journal_process import SYNCS
from tests.integration.servers import until
from tests.integration.syncs import FILES, Acknowledged, Call, Oracle, calls_of
from tests.peers import find
from tests.ports import free_port

SENDERS = 8
MESSAGES = 15
# Beyond what stands in a record.
BIG_BYTES = RECORD_BYTES + 50_000

# Nobody listens there, so all messages stay in the journal, where the test looks for them.
CONFIG = """
[queue]
free_bytes = 0
"""
ACCEPT = """
[[accept]]
domain = ["example.net"]
recipients = "any"
deliver = "smtp://127.0.0.1:{port}"
[deliver]
queue = true
"""

ACCEPTED = re.compile(r"250 2\.0\.0 Ok: accepted as ([^\\]+)\\r\\n")
SENDING = ("write", "writev", "sendto", "sendmsg")
STRACE = (
    find("strace") or "strace", "-D", "-f", "-y", "-s", "512", "-o", "{folder}/trace",
    "-e", "signal=none", "-e", f"trace={FILES},{','.join(SENDING)}",
)  # fmt: skip


def send(port: int, sender: int) -> None:
    body = b"Subject: %d\r\n\r\n" % sender + b"0123456789\r\n" * 100
    with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=60) as client:
        for number in range(MESSAGES):
            text = body + b"x\r\n" * (BIG_BYTES // 3) if number % 5 == sender % 5 else body
            assert client.sendmail("a@example.org", ["b@example.net"], text) == {}


def told(calls: list[Call]) -> Iterator[tuple[str, Call]]:
    """Each message's id with the call that sent its 250."""
    for call in calls:
        if call.name in SENDING and call.result > 0 and not call.file.startswith("/"):
            for found in ACCEPTED.finditer(call.arguments):
                yield found[1], call


def served(*left_out: str) -> tuple[list[str], list[Acknowledged]]:
    """Run a server under load; what its acknowledgements lack, and all of them."""
    module = ("tests.integration.forgetful", *left_out) if left_out else ("fastsmtp",)
    daemon = Daemon(
        CONFIG,
        accept=ACCEPT.replace("{port}", str(free_port())),
        program=(*STRACE, sys.executable, "-m", *module),
    )
    try:
        daemon.start()
        senders = [
            threading.Thread(target=send, args=(daemon.port, number), daemon=True)
            for number in range(SENDERS)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        daemon.process.signal(15)
        assert daemon.process.end() == 0, daemon.process.lines
        trace = daemon.folder / "trace"
        last = f"{daemon.process.pid} +++ exited with 0 +++"
        until(lambda: last in re.sub(" +", " ", trace.read_text(errors="replace")), "strace is done")
        calls = calls_of(trace.read_text(errors="replace"))
        queue = str(daemon.folder / "state" / "queue")
        store = Store(queue, version="0.1.0", wall=time.time, random=os.urandom)
        places = {}
        for place, payload in recover(os, store).messages(os, store):
            message = decode(payload)
            body = message.body.number if isinstance(message.body, BodyReference) else None
            places[message.id] = (place.number, place.offset, place.size_bytes, body)
        acknowledged = [Acknowledged(call, id, *places[id]) for id, call in told(calls)]
        return Oracle(calls, queue).missing(acknowledged), acknowledged
    finally:
        daemon.remove()


@pytest.mark.slow
@needs("strace")
def test_no_250_leaves_before_its_message_is_synced() -> None:
    missing, acknowledged = served()
    assert missing == []
    assert len(acknowledged) == SENDERS * MESSAGES
    assert len({one.name for one in acknowledged}) == SENDERS * MESSAGES
    assert sum(one.body is not None for one in acknowledged) == SENDERS * MESSAGES // 5


@pytest.mark.slow
@needs("strace")
@pytest.mark.parametrize("left_out", SYNCS)
def test_a_server_that_leaves_a_sync_out_is_found_out(left_out: str) -> None:
    missing, acknowledged = served(left_out)
    assert acknowledged
    assert {lack.split(": ")[1].split(" ")[0] for lack in missing} == {left_out}
