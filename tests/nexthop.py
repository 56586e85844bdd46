"""A next hop that does as a test tells it: an SMTP or LMTP server on loopback with scripted answers.

    async with NextHop(answers={b"RCPT TO:<no@": b"550 5.1.1 Nobody"}) as hop:
        ... hop.dest ...
    hop.lines, hop.messages

An answer belongs to the longest key that a command line begins with; b"." is the answer to a
message, b"" the greeting.  It is bytes without the last CRLF, DROP, SILENCE, or a list of these,
used up one after the other, after which the default holds again.  Each of `loses` is swallowed once, from
the end of a message up to and with these octets, as by a server that empties its buffer there.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType


class Act(enum.Enum):
    DROP = "hang up without an answer"
    SILENCE = "say nothing, for ever"
    RESET = "hang up with a reset"


DROP, SILENCE, RESET = Act.DROP, Act.SILENCE, Act.RESET
Answer = bytes | Act

EXTENSIONS = (b"PIPELINING", b"SIZE 50000000", b"8BITMIME", b"ENHANCEDSTATUSCODES", b"SMTPUTF8", b"DSN")
DEFAULTS: dict[bytes, bytes] = {
    b"": b"220 hop ESMTP",
    b"HELO": b"250 hop",
    b"MAIL": b"250 2.1.0 Ok",
    b"RCPT": b"250 2.1.5 Ok",
    b"DATA": b"354 Go on",
    b".": b"250 2.0.0 Ok: queued as 4711",
    b"RSET": b"250 2.0.0 Ok",
    b"QUIT": b"221 2.0.0 Bye",
    b"XCLIENT": b"220 hop ESMTP",
    b"STARTTLS": b"220 2.0.0 Go on",
    b"XFORWARD": b"250 2.0.0 Ok",
}


class NextHop:
    """The server.  connections counts, peers are their addresses.

    lines and messages (as on the wire, without the end) are of all connections.
    """

    def __init__(
        self,
        *,
        answers: Mapping[bytes, Answer | Sequence[Answer]] | None = None,
        extensions: Sequence[bytes] = EXTENSIONS,
        host: str = "127.0.0.1",
        path: Path | None = None,
        kind: str = "smtp",
        has_proxy: bool = False,
        reads_text: bool = True,
        stops_reading: bool = False,
        loses: Sequence[bytes] = (),
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answers: dict[bytes, Answer | list[Answer]] = {
            key: answer if isinstance(answer, bytes | Act) else list(answer)
            for key, answer in (answers or {}).items()
        }
        self._extensions = extensions
        self._host = host
        self._path = path
        self._kind = kind
        self._has_proxy = has_proxy
        self._reads_text = reads_text
        self._stops_reading = stops_reading
        self._loses = list(loses)
        # Who loses commands must know which ones it has had.
        self._keeps_order = bool(loses)
        self._in_transaction: set[asyncio.StreamWriter] = set()
        self._asked: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.lines: list[bytes] = []
        self.messages: list[bytes] = []
        self.proxies: list[bytes] = []
        self.connections = 0
        self.port = port
        self._tls = tls
        self.peers: list[str] = []
        self.secured: list[bool] = []  # of each message: whether it came by TLS
        self.tls_objects: list[ssl.SSLObject] = []
        self.most = 0

    @property
    def dest(self) -> str:
        if self._path is not None:
            return f"lmtp+unix:{self._path}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._kind}://{host}:{self.port}"

    @property
    def verbs(self) -> list[bytes]:
        return [line.split(b" ")[0].split(b":")[0] for line in self.lines]

    async def __aenter__(self) -> NextHop:
        if self._path is not None:
            self._server = await asyncio.start_unix_server(self._serve, self._path)
        else:
            self._server = await asyncio.start_server(self._serve, self._host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.hang_up()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang_up(self) -> None:
        """Close every connection that is open now."""
        for writer in self._writers:
            writer.transport.abort()

    def say(self, data: bytes) -> None:
        """Say something unasked on every open connection."""
        for writer in self._writers:
            writer.write(data)

    async def seen(self, start: bytes, count: int = 1) -> None:
        """Until so many questions that begin so are there; b"" is for the greeting."""
        while sum(line == start or bool(start and line.startswith(start)) for line in self._asked) < count:
            await asyncio.sleep(0.001)

    async def quiet(self) -> None:
        """Until all that was said has been answered: what follows on a kept connection is in order."""
        for _ in range(20):
            await asyncio.sleep(0.001)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self.most = max(self.most, len(self._writers))
        self.peers.append((writer.get_extra_info("peername") or ("",))[0])
        try:
            if self._has_proxy:
                self.proxies.append(await reader.readline())
            await self._answer(writer, b"")
            while line := (await reader.readline()).removesuffix(b"\r\n"):
                self.lines.append(line)
                await self._command(line, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, EOFError, asyncio.CancelledError, ssl.SSLError):
            pass  # the task ends here: 3.11's streams complain of a cancelled one
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _command(self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb = line.split(b" ")[0].upper()
        if self._keeps_order:
            if verb in {b"RCPT", b"DATA"} and writer not in self._in_transaction:
                writer.write(b"503 5.5.1 MAIL first\r\n")
                return
            if verb == b"MAIL":
                self._in_transaction.add(writer)
            elif verb == b"DATA":
                self._in_transaction.discard(writer)
        if verb == b"BDAT":
            self.messages.append(await reader.readexactly(int(line.split(b" ")[1])))
            await self._answer(writer, b".")
            return
        answer = await self._answer(writer, line)
        if verb == b"STARTTLS" and answer.startswith(b"220") and self._tls is not None:
            await writer.start_tls(self._tls)
            self.tls_objects.append(writer.get_extra_info("ssl_object"))
        if verb == b"DATA" and self._stops_reading:
            await asyncio.Event().wait()
        if verb == b"DATA" and answer.startswith(b"354") and self._reads_text:
            lines = [await reader.readuntil(b"\r\n")]
            while lines[-1] != b".\r\n":
                lines.append(await reader.readuntil(b"\r\n"))
            self.messages.append(b"".join(lines[:-1]))
            self.secured.append(writer.get_extra_info("ssl_object") is not None)
            if self._loses:
                # As a server that reads through one buffer and throws it away with what is left in it.
                await reader.readuntil(self._loses.pop(0))
            await self._answer(writer, b".")

    async def _answer(self, writer: asyncio.StreamWriter, line: bytes) -> bytes:
        answer = self._found(line)
        self._asked.append(line)
        if answer is DROP:
            await writer.drain()
            raise EOFError
        if answer is RESET:
            writer.transport.abort()
            raise EOFError
        if answer is SILENCE:
            await asyncio.Event().wait()
        assert isinstance(answer, bytes)
        if answer:
            writer.write(answer + b"\r\n")
            await writer.drain()
        return answer

    def _found(self, line: bytes) -> Answer:
        keys = [key for key in self.answers if line.startswith(key) and (key != b"" or line == b"")]
        for key in sorted(keys, key=len, reverse=True):
            answer = self.answers[key]
            if isinstance(answer, list):
                if not answer:
                    continue
                return answer.pop(0)
            return answer
        verb = line.split(b" ")[0].upper()
        if verb in {b"EHLO", b"LHLO"}:
            lines = [b"hop", *self._extensions]
            if self._tls is not None and len(self.tls_objects) < self.connections:
                lines.append(b"STARTTLS")
            last = len(lines) - 1
            return b"\r\n".join(
                b"250%b%b" % (b" " if at == last else b"-", text) for at, text in enumerate(lines)
            )
        return DEFAULTS.get(verb, b"500 5.5.2 What")
