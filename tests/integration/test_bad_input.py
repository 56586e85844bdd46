"""What bad input gets: a clear enhanced reply, no crash, no leak, no other session disturbed."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from fastsmtp.smtp import proxy
from tests.wire import PATIENCE_S, run, serving

HELLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.org>\r\n"
OPEN = MAIL + RCPT + b"DATA\r\n"

# What is sent behind EHLO; the codes and enhanced codes of all answers; whether the server closes then.
TABLE: list[tuple[str, bytes, list[str], bool]] = [
    (
        "an over-long command line",
        b"NOOP " + b"x" * 5_000 + b"\r\nNOOP\r\n",
        ["500 5.5.2", "250 2.0.0"],
        False,
    ),
    (
        "a million bytes without a line end",
        b"x" * 1_000_000 + b"\r\nNOOP\r\n",
        ["500 5.5.2", "250 2.0.0"],
        False,
    ),
    ("NUL in a command", b"NOOP \0\r\n", ["550 5.6.0"], True),
    ("bare LF in a command", b"NOOP\nQUIT\r\n", ["550 5.6.0"], True),
    ("bare CR in a command", b"NOOP\rQUIT\r\n", ["550 5.6.0"], True),
    ("bare LF in data", OPEN + b"one\ntwo\r\n.\r\n", ["250 2.1.0", "250 2.1.5", "354 ", "550 5.6.0"], True),
    ("bare CR in data", OPEN + b"one\rtwo\r\n.\r\n", ["250 2.1.0", "250 2.1.5", "354 ", "550 5.6.0"], True),
    ("NUL in data", OPEN + b"one\0two\r\n.\r\n", ["250 2.1.0", "250 2.1.5", "354 ", "550 5.6.0"], True),
    (
        "a smuggled second message",
        OPEN + b"text\r\n\n.\r\nMAIL FROM:<evil@example.org>\r\n",
        ["250 2.1.0", "250 2.1.5", "354 ", "550 5.6.0"],
        True,
    ),
    ("an unknown verb", b"XYZZY\r\nNOOP\r\n", ["500 5.5.2", "250 2.0.0"], False),
    ("RCPT before MAIL", RCPT, ["503 5.5.1"], False),
    ("DATA before RCPT", MAIL + b"DATA\r\n", ["250 2.1.0", "503 5.5.1"], False),
    ("MAIL inside a transaction", MAIL + MAIL, ["250 2.1.0", "503 5.5.1"], False),
    ("an address in 8 bits without SMTPUTF8", b"MAIL FROM:<j\xc3\xb6@example.org>\r\n", ["553 5.6.7"], False),
    ("an address that is none", b"MAIL FROM:<a@b@c>\r\n", ["501 5.1.7"], False),
    ("a recipient that is none", MAIL + b"RCPT TO:<@>\r\n", ["250 2.1.0", "501 5.1.3"], False),
    ("a parameter that nobody knows", b"MAIL FROM:<a@example.org> NONSENSE=1\r\n", ["555 5.5.4"], False),
    ("a parameter twice", b"MAIL FROM:<a@example.org> SIZE=1 SIZE=2\r\n", ["501 5.5.4"], False),
    ("a size that is no number", b"MAIL FROM:<a@example.org> SIZE=big\r\n", ["501 5.5.4"], False),
    ("a declared size over the limit", b"MAIL FROM:<a@example.org> SIZE=20000\r\n", ["552 5.3.4"], False),
    (
        "a message over the limit",
        OPEN + b"x" * 98 + (b"\r\n" + b"x" * 98) * 200 + b"\r\n.\r\nNOOP\r\n",
        ["250 2.1.0", "250 2.1.5", "354 ", "552 5.3.4", "250 2.0.0"],
        False,
    ),
    ("too many recipients", MAIL + RCPT * 4, ["250 2.1.0", *["250 2.1.5"] * 3, "452 4.5.3"], False),
    (
        "a BDAT count that is no number",
        MAIL + RCPT + b"BDAT x\r\n",
        ["250 2.1.0", "250 2.1.5", "501 5.5.4"],
        True,
    ),
    (
        "a BDAT count beyond all bounds",
        MAIL + RCPT + b"BDAT 99999999999999999999999\r\n",
        ["250 2.1.0", "250 2.1.5", "501 5.5.4"],
        True,
    ),
    ("STARTTLS where none is offered", b"STARTTLS\r\n", ["502 5.5.1"], False),
    ("XCLIENT from nobody", b"XCLIENT ADDR=192.0.2.1\r\n", ["550 5.7.0"], False),
    ("PROXY from an untrusted address", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", ["500 5.5.2"], False),
    (
        "a PROXY header of version 2 from an untrusted address",
        proxy.SIGNATURE + b"\x21\x11\x00\x0c" + b"\1" * 12,
        ["500 5.5.2", "500 5.5.2", "550 5.6.0"],
        True,
    ),
    (
        "a recipient that begins with a dash",
        MAIL + b"RCPT TO:<-f@example.org>\r\n",
        ["250 2.1.0", "250 2.1.5"],
        False,
    ),
    ("HTTP", b"GET / HTTP/1.1\r\nHost: mx.example\r\n\r\n", ["554 5.5.1"], True),
    ("commands without end and without a message", b"NOOP\r\n" * 12, ["250 2.0.0"] * 9 + ["421 4.7.0"], True),
    ("more errors than allowed", b"XYZZY\r\n" * 6, ["500 5.5.2"] * 5 + ["421 4.7.0"], True),
]


def limits() -> dict[str, int]:
    return {"errors": 5, "recipients": 3, "message_bytes": 10_000, "commands": 10}


@pytest.mark.parametrize(
    ("sent", "expected", "closes"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_what_bad_input_gets(sent: bytes, expected: list[str], closes: bool) -> None:
    async def main() -> None:
        async with serving(limits=limits()) as running:
            bystander = await running.connect()
            wire = await running.connect()
            await wire.ask(HELLO[:-2])
            wire.writer.write(sent)
            found = []
            for _ in expected:
                code, text = await wire.reply()
                enhanced = "" if code == 354 else text.split(b" ")[0].decode()
                found.append(f"{code} {enhanced}")
                if code >= 400:
                    assert text.endswith(b")"), "the session's id stands in each refusal"
                    assert b"(id " in text
            assert found == expected
            if closes:
                assert await wire.rest() == b"", "the last reply arrives, then the connection ends in order"
            else:
                assert (await wire.ask(b"NOOP"))[0] == 250
            assert (await bystander.ask(b"NOOP"))[0] == 250
            assert running.inbox.messages == []
            assert running.log.of("defect") == []
            await wire.close()
            await bystander.close()

    run(main)


def test_a_client_that_reads_nothing_while_it_sends_a_million_noops() -> None:
    """Replies pile up to a bound, then its commands are no longer taken."""

    async def main() -> None:
        async with serving(limits={"commands": 0}) as running:
            bystander = await running.connect()
            reader = socket.create_connection(("127.0.0.1", running.server.port))
            reader.setblocking(False)
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            loop = asyncio.get_running_loop()
            flood = b"NOOP\r\n" * 10_000
            sent = 0
            while sent < 6_000_000:
                try:
                    sent += reader.send(flood)
                except BlockingIOError:
                    # The server has stopped reading, or has to be given a turn.
                    try:
                        await asyncio.wait_for(_writable(loop, reader), 0.5)
                    except TimeoutError:
                        break
            assert sent < 6_000_000, "back-pressure reaches the client"
            assert (await bystander.ask(b"NOOP"))[0] == 250
            reader.close()
            await bystander.close()

    run(main)


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready = loop.create_future()
    loop.add_writer(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def test_a_client_that_half_closes_gets_all_its_answers() -> None:
    async def main() -> None:
        async with serving() as running:
            wire = await running.connect(greet=False)
            await wire.send(HELLO + MAIL + RCPT + b"NOOP\r\n")
            wire.writer.write_eof()
            said = await wire.rest()
            assert [line[:3] for line in said.split(b"\r\n") if line[3:4] == b" "] == [
                b"220",
                b"250",
                b"250",
                b"250",
                b"250",
            ]
            await wire.close()

    run(main)


def test_a_client_that_half_closes_behind_its_message_is_answered() -> None:
    """The sink is still at work when the client shuts its side."""

    async def main() -> None:
        release = asyncio.Event()

        async def slow(message: Any) -> None:
            await release.wait()

        async with serving(slow) as running:
            wire = await running.connect()
            await wire.codes(HELLO + OPEN, 4)
            await wire.send(b"text\r\n.\r\nNOOP\r\n")
            wire.writer.write_eof()
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.05, release.set)
            said = await wire.rest()
            assert [line[:3] for line in said.splitlines()] == [b"250", b"250"]
            await wire.close()

    run(main)


STATES: list[tuple[str, bytes, int]] = [
    ("before anything", b"", 0),
    ("after EHLO", HELLO, 1),
    ("in a line", HELLO + b"MAIL FR", 1),
    ("after MAIL", HELLO + MAIL, 2),
    ("after RCPT", HELLO + MAIL + RCPT, 3),
    ("after DATA", HELLO + OPEN, 4),
    ("in a message", HELLO + OPEN + b"half a", 4),
    ("in a chunk", HELLO + MAIL + RCPT + b"BDAT 100\r\nhalf", 3),
    ("after a message", HELLO + OPEN + b"text\r\n.\r\n", 5),
]


@pytest.mark.parametrize(("sent", "replies"), [row[1:] for row in STATES], ids=[row[0] for row in STATES])
def test_a_reset_in_every_state(sent: bytes, replies: int) -> None:
    async def main() -> None:
        async with serving() as running:
            bystander = await running.connect()
            wire = await running.connect()
            # What is sent too early for its group is sent all the same: the server must cope.
            await wire.codes(sent, replies)
            raw = wire.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.abort()
            service = running.server._service
            assert service is not None
            await _until(lambda: len(service.connections) == 1)
            assert (await bystander.ask(b"NOOP"))[0] == 250
            assert running.log.of("defect") == []
            await bystander.close()

    run(main)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_thousand_idle_connections_disturb_nobody() -> None:
    async def main() -> None:
        async with serving(limits={"connections_per_client": 0}) as running:
            idle = [await running.connect() for _ in range(1_000)]
            wire = await running.connect()
            assert await wire.codes(HELLO + OPEN + b"text\r\n.\r\n", 5) == [250, 250, 250, 354, 250]
            for one in idle:
                one.abort()
            await wire.close()

    run(main)


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_a_client_that_trickles_is_served(cut: int) -> None:
    async def main() -> None:
        async with serving() as running:
            wire = await running.connect()
            talk = HELLO + OPEN + b"..dot\r\nlast\r\n.\r\nQUIT\r\n"
            wire.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(talk), cut):
                await wire.send(talk[at : at + cut])
                await asyncio.sleep(0)
            said = await wire.rest()
            assert said.endswith(b"221 2.0.0 Bye\r\n")
            assert running.inbox.bodies == [b".dot\r\nlast\r\n"]
            await wire.close()

    run(main)


def exception_in(what: str) -> Any:
    """A sink whose step fails with a defect."""

    class Transaction:
        def add(self, recipient: Any) -> None:
            if what == "add":
                raise KeyError("secret text")

        def begin(self, facts: Any) -> None:
            if what == "begin":
                raise KeyError("secret text")

        def write(self, chunk: bytes) -> None:
            if what == "write":
                raise KeyError("secret text")

        def commit(self, prefix: bytes) -> Any:
            if what == "commit":
                raise KeyError("secret text")
            return self._later()

        async def _later(self) -> Any:
            raise KeyError("secret text")

        def abort(self) -> None:
            return None

    class Sink:
        def open(self, envelope: Any, facts: Any) -> Any:
            if what == "open":
                raise KeyError("secret text")
            return Transaction()

        async def close(self) -> None:
            return None

    return Sink()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("open", [250, 451]),
        ("add", [250, 451]),
        ("begin", [250, 250, 451]),
        ("write", [250, 250, 354, 421]),
        ("commit", [250, 250, 354, 451]),
        ("answer", [250, 250, 354, 451]),
    ],
)
def test_a_defect_in_a_sink_is_451_and_never_its_text(what: str, expected: list[int]) -> None:
    async def main() -> None:
        async with serving(exception_in(what)) as running:
            wire = await running.connect()
            await wire.ask(HELLO[:-2])
            commands = [MAIL, RCPT, b"DATA\r\n", b"text\r\n.\r\n"]
            found = []
            for command in commands[: len(expected)]:
                await wire.send(command)
                code, text = await wire.reply()
                found.append(code)
                assert b"secret" not in text
            assert found == expected or (what == "write" and found == [250, 250, 354, 451])
            assert len(running.log.of("defect")) == 1
            assert "secret text" in str(running.log.of("defect")[0]["reason"])
            await wire.close()

    run(main)


def refuses_at_data() -> Any:
    """A sink that takes recipients, and no message."""
    from fastsmtp import reply

    class Transaction:
        def add(self, recipient: Any) -> None:
            return None

        def begin(self, facts: Any) -> Any:
            return reply.STORAGE_FULL

        def abort(self) -> None:
            return None

    class Sink:
        def open(self, envelope: Any, facts: Any) -> Any:
            return Transaction()

        async def close(self) -> None:
            return None

    return Sink()


def test_data_again_after_it_was_refused() -> None:
    async def main() -> None:
        async with serving(refuses_at_data()) as running:
            wire = await running.connect()
            await wire.codes(HELLO + MAIL + RCPT, 3)
            assert (await wire.ask(b"DATA"))[0] == 452
            assert (await wire.ask(b"DATA"))[0] == 554
            assert (await wire.ask(b"RSET"))[0] == 250
            await wire.codes(MAIL + RCPT, 2)
            assert (await wire.ask(b"DATA"))[0] == 452
            assert running.log.of("defect") == []
            await wire.close()

    run(main)


def test_clients_that_claim_loopback_through_proxy_or_xclient_do_not_relay() -> None:
    async def main() -> None:
        table = {"proxy_from": ["127.0.0.1"], "xclient_from": ["127.0.0.2", "198.51.100.7"]}
        ours = [{"domain": ["example.org"], "deliver": "discard"}]
        async with serving(accept=ours, listener=table) as running:
            elsewhere = b"RCPT TO:<x@other.example>"
            wire = await running.connect("127.0.0.1", greet=False)
            await wire.send(b"PROXY TCP4 127.0.0.1 127.0.0.1 1000 25\r\n")
            await wire.reply()
            await wire.codes(HELLO + MAIL, 2)
            assert (await wire.ask(elsewhere))[0] == 550
            other = await running.connect("127.0.0.2")
            await other.ask(HELLO[:-2])
            assert (await other.ask(b"XCLIENT ADDR=127.0.0.1 NAME=localhost"))[0] == 220
            await other.codes(HELLO + MAIL, 2)
            assert (await other.ask(elsewhere))[0] == 550
            await wire.close()
            await other.close()

    run(main)
