"""qmail-queue: the protocol of its descriptors, every exit status, and what a program may do to us."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import pathlib
import signal
import threading

import pytest

from fastsmtp import errors, reply
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.delivery.qmail_queue import QmailQueue as Sender
from fastsmtp.delivery.qmail_queue import envelope_of
from fastsmtp.log import ListLog
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.disk import InlineDisk, ThreadDisk
from fastsmtp.queue.spool import Body, Budget
from fastsmtp.reply import Reply
from fastsmtp.sink import DirectSink
from tests.faulty import FaultyOs
from tests.handing import PREFIX, deliver, facts, opened, rcpt
from tests.integration.servers import until
from tests.qmailqueue import QmailQueue

SENDER = b"from@example.net"


@pytest.fixture
def queue(tmp_path: pathlib.Path) -> QmailQueue:
    return QmailQueue(tmp_path / "home" / "bin")


def body(tmp_path: pathlib.Path, *chunks: bytes) -> Body:
    found = Body(InlineDisk(), Budget(1 << 20), str(tmp_path))
    for chunk in chunks:
        found.write(chunk)
    return found


def store(
    queue: QmailQueue, content: Body, sender: Sender | None = None, recipients: list[Recipient] | None = None
) -> Outcome:
    sender = sender or Sender(
        InlineDisk(), hostname="mx.example.org", home=str(queue.folder.parent), environment={}
    )
    recipients = recipients if recipients is not None else [rcpt(b"joe@example.org", "")]
    found = sender.store("", SENDER, recipients, sender.environment(facts()), PREFIX, content)
    assert isinstance(found, Delivered | Retry | Failed)
    return found


def test_message_and_envelope_arrive_to_the_byte(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    content = body(tmp_path, b"Subject: x\r\n\r\n", b"one\r", b"\n.two\r\n")
    recipients = [rcpt(b"Joe@Example.org", ""), rcpt(b'"a \\"b"@example.org', "")]
    found = store(queue, content, recipients=recipients)
    [taken] = queue.queued()
    assert found == Delivered(f"qp {taken.pid}")
    assert taken.message == b"Received: from here\n\tby there\nSubject: x\n\none\n.two\n"
    assert taken.envelope == b'Ffrom@example.net\0TJoe@Example.org\0Ta "b@example.org\0\0'
    assert not taken.early, "descriptor 0 is closed before the envelope begins"


def test_the_null_sender_and_a_name_without_a_domain() -> None:
    assert envelope_of(b"", [rcpt(b"postmaster", "")]) == b"F\0Tpostmaster\0\0"


def test_nothing_can_break_out_of_the_envelope() -> None:
    with pytest.raises(ValueError, match="NUL"):
        envelope_of(b"a\0Tb@example.org", [])


def test_a_last_line_gets_its_end(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    """qmail-remote bounces a message that ends within a line."""
    store(queue, body(tmp_path, b"x\r\n\r\nno end"))
    assert queue.queued()[0].message.endswith(b"\n\nno end\n")


def test_a_big_message_goes_through_a_small_pipe(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    line = b"x" * 998 + b"\r\n"
    content = body(tmp_path, *[line * 50] * 60)
    assert content.is_spooled
    store(queue, content)
    assert queue.queued()[0].message == PREFIX.replace(b"\r\n", b"\n") + (b"x" * 998 + b"\n") * 3_000


def running_in(group: int) -> list[str]:
    """The processes of a group; zombies that somebody else should wait for don't count."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of, *_ = path.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            found.append(path.parent.name)
    return found


REPLIES = [
    *[(status, 554, "5.1.3") for status in (11, 115)],
    *[(status, 554, "5.3.0") for status in (31, 12, 25, 40)],
    *[(status, 451, "4.3.0") for status in (51, 52, 53, 54, 55, 56, 61, 62, 63, 64, 65, 66, 71, 81, 91, 120)],
    *[(status, 451, "4.4.1") for status in (72, 73)],
    (74, 451, "4.4.2"),
    *[(status, 451, "4.3.0") for status in (1, 10, 41, 50, 82, 99, 100, 111, 255)],
]


