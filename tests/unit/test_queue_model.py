"""A message through its record and back, the body files, the done-log."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import _record, errors
from fastsmtp._journal import Writer
from fastsmtp._payload import decode
from fastsmtp._record import crc32c
from fastsmtp.address import Address
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy.facts import Client, Facts, Origin, TlsFacts
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.done import (
    ENTRIES,
    INTERVAL_S,
    RECORD_BYTES,
    Done,
    DoneLog,
    Outcome,
    entries,
    pack,
    read_done,
)
from fastsmtp.queue.fileheader import SIZE_BYTES, Purpose
from fastsmtp.queue.journal import Journal, LocalSource
from fastsmtp.queue.model import LAYOUT, BodyReference, Origins, QueuedMessage, encode, origins_of
from fastsmtp.queue.place import Place, Seal
from fastsmtp.queue.recovery import recover
from fastsmtp.queue.store import Space, Store
from tests.fakes.files import Files

# --- the message --------------------------------------------------------------------------------------------

octets = st.binary(max_size=40)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
words = st.binary(min_size=1, max_size=8).filter(lambda word: b"," not in word)


def short(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


recipients = st.builds(
    Recipient, octets, octets, st.lists(words, max_size=3).map(tuple), octets, texts, texts
)
envelopes = st.builds(
    Envelope,
    octets,
    octets,
    short(64),
    octets,
    st.booleans(),
    octets,
    octets,
    st.lists(recipients, max_size=4),
)
tls_facts = st.builds(TlsFacts, texts, texts, short(16), texts, st.booleans())
origins = st.builds(
    Origins,
    address=texts,
    port=short(16),
    origin=st.sampled_from(Origin),
    name=texts,
    helo=octets,
    is_extended=st.booleans(),
    listener=texts,
    local_address=texts,
    tls=st.none() | tls_facts,
)


@st.composite
def messages(draw: st.DrawFn) -> QueuedMessage:
    body: list[bytes] | BodyReference
    if draw(st.booleans()):
        body = draw(st.lists(octets, max_size=4))
        size = sum(map(len, body))
    else:
        body = BodyReference(draw(short(64)), draw(short(64)), draw(short(32)))
        size = draw(short(64))
    return QueuedMessage(
        draw(texts), draw(short(64)), draw(envelopes), draw(origins), draw(st.binary(max_size=99)), body, size
    )


def fields(value: Any) -> Any:
    """Everything in an object, to compare."""
    if isinstance(value, QueuedMessage):
        body = value.body if isinstance(value.body, BodyReference) else b"".join(value.body)
        return (
            value.id,
            value.accepted_ms,
            value.prefix,
            body,
            value.body_bytes,
            *map(fields, (value.envelope, value.origins)),
        )
    if isinstance(value, Envelope | Origins | TlsFacts | Recipient):
        return tuple(fields(getattr(value, name)) for name in value.__slots__)
    return [fields(item) for item in value] if isinstance(value, list) else value


@given(messages())
def test_a_message_comes_back_as_it_was(message: QueuedMessage) -> None:
    assert fields(decode(b"".join(encode(message)))) == fields(message)


@given(messages(), st.lists(st.tuples(short(12), short(8)), min_size=1, max_size=6), st.binary(max_size=9))
def test_a_spoilt_payload_is_a_message_or_one_of_two_errors(
    original: QueuedMessage, changes: list[tuple[int, int]], tail: bytes
) -> None:
    payload = bytearray(b"".join(encode(original)) + tail)
    for at, value in changes:
        payload[at % len(payload)] = value
    try:
        found = decode(bytes(payload))
    except (errors.QueueDamaged, errors.QueueTooNew):
        return
    # What was read is written and read the same.
    written = b"".join(encode(found))
    assert len(written) == len(payload)
    assert b"".join(encode(decode(written))) == written


@given(st.binary(max_size=200))
def test_no_octets_raise_anything_else(payload: bytes) -> None:
    try:
        decode(payload)
    except (errors.QueueDamaged, errors.QueueTooNew):
        return


def message(**changes: Any) -> QueuedMessage:
    envelope = Envelope(
        b"joe@example.org", b"example.org", 900, b"8BITMIME", True, b"HDRS", b"QQ314159",
        [
            Recipient(b"mary@example.net", b"example.net", (b"SUCCESS", b"FAILURE"), b"rfc822;m", "lmtp://[::1]:24"),
            Recipient(b"ann@example.net", b"example.net", deliver="maildir:/srv", pass_client="xclient"),
        ],
    )  # fmt: skip
    facts = Facts("7F3ADQ01AAAA", "mx", "192.0.2.1", Client(Address("2001:db8::7"), 4_711, Origin.PROXY))
    facts.helo, facts.is_extended = b"mail.example.org", True
    facts.client.name = "mail.example.org"
    facts.tls = TlsFacts("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, "mx.example.net", True)
    values: dict[str, Any] = {
        "id": "7F3ADQ01AAAA.1", "accepted_ms": 1_800_000_000_000, "envelope": envelope,
        "origins": origins_of(facts), "prefix": b"Received: here\r\n", "body": [b"Subject: x\r\n", b"\r\nHello\r\n"],
        "body_bytes": 21,
    }  # fmt: skip
    return QueuedMessage(**{**values, **changes})


def test_the_layout_is_the_one_of_the_document() -> None:
    small = message(
        envelope=Envelope(b"a@b", b"b", 7, recipients=[Recipient(b"c@d", b"d", deliver="x")]),
        origins=Origins(address="::1", port=258),
        id="I",
        prefix=b"P",
        body=[b"BB"],
        body_bytes=2,
        accepted_ms=5,
    )
    assert b"".join(encode(small)).hex(" ") == (
        "01 00 00 00 02 01 00 00 01 00 00 00 01 00 00 00 02 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 "
        "07 00 00 00 00 00 00 00 "
        "01 00 03 00 01 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 "
        "49 61 40 62 62 3a 3a 31 "
        "03 00 01 00 00 00 00 00 01 00 04 00 63 40 64 64 78 6e 6f 6e 65 50 42 42"
    )


def test_the_body_is_not_copied() -> None:
    body = [b"x" * 5000, b"y" * 5000]
    pieces = encode(message(body=body, body_bytes=10_000))
    assert [id(piece) for piece in pieces[-2:]] == [id(chunk) for chunk in body]


def test_what_is_cut_off_or_goes_on_is_damaged() -> None:
    for original in (message(), message(body=BodyReference(1, 2, 3))):
        payload = b"".join(encode(original))
        for size in range(len(payload)):
            with pytest.raises(errors.QueueDamaged):
                decode(payload[:size])
        with pytest.raises(errors.QueueDamaged):
            decode(payload + b"x")


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0), (1, 0x80), (2, 3), (11, 0xFF)], ids=["layout 0", "flag", "origin", "recipients"]
)
def test_what_makes_no_sense_is_damaged(at: int, value: int) -> None:
    payload = bytearray(b"".join(encode(message())))
    payload[at] = value
    with pytest.raises(errors.QueueDamaged):
        decode(bytes(payload))


def test_a_later_layout_is_refused_by_name() -> None:
    with pytest.raises(errors.QueueTooNew, match=f"layout {LAYOUT + 1}"):
        decode(bytes([LAYOUT + 1]) + b"".join(encode(message()))[1:])


def test_a_string_of_64_kib_has_no_place() -> None:
    with pytest.raises(ValueError, match="fit"):
        encode(message(id="x" * 65_536))


# --- body files ---------------------------------------------------------------------------------------------


def bodies(space: Space | None = None, version: str = "0.1.0") -> Bodies:
    return Bodies("/b", version=version, wall=lambda: 1.0, random=os.urandom, space=space)


def with_body(text: bytes) -> tuple[Files, BodyReference]:
    files = Files()
    files.mkdir("/b")
    (file,) = bodies().make(files, 1)
    files.pwrite(file.fd, text, SIZE_BYTES)
    files.close(file.fd)
    return files, BodyReference(file.number, file.epoch, crc32c(text))


@pytest.mark.parametrize("size", [0, 1, 65_536, 200_000])
def test_a_body_is_read_as_it_was_written(size: int) -> None:
    text = os.urandom(size)
    files, reference = with_body(text)
    assert b"".join(bodies().pieces(files, reference, size)) == text
    assert not files.open_fds


def test_bodies_are_handed_out_write_only_once_their_names_are_synced() -> None:
    files = Files()
    files.mkdir("/b")
    made = bodies().make(files)
    assert files.trace[-1] == ("sync", "/b")
    assert len({file.number for file in made}) == len(made) == 8
    with pytest.raises(OSError, match="reading"):
        files.pread(made[0].fd, 1, 0)


def test_a_body_that_is_not_what_its_record_says_is_damaged() -> None:
    text = os.urandom(100_000)
    files, right = with_body(text)
    data = files.tree.contents[files.tree.names[bodies().path(right.number)]]
    cases = [
        (BodyReference(right.number + 1 & (1 << 64) - 1, right.epoch, right.crc), "isn't there"),
        (BodyReference(right.number, right.epoch ^ 2, right.crc), "another body"),
        (BodyReference(right.number, right.epoch, right.crc ^ 1), "checksum"),
    ]
    for reference, reason in cases:
        with pytest.raises(errors.QueueDamaged, match=reason):
            list(bodies().pieces(files, reference, len(text)))
    with pytest.raises(errors.QueueDamaged, match="shorter"):
        list(bodies().pieces(files, right, len(text) + 1))
    data[70_000] ^= 1
    with pytest.raises(errors.QueueDamaged, match="checksum"):
        list(bodies().pieces(files, right, len(text)))
    data[10] ^= 1
    with pytest.raises(errors.QueueDamaged, match="header"):
        list(bodies().pieces(files, right, len(text)))
    assert not files.open_fds


def test_orphans_go_and_what_a_record_names_stays() -> None:
    files = Files()
    files.mkdir("/b")
    made = bodies().make(files, 4)
    keep = {made[1].number}
    files.open("/b/not-ours", os.O_WRONLY | os.O_CREAT)
    assert bodies().remove_orphans(files, keep) == 3
    assert sorted(files.listdir("/b")) == sorted([f"{made[1].number:016x}", "not-ours"])
    bodies().remove(files, made[1].number)
    assert files.listdir("/b") == ["not-ours"]


def test_below_the_low_water_mark_no_body_file_is_made() -> None:
    files = Files()
    files.mkdir("/b")
    files.free_bytes = 10
    with pytest.raises(errors.StorageFull):
        bodies(Space("/b", 1000)).make(files)


@pytest.mark.parametrize("call", ["open", "pwritev", "fsync"])
def test_a_body_file_that_cannot_be_made_leaves_no_descriptor(call: str) -> None:
    files = Files(fail=lambda name, count, what: errno.ENOSPC if name == call and count == 3 else 0)
    files.mkdir("/b")
    maker = bodies()
    with pytest.raises(OSError, match="space"):
        for _ in range(3):
            made = maker.make(files, 2)
            for file in made:
                files.close(file.fd)
    assert not files.open_fds


# --- the done-log -------------------------------------------------------------------------------------------


class Clock:
    """A loop's clock that is turned by hand: call_later calls when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Any]] = []

    def call_later(self, delay: float, function: Any) -> Any:
        entry = (self.now + delay, function)
        self.due.append(entry)
        clock = self

        class Handle:
            def cancel(self) -> None:
                if entry in clock.due:
                    clock.due.remove(entry)

        return Handle()

    def create_task(self, work: Any) -> Any:
        return asyncio.get_running_loop().create_task(work)

    def turn(self, seconds: float) -> None:
        self.now += seconds
        for entry in [entry for entry in self.due if entry[0] <= self.now]:
            self.due.remove(entry)
            entry[1]()


