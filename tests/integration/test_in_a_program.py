"""fastsmtp.Server in a program's own loop, uvloop's and asyncio's: what it leaves alone, and what a sink may do."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastsmtp
from fastsmtp.certificate import make_certificate
from fastsmtp.log import ListLog
from tests.wire import Running, connect, run, serving

HELLO = b"EHLO client.example\r\n"
OPEN = b"MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
BOTH_LOOPS = pytest.mark.parametrize("with_uvloop", [True, False], ids=["uvloop", "asyncio"])


def surroundings() -> dict[str, Any]:
    """All of a process that a guest should leave as it found it."""
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": _wakeup_fd(),
        "root handlers": list(logging.root.handlers),
        "root level": logging.root.level,
        "loggers": sorted(name for name in logging.root.manager.loggerDict if name.startswith("fastsmtp")),
        "excepthook": sys.excepthook,
        "umask": _umask(),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "children": _children(),
        "open files": _open_files(),
    }


def _wakeup_fd() -> int:
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    return found


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _children() -> str:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return path.read_text() if path.exists() else ""


def _open_files() -> int:
    """Without those of what other tests have left to the garbage collector, which comes when it likes."""
    gc.collect()
    path = Path("/proc/self/fd")
    return len(list(path.iterdir())) if path.exists() else 0


async def settled() -> None:
    """A transport that was closed is gone after a few turns of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


async def send(running: Running, text: bytes = b"text\r\n") -> tuple[int, bytes]:
    """One message; the answer to its end."""
    wire = await running.connect()
    await wire.codes(HELLO + OPEN, 4)
    await wire.send(text + b".\r\n")
    answer = await wire.reply()
    await wire.close()
    return answer


@BOTH_LOOPS
def test_it_leaves_the_program_alone(with_uvloop: bool, tmp_path: Path) -> None:
    """While it serves, and when it has gone; STARTTLS, a spooled body and a sink that fails are part of it."""
    certificate, key = make_certificate(["mx.example"], days=2)
    (tmp_path / "both.pem").write_bytes(certificate + key)
    (tmp_path / "both.pem").chmod(0o600)
    failing = False

    async def sink(message: fastsmtp.Message) -> None:
        assert len(await message.content()) > 0
        if failing:
            raise KeyError("not today")

    async def main() -> None:
        nonlocal failing
        # What loops and imports bring with their first use is not the server's.
        async with serving(sink, tls={"certificate": str(tmp_path / "both.pem")}) as running:
            await send(running, b"x" * 200_000 + b"\r\n")
        await settled()
        before = surroundings()
        async with serving(sink, tls={"certificate": str(tmp_path / "both.pem")}) as running:
            assert (await send(running))[0] == 250
            assert (await send(running, b"x" * 200_000 + b"\r\n"))[0] == 250
            failing = True
            assert (await send(running))[0] == 451
            during = surroundings()
            during["open files"] = before["open files"]
            assert during == before
        await settled()
        assert surroundings() == before
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main, with_uvloop=with_uvloop)


SCRIPT = """
import asyncio, logging, signal, sys, threading
import fastsmtp

handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}

async def keep(message):
    print(message.envelope.sender.decode(), len(await message.content()))

async def main():
    async with fastsmtp.Server(keep, listen=("127.0.0.1", 0), hostname="mx.example") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        commands = [b"EHLO x", b"MAIL FROM:<a@example.net>", b"RCPT TO:<b@example.org>", b"DATA", b"hi", b"."]
        writer.write(b"\\r\\n".join([*commands, b"QUIT", b""]))
        await reader.read()
        # The loop has a handler for SIGINT of its own (asyncio.Runner).
        handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
        assert {number: signal.getsignal(number) for number in handlers} == handlers
        assert threading.enumerate() == [threading.main_thread()]
        assert logging.root.handlers == []
        writer.close()

LOOP
"""


