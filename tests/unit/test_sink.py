"""Direct delivery to nowhere, standard output and Maildirs, and to a function of the caller's."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from fastsmtp import errors, reply
from fastsmtp.callable_sink import CallableSink, Handler, Message
from fastsmtp.delivery.printer import Printer
from fastsmtp.log import ListLog
from fastsmtp.message import Envelope
from fastsmtp.queue.disk import Disk, InlineDisk, ThreadDisk
from fastsmtp.queue.spool import Budget
from fastsmtp.reply import Reply
from fastsmtp.sink import DirectSink
from tests.faulty import FaultyOs
from tests.handing import PREFIX, deliver, facts, rcpt


def direct(
    tmp_path: Path, disk: Disk, printer: Printer | None = None, log: ListLog | None = None
) -> DirectSink:
    return DirectSink(
        disk=disk,
        budget=Budget(1 << 20),
        spool_directory=str(tmp_path),
        hostname="mx",
        printer=printer,
        log=log,
    )


def test_discard_never_waits(tmp_path: Path) -> None:
    sink = direct(tmp_path, InlineDisk())
    recipient = rcpt(b"joe@example.org", "discard")
    transaction = sink.open(Envelope(b"", b""), facts())
    assert transaction.add(recipient) is None
    assert transaction.begin(facts()) is None
    assert transaction.write(b"x" * 100_000) is None
    assert transaction.commit(PREFIX) == reply.accepted("7F3A9C2E.1")
    transaction.abort()


def test_a_session_numbers_its_messages(tmp_path: Path) -> None:
    known = facts()
    known.messages = 4
    transaction = direct(tmp_path, InlineDisk()).open(Envelope(b"", b""), known)
    transaction.add(rcpt(b"joe@example.org", "discard"))
    answer = transaction.commit(PREFIX)
    assert isinstance(answer, Reply)
    assert answer.lines == ("Ok: accepted as 7F3A9C2E.5",)


@pytest.mark.parametrize("is_threaded", [False, True])
def test_one_message_goes_to_several_local_places(tmp_path: Path, is_threaded: bool) -> None:
    printed: list[str] = []
    disk = ThreadDisk() if is_threaded else InlineDisk()
    sink = direct(tmp_path, disk, Printer(disk, printed.append))
    mail = f"maildir:{tmp_path}/{{domain}}/{{local}}"
    recipients = [
        rcpt(b"Joe@Example.org", mail),
        rcpt(b'"../etc"@example.org', mail),
        rcpt(b"ann@example.com", "print"),
        rcpt(b"void@example.com", "discard"),
    ]

    async def scenario() -> None:
        assert await deliver(sink, recipients, b"Subject: x\r\n\r\nHe", b"llo\r\n") == reply.accepted(
            "7F3A9C2E.1"
        )
        await sink.close()

    asyncio.run(scenario())
    for local in ("joe", "%2E.%2Fetc"):
        [file] = (tmp_path / "example.org" / local / "new").iterdir()
        assert file.read_bytes().endswith(b"Received: from here\n\tby there\nSubject: x\n\nHello\n")
    assert printed == [
        "---------- MESSAGE FOLLOWS ----------\nMAIL FROM:<from@example.net>\nRCPT TO:<ann@example.com>\n\n"
        "Received: from here\n\tby there\nSubject: x\n\nHello\n------------ END MESSAGE ------------\n"
    ]


def test_what_is_printed_gives_the_terminal_no_orders(tmp_path: Path) -> None:
    printed: list[str] = []
    sink = direct(tmp_path, InlineDisk(), Printer(InlineDisk(), printed.append))
    text = b"a\x1b[2Jb\x00\x9bc\xff \tok \xc3\xa9\r\n"
    asyncio.run(deliver(sink, [rcpt(b"a@example.com", "print")], text, prefix=b""))
    assert "a\\x1b[2Jb\\x00\\x9bc\\xff \tok é\n" in printed[0]


@pytest.mark.parametrize(
    ("number", "answer"), [(errno.ENOSPC, reply.STORAGE_FULL), (errno.EIO, reply.STORAGE_FAILED)]
)
def test_no_250_when_one_of_several_maildirs_fails(tmp_path: Path, number: int, answer: Reply) -> None:
    for box in ("a", "b"):
        for part in ("tmp", "new", "cur"):
            (tmp_path / box / part).mkdir(parents=True)
    log = ListLog()
    sink = direct(tmp_path, InlineDisk(FaultyOs("fsync", 2, number)), log=log)
    recipients = [rcpt(b"x@example.org", f"maildir:{tmp_path}/{box}") for box in "ab"]
    assert asyncio.run(deliver(sink, recipients, b"text\r\n")) == answer
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    [(event, fields)] = log.lines
    assert (event, fields["id"], fields["code"]) == ("sink_failed", "7F3A9C2E", answer.code)


def test_a_body_that_finds_no_room_raises_what_has_a_reply(tmp_path: Path) -> None:
    sink = direct(tmp_path, InlineDisk(FaultyOs("pwrite", 1, errno.ENOSPC)))
    with pytest.raises(errors.StorageFull) as caught:
        asyncio.run(deliver(sink, [rcpt(b"x@example.org", f"maildir:{tmp_path}/a")], b"x" * 100_000))
    assert reply.of_error(caught.value) == reply.STORAGE_FULL


@pytest.mark.parametrize("deliver_to", ["", "nonsense", "mx", "refuse"])
def test_a_dest_that_is_not_ours_is_an_error_and_never_accepted(tmp_path: Path, deliver_to: str) -> None:
    transaction = direct(tmp_path, InlineDisk()).open(Envelope(b"", b""), facts())
    with pytest.raises(ValueError, match=r"destination|delivered|built"):
        transaction.add(rcpt(b"x@example.org", deliver_to))


# --- a function of the caller's ----------------------------------------------------------------------


def called(handler: Handler, tmp_path: Path, *chunks: bytes, log: ListLog | None = None) -> Reply:
    sink = CallableSink(handler, budget=Budget(1 << 20), spool_directory=str(tmp_path), log=log)
    return asyncio.run(deliver(sink, [rcpt(b"joe@example.org", "")], *chunks))


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_function_gets_the_whole_message(tmp_path: Path, size: int) -> None:
    seen: list[tuple[bytes, bytes, str, bytes]] = []

    async def keep(message: Message) -> None:
        content = await message.content()
        seen.append((message.envelope.sender, message.envelope.recipients[0].address, message.id, content))

    chunks = [b"0123456789" * (size // 20), b"0123456789" * (size // 20)]
    assert called(keep, tmp_path, *chunks) == reply.accepted("7F3A9C2E.1")
    assert seen == [(b"from@example.net", b"joe@example.org", "7F3A9C2E.1", PREFIX + b"".join(chunks))]


def test_a_plain_function_will_do(tmp_path: Path) -> None:
    assert called(lambda message: None, tmp_path, b"x") == reply.accepted("7F3A9C2E.1")


@pytest.mark.parametrize(
    "answer", [Reply(250, "2.0.0", "Mine"), Reply(550, "5.7.1", "No"), Reply(450, "4.2.0", "Later")]
)
def test_a_function_may_answer_for_itself(tmp_path: Path, answer: Reply) -> None:
    assert called(lambda message: answer, tmp_path, b"x") is answer


def test_what_a_function_raises_is_never_250_and_logged(tmp_path: Path) -> None:
    log = ListLog()

    async def broken(message: Message) -> None:
        raise KeyError("secret")

    assert called(broken, tmp_path, b"x", log=log) == reply.OUR_DEFECT
    [(event, fields)] = log.lines
    assert event == "defect"
    assert "KeyError" in str(fields["trace"])


def test_a_function_may_raise_a_trouble_of_the_world(tmp_path: Path) -> None:
    async def full(message: Message) -> None:
        raise errors.StorageFull("quota")

    assert called(full, tmp_path, b"x") == reply.STORAGE_FULL


@pytest.mark.parametrize("answer", [True, "250 Ok", 250, Reply(354, "", "go on")])
def test_anything_else_that_a_function_returns_is_a_defect(tmp_path: Path, answer: object) -> None:
    assert called(lambda message: answer, tmp_path, b"x", log=ListLog()) == reply.OUR_DEFECT  # type: ignore[arg-type, return-value]
