"""fastsmtp serve with its queue: a refusing next hop ends in a report in a Maildir; `fastsmtp queue` beside it."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import os
import signal
import smtplib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

import pytest

from fastsmtp.admin.client import Client
from fastsmtp.queue.row import Filter
from tests.integration.daemon import Daemon, Letter
from tests.integration.hop import Hop
from tests.integration.servers import until as wait_until
from tests.nexthop import NextHop

pytestmark = pytest.mark.slow


def until(condition: Callable[[], bool]) -> None:
    wait_until(condition, "what the test waits for")


CONFIG = """
[queue]
retry_min_s = 0.5
retry_max_s = 1.0

[deliver]
queue = true
default = "{hop}"

[[accept]]
domain = "example.org"
deliver = "maildir:{folder}/mail/{domain}/{local}"

[[accept]]
domain = "there.example"
deliver = "{hop}"
recipients = "any"
"""


@contextlib.contextmanager
def serving(hop: NextHop, config: str = CONFIG) -> Iterator[Daemon]:
    with Daemon(config.replace("{hop}", hop.dest), accept="", workers=1) as daemon:
        yield daemon


def send(daemon: Daemon, *to: str, sender: str = "joe@example.org", options: tuple[str, ...] = ()) -> str:
    """The id of the message."""
    with smtplib.SMTP("127.0.0.1", daemon.port, "client.example", timeout=60) as client:
        client.ehlo("client.example")
        assert client.mail(sender)[0] == 250
        for one in to:
            assert client.rcpt(one, options)[0] == 250
        code, text = client.data(b"From: joe@example.org\r\nSubject: a question\r\n\r\nHello\r\n")
    assert code == 250, text
    return text.split()[-1].decode()


def letters(daemon: Daemon, recipient: str, count: int = 1) -> list[Letter]:
    until(lambda: len(daemon.mail(recipient)) >= count)
    found = daemon.mail(recipient)
    assert len(found) == count
    return found


def report_in(letter: Letter) -> tuple[EmailMessage, list[dict[str, str]]]:
    """A report, and the fields of each recipient."""
    assert letter.sender == b""
    found = email.message_from_bytes(letter.text, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    assert found.get_content_type() == "multipart/report"
    status: Any = list(found.iter_parts())[1]
    return found, [dict(block.items()) for block in status.get_payload()[1:]]


def queue(daemon: Daemon, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "fastsmtp", "queue", *arguments, "--state", f"{daemon.folder}/state"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done
    return done.stdout


def listed(daemon: Daemon) -> dict[str, str]:
    """Recipient -> state, from the running server."""
    client = Client(f"{daemon.folder}/state/queue")
    try:
        return {one.recipient: one.state for entries in client.entries(Filter(), "") for one in entries}
    finally:
        client.close()


def wait_for(daemon: Daemon, wanted: dict[str, str]) -> None:
    until(lambda: listed(daemon) == wanted)


@pytest.mark.parametrize("account", ["", "nobody"])
def test_a_message_that_is_refused_comes_back_to_its_sender_as_a_report(account: str) -> None:
    """nobody may not be able to read where Python's modules are."""
    if account and os.geteuid() != 0:
        pytest.skip("becomes another account")
    config = (f'queue_user = "{account}"\n' if account else "") + CONFIG
    with (
        Hop(answers={b"RCPT TO:<no@": b"550 5.1.1 nobody of that name"}) as hop,
        serving(hop, config) as daemon,
    ):
        id = send(daemon, "no@there.example", "ann@there.example")
        (letter,) = letters(daemon, "joe@example.org")
        found, (fields,) = report_in(letter)
        assert found["Subject"] == "Your message could not be delivered"
        assert (fields["Final-Recipient"], fields["Action"], fields["Status"]) == (
            "rfc822;no@there.example", "failed", "5.1.1",
        )  # fmt: skip
        assert fields["Diagnostic-Code"] == "smtp; 550 5.1.1 nobody of that name"
        assert fields["Final-Log-Id"] == id
        assert "Subject: a question" in list(found.iter_parts())[2].get_content()
        until(lambda: len(hop.messages) == 1)
        wait_for(daemon, {})


