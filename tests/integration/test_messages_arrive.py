"""Messages as the world sends them arrive as they were sent: in Maildirs, at smtp-sink, and at another fastsmtp.

Sent by DATA and by BDAT into a real server, which stores them or hands them over by SMTP or LMTP.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import needs
from tests.integration.daemon import PATIENCE_S, Daemon
from tests.integration.smtp_sink import SmtpSink
from tests.mails import MAILS

pytestmark = pytest.mark.slow

HEAD = b"From: a@example.net\r\nTo: b@example.org\r\nSubject: x\r\n"
MESSAGES: dict[str, bytes] = {
    **MAILS,
    "nothing at all": b"",
    "an empty line": b"\r\n",
    "a header only": HEAD,
    "a header that ends in an empty line": HEAD + b"\r\n",
    "no header": b"\r\nonly text\r\n",
    "no header, and no empty line": b"only text, no colon\r\n",
    "lines of 20,000 octets": HEAD + b"\r\n" + (b"l" * 20_000 + b"\r\n") * 4 + b"." * 20_000 + b"\r\n",
    "a header field of 20,000 octets": b"X-Long: " + b"h" * 20_000 + b"\r\n" + HEAD + b"\r\n",
    "lone dots": HEAD + b"\r\n.\r\n.\r\n..\r\n...\r\n.\r\n",
    "a dot at the start of everything": b".\r\n" + HEAD + b".\r\n\r\n.x\r\n",
    "dots around line ends": HEAD + b"\r\na.\r\n.\r\nb\r\n..\r\n. \r\n.\t\r\n",
    "empty lines, before and behind": b"\r\n\r\n\r\ntext\r\n\r\n\r\n\r\n",
    "spaces at line ends": HEAD + b"\r\ntext \r\n \r\n\t\r\n  text\t \r\n",
    "every octet that may be sent": HEAD
    + b"\r\n"
    + bytes(o for o in range(1, 256) if o not in b"\r\n")
    + b"\r\n",
    "8-bit that is no UTF-8": HEAD + b"\r\n\xff\xfe\x80\xc3\r\n\xe4\xf6\xfc\r\n",
    "UTF-8 header": "Subject: Grüße 🎉\r\n\r\nSchön\r\n".encode(),
    "commands as text": HEAD + b"\r\nQUIT\r\nRSET\r\nMAIL FROM:<x@example.net>\r\n.QUIT\r\n",
    "boundaries of buffers": HEAD
    + b"\r\n"
    + b"".join(b"x" * size + b"\r\n.\r\n" for size in (4_094, 65_534, 65_535)),
    "65,536 octets": HEAD + b"\r\n" + b"y" * (65_536 - len(HEAD) - 4) + b"\r\n",
    "many short lines": HEAD + b"\r\n" + b"\r\n" * 30_000,
    "many lines of a dot": HEAD + b"\r\n" + b".\r\n" * 30_000,
}
# Only BDAT can send these (RFC 3030 section 2: no line end is needed at the end).
UNFINISHED: dict[str, bytes] = {
    "no line end at the end": HEAD + b"\r\nlast line",
    "a dot, and no line end": HEAD + b"\r\n.",
    "one octet": b"x",
    "no line end behind the header": HEAD.removesuffix(b"\r\n"),
    "big, without a line end": HEAD + b"\r\n" + b"z" * 300_000,
}


class Client:
    """A client of DATA and BDAT, a command at a time."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.file = self.sock.makefile("rb")
        assert self.reply() == 220
        assert self.ask(b"EHLO client.example") == 250

    def reply(self) -> int:
        while (line := self.file.readline())[3:4] == b"-":
            pass
        assert line, "the server has hung up"
        return int(line[:3])

    def ask(self, command: bytes) -> int:
        self.sock.sendall(command + b"\r\n")
        return self.reply()

    def open(self, recipient: str) -> None:
        assert self.ask(b"MAIL FROM:<a@example.net> BODY=8BITMIME") == 250
        assert self.ask(b"RCPT TO:<%b>" % recipient.encode()) == 250

    def data(self, recipient: str, message: bytes) -> int:
        self.open(recipient)
        assert self.ask(b"DATA") == 354
        stuffed = message.replace(b"\r\n.", b"\r\n..")
        self.sock.sendall((b"." if message.startswith(b".") else b"") + stuffed + b".\r\n")
        return self.reply()

    def bdat(self, recipient: str, message: bytes, chunk_bytes: int) -> int:
        """In chunks of this size, cut between CR and LF or wherever it falls; the last one is empty."""
        self.open(recipient)
        for at in range(0, len(message), chunk_bytes):
            chunk = message[at : at + chunk_bytes]
            self.sock.sendall(b"BDAT %d\r\n" % len(chunk) + chunk)
            assert self.reply() == 250
        return self.ask(b"BDAT 0 LAST")

    def bdat_at_once(self, recipient: str, message: bytes) -> int:
        """One chunk, behind its commands in one write (RFC 3030 section 4.2)."""
        commands = b"MAIL FROM:<a@example.net> BODY=8BITMIME\r\nRCPT TO:<%b>\r\n" % recipient.encode()
        self.sock.sendall(commands + b"BDAT %d LAST\r\n" % len(message) + message)
        assert [self.reply(), self.reply()] == [250, 250]
        return self.reply()

    def close(self) -> None:
        assert self.ask(b"QUIT") == 221
        assert self.file.read() == b""
        self.file.close()
        self.sock.close()


