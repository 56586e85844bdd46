"""Seeded servers that answer anything: every recipient gets one outcome, and "delivered" is said of what was taken."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from fastsmtp.delivery.outcome import Delivered, Failed, Retry
from tests.delivering import Stored, make, route, to
from tests.fakes.zone import MX, A, Zone
from tests.integration.test_deliverer import run
from tests.ports import free_port

GOOD = {
    b"MAIL": b"250 2.1.0 ok",
    b"RCPT": b"250 2.1.5 ok",
    b"DATA": b"354 go",
    b"RSET": b"250 ok",
    b"QUIT": b"221 bye",
}
BAD = (
    b"450 4.2.0 later", b"550 5.1.1 no", b"452 4.5.3 too many", b"421 4.3.2 bye", b"250-two\r\n250 lines", b"what",
    b"354 go", b"999 x", b"2", b"",
)  # fmt: skip


class Chaos:
    """A server whose every answer may be a bad one; `taken` are the texts that it said 250 to."""

    def __init__(self, seed: int, host: str, port: int, badness: float) -> None:
        self.pick = random.Random(seed)
        self.extensions = [b"chaos"]
        if self.pick.random() < 0.7:
            self.extensions.append(b"PIPELINING")
        if self.pick.random() < 0.4:
            self.extensions.append(b"CHUNKING")
        self.host, self.port, self.badness = host, port, badness
        self.taken: Counter[bytes] = Counter()
        self.tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self.serve, self.host, self.port)

    async def stop(self) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.talk(reader, writer)
        except (ConnectionError, EOFError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.transport.abort()

    async def say(self, writer: asyncio.StreamWriter, good: bytes) -> bytes:
        """The good answer, or a bad one, cut anywhere; EOFError to hang up."""
        answer = good
        if self.pick.random() < self.badness:
            answer = self.pick.choice(BAD)
            if not answer:
                raise EOFError
        data = answer + b"\r\n"
        at = self.pick.randrange(len(data) + 1) if self.pick.random() < 0.3 else 0
        if at:
            writer.write(data[:at])
            await asyncio.sleep(0)
        writer.write(data[at:])
        await writer.drain()
        if answer.startswith(b"421"):
            raise EOFError
        return answer

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.say(writer, b"220 chaos")
        has_sender = has_recipient = False
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"EHLO":
                lines = [b"250-" + word for word in self.extensions[:-1]] + [b"250 " + self.extensions[-1]]
                await self.say(writer, b"\r\n".join(lines))
            elif verb == b"BDAT":
                chunk = await reader.readexactly(int(line.split()[1]))
                if has_sender and has_recipient:
                    await self.message(writer, chunk)
                else:
                    await self.say(writer, b"503 5.5.1 for nobody")
                has_sender = has_recipient = False
            elif verb == b"DATA":
                if (await self.say(writer, GOOD[verb])).startswith(b"354"):
                    text = await reader.readuntil(b"\r\n")
                    while not text.endswith(b"\r\n.\r\n") and text != b".\r\n":
                        text += await reader.readuntil(b"\r\n")
                    await self.message(writer, text.removesuffix(b".\r\n"))
            else:
                answer = await self.say(writer, GOOD.get(verb, b"250 ok"))
                is_yes = answer.startswith(b"250")
                if verb in {b"MAIL", b"RSET"}:
                    has_sender, has_recipient = verb == b"MAIL" and is_yes, False
                elif verb == b"RCPT":
                    has_recipient = has_recipient or is_yes
                if verb == b"QUIT":
                    return

    async def message(self, writer: asyncio.StreamWriter, text: bytes) -> None:
        if (await self.say(writer, b"250 2.0.0 taken")).startswith(b"250"):
            self.taken[text] += 1


@pytest.mark.parametrize("seed", range(8))
def test_every_recipient_gets_one_outcome_and_delivered_means_taken(seed: int) -> None:
    port = free_port()
    pick = random.Random(seed)
    servers = [
        Chaos(seed * 10 + at, f"127.0.0.{at + 2}", port, pick.choice([0.0, 0.02, 0.1])) for at in range(3)
    ]
    zone: Zone = {
        ("x.example", MX): [(at, f"mx{at}.x.example") for at in range(3)],
        **{(f"mx{at}.x.example", A): [f"127.0.0.{at + 2}"] for at in range(3)},
    }
    short = dict.fromkeys(("greeting_s", "command_s", "data_s", "block_s", "message_s"), 0.7)
    deliverer = make(zone, port=port, remote={**short, "connections": 4, "pause_s": 1.0}, tick_s=0.1)
    heard: Counter[int] = Counter()

    async def one(number: int) -> tuple[bytes, list[Delivered | Retry | Failed]]:
        body = b"X-Number: %d\r\n\r\n%b" % (number, b"text\r\n" * pick.choice([1, 50, 5_000]))
        stored = Stored(body, prefix=b"", in_file=pick.random() < 0.5, piece_bytes=8_000)
        everybody = to(*(b"u%d@x.example" % at for at in range(pick.choice([1, 1, 1, 4]))))
        outcomes = await deliverer.deliver(stored, everybody, route("mx"))
        heard[number] += 1
        assert len(outcomes) == len(everybody)
        return body, outcomes

    async def test() -> None:
        for server in servers:
            await server.start()
        try:
            results = await asyncio.gather(*(one(number) for number in range(40)))
        finally:
            await deliverer.close()
            for server in servers:
                await server.stop()
        assert set(heard.values()) == {1}
        for body, outcomes in results:
            taken = sum(server.taken[body] for server in servers)
            if any(isinstance(one, Delivered) for one in outcomes):
                assert taken, "said to be delivered, and nobody has it"
            if not any(
                isinstance(one, Delivered) or getattr(one, "may_have_arrived", False) for one in outcomes
            ):
                assert not taken, "somebody has it, and nobody says so"

    run(test())
