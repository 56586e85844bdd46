"""Targets for what is read and isn't SMTP: rules files, p0f's answers, packets between our processes, records, POP3.

Where we write a format too, what was read and is written again says the same.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import suppress

from fastsmtp import _payload
from fastsmtp._record import crc32c
from fastsmtp.address import Address
from fastsmtp.admin import protocol
from fastsmtp.config.cdb import Cdb, is_cdb
from fastsmtp.config.tcprules import Rules, expand, parse_line, parse_rules
from fastsmtp.delivery import wire
from fastsmtp.errors import ProtocolError, QueueDamaged, QueueTooNew
from fastsmtp.fingerprint import ANSWER_BYTES, QUALITIES, decode_answer
from fastsmtp.pop3.lines import LINE_BYTES_MAX
from fastsmtp.pop3.session import Session
from fastsmtp.queue import done, fileheader, frames, model
from tests.cdbs import make_cdb

CLIENTS = [
    (Address(text), name)
    for text in ("10.2.3.4", "10.2.3.5", "127.0.0.1", "::1", "2001:db8::1", "2001:db8::")
    for name in ("", "mx.example.org", "example.org")
]

# Of a text: a range holds up to 65,536, which takes its time and shows nothing more.
RECORDS = 600


def rules(text: bytes) -> None:
    """A rules file as tcpserver's: each fault has its line, and made into a cdb it says the same of every client."""
    lines = text.split(b"\n")
    records = list(itertools.islice(_compiled(lines), RECORDS + 1))
    if is_cdb(text) or len(records) > RECORDS:
        return
    faults: list[str] = []
    found = parse_rules("rules", text, faults)
    for fault in faults:
        name, number, _ = fault.split(":", 2)
        assert name == "rules"
        assert lines[int(number) - 1].strip(b" \t\r")
    compiled: list[str] = []
    of_cdb = parse_rules("cdb", make_cdb(records), compiled)
    assert compiled == []
    assert _said(found) == _said(of_cdb)