class Log:
    """A done-log on files in memory, with a clock of its own."""

    def __init__(self, size_bytes: int = 65_536) -> None:
        self.files = Files()
        self.files.mkdir("/q")
        self.clock = Clock()
        self.writer: Any = Writer(system=self.files, is_threaded=False)
        self.store = self.new_store(size_bytes)
        self.reported: list[Exception] = []
        self.journal = Journal(
            LocalSource(self.store, InlineDisk(self.files)),
            loop=asyncio.get_running_loop(), clock=lambda: self.clock.now, writer=self.writer, kind=_record.DONE,
        )  # fmt: skip
        loop: Any = self.clock
        self.log = DoneLog(
            self.journal, Done(), loop=loop, clock=lambda: self.clock.now, report=self.reported.append
        )

    @staticmethod
    def new_store(size_bytes: int = 65_536) -> Store:
        return Store(
            "/q",
            purpose=Purpose.DONE,
            size_bytes=size_bytes,
            version="0.1.0",
            wall=lambda: 1.0,
            random=os.urandom,
        )

    async def step(self, times: int = 3) -> None:
        for _ in range(times):
            for _ in range(3):
                await asyncio.sleep(0)
            self.writer.step()
            self.journal.reap()
            for _ in range(3):
                await asyncio.sleep(0)

    def read(self) -> Done:
        store = self.new_store()
        return read_done(self.files, store, recover(self.files, store))