def test_success_is_told_to_who_asked_where_the_next_hop_does_not() -> None:
    extensions = (b"PIPELINING", b"8BITMIME")
    with Hop(extensions=extensions) as hop, serving(hop) as daemon:
        send(daemon, "ann@there.example", options=("NOTIFY=SUCCESS,FAILURE",))
        send(daemon, "bob@there.example")
        send(daemon, "kim@example.org", sender="kim@example.org", options=("NOTIFY=SUCCESS",))
        _, (fields,) = report_in(letters(daemon, "joe@example.org")[0])
        assert (fields["Final-Recipient"], fields["Action"]) == ("rfc822;ann@there.example", "relayed")
        reports = [one for one in letters(daemon, "kim@example.org", 2) if one.sender == b""]
        _, (fields,) = report_in(reports[0])
        assert fields["Action"] == "delivered"
        until(lambda: len(hop.messages) == 2)
    with Hop() as hop, serving(hop) as daemon:
        # With DSN it is the next hop's to tell.
        send(daemon, "ann@there.example", options=("NOTIFY=SUCCESS",))
        until(lambda: len(hop.messages) == 1)
        wait_for(daemon, {})
        assert b"RCPT TO:<ann@there.example> NOTIFY=SUCCESS" in hop.lines
        assert daemon.mail("joe@example.org") == []


def test_the_operator_holds_releases_bounces_and_deletes_mail_of_a_running_server() -> None:
    later = {b"RCPT TO:": b"451 4.7.1 come back later"}
    config = CONFIG.replace("retry_min_s = 0.5", "retry_min_s = 900").replace(
        "retry_max_s = 1.0", "retry_max_s = 4000"
    )
    with Hop(answers=later) as hop, serving(hop, config) as daemon:
        ids = {name: send(daemon, f"{name}@there.example") for name in ("ann", "bob", "cyd")}
        waiting = {f"{name}@there.example": "deferred" for name in ids}
        wait_for(daemon, waiting)
        shown = queue(daemon, "list")
        assert shown.startswith("-Queue ID-----  --Size--")
        assert "said: 451 4.7.1 come back later)" in shown
        assert "3 messages for 3 recipients" in shown

        assert queue(daemon, "hold", ids["ann"], "--recipient", "ann@there.example") == "hold: 1 recipient\n"
        asked = hop.lines.count(b"DATA"), len(hop.lines)
        assert queue(daemon, "flush", "--domain", "there.example") == "flush: 2 recipients\n"
        until(lambda: any(line.startswith(b"RCPT TO:<bob@") for line in hop.lines[asked[1] :]))
        wait_for(daemon, {**waiting, "ann@there.example": "held"})

        assert queue(daemon, "bounce", ids["bob"]) == "bounce: 1 recipient\n"
        _, (fields,) = report_in(letters(daemon, "joe@example.org")[0])
        assert (fields["Final-Recipient"], fields["Status"]) == ("rfc822;bob@there.example", "5.7.0")
        assert "come back later" in fields["Diagnostic-Code"]
        assert queue(daemon, "delete", ids["cyd"]) == "delete: 1 recipient\n"
        wait_for(daemon, {"ann@there.example": "held"})

        about = queue(daemon, "show", ids["ann"])
        assert "state       held" in about
        assert queue(daemon, "show", ids["ann"], "--message").endswith("Subject: a question\n\nHello\n")
        queue(daemon, "show", ids["cyd"], status=1)
        assert not any(line.startswith(b"RCPT TO:<ann@") for line in hop.lines[asked[1] :])
        assert len(daemon.mail("joe@example.org")) == 1