@contextmanager
def client(port: int) -> Iterator[Client]:
    one = Client(port)
    yield one
    one.close()


HOW: dict[str, Callable[[Client, str, bytes], int]] = {
    "DATA": Client.data,
    "BDAT, one chunk": Client.bdat_at_once,
    "BDAT, many chunks": lambda one, recipient, message: one.bdat(
        recipient, message, 7 if len(message) < 2_000 else 9_999 if len(message) < 1_000_000 else 1_000_001
    ),
}


def table(how: str) -> dict[str, bytes]:
    return MESSAGES if how == "DATA" else {**MESSAGES, **UNFINISHED}


@pytest.fixture(scope="module")
def last() -> Iterator[Daemon]:
    """The one that others hand over to: it has a Maildir for each recipient."""
    with Daemon(workers=1) as one:
        yield one


@pytest.mark.parametrize("how", HOW)
def test_in_a_maildir(last: Daemon, how: str) -> None:
    with client(last.port) as one:
        for number, (name, message) in enumerate(table(how).items()):
            box = f"{how}.{number}@example.org".replace(" ", "").replace(",", "")
            assert HOW[how](one, box, message) == 250, name
            assert last.one(box).text == message.replace(b"\r\n", b"\n"), name


@pytest.fixture(scope="module")
def relay(last: Daemon) -> Iterator[Daemon]:
    """It hands everything over to the other, which takes mail for every domain of example.org only."""
    accept = f'[[accept]]\ndomain = "example.org"\ndeliver = "smtp://127.0.0.1:{last.port}"\n'
    with Daemon(accept=accept, workers=1) as one:
        yield one


@pytest.mark.parametrize("how", HOW)
def test_through_two_servers(last: Daemon, relay: Daemon, how: str) -> None:
    """By BDAT from one to the other, so that the last line's missing end stays missing."""
    with client(relay.port) as one:
        for number, (name, message) in enumerate(table(how).items()):
            box = f"hop.{how}.{number}@example.org".replace(" ", "").replace(",", "")
            assert HOW[how](one, box, message) == 250, name
            text = last.one(box).text
            # The first server's Received stands before it.
            assert text.startswith(b"Received: from client.example ([127.0.0.1])\n"), name
            assert text[text.index(b" +0000\n") + 7 :] == message.replace(b"\r\n", b"\n"), name


@pytest.fixture(scope="module", params=[(), ("-L",)], ids=["SMTP", "LMTP"])
def sink(request: pytest.FixtureRequest) -> Iterator[SmtpSink]:
    one = SmtpSink(*request.param)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def into_sink(sink: SmtpSink) -> Iterator[Daemon]:
    accept = f'[[accept]]\ndomain = "example.org"\ndeliver = "{sink.dest}"\n'
    with Daemon(accept=accept, workers=1) as one:
        yield one


@needs("smtp-sink")
@pytest.mark.parametrize("how", ["DATA", "BDAT, one chunk"])
def test_into_smtp_sink(sink: SmtpSink, into_sink: Daemon, how: str) -> None:
    with client(into_sink.port) as one:
        for name, message in table(how).items():
            assert HOW[how](one, "joe@example.org", message) == 250, name
            (dumped,) = sink.new()
            text = dumped[dumped.index(b" +0000\n") + 7 :]
            expected = message.replace(b"\r\n", b"\n")
            # DATA can't say that the last line has no end.
            assert text == (expected if expected.endswith(b"\n") or not expected else expected + b"\n"), name