@pytest.mark.parametrize(("status", "code", "enhanced"), REPLIES)
def test_each_exit_status_is_a_reply(status: int, code: int, enhanced: str) -> None:
    answer = reply.qmail_queue(status)
    assert (answer.code, answer.enhanced) == (code, enhanced)


@pytest.mark.parametrize(("status", "kind"), [(31, Failed), (53, Retry), (11, Failed), (1, Retry)])
def test_what_it_ends_with_is_the_outcome(
    queue: QmailQueue, tmp_path: pathlib.Path, status: int, kind: type
) -> None:
    queue.wants(exit=status)
    found = store(queue, body(tmp_path, b"x\r\n"))
    assert isinstance(found, kind)
    assert found.reply == reply.qmail_queue(status)  # type: ignore[union-attr]
    assert f"ended with {status}" in found.reason  # type: ignore[union-attr]


@pytest.mark.parametrize("descriptor", [4, 6])
@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Dno such virus here (#5.7.1)\n", Reply(554, "5.7.1", "no such virus here")),
        ("Zcome back", Reply(451, "4.3.0", "come back")),
        ("Z4.7.1 greylisted", Reply(451, "4.7.1", "greylisted")),
        ("D4.7.1 is none of ours", Reply(554, "5.3.0", "4.7.1 is none of ours")),
        ("Dtwo\r\n250 lines", Reply(554, "5.3.0", "two 250 lines")),
        ("D" + "x" * 400, Reply(554, "5.3.0", "x" * 254)),
        ("D", Reply(554, "5.3.0", "Message not taken")),
        ("", reply.qmail_queue(82)),
        ("Kfine", reply.qmail_queue(82)),
    ],
)
def test_82_speaks_for_itself(
    queue: QmailQueue, tmp_path: pathlib.Path, descriptor: int, said: str, answer: Reply
) -> None:
    queue.wants(exit=82, say=[[descriptor, said]])
    found = store(queue, body(tmp_path, b"x\r\n"))
    assert isinstance(found, Retry | Failed)
    assert found.reply == answer