def test_mail_under_way_can_be_deleted_and_held() -> None:
    with Hop(answers={b"DATA": b"451 4.3.0 later"}) as hop:
        answer = threading.Event()
        slow = hop._answer

        async def waits(writer: Any, line: bytes) -> bytes:
            if line.startswith(b"DATA"):
                while not answer.is_set():
                    await asyncio.sleep(0.01)
            return await slow(writer, line)

        hop._answer = waits  # type: ignore[method-assign]
        with serving(hop) as daemon:
            first, second = send(daemon, "ann@there.example"), send(daemon, "bob@there.example")
            wait_for(daemon, {"ann@there.example": "active", "bob@there.example": "active"})
            assert queue(daemon, "hold", first) == "hold: 1 recipient\n"
            assert queue(daemon, "delete", second) == "delete: 1 recipient\n"
            assert listed(daemon) == {"ann@there.example": "held", "bob@there.example": "deleting"}
            answer.set()
            wait_for(daemon, {"ann@there.example": "held"})
            assert daemon.mail("joe@example.org") == []


def test_what_was_done_to_a_stopped_queue_holds_when_the_server_starts() -> None:
    with Hop(answers={b"RCPT TO:": b"451 4.7.1 later"}) as hop, serving(hop) as daemon:
        ids = [send(daemon, f"{name}@there.example") for name in ("ann", "bob", "cyd")]
        until(
            lambda: (
                set(listed(daemon).values()) <= {"deferred", "active", "waiting"} and len(listed(daemon)) == 3
            )
        )
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.end() == 0
        assert queue(daemon, "list", "--json").count('"state":"deferred"') == 3
        assert queue(daemon, "delete", ids[0]) == "delete: 1 recipient\n"
        assert queue(daemon, "hold", ids[1]) == "hold: 1 recipient\n"
        assert queue(daemon, "bounce", ids[2]) == "bounce: 1 recipient\n"
        daemon.process.close()
        daemon.start()
        report_in(letters(daemon, "joe@example.org")[0])
        wait_for(daemon, {"bob@there.example": "held"})


def test_a_lifetime_that_is_over_and_a_double_bounce_end_at_the_postmaster() -> None:
    config = 'postmaster = "root@example.org"\n' + CONFIG.replace(
        "retry_max_s = 1.0", "retry_max_s = 1.0\nlifetime_h = 0.0003"
    )
    answers: dict[bytes, Any] = {b"RCPT TO:": b"451 4.7.1 later", b"RCPT TO:<joe@there": b"550 5.1.1 gone"}
    with Hop(answers=answers) as hop, serving(hop, config) as daemon:
        # The report about it goes to the next hop too, which refuses it.
        send(daemon, "ann@there.example", sender="joe@there.example")
        (letter,) = letters(daemon, "root@example.org")
        found, (fields,) = report_in(letter)
        assert found["Subject"] == "A notice could not be delivered"
        assert fields["Final-Recipient"] == "rfc822;joe@there.example"
        # What could not be delivered was the report, and its own report says why.
        assert "4.4.7" not in fields["Status"]
        wait_for(daemon, {})
        assert sum(line.startswith(b"RCPT TO:<ann@") for line in hop.lines) >= 2