def place(offset: int = 4096, epoch: int = 77) -> Place:
    return Place(1, epoch, offset, 10)


def run(body: Any) -> None:
    asyncio.run(body)


def test_an_entry_is_known_at_once_and_synced_within_the_interval() -> None:
    async def body() -> None:
        log = Log()
        await log.journal.start()
        log.log.add(place(), 3, Outcome.FAILED)
        assert log.log.done.outcome(place(), 3) is Outcome.FAILED
        assert log.log.done.outcome(place(), 0) is None
        await log.step()
        assert log.writer.batches == 0
        log.clock.turn(INTERVAL_S - 0.01)
        await log.step()
        assert log.writer.batches == 0
        log.clock.turn(0.01)
        await log.step()
        assert log.writer.batches == 1
        assert log.read().outcome(place(), 3) is Outcome.FAILED

    run(body())


def test_many_entries_do_not_wait_and_share_a_sync() -> None:
    async def body() -> None:
        log = Log()
        await log.journal.start()
        for number in range(ENTRIES):
            log.log.add(place(4096 + 8 * number), 0, Outcome.DELIVERED)
        # Let the writing begin; what comes now is too late for it.
        await asyncio.sleep(0)
        for number in range(ENTRIES, ENTRIES + 10):
            log.log.add(place(4096 + 8 * number), 0, Outcome.DELIVERED)
        await log.step()
        assert log.writer.batches == 1
        assert log.clock.due, "the ten wait for the timer"
        log.clock.turn(INTERVAL_S)
        await log.step()
        assert log.writer.batches == 2
        done = log.read()
        assert all(done.outcome(place(4096 + 8 * n), 0) for n in range(ENTRIES + 10))

    run(body())