def test_what_it_says_counts_with_82_only(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queue.wants(exit=0, say=[[6, "Dno"]])
    assert isinstance(store(queue, body(tmp_path, b"x\r\n")), Delivered)


def test_it_may_say_more_than_a_pipe_holds(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queue.wants(exit=82, say=[[6, "Dno (#5.7.1)"], [4, "x" * 200_000]])
    found = store(queue, body(tmp_path, b"x\r\n"))
    assert isinstance(found, Failed)


def test_a_crash_is_another_try(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queue.wants(signal=int(signal.SIGKILL))
    found = store(queue, body(tmp_path, b"x\r\n"))
    assert isinstance(found, Retry)
    assert found.reply == reply.QUEUE_CRASHED


@pytest.mark.parametrize("reads", ["nothing", "message"])
def test_one_that_refuses_early_is_heard(queue: QmailQueue, tmp_path: pathlib.Path, reads: str) -> None:
    """EPIPE is not the answer: its exit status is."""
    queue.wants(exit=31, reads=reads)
    found = store(queue, body(tmp_path, *[b"x" * 998 + b"\r\n"] * 300))
    assert isinstance(found, Failed)
    assert found.reply == reply.QMAIL_QUEUE[31]


def test_0_without_having_read_all_is_no_success(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queue.wants(exit=0, reads="nothing")
    found = store(queue, body(tmp_path, *[b"x" * 998 + b"\r\n"] * 300))
    assert isinstance(found, Retry)
    assert found.reply == reply.QMAIL_QUEUE[54]


@pytest.mark.parametrize("hang", [True, "child"])
def test_one_that_hangs_is_killed_with_its_children(
    queue: QmailQueue, tmp_path: pathlib.Path, hang: object
) -> None:
    queue.wants(hang=hang)
    sender = Sender(InlineDisk(), hostname="mx", home=str(queue.folder.parent), environment={}, answer_s=1.0)
    found = store(queue, body(tmp_path, b"x\r\n"), sender)
    assert isinstance(found, Retry)
    assert found.reply == reply.QUEUE_TIMED_OUT
    assert found.may_have_arrived
    [taken] = queue.taken()
    assert not pathlib.Path(f"/proc/{taken.pid}").exists(), "no zombie"
    # The signal is sent; who runs on another processor hears it a moment later.
    until(lambda: running_in(taken.pid) == [], "its children are killed with it")


def test_one_that_never_reads_is_killed(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queue.wants(reads="nothing", hang=True)
    sender = Sender(InlineDisk(), hostname="mx", home=str(queue.folder.parent), environment={}, answer_s=0.5)
    found = store(queue, body(tmp_path, *[b"x" * 998 + b"\r\n"] * 300), sender)
    assert isinstance(found, Retry)
    assert found.reply == reply.QUEUE_TIMED_OUT
    assert not found.may_have_arrived


def test_a_body_that_cannot_be_read_leaves_nothing_in_the_queue(
    queue: QmailQueue, tmp_path: pathlib.Path
) -> None:
    system = FaultyOs("pread", 2, errno.EIO)
    content = body(tmp_path, *[b"x" * 65_534 + b"\r\n"] * 4)
    sender = Sender(InlineDisk(system), hostname="mx", home=str(queue.folder.parent), environment={})
    with pytest.raises(errors.StorageFailed):
        store(queue, content, sender)
    [taken] = queue.taken()
    assert taken.end == "exit 54"
    assert taken.envelope == b""


@pytest.mark.parametrize(
    ("call", "at", "number"),
    [("pipe", 1, errno.EMFILE), ("pipe", 2, errno.ENFILE), ("pipe", 3, errno.EMFILE)],
)
def test_no_descriptors_left_is_another_try_and_leaks_none(
    queue: QmailQueue, tmp_path: pathlib.Path, call: str, at: int, number: int
) -> None:
    content = body(tmp_path, b"x\r\n")
    sender = Sender(
        InlineDisk(FaultyOs(call, at, number)), hostname="mx", home=str(queue.folder.parent), environment={}
    )
    gc.collect()  # what other tests have left open
    before = os.listdir("/proc/self/fd")
    found = store(queue, content, sender)
    assert isinstance(found, Retry)
    assert found.reply == reply.QUEUE_NOT_STARTED
    assert os.listdir("/proc/self/fd") == before


def test_descriptors_are_given_back(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    gc.collect()  # what other tests have left open
    before = os.listdir("/proc/self/fd")
    for status in (0, 31, 82):
        queue.wants(exit=status)
        store(queue, body(tmp_path, b"x\r\n"))
    assert os.listdir("/proc/self/fd") == before


def test_the_child_has_its_descriptors_and_no_other(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    inherited = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        store(queue, body(tmp_path, b"x\r\n"))
    finally:
        os.close(inherited)
    [taken] = queue.queued()
    assert taken.fds == [0, 1, 2, 4, 6]
    assert taken.directory == str(queue.folder.parent)


def test_the_child_ignores_and_blocks_no_signal(tmp_path: pathlib.Path) -> None:
    """Python ignores SIGPIPE, and a filter in shell would never hear that its reader has gone."""
    program = tmp_path / "queue"
    program.write_text("#!/bin/sh\n{ printf D; grep -E 'Sig(Blk|Ign)' /proc/self/status; } >&6\nexit 82\n")
    program.chmod(0o755)
    sender = Sender(InlineDisk(), hostname="mx", home=str(tmp_path), environment={"QMAILQUEUE": str(program)})
    found = sender.store("", SENDER, [], sender.environment(facts()), PREFIX, body(tmp_path, b"x\r\n"))
    assert isinstance(found, Failed)
    _, blocked, _, ignored = found.reply.lines[0].split()
    # 32 and 33 are the C library's own.
    assert (int(blocked, 16), int(ignored, 16) & 0x7FFFFFFF) == (0, 0)


def test_addresses_are_in_the_envelope_and_nowhere_else(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    recipients = [rcpt(b"$(reboot);`x`'\"@example.org", "")]
    store(queue, body(tmp_path, b"x\r\n"), recipients=recipients)
    [taken] = queue.queued()
    assert taken.argv == [str(queue.path)]
    shown = "\n".join([*taken.argv, *taken.environment, *taken.environment.values()])
    assert "reboot" not in shown
    assert "from@" not in shown


@pytest.mark.parametrize(
    ("client", "local", "expected"),
    [
        (
            "192.0.2.1",
            "127.0.0.1",
            {
                "PROTO": "TCP", "TCPREMOTEIP": "192.0.2.1", "TCPREMOTEPORT": "4711", "TCPLOCALIP": "127.0.0.1",
                "TCPLOCALHOST": "mx", "TCPREMOTEHOST": "client.example", "TCP6REMOTEIP": "::ffff:192.0.2.1",
                "TCP6LOCALIP": "::ffff:127.0.0.1", "TCP6REMOTEPORT": "4711", "TCP6REMOTEHOST": "client.example",
                "TCP6LOCALHOST": "mx", "TCPLOCALPORT": "25", "TCP6LOCALPORT": "25",
            },
        ),
        (
            "2001:db8::1",
            "::1",
            {
                "PROTO": "TCP6", "TCPREMOTEIP": "2001:db8::1", "TCPREMOTEPORT": "4711", "TCPLOCALIP": "::1",
                "TCPLOCALHOST": "mx", "TCPREMOTEHOST": "client.example", "TCP6REMOTEIP": "2001:db8::1",
                "TCP6LOCALIP": "::1", "TCP6REMOTEPORT": "4711", "TCP6REMOTEHOST": "client.example",
                "TCP6LOCALHOST": "mx", "TCPLOCALPORT": "25", "TCP6LOCALPORT": "25",
            },
        ),
    ],
)  # fmt: skip
def test_the_child_knows_the_connection(client: str, local: str, expected: dict[str, str]) -> None:
    known = facts(client)
    known.local_address = local
    known.local_port = 25
    known.client.name = "client.example"
    known.client.environment = {"SIMSCAN": "on"}
    sender = Sender(InlineDisk(), hostname="mx", environment={"PATH": "/bin"})
    assert sender.environment(known) == {"PATH": "/bin", "SIMSCAN": "on", **expected}
    known.client.may_relay = True
    assert sender.environment(known)["RELAYCLIENT"] == ""
    known.client.environment = {"RELAYCLIENT": "@fixme", "TCPREMOTEHOST": "="}
    assert sender.environment(known)["RELAYCLIENT"] == "@fixme"
    assert sender.environment(known)["TCPREMOTEHOST"] == "="


@pytest.mark.parametrize(
    ("environment", "path", "program"),
    [
        ({}, "", "/var/qmail/bin/qmail-queue"),
        ({}, "/opt/queue", "/opt/queue"),
        ({}, "bin/filter", "/var/qmail/bin/filter"),
        ({"QMAILQUEUE": "/opt/simscan"}, "/opt/queue", "/opt/simscan"),
        ({"QMAILQUEUE": "bin/simscan"}, "", "/var/qmail/bin/simscan"),
        ({"QMAILQUEUE": ""}, "", "/var/qmail/bin/qmail-queue"),
    ],
)
def test_which_program(environment: dict[str, str], path: str, program: str) -> None:
    assert Sender(InlineDisk(), hostname="mx").program(path, environment) == program


# --- through the sink --------------------------------------------------------------------------------


def direct(tmp_path: pathlib.Path, log: ListLog | None = None, *, is_compatible: bool = False) -> DirectSink:
    return DirectSink(
        disk=InlineDisk(), programs=ThreadDisk(threads=3), budget=Budget(1 << 20), spool_directory=str(tmp_path),
        hostname="mx", log=log, is_compatible=is_compatible, wall=lambda: 1_700_000_000.5,
    )  # fmt: skip


def through(sink: DirectSink, *recipients: Recipient) -> Reply:
    async def scenario() -> Reply:
        try:
            return await deliver(sink, recipients, b"Subject: x\r\n\r\nHello\r\n")
        finally:
            await sink.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("is_compatible", [False, True])
def test_the_250_names_the_process(queue: QmailQueue, tmp_path: pathlib.Path, is_compatible: bool) -> None:
    sink = direct(tmp_path, is_compatible=is_compatible)
    answer = through(sink, rcpt(b"joe@example.org", f"qmail-queue:{queue.path}"))
    pid = queue.queued()[0].pid
    expected = (
        f"250 ok 1700000000 qp {pid}" if is_compatible else f"250 2.0.0 Ok: 7F3A9C2E.1 handed over: qp {pid}"
    )
    assert answer.head.decode() == expected


def test_a_refusal_is_the_clients_answer_and_logged(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queue.wants(exit=31)
    log = ListLog()
    answer = through(direct(tmp_path, log), rcpt(b"joe@example.org", f"qmail-queue:{queue.path}"))
    assert answer == reply.QMAIL_QUEUE[31]
    [(event, fields)] = log.lines
    assert (event, fields["deliver"], fields["code"]) == ("sink_failed", f"qmail-queue:{queue.path}", 554)


@pytest.mark.parametrize("what", ["absent", "not executable", "a directory"])
def test_without_its_program_data_is_refused(tmp_path: pathlib.Path, what: str) -> None:
    """Before the client sends its message, as a fork that fails in qmail-smtpd."""
    program = tmp_path / "queue"
    if what == "not executable":
        program.write_text("#!/bin/sh\n")
    elif what == "a directory":
        program.mkdir()

    async def scenario() -> Reply | None:
        sink = direct(tmp_path)
        transaction, _ = await opened(sink, [rcpt(b"joe@example.org", f"qmail-queue:{program}")])
        found = transaction.begin(facts())
        assert found is not None
        assert not isinstance(found, Reply)
        answer = await found
        transaction.abort()
        await sink.close()
        return answer

    assert asyncio.run(scenario()) == reply.QUEUE_NOT_STARTED


def test_whoever_may_refuse_a_message_gets_it_alone(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queues, discard, hop = f"qmail-queue:{queue.path}", "discard", "smtp://127.0.0.1:1"

    async def scenario(*places: str) -> list[Reply | None]:
        sink = direct(tmp_path)
        envelope = Envelope(b"", b"")
        transaction, answers = await opened(
            sink, [rcpt(b"%d@example.org" % at, place) for at, place in enumerate(places)], envelope
        )
        transaction.abort()
        await sink.close()
        return answers

    other = reply.OTHER_NEXT_HOP
    assert asyncio.run(scenario(queues, discard, queues, hop)) == [None, other, None, other]
    assert asyncio.run(scenario(discard, queues, discard)) == [None, other, None]
    assert asyncio.run(scenario(queues, "qmail-queue:/other")) == [None, other]


def test_the_loop_goes_on_while_a_program_hangs(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    queue.wants(hang=True)

    async def scenario() -> None:
        sink = direct(tmp_path)
        sink.qmail_queue.answer_s = 2.0
        recipient = rcpt(b"joe@example.org", f"qmail-queue:{queue.path}")
        hung = asyncio.ensure_future(deliver(sink, [recipient], b"x\r\n"))
        while not queue.taken():
            await asyncio.sleep(0.01)
        queue.wants()
        answer = await deliver(sink, [recipient], b"x\r\n")
        assert answer.is_positive
        assert not hung.done()
        assert await hung == reply.QUEUE_TIMED_OUT
        await sink.close()

    asyncio.run(scenario())


def test_many_at_a_time_keep_their_messages_apart(queue: QmailQueue, tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        sink = direct(tmp_path)
        recipients = [rcpt(b"r%d@example.org" % at, f"qmail-queue:{queue.path}") for at in range(12)]
        answers = await asyncio.gather(
            *(deliver(sink, [one], b"for " + one.address + b"\r\n") for one in recipients)
        )
        assert all(answer.is_positive for answer in answers)
        await sink.close()

    threads = threading.active_count()
    asyncio.run(scenario())
    assert threading.active_count() == threads
    found = sorted((one.envelope, one.message.splitlines()[-1]) for one in queue.queued())
    assert found == sorted(
        (b"Ffrom@example.net\0Tr%d@example.org\0\0" % at, b"for r%d@example.org" % at) for at in range(12)
    )