def test_an_index_of_a_later_release_stops_the_start_by_name_and_goes_on_with_that_release() -> None:
    later = {b"RCPT TO:": b"451 4.7.1 later"}
    config = CONFIG.replace("retry_min_s = 0.5", "retry_min_s = 900").replace(
        "retry_max_s = 1.0", "retry_max_s = 900"
    )
    with Hop(answers=later) as hop, serving(hop, config) as daemon:
        ids = [send(daemon, f"{name}@there.example") for name in ("ann", "bob")]
        wait_for(daemon, {"ann@there.example": "deferred", "bob@there.example": "deferred"})
        assert queue(daemon, "hold", ids[0]) == "hold: 1 recipient\n"
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.end() == 0
        daemon.process.close()
        with contextlib.closing(sqlite3.connect(f"{daemon.folder}/state/queue/deferred.sqlite")) as database:
            database.execute("PRAGMA user_version = 9")
        command = [sys.executable, "-m", "fastsmtp", "serve", "--config", str(daemon.file)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert refused.returncode != 0
        assert "deferred.sqlite: written by fastsmtp" in refused.stdout + refused.stderr + log_of(daemon)
        assert "in format 9" in refused.stdout + refused.stderr + log_of(daemon)
        command = [sys.executable, "-m", "fastsmtp", "queue", "list", "--state", f"{daemon.folder}/state"]
        assert "in format 9" in subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
        with contextlib.closing(sqlite3.connect(f"{daemon.folder}/state/queue/deferred.sqlite")) as database:
            database.execute("PRAGMA user_version = 1")
        daemon.start()
        wait_for(daemon, {"ann@there.example": "held", "bob@there.example": "deferred"})


def test_a_damaged_index_is_set_aside_and_its_mail_is_tried_at_once() -> None:
    answers: dict[bytes, Any] = {b"RCPT TO:": [b"451 4.7.1 later"] * 2}
    config = CONFIG.replace("retry_min_s = 0.5", "retry_min_s = 900").replace(
        "retry_max_s = 1.0", "retry_max_s = 900"
    )
    with Hop(answers=answers) as hop, serving(hop, config) as daemon:
        for name in ("ann", "bob"):
            send(daemon, f"{name}@there.example")
        wait_for(daemon, {"ann@there.example": "deferred", "bob@there.example": "deferred"})
        daemon.process.signal(signal.SIGTERM)
        assert daemon.process.end() == 0
        daemon.process.close()
        folder = daemon.folder / "state" / "queue"
        (folder / "deferred.sqlite").write_bytes(b"lightning has struck here\n" * 999)
        daemon.start()
        until(lambda: len(hop.messages) == 2)
        wait_for(daemon, {})
        assert (folder / "quarantine" / "deferred.sqlite-1").read_bytes().startswith(b"lightning")
        assert "the deferred index was damaged and made anew" in log_of(daemon)


def log_of(daemon: Daemon) -> str:
    return (daemon.folder / "log").read_text()


def test_a_flush_is_tried_though_its_site_pauses() -> None:
    """Nobody is at the next hop, so it is left in peace; the operator knows that it is back."""
    config = CONFIG.replace("retry_min_s = 0.5", "retry_min_s = 900").replace(
        "retry_max_s = 1.0", "retry_max_s = 900"
    )
    config += "\n[remote]\npause_s = 900.0\n"
    with Hop() as gone:
        port = gone.port
    with Daemon(config.replace("{hop}", f"smtp://127.0.0.1:{port}"), accept="", workers=1) as daemon:
        send(daemon, "ann@there.example")
        wait_for(daemon, {"ann@there.example": "deferred"})
        with Hop(port=port) as hop:
            assert queue(daemon, "flush", "--all") == "flush: 1 recipient\n"
            until(lambda: len(hop.messages) == 1)
            wait_for(daemon, {})


def test_recipients_of_a_message_that_fail_at_two_places_are_in_one_report() -> None:
    refused = {b"RCPT TO:<no@": b"550 5.1.1 nobody of that name"}
    slow = {b"RCPT TO:<never@": b"550 5.1.6 has moved"}
    with Hop(answers=refused) as hop, Hop(answers=slow) as other:
        answer = other._answer

        async def waits(writer: Any, line: bytes) -> bytes:
            if line.startswith(b"RCPT"):
                until_then = asyncio.get_running_loop().time() + 0.5
                while asyncio.get_running_loop().time() < until_then:
                    await asyncio.sleep(0.01)
            return await answer(writer, line)

        other._answer = waits  # type: ignore[method-assign]
        config = (
            CONFIG + f'\n[[accept]]\ndomain = "other.example"\ndeliver = "{other.dest}"\nrecipients = "any"\n'
        )
        with serving(hop, config) as daemon:
            send(daemon, "no@there.example", "never@other.example", "ann@there.example")
            _, fields = report_in(letters(daemon, "joe@example.org")[0])
            assert {one["Final-Recipient"]: one["Status"] for one in fields} == {
                "rfc822;no@there.example": "5.1.1", "rfc822;never@other.example": "5.1.6",
            }  # fmt: skip
            wait_for(daemon, {})
            assert len(daemon.mail("joe@example.org")) == 1