def test_the_bound_on_repeats_holds_or_is_behind_says_so() -> None:
    """At any moment, what a crash would repeat was finished in the last interval, or is_behind is true."""

    async def body() -> None:
        log = Log()
        await log.journal.start()
        added: dict[int, float] = {}
        for tick in range(120):
            # The disk is broken for a while in the middle.
            log.files.fail = (lambda *_: errno.EIO) if 40 <= tick < 80 else None
            if not log.log.is_behind:
                log.log.add(place(4096 + 8 * tick), 0, Outcome.DELIVERED)
                added[tick] = log.clock.now
            log.clock.turn(0.25)
            await log.step()
            log.files.fail, failing = None, log.files.fail
            safe = log.read()
            log.files.fail = failing
            missing = [when for n, when in added.items() if safe.outcome(place(4096 + 8 * n), 0) is None]
            assert not missing or log.log.is_behind or log.clock.now - min(missing) <= 2 * INTERVAL_S
        assert log.reported
        assert not log.log.is_behind
        await asyncio.wait_for(asyncio.gather(log.log.flush(), log.step(10)), 60)
        assert all(log.read().outcome(place(4096 + 8 * n), 0) for n in added)

    run(body())


def test_what_waited_for_a_broken_disk_is_written_however_much_it_is() -> None:
    """More than a segment holds: it goes out in several records."""

    async def body() -> None:
        log = Log(size_bytes=2 * RECORD_BYTES)
        await log.journal.start()
        log.files.fail = lambda *_: errno.EIO
        several = 1_000
        for number in range(100):
            some = [
                pack(77, 4096 + 8 * (several * number + one), 0, Outcome.DELIVERED) for one in range(several)
            ]
            log.log.add_entries(77, b"".join(some))
        await log.step()
        for _ in range(4):
            log.clock.turn(INTERVAL_S)
            await log.step()
        assert log.log.is_behind
        log.files.fail = None
        for _ in range(12):
            log.clock.turn(INTERVAL_S)
            await log.step()
        assert (log.log.is_behind, log.log.written) == (False, log.log.added)
        done = log.read()
        assert all(done.outcome(place(4096 + 8 * n), 0) for n in range(100 * several))

    run(body())


