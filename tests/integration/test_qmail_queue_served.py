"""fastsmtp serve in front of qmail-queue: what the client is told is what the program says."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator

import pytest

from tests.integration.daemon import Daemon
from tests.qmailqueue import QmailQueue

pytestmark = pytest.mark.slow

ACCEPT = """
[[accept]]
domain = "example.org"
deliver = "qmail-queue:{folder}/bin/qmail-queue"
"""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Daemon, QmailQueue]]:
    daemon = Daemon(accept=ACCEPT, workers=1)
    queue = QmailQueue(daemon.folder / "bin")
    with daemon:
        yield daemon, queue


def send(daemon: Daemon, text: str = "Subject: x\r\n\r\nHello\r\n") -> tuple[int, bytes]:
    with smtplib.SMTP("127.0.0.1", daemon.port, local_hostname="client.example", timeout=60) as client:
        client.ehlo("client.example")
        client.mail("from@example.net")
        client.rcpt("joe@example.org")
        client.rcpt("ann@example.org")
        return client.data(text)


def test_a_message_is_queued(served: tuple[Daemon, QmailQueue]) -> None:
    daemon, queue = served
    queue.wants()
    code, text = send(daemon)
    taken = queue.queued()[-1]
    assert (code, text.endswith(b" qp %d" % taken.pid)) == (250, True)
    assert taken.envelope == b"Ffrom@example.net\0Tjoe@example.org\0Tann@example.org\0\0"
    assert taken.message.startswith(b"Received: from client.example (")
    assert taken.message.endswith(b"\nSubject: x\n\nHello\n")
    assert b"\r" not in taken.message
    assert taken.fds == [0, 1, 2, 4, 6]
    assert not taken.no_new_privs, "qmail-queue is set-uid"
    assert taken.environment["TCPREMOTEIP"] == "127.0.0.1"
    assert taken.environment["PROTO"] == "TCP"
    assert taken.environment["RELAYCLIENT"] == "", "127.0.0.1 may relay"


def test_its_refusals_are_the_clients(served: tuple[Daemon, QmailQueue]) -> None:
    daemon, queue = served
    queue.wants(exit=31)
    assert send(daemon)[0] == 554
    queue.wants(exit=82, say=[[6, "Zcome back later (#4.7.1)"]])
    code, text = send(daemon)
    assert (code, text.startswith(b"4.7.1 come back later")) == (451, True)


def test_a_big_message_does_not_fit_into_any_pipe(served: tuple[Daemon, QmailQueue]) -> None:
    daemon, queue = served
    queue.wants()
    assert send(daemon, "Subject: x\r\n\r\n" + ("x" * 900 + "\r\n") * 1_000)[0] == 250
    assert queue.queued()[-1].message.endswith(b"\n" + (b"x" * 900 + b"\n") * 1_000)
