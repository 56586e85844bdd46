"""pipe: programs: what they get, what their end means, and what they may do to us."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from fastsmtp import reply
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.delivery.pipe import Pipe, address_variables
from fastsmtp.log import ListLog
from fastsmtp.queue.disk import InlineDisk, ThreadDisk
from fastsmtp.queue.spool import Body, Budget
from fastsmtp.reply import Reply
from fastsmtp.sink import DirectSink
from tests.handing import PREFIX, deliver, opened, rcpt

SENDER, RECIPIENT = b"ann@example.net", b"joe@example.org"


def body(tmp_path: pathlib.Path, *chunks: bytes) -> Body:
    found = Body(InlineDisk(), Budget(1 << 20), str(tmp_path))
    for chunk in chunks:
        found.write(chunk)
    return found


def script(tmp_path: pathlib.Path, text: str) -> str:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def store(
    tmp_path: pathlib.Path, command: str, *chunks: bytes, recipient: bytes = RECIPIENT, answer_s: float = 60.0
) -> Outcome:
    pipe = Pipe(
        InlineDisk(), environment={"PATH": "/usr/bin:/bin"}, answer_s=answer_s, wall=lambda: 1_700_000_000.0
    )
    found = pipe.store(
        command,
        SENDER,
        recipient,
        {"TCPREMOTEIP": "192.0.2.1"},
        PREFIX,
        body(tmp_path, *chunks or (b"x\r\n",)),
    )
    assert isinstance(found, Delivered | Retry | Failed)
    return found


def test_the_message_and_what_is_known_of_it(tmp_path: pathlib.Path) -> None:
    program = script(
        tmp_path, f'cat >{tmp_path}/got; env >{tmp_path}/env; printf "%s|" "$0" "$@" >{tmp_path}/argv'
    )
    found = store(tmp_path, f"{program} -a 'b c' \\$HOME", b"Subject: x\r\n\r\n", b"no end")
    assert found == Delivered("program took it")
    assert (tmp_path / "got").read_bytes() == b"Received: from here\n\tby there\nSubject: x\n\nno end"
    assert (tmp_path / "argv").read_text() == f"{program}|-a|b c|$HOME|"
    environment = (tmp_path / "env").read_text()
    for line in (
        "SENDER=ann@example.net", "RECIPIENT=joe@example.org", "LOCAL=joe", "HOST=example.org",
        "TCPREMOTEIP=192.0.2.1", "UFLINE=From ann@example.net Tue Nov 14 22:13:20 2023\n",
        "RPLINE=Return-Path: <ann@example.net>\n", "DTLINE=Delivered-To: joe@example.org\n",
    ):  # fmt: skip
        assert line in environment


def test_addresses_are_no_orders(tmp_path: pathlib.Path) -> None:
    program = script(
        tmp_path, f'printf %s "$*" >{tmp_path}/argv; printf %s "$RECIPIENT" >{tmp_path}/recipient'
    )
    evil = b'"$(touch x);`y`"@example.org'
    store(tmp_path, program, recipient=evil)
    assert (tmp_path / "argv").read_text() == ""
    assert (tmp_path / "recipient").read_bytes() == evil


def test_no_address_breaks_out_of_a_line() -> None:
    with pytest.raises(ValueError, match="line end"):
        address_variables(b"a\nb@example.org", RECIPIENT, 0.0)
    assert address_variables(b"", RECIPIENT, 0.0)["UFLINE"].startswith("From MAILER-DAEMON ")


ENDS = [
    (0, Delivered, None),
    (99, Delivered, None),
    (100, Failed, (554, "5.3.0")),
    (112, Failed, (554, "5.3.0")),
    (65, Failed, (554, "5.6.0")),
    (67, Failed, (550, "5.1.1")),
    (68, Failed, (550, "5.1.2")),
    (69, Failed, (554, "5.3.0")),
    (76, Failed, (554, "5.5.0")),
    (77, Failed, (550, "5.7.1")),
    *[(status, Retry, (451, "4.3.0")) for status in (1, 64, 70, 71, 72, 73, 74, 75, 78, 111, 255)],
]


@pytest.mark.parametrize(("status", "kind", "code"), ENDS)
def test_what_an_exit_status_means(
    tmp_path: pathlib.Path, status: int, kind: type, code: tuple[int, str] | None
) -> None:
    found = store(tmp_path, script(tmp_path, f"cat >/dev/null; echo because of this; exit {status}"))
    assert isinstance(found, kind)
    if isinstance(found, Retry | Failed):
        assert (found.reply.code, found.reply.enhanced) == code
        assert found.reason.endswith(f"ended with {status}: because of this")
        assert "because" not in found.reply.head.decode()


def test_one_that_stops_reading_and_ends_with_0_has_taken_it(tmp_path: pathlib.Path) -> None:
    found = store(tmp_path, script(tmp_path, "exit 0"), *[b"x" * 998 + b"\r\n"] * 300)
    assert isinstance(found, Delivered)


def test_a_signal_is_another_try(tmp_path: pathlib.Path) -> None:
    found = store(tmp_path, script(tmp_path, "kill -9 $$"))
    assert isinstance(found, Retry)
    assert found.reply == reply.PROGRAM_FAILED


def test_one_that_hangs_is_killed(tmp_path: pathlib.Path) -> None:
    found = store(tmp_path, script(tmp_path, "cat >/dev/null; sleep 1000"), answer_s=0.5)
    assert isinstance(found, Retry)
    assert (found.reply, found.may_have_arrived) == (reply.PROGRAM_TIMED_OUT, True)


def test_one_that_is_not_there_is_another_try(tmp_path: pathlib.Path) -> None:
    found = store(tmp_path, "/absent/program")
    assert isinstance(found, Retry)
    assert found.reply == reply.PROGRAM_NOT_STARTED


# --- through the sink --------------------------------------------------------------------------------


def direct(tmp_path: pathlib.Path, log: ListLog | None = None) -> DirectSink:
    return DirectSink(
        disk=InlineDisk(), programs=ThreadDisk(threads=2), budget=Budget(1 << 20), spool_directory=str(tmp_path),
        hostname="mx", log=log,
    )  # fmt: skip


@pytest.mark.parametrize(("status", "code"), [(0, 250), (67, 550), (75, 451)])
def test_its_answer_is_the_clients(tmp_path: pathlib.Path, status: int, code: int) -> None:
    program = script(tmp_path, f"cat >/dev/null; exit {status}")

    async def scenario() -> Reply:
        sink = direct(tmp_path)
        try:
            return await deliver(sink, [rcpt(RECIPIENT, f"pipe:{program}")], b"x\r\n")
        finally:
            await sink.close()

    assert asyncio.run(scenario()).code == code


def test_a_program_has_one_recipient(tmp_path: pathlib.Path) -> None:
    program = script(tmp_path, "exit 0")

    async def scenario() -> list[Reply | None]:
        sink = direct(tmp_path)
        transaction, answers = await opened(
            sink,
            [
                rcpt(RECIPIENT, f"pipe:{program}"),
                rcpt(b"a@example.org", f"pipe:{program}"),
                rcpt(b"b@c.example", "discard"),
            ],
        )
        transaction.abort()
        await sink.close()
        return answers

    assert asyncio.run(scenario()) == [None, reply.OTHER_NEXT_HOP, reply.OTHER_NEXT_HOP]


def test_without_its_program_data_is_refused(tmp_path: pathlib.Path) -> None:
    log = ListLog()

    async def scenario() -> Reply:
        sink = direct(tmp_path, log)
        try:
            return await deliver(sink, [rcpt(RECIPIENT, "pipe:/absent/program x")], b"x\r\n")
        finally:
            await sink.close()

    assert asyncio.run(scenario()) == reply.PROGRAM_NOT_STARTED
    assert log.lines[0][1]["deliver"] == "pipe:/absent/program x"