def test_flush_ends_with_everything_synced_or_says_why_not() -> None:
    async def body() -> None:
        log = Log()
        await log.journal.start()
        await log.log.flush()
        log.log.add(place(), 0, Outcome.DELIVERED)
        flushed = asyncio.get_running_loop().create_task(log.log.flush())
        await log.step()
        assert flushed.done()
        assert log.read().outcome(place(), 0)
        log.files.fail = lambda *_: errno.EIO
        log.log.add(place(), 1, Outcome.DELIVERED)
        flushed = asyncio.get_running_loop().create_task(log.log.flush())
        await log.step()
        assert isinstance(flushed.exception(), errors.StorageFailed)
        assert log.log.done.outcome(place(), 1), "it is kept"

    run(body())


def test_the_end_of_a_segment_is_remembered_once() -> None:
    async def body() -> None:
        log = Log()
        await log.journal.start()
        for _ in range(2):
            log.log.add_end(Seal(5, 77, 8192, 4096))
        log.clock.turn(INTERVAL_S)
        await log.step()
        done = log.read()
        assert done.ends == {77: (8192, 4096)}
        assert done.outcome(place(8192), 0) is None
        found = recover(log.files, log.new_store())
        ((_, payload),) = found.messages(log.files, log.new_store())
        assert list(entries(payload)) == [(77, 8192, 4096, Outcome.END)]

    run(body())


def test_a_done_segment_is_not_needed_when_its_mail_segments_are_gone() -> None:
    done = Done()
    for epoch, number in [(1, 10), (2, 10), (2, 11), (3, 12)]:
        done.note(epoch, 4096, 0, Outcome.DELIVERED)
        done.note_file(number, {epoch})
    done.note_file(13, ())
    assert done.unneeded() == [13]
    assert done.forget(2) == [11, 13]
    done.forget_file(13)
    assert done.keep_only({3}) == [10, 11]
    assert done.outcome(place(4096, 3), 0) is Outcome.DELIVERED
    assert done.outcome(place(4096, 1), 0) is None


def test_a_record_that_is_no_entry_is_a_fault_and_the_others_are_read() -> None:
    async def body() -> None:
        log = Log()
        await log.journal.start()
        log.log.add(place(), 0, Outcome.DELIVERED)
        bad = [
            log.journal.append([payload])
            for payload in (b"odd", bytes(23) + b"\xff", bytes(16) + b"\x63" + bytes(7))
        ]
        log.clock.turn(INTERVAL_S)
        await log.step()
        assert all(future.done() for future in bad)
        store = log.new_store()
        recovery = recover(log.files, store)
        assert read_done(log.files, store, recovery).outcome(place(), 0)
        assert len(recovery.faults) == 3

    run(body())