def _compiled(lines: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The records that tcprules would write."""
    for raw in lines:
        line = raw.rstrip(b" \t\r")
        if not line or line.startswith(b"#"):
            continue
        with suppress(ValueError):
            key, rule = parse_line(line, "")
            words = [f"+{name}={value}" for name, value in rule.variables.items()]
            text = "\0".join(["D"] * rule.is_denied + words + [""])
            for one in expand(key):
                yield one.encode("utf-8", "surrogateescape"), text.encode("utf-8", "surrogateescape")


def _said(rules: Rules) -> list[object]:
    said: list[object] = [len(rules), rules.is_by_name]
    for address, name in CLIENTS:
        rule = rules.find(address, name)
        said.append(None if rule is None else (rule.is_denied, dict(rule.variables)))
    return said


def cdb(data: bytes) -> None:
    """A cdb, made of the records that the input holds and then spoilt where it says: records, or one ValueError."""
    words = iter(data)
    written: list[tuple[bytes, bytes]] = []
    for word in words:
        if word == 0xFF:
            break
        key = bytes(next(words, 0) for _ in range(word & 7))
        written.append((key, bytes(next(words, 0) for _ in range(word >> 3 & 7))))
    image = bytearray(make_cdb(written))
    pristine = bytes(image)
    for word in words:
        # An octet, anywhere; or an end there.
        at = (next(words, 0) << 8 | next(words, 0)) % (len(image) + 1)
        if word == 0:
            del image[at:]
        elif at < len(image):
            image[at] ^= word
    spoilt = bytes(image)
    found = _records(spoilt)
    if spoilt == pristine:
        assert found == written
        reader = Cdb(pristine)
        assert all(reader.get(key) == dict(reversed(written))[key] for key, _ in written)
        assert reader.get(b"\xff\xff no such key") is None
    with suppress(ValueError):
        reader = Cdb(spoilt)
        for key, _ in written:
            value = reader.get(key)
            assert value is None or value in spoilt
    faults: list[str] = []
    parse_rules("rules", spoilt, faults)
    assert found is not None or faults or not is_cdb(spoilt)


def _records(data: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return list(Cdb(data).records())
    except ValueError:
        return None


def p0f(data: bytes) -> None:
    """p0f's answer: magic and status are right more often than not, so that the fuzzer gets behind them."""
    status = (0x10, 0x10, 0x20, 0x00)[data[0] & 3] if data else 0x10
    right = struct.pack("=II", 0x50304602, status) + data[1:]
    for answer in (data, right):
        try:
            found = decode_answer(answer[:ANSWER_BYTES].ljust(ANSWER_BYTES, b"\0"))
        except ValueError:
            continue
        if found is not None:
            assert found.quality in QUALITIES
            # They go into log lines and header fields.
            assert (found.os + found.link).isascii()
            assert not found.os + found.link or (found.os + found.link).isprintable()


def admin(data: bytes) -> None:
    """A request to the admin socket, and an answer of it: understood, or one error of the kind that is promised."""
    try:
        words = protocol.parse_frame(data)
    except ProtocolError:
        return
    with suppress(ValueError):
        found = protocol.parse_filter(words.get("filter"))
        again = protocol.parse_frame(protocol.frame(protocol.filter_words(found))[4:])
        assert protocol.parse_filter(again) == found
    with suppress(ProtocolError):
        for entry in protocol.parse_entries(words.get("entries")):
            assert len(entry) == len(protocol.Entry._fields)


def packets(data: bytes) -> None:
    """A packet between two processes of the queue: what one says that isn't understood ends its line, and no more."""
    with suppress(ValueError, struct.error):
        hello = frames.read_hello(data)
        assert frames.hello(hello.role, hello.number, hello.of) == data
    with suppress(struct.error):
        frames.read_want(data)
        frames.read_refused(data)
    with suppress(struct.error):
        frames.read_released(data)
    with suppress(struct.error):
        frames.read_unused(data)
    with suppress(struct.error):
        frames.read_segment(data)
    with suppress(struct.error):
        request, files = frames.read_bodies(data)
        assert frames.bodies(request, files)[1:] == data[1:]
    with suppress(struct.error):
        named = list(wire.read_held(data))
        assert b"".join(packet[1:] for packet in wire.held(named)) == data[1:]
    with suppress(struct.error):
        number, delivered = wire.read_delivered(data)
        assert wire.delivered(number, list(delivered))[1:] == data[1:]
    with suppress(struct.error):
        wire.read_ack(data)
    with suppress(ValueError, struct.error):
        jobs = list(wire.read_jobs(data))
        for job in jobs:
            (again,) = wire.read_jobs(next(wire.jobs([job])))
            assert again == job
    with suppress(ValueError, struct.error):
        number, batch = wire.read_results(data)
        assert wire.read_results(wire.results(number, batch)) == (number, batch)


def record(data: bytes) -> None:
    """What the records of a queue hold: a message, entries of the done-log; and the header of its files."""
    with suppress(QueueDamaged, QueueTooNew):
        written = b"".join(model.encode(_payload.decode(data)))
        assert len(written) == len(data)
        assert b"".join(model.encode(_payload.decode(written))) == written
    with suppress(ValueError, struct.error):
        entries = list(done.entries(data))
        assert list(done.entries(b"".join(done.pack(*entry) for entry in entries))) == entries
    with suppress(QueueDamaged, QueueTooNew):
        # The checksum of a header is made right: nothing is left to chance behind it.
        head = (fileheader.MAGIC + data[1:])[: fileheader.SIZE_BYTES - 4]
        purpose = fileheader.Purpose(data[0] % 3 + 1) if data else fileheader.Purpose.MAIL
        head += fileheader._CHECKSUM.pack(crc32c(head))
        assert fileheader.read_header(head, "file", purpose, "0.1.0").purpose is purpose


class _Letter:
    """A message of the maildrop below."""

    def __init__(self, uid: str) -> None:
        self.uid = uid


class _Drop:
    """Three messages."""

    def __init__(self) -> None:
        self.letters = [_Letter("one"), _Letter("two"), _Letter("three")]
        self.texts = [b"Subject: 1\n\n.\n..two\nthree\n", b"", b"A: b\r\n\r\nno end"]
        self.updated: list[set[int]] = []

    def size_bytes(self, number: int) -> int:
        return len(self.texts[number])

    def read(self, number: int) -> Iterator[bytes]:
        return iter([self.texts[number][:7], self.texts[number][7:]])

    def update(self, deleted: set[int]) -> int:
        self.updated.append(set(deleted))
        return 0


def pop3(data: bytes) -> None:
    """A POP3 client: an answer a line, the same however it is cut; only QUIT changes the maildrop."""
    outcomes = set()
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        drop = _Drop()
        session = Session(drop)
        said = b""
        for piece in pieces:
            said += b"".join(session.feed(piece))
            if session.is_over:
                break
        outcomes.add((said, session.is_over, repr(drop.updated)))
        assert said == b"" or said.endswith(b"\r\n")
        assert said.replace(b"\r\n", b"").count(b"\n") == 0
        # A rope for a client without line ends is short.
        assert session.is_over or len(data) - data.rfind(b"\n") <= LINE_BYTES_MAX + 1
        assert len(drop.updated) <= session.is_over
    assert len(outcomes) == 1