@BOTH_LOOPS
def test_a_program_of_its_own(with_uvloop: bool) -> None:
    """From import to exit in a fresh interpreter, with every warning an error: no thread was ever made."""
    loop = "import uvloop; uvloop.run(main())" if with_uvloop else "asyncio.run(main())"
    script = SCRIPT.replace("LOOP", loop)
    root = Path(fastsmtp.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a@example.net ")


def raising(error: Exception) -> Callable[[fastsmtp.Message], Any]:
    def sink(message: fastsmtp.Message) -> None:
        raise error

    return sink


async def slow_failure(message: fastsmtp.Message) -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError("secret")


async def refusing(message: fastsmtp.Message) -> fastsmtp.Reply:
    return fastsmtp.Reply(554, "5.7.1", "Not", "from you")


async def cancelled(message: fastsmtp.Message) -> None:
    raise asyncio.CancelledError


async def nonsense(message: fastsmtp.Message) -> Any:
    return "250 fine"


@BOTH_LOOPS
@pytest.mark.parametrize(
    ("sink", "code", "text", "event"),
    [
        (lambda message: None, 250, b"2.0.0", "message"),
        (lambda message: fastsmtp.Reply(250, "2.0.0", "Taken"), 250, b"2.0.0 Taken", "message"),
        (refusing, 554, b"5.7.1 Not", "reject"),
        (raising(KeyError("secret")), 451, b"4.3.0", "defect"),
        (slow_failure, 451, b"4.3.0", "defect"),
        (raising(fastsmtp.TemporaryError("secret")), 451, b"4.3.0", "sink_failed"),
        (cancelled, 451, b"4.3.0", "defect"),
        (nonsense, 451, b"4.3.0", "defect"),
    ],
    ids=[
        "None",
        "a reply",
        "a refusal",
        "an exception",
        "a late one",
        "a temporary one",
        "cancelled",
        "nonsense",
    ],
)
def test_what_a_sink_may_do(
    with_uvloop: bool, sink: Callable[[fastsmtp.Message], Any], code: int, text: bytes, event: str
) -> None:
    async def main() -> None:
        async with serving(sink) as running:
            wire = await running.connect()
            await wire.codes(HELLO + OPEN, 4)
            await wire.send(b"text\r\n.\r\n")
            got, said = await wire.reply()
            assert (got, said[: len(text)]) == (code, text)
            assert b"secret" not in said
            assert running.log.of(event), running.log.lines
            # The session goes on, and so do the others.
            assert (await wire.ask(b"NOOP"))[0] == 250
            assert await wire.codes(OPEN, 3) == [250, 250, 354]
            await wire.close()

    run(main, with_uvloop=with_uvloop)


@BOTH_LOOPS
def test_what_a_sink_is_given(with_uvloop: bool) -> None:
    seen: list[Any] = []

    async def sink(message: fastsmtp.Message) -> None:
        pieces = [piece async for piece in message.pieces()]
        seen.append(
            (
                message.id,
                message.envelope,
                message.facts.client.address.text,
                message.prefix,
                b"".join(pieces),
            )
        )

    async def main() -> None:
        async with serving(sink) as running:
            wire = await running.connect("127.0.0.9")
            await wire.ask(HELLO[:-2])
            declared = b"MAIL FROM:<a@example.net> SIZE=300000 BODY=8BITMIME RET=HDRS ENVID=e+31 SMTPUTF8\r\n"
            rcpt = b"RCPT TO:<b@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c@example.org\r\n"
            assert await wire.codes(declared + rcpt + b"DATA\r\n", 3) == [250, 250, 354]
            body = b"Subject: x\r\n\r\n" + b"y" * 300_000 + b"\r\n"
            await wire.send(body + b".\r\n")
            _, said = await wire.reply()
            ((id, envelope, client, prefix, content),) = seen
            assert f"accepted as {id}".encode() in said
            assert content == prefix + body
            assert prefix.startswith(b"Received: from client.example ([127.0.0.9])\r\n")
            assert client == "127.0.0.9"
            assert (envelope.sender, envelope.size_bytes, envelope.body) == (
                b"a@example.net",
                300_000,
                b"8BITMIME",
            )
            assert (envelope.is_smtputf8, envelope.ret, envelope.envid) == (True, b"HDRS", b"e+31")
            (recipient,) = envelope.recipients
            assert (recipient.address, recipient.domain) == (b"b@example.org", b"example.org")
            await wire.close()

    run(main, with_uvloop=with_uvloop)


@BOTH_LOOPS
def test_several_servers_several_addresses_and_a_socket_of_the_callers(with_uvloop: bool) -> None:
    async def main() -> None:
        got: list[bytes] = []

        def sink(message: fastsmtp.Message) -> None:
            got.append(message.envelope.sender)

        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        first = fastsmtp.Server(
            sink, listen=[("127.0.0.1", 0), ("127.0.0.2", 0), bound], hostname="a.example"
        )
        second = fastsmtp.Server(sink, log=ListLog(), hostname="b.example")
        async with first, second:
            assert first.addresses[2] == bound.getsockname()
            for host, port in first.addresses:
                reader, writer = await asyncio.open_connection(host, port)
                assert await reader.readline() == b"220 a.example ESMTP\r\n"
                writer.close()
                await writer.wait_closed()
            wire = await connect(second.port)
            assert await wire.reply() == (220, b"b.example ESMTP")
            await wire.codes(HELLO + OPEN + b"x\r\n.\r\n", 5)
            await wire.close()
        assert got == [b"a@example.net"]
        with pytest.raises(ConnectionRefusedError):
            await connect(second.port)
        # It may be started again.
        async with second:
            wire = await connect(second.port)
            assert (await wire.reply())[0] == 220
            await wire.close()

    run(main, with_uvloop=with_uvloop)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"hostname": "no spaces"}, "hostname"),
        ({"limits": {"recipients": 0}}, "limits.recipients"),
        ({"nonsense": 1}, "nonsense"),
        ({"listener": {"tls": "implicit", "greeting_delay_s": -1}}, "greeting_delay_s"),
        ({"tls": {"certificate": "/nowhere"}}, "/nowhere"),
    ],
)
def test_a_wrong_configuration_is_told_and_nothing_is_left_open(config: dict[str, Any], fault: str) -> None:
    async def main() -> None:
        before = _open_files()
        server = fastsmtp.Server(lambda message: None, **config)
        with pytest.raises(fastsmtp.ConfigError) as wrong:
            await server.start()
        assert any(fault in line for line in wrong.value.faults)
        assert _open_files() == before

    run(main)
