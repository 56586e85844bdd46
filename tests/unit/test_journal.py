"""The native writer, the journal over it, and what is read back: one behaviour a test."""

from __future__ import annotations

import asyncio
import errno
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastsmtp import _journal, errors
from fastsmtp._journal import BLOCK, HEADER_BYTES, MESSAGE, SEAL, Progress, Writer
from fastsmtp.queue.disk import InlineDisk, ThreadDisk
from fastsmtp.queue.fileheader import FORMAT, SIZE_BYTES, FileHeader, Purpose, read_header
from fastsmtp.queue.journal import RETRY_S, Journal, LocalSource
from fastsmtp.queue.place import Place, Seal, decode_seal
from fastsmtp.queue.recovery import Recovery, read_between, read_record, recover
from fastsmtp.queue.store import Space, Store, number_of
from tests.fakes.files import Files

QUEUE = "/queue"
EPOCH = 0x1234_5678_9ABC_DEF0


def store_in(directory: str, size_bytes: int = 65_536, **options: Any) -> Store:
    options.setdefault("random", random.Random(1).randbytes)
    return Store(directory, size_bytes=size_bytes, version="0.1.0", wall=lambda: 1_800_000_000.0, **options)


def simulated(fail: Callable[[str, int, Any], int] | None = None) -> Files:
    files = Files(fail=fail)
    files.mkdir(QUEUE)
    return files


def failing(call: str, at: int, number: int) -> Callable[[str, int, Any], int]:
    """Call number `at` of one kind fails."""
    return lambda name, count, what: number if name == call and count == at else 0


# --- checksum ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # RFC 3720 section B.4.
        (b"\0" * 32, 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_crc32c_is_castagnolis(data: bytes, expected: int) -> None:
    assert _journal.crc32c(data) == expected
    assert _journal.crc32c_by_table(data) == expected


def test_crc32c_goes_on_from_a_part_and_is_the_same_with_and_without_the_instruction() -> None:
    dice = random.Random(4)
    for size in range(0, 70):
        data = dice.randbytes(size)
        cut = dice.randrange(size + 1)
        whole = _journal.crc32c_by_table(data)
        assert _journal.crc32c(data[cut:], _journal.crc32c(data[:cut])) == whole
        assert _journal.crc32c(memoryview(data)) == _journal.crc32c(bytearray(data)) == whole


# --- the writer, step by step -----------------------------------------------------------------------------


class Bench:
    """A writer without a thread, on a file in memory."""

    def __init__(self, size_bytes: int = 65_536, fail: Callable[[str, int, Any], int] | None = None) -> None:
        self.files = simulated(fail)
        self.progress = Progress(2)
        self.writer: Writer[str | int] = Writer(
            progress=self.progress, worker=1, system=self.files, is_threaded=False
        )
        self.fd = self.files.open(f"{QUEUE}/s", os.O_RDWR | os.O_CREAT)
        self.use(self.fd, size_bytes=size_bytes)

    def use(self, fd: int, number: int = 7, epoch: int = EPOCH, size_bytes: int = 65_536) -> None:
        self.writer.use(fd, number=number, epoch=epoch, size=size_bytes)

    def data(self) -> bytes:
        return bytes(self.files.tree.contents[self.files._file(self.fd)])

    def records(self) -> list[tuple[int, int, int, int]]:
        found, *_ = _journal.scan(self.data(), base=0, epoch=EPOCH, start=BLOCK)
        return found


def test_what_is_appended_before_a_step_shares_one_write_and_one_sync() -> None:
    bench = Bench()
    for number in range(3):
        assert bench.writer.append([b"head ", b"", b"body"], number)
    assert bench.writer.step()
    assert not bench.writer.step()
    assert bench.writer.reap() == [(0, 0, 4096, 9), (1, 0, 4144, 9), (2, 0, 4192, 9)]
    assert bench.files.calls == {"open": 1, "pwritev": 1, "fsync": 1}
    assert [record[:3] for record in bench.records()] == [
        (MESSAGE, 4096, 9), (MESSAGE, 4144, 9), (MESSAGE, 4192, 9), (_journal.END, 4240, 0)
    ]  # fmt: skip
    assert bench.data()[4096 + HEADER_BYTES :][:9] == b"head body"


def test_a_batch_is_whole_blocks_and_the_next_one_begins_behind_it() -> None:
    bench = Bench()
    ends = []
    for size in (0, 1, 4000, 4032, 4033, 9000):
        bench.writer.append([bytes(size)], size)
        bench.writer.step()
        bench.writer.reap()
        ends.append(bench.writer.end)
        assert len(bench.data()) == bench.writer.end
    assert ends == [8192, 12288, 16384, 20480, 28672, 40960]
    assert {record[1] for record in bench.records() if record[0] == MESSAGE} == {
        4096, 8192, 12288, 16384, 20480, 28672
    }  # fmt: skip


def test_the_synced_offset_is_published_after_the_sync_and_not_before() -> None:
    bench = Bench(fail=failing("fsync", 2, errno.EIO))
    assert bench.progress.read(1) == (0, 0, 0)
    bench.writer.append([b"one"], "one")
    bench.writer.step()
    assert bench.progress.read(1) == (7, EPOCH, 8192)
    bench.writer.append([b"two"], "two")
    bench.writer.step()
    assert bench.progress.read(1) == (7, EPOCH, 8192)
    assert bench.progress.read(0) == (0, 0, 0)
    bench.progress.clear(1)
    assert bench.progress.read(1) == (0, 0, 0)
    with pytest.raises(IndexError):
        bench.progress.read(2)


@pytest.mark.parametrize("call", ["pwritev", "fsync"])
def test_a_failure_fails_its_batch_and_stops_the_segment(call: str) -> None:
    bench = Bench(fail=failing(call, 2, errno.ENOSPC))
    bench.writer.append([b"one"], "one")
    bench.writer.step()
    for name in ("two", "three"):
        bench.writer.append([name.encode()], name)
    bench.writer.step()
    bench.writer.append([b"four"], "four")
    assert bench.writer.is_stopped
    assert not bench.writer.step()
    assert [(cookie, error) for cookie, error, *_ in bench.writer.reap()] == [
        ("one", 0), ("two", errno.ENOSPC), ("three", errno.ENOSPC)
    ]  # fmt: skip
    assert bench.writer.end == 8192
    # What waited goes into the next segment.
    bench.use(bench.files.open(f"{QUEUE}/t", os.O_RDWR | os.O_CREAT), number=8, epoch=99)
    assert bench.writer.step()
    assert bench.writer.reap() == [("four", 0, 4096, 4)]


def test_a_short_write_is_gone_on_with() -> None:
    class Short(Files):
        def pwritev(self, fd: int, pieces: list[bytes], offset: int) -> int:
            return super().pwritev(fd, [b"".join(pieces)[:1000]], offset)

    bench = Bench()
    bench.files.__class__ = Short
    bench.writer.append([b"x" * 5000], "x")
    bench.writer.step()
    assert bench.writer.reap() == [("x", 0, 4096, 5000)]
    assert [record[:3] for record in bench.records()] == [(MESSAGE, 4096, 5000), (_journal.END, 9128, 0)]


@pytest.mark.parametrize("raised", [OSError(0, "no number"), ValueError("not of the system")])
def test_whatever_the_file_layer_raises_is_an_error_of_the_batch(raised: Exception) -> None:
    class Broken(Files):
        def fdatasync(self, fd: int) -> None:
            raise raised

    bench = Bench()
    bench.files.__class__ = Broken
    bench.writer.append([b"x"], "x")
    bench.writer.step()
    assert bench.writer.reap()[0][1] == errno.EIO


def test_a_body_that_cannot_be_synced_fails_its_own_record_only() -> None:
    bench = Bench(fail=failing("fsync", 2, errno.EIO))
    bodies = [bench.files.open(f"{QUEUE}/b{n}", os.O_WRONLY | os.O_CREAT) for n in range(3)]
    for number, fd in enumerate(bodies):
        bench.writer.append([b"body %d" % number], number, body_fd=fd)
        # The writer has a copy.
        bench.files.close(fd)
    bench.writer.append([b"none"], "none")
    bench.writer.step()
    assert [(cookie, error) for cookie, error, *_ in bench.writer.reap()] == [
        (0, 0), (1, errno.EIO), (2, 0), ("none", 0)
    ]  # fmt: skip
    assert not bench.writer.is_stopped
    assert bench.files.open_fds == {bench.fd}
    assert [size for kind, _, size, _ in bench.records() if kind == MESSAGE] == [6, 6, 4]
    # The bodies are synced before anything is written that names them.
    kinds = [step[0] for step in bench.files.trace if step[0] in {"sync", "lost", "write"}]
    assert kinds == ["sync", "lost", "sync", "write", "sync"]


def test_a_batch_of_which_no_body_could_be_synced_leaves_no_hole() -> None:
    bench = Bench(fail=failing("fsync", 1, errno.EIO))
    body = bench.files.open(f"{QUEUE}/b", os.O_WRONLY | os.O_CREAT)
    bench.writer.append([bytes(20_000)], "lost", body_fd=body)
    bench.writer.step()
    bench.writer.append([b"next"], "next")
    bench.writer.step()
    assert [record[:2] for record in bench.records()] == [
        (_journal.END, 4096), (MESSAGE, 8192), (_journal.END, 8232)
    ]  # fmt: skip


def test_a_segment_takes_what_fits_to_the_last_byte() -> None:
    bench = Bench(size_bytes=BLOCK * 3)
    # Header, payload, and the end record fill two blocks.
    room = 2 * BLOCK - 2 * HEADER_BYTES
    assert not bench.writer.append([bytes(room + 1)], "big")
    assert bench.writer.append([bytes(room)], "fits")
    assert not bench.writer.append([b""], "none")
    bench.writer.step()
    assert bench.writer.end == BLOCK * 3
    assert not bench.writer.append([b""], "none")
    assert bench.writer.reap() == [("fits", 0, 4096, room)]


def test_room_counts_the_batch_under_way() -> None:
    bench = Bench(size_bytes=BLOCK * 3)
    assert bench.writer.append([bytes(3000)], 0)
    bench.writer.step()
    assert bench.writer.append([bytes(3000)], 1)
    assert not bench.writer.append([bytes(3000)], 2)


def test_the_writer_refuses_what_makes_no_sense() -> None:
    bench = Bench()
    with pytest.raises(TypeError, match="bytes"):
        bench.writer.append([bytearray(3)], "x")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="16 MiB"):
        bench.writer.append([bytes(_journal.MAX_PAYLOAD), b"x"], "x")
    with pytest.raises(ValueError, match="kind"):
        bench.writer.append([b""], "x", kind=_journal.END)
    with pytest.raises(RuntimeError, match="in use"):
        bench.use(bench.fd)
    bench.writer.append([b""], "x")
    for refused in (bench.writer.pause, bench.writer.withdraw):
        with pytest.raises(RuntimeError):
            refused()
    bench.writer.step()
    bench.writer.pause()
    with pytest.raises(ValueError, match="epoch"):
        bench.use(bench.fd, epoch=0)
    bench.writer.append([bytes(5000)], "big")
    with pytest.raises(ValueError, match="no room"):
        bench.use(bench.fd, size_bytes=BLOCK * 2)
    assert bench.writer.withdraw() == ["big"]
    bench.writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        bench.writer.append([b""], "x")


def test_a_writer_that_is_thrown_away_gives_its_descriptors_back() -> None:
    bench = Bench()
    body = bench.files.open(f"{QUEUE}/b", os.O_WRONLY | os.O_CREAT)
    bench.writer.append([b"never written"], "x", body_fd=body)
    bench.files.close(body)
    files, fd = bench.files, bench.fd
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    del bench
    assert files.open_fds == {fd}
    if before:
        assert len(os.listdir("/proc/self/fd")) == before - 1


# --- the native thread ------------------------------------------------------------------------------------


@pytest.fixture
def segment_fd(tmp_path: pathlib.Path) -> Iterator[int]:
    fd = os.open(tmp_path / "segment", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def wait(writer: Writer[Any], wanted: int) -> list[tuple[Any, int, int, int]]:
    """Reap until so many are over."""
    import select

    found: list[tuple[Any, int, int, int]] = []
    while len(found) < wanted:
        assert select.select([writer], [], [], 60)[0]
        found += writer.reap()
    return found


def test_the_thread_writes_and_rings(segment_fd: int) -> None:
    writer: Writer[int] = Writer()
    writer.use(segment_fd, number=1, epoch=EPOCH, size=1 << 20)
    payloads = [random.Random(number).randbytes(number * 37) for number in range(100)]
    for number, payload in enumerate(payloads):
        assert writer.append([payload[:5], payload[5:]], number)
    over = wait(writer, 100)
    assert [error for _, error, *_ in over] == [0] * 100
    assert 1 <= writer.batches <= 100
    assert writer.is_idle
    writer.close()
    for number, _, offset, size in over:
        assert os.pread(segment_fd, size, offset + HEADER_BYTES) == payloads[number]


def test_more_pieces_than_one_system_call_takes(segment_fd: int) -> None:
    writer: Writer[int] = Writer()
    writer.pause()
    for number in range(1500):
        writer.append([b"%d" % number, b"|", b"x" * (number % 9)], number)
    writer.use(segment_fd, number=1, epoch=EPOCH, size=1 << 20)
    over = wait(writer, 1500)
    assert writer.batches == 1
    writer.close()
    data = os.pread(segment_fd, 1 << 20, 0)
    found, *_ = _journal.scan(data, base=0, epoch=EPOCH, start=BLOCK)
    assert len(found) == 1501
    assert [record[1] for record in found[:-1]] == [offset for _, _, offset, _ in over]


def test_close_writes_what_waits(segment_fd: int) -> None:
    writer: Writer[int] = Writer()
    writer.use(segment_fd, number=1, epoch=EPOCH, size=1 << 20)
    for number in range(20):
        writer.append([b"x"], number)
    writer.close()
    writer.close()
    assert [cookie for cookie, error, *_ in writer.reap() if not error] == list(range(20))


def test_what_appends_while_one_sync_runs_goes_into_the_next() -> None:
    """The file layer itself appends, during the first sync: that is one batch more, not five."""

    class Appending(Files):
        writer: Writer[int] | None = None

        def fdatasync(self, fd: int) -> None:
            if self.writer is not None:
                writer, self.writer = self.writer, None
                for number in range(1, 6):
                    writer.append([b"later"], number)
            super().fdatasync(fd)

    files = Appending()
    files.mkdir(QUEUE)
    writer: Writer[int] = Writer(system=files)
    files.writer = writer
    fd = files.open(f"{QUEUE}/s", os.O_WRONLY | os.O_CREAT)
    writer.use(fd, number=1, epoch=EPOCH, size=1 << 20)
    writer.append([b"first"], 0)
    assert len(wait(writer, 6)) == 6
    assert writer.batches == 2
    writer.close()


def test_the_real_kernel_says_no() -> None:
    """Written to /dev/full: no room."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    fd = os.open("/dev/full", os.O_WRONLY)
    writer: Writer[str] = Writer()
    writer.use(fd, number=1, epoch=EPOCH, size=1 << 20)
    writer.append([b"x"], "x")
    assert wait(writer, 1)[0][1] == errno.ENOSPC
    assert writer.is_stopped
    writer.close()
    os.close(fd)


def test_a_process_that_ends_with_a_writer_open_ends() -> None:
    code = "from fastsmtp._journal import Writer\nkept = Writer()\nagain = Writer()\nprint('made')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "made\n", "")


# --- the journal ------------------------------------------------------------------------------------------


class Desk:
    """A journal on files in memory, whose writer takes a step when it is told."""

    def __init__(
        self, files: Files, size_bytes: int = 65_536, seals: tuple[Seal, ...] = (), **options: Any
    ) -> None:
        self.files = files
        self.store = store_in(QUEUE, size_bytes, **options)
        self.now = 100.0
        self.writer: Any = Writer(system=files, is_threaded=False)
        self.journal = Journal(
            LocalSource(self.store, InlineDisk(files)),
            loop=asyncio.get_running_loop(),
            clock=lambda: self.now,
            writer=self.writer,
            seals=seals,
        )

    async def start(self) -> Desk:
        self.store.open(self.files)
        await self.journal.start()
        return self

    async def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.writer.step()
            self.journal.reap()
            for _ in range(5):
                await asyncio.sleep(0)

    async def close(self) -> None:
        closing = asyncio.get_running_loop().create_task(self.journal.close())
        while not closing.done():
            await self.step()
        await closing

    def recovered(self) -> tuple[dict[Place, bytes], Recovery]:
        store = store_in(QUEUE)
        recovery = recover(self.files, store)
        return dict(recovery.messages(self.files, store)), recovery


def run(body: Any) -> Any:
    return asyncio.run(body)


def test_append_tells_where_the_record_stands_and_it_can_be_read_there() -> None:
    async def body() -> None:
        desk = await Desk(simulated()).start()
        futures = [desk.journal.append([b"%d" % number, b"!"]) for number in range(3)]
        assert not any(future.done() for future in futures)
        await desk.step()
        found, recovery = desk.recovered()
        assert [found[future.result()] for future in futures] == [b"0!", b"1!", b"2!"]
        assert not recovery.faults
        await desk.close()
        assert not desk.files.open_fds

    run(body())


def test_a_full_segment_is_followed_by_the_next_which_seals_it() -> None:
    async def body() -> None:
        desk = await Desk(simulated(), size_bytes=BLOCK * 4).start()
        futures = []
        for number in range(20):
            futures.append(desk.journal.append([b"%d " % number, bytes(3000)]))
            await desk.step(2)
        places = [await future for future in futures]
        assert len({place.number for place in places}) == 7
        await desk.close()
        found, recovery = desk.recovered()
        assert [found[place].split()[0] for place in places] == [b"%d" % number for number in range(20)]
        with_mail = [segment for segment in recovery.segments if segment.offsets]
        assert [segment.is_sealed for segment in with_mail] == [True] * 6 + [False]
        # The last one, and the one that was ready for later.
        assert len(recovery.seals) == 2

    run(body())


def test_what_no_segment_holds_is_an_error_of_its_own() -> None:
    async def body() -> None:
        desk = await Desk(simulated(), size_bytes=BLOCK * 4).start()
        big = desk.journal.append([bytes(BLOCK * 3)])
        after = desk.journal.append([b"after"])
        bigger = desk.journal.append([bytes(_journal.MAX_PAYLOAD + 1)])
        await desk.step(3)
        with pytest.raises(ValueError, match="bigger than a segment"):
            big.result()
        with pytest.raises(ValueError, match="16 MiB"):
            bigger.result()
        assert after.result().size_bytes == 5
        await desk.close()

    run(body())


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, errors.StorageFull),
        (errno.EDQUOT, errors.StorageFull),
        (errno.EIO, errors.StorageFailed),
    ],
)
@pytest.mark.parametrize("call", ["pwritev", "fsync"])
def test_a_failed_batch_fails_with_its_reason_and_is_void_in_the_next_segment(
    call: str, number: int, expected: type[Exception]
) -> None:
    async def body() -> None:
        files = simulated()
        desk = await Desk(files).start()
        first = desk.journal.append([b"first"])
        await desk.step()
        files.fail = failing(call, files.calls[call] + 1, number)
        failed = [desk.journal.append([b"failed"]) for _ in range(3)]
        await desk.step()
        second = desk.journal.append([b"second"])
        await desk.step(2)
        for future in failed:
            assert type(future.exception()) is expected
        assert first.result().number != second.result().number
        found, recovery = desk.recovered()
        assert found == {first.result(): b"first", second.result(): b"second"}
        assert not recovery.faults
        await desk.close()

    run(body())


def test_what_waited_behind_a_failed_batch_goes_into_the_next_segment() -> None:
    async def body() -> None:
        files = simulated()
        desk = await Desk(files).start()
        files.fail = failing("fsync", files.calls["fsync"] + 1, errno.EIO)
        failed = desk.journal.append([b"failed"])
        desk.writer.step()
        # The loop hasn't heard of it yet.
        waiting = desk.journal.append([b"waiting"])
        await desk.step(2)
        assert isinstance(failed.exception(), errors.StorageFailed)
        assert waiting.result().number > 1
        await desk.close()

    run(body())


def test_a_broken_disk_is_asked_once_a_second_and_mended_without_a_restart() -> None:
    async def body() -> None:
        files = simulated()
        desk = await Desk(files).start()
        files.fail = lambda call, count, what: errno.EIO if call == "fsync" else 0
        futures = [desk.journal.append([b"a"])]
        await desk.step(2)
        futures.append(desk.journal.append([b"b"]))
        await desk.step(2)
        asked = files.calls["fsync"]
        for _ in range(10):
            futures.append(desk.journal.append([b"c"]))
            await desk.step()
        assert files.calls["fsync"] == asked
        assert all(isinstance(future.exception(), errors.StorageFailed) for future in futures)
        desk.now += RETRY_S
        futures = [desk.journal.append([b"d"]) for _ in range(3)]
        await desk.step(2)
        assert files.calls["fsync"] > asked
        assert all(isinstance(future.exception(), errors.StorageFailed) for future in futures)
        files.fail = None
        desk.now += RETRY_S
        mended = desk.journal.append([b"mended"])
        await desk.step(3)
        found, _ = desk.recovered()
        assert found[mended.result()] == b"mended"
        assert list(found.values()) == [b"mended"]
        await desk.close()

    run(body())


def test_below_the_low_water_mark_no_segment_is_made_and_free_ones_are_used() -> None:
    async def body() -> None:
        files = simulated()
        space = Space(QUEUE, 1_000_000)
        desk = await Desk(files, size_bytes=BLOCK * 3, space=space).start()
        await desk.step()
        files.free_bytes = 900_000
        places = []
        # The segment in use, and the one made ready before it got low.
        for _ in range(2):
            future = desk.journal.append([bytes(BLOCK)])
            await desk.step(3)
            places.append(future.result())
        full = desk.journal.append([bytes(BLOCK)])
        await desk.step(3)
        assert isinstance(full.exception(), errors.StorageFull)
        assert space.is_low
        desk.store.retire(files, places[0].number)
        desk.now += RETRY_S
        again = desk.journal.append([bytes(BLOCK)])
        await desk.step(3)
        assert again.result().number > places[1].number
        assert not any(name.startswith("free-") for name in files.listdir(QUEUE))
        await desk.close()

    run(body())


def test_space_is_low_until_there_is_clearly_more() -> None:
    files = simulated()
    space = Space(QUEUE, 800_000)
    for free, expected in [
        (1_000_000, False),
        (790_000, True),
        (850_000, True),
        (905_000, False),
        (810_000, False),
    ]:
        files.free_bytes = free
        space.look(files)
        assert space.is_low is expected, free
    assert space.look(files, wanted_bytes=50_000)
    assert not space.is_low
    assert not Space(QUEUE, 0).look(files)


def test_a_cancelled_append_is_written_all_the_same_and_its_body_may_be_closed() -> None:
    async def body() -> None:
        files = simulated()
        desk = await Desk(files, size_bytes=BLOCK * 4).start()
        fds = [files.open(f"{QUEUE}/body{n}", os.O_WRONLY | os.O_CREAT) for n in range(3)]
        # The first goes into the writer, the others wait for a segment.
        futures = [desk.journal.append([bytes(7000), b"%d" % n], fds[n]) for n in range(3)]
        for fd in fds:
            files.close(fd)
        futures[0].cancel()
        futures[1].cancel()
        await desk.step(4)
        assert futures[2].result().size_bytes == 7001
        found, _ = desk.recovered()
        assert sorted(payload[7000:] for payload in found.values()) == [b"0", b"2"]
        await desk.close()
        assert not files.open_fds

    run(body())


def test_closing_finishes_what_was_appended_and_takes_no_more() -> None:
    async def body() -> None:
        desk = await Desk(simulated()).start()
        future = desk.journal.append([b"last"])
        await desk.close()
        assert future.result().offset == BLOCK
        with pytest.raises(RuntimeError):
            desk.journal.append([b"later"])

    run(body())


def test_closing_on_a_broken_disk_ends_and_fails_what_waits() -> None:
    async def body() -> None:
        files = simulated()
        desk = await Desk(files).start()
        files.fail = lambda call, count, what: errno.EIO if call == "fsync" else 0
        futures = [desk.journal.append([b"a"])]
        desk.writer.step()
        futures.append(desk.journal.append([b"b"]))
        await desk.close()
        assert all(isinstance(future.exception(), errors.StorageFailed) for future in futures)
        assert not files.open_fds

    run(body())


def test_the_real_thing_on_a_real_disk(tmp_path: pathlib.Path) -> None:
    async def body() -> list[Place]:
        store = store_in(str(tmp_path), 1 << 18, random=os.urandom)
        store.open(os)
        disk = ThreadDisk()
        journal = Journal(
            LocalSource(store, disk),
            loop=asyncio.get_running_loop(),
            clock=asyncio.get_running_loop().time,
            writer=Writer(),
        )
        await journal.start()
        spooled = os.open(tmp_path / "body", os.O_WRONLY | os.O_CREAT)

        async def client(number: int) -> list[Place]:
            return [
                await journal.append([b"%d-%d " % (number, turn), bytes(3000)], spooled if not turn else -1)
                for turn in range(20)
            ]

        places = await asyncio.gather(*(client(number) for number in range(20)))
        os.close(spooled)
        await journal.close()
        disk.close()
        return [place for some in places for place in some]

    places = asyncio.run(body())
    assert len({(place.epoch, place.offset) for place in places}) == 400
    store = store_in(str(tmp_path), 1 << 18)
    recovery = recover(os, store)
    found = dict(recovery.messages(os, store))
    assert found.keys() == set(places)
    assert not recovery.faults
    assert all(
        (tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in os.listdir(tmp_path) if name != "body"
    )


# --- the store --------------------------------------------------------------------------------------------


def test_a_segment_is_named_when_it_is_synced_and_handed_out_when_the_name_is() -> None:
    files = simulated()
    store = store_in(QUEUE)
    store.open(files)
    start = len(files.trace)
    segment = store.prepare(files)
    steps = [step[0] if step[0] != "sync" else ("sync", step[1]) for step in files.trace[start:]]
    number = files._file(segment.fd)
    assert steps == ["name", "write", "write", ("sync", number), "name", ("sync", QUEUE)]
    with pytest.raises(OSError, match="not open for reading"):
        files.pread(segment.fd, 10, 0)


def test_a_retired_segment_is_used_again_under_another_number_and_epoch() -> None:
    files = simulated()
    store = store_in(QUEUE)
    store.open(files)
    first, second = store.prepare(files), store.prepare(files)
    for segment in (first, second):
        files.close(segment.fd)
    store.retire(files, first.number)
    start = len(files.trace)
    third = store.prepare(files)
    assert [step[0] for step in files.trace[start:]] == ["write", "sync", "name", "sync"]
    assert (third.number, third.epoch != first.epoch) == (3, True)
    assert sorted(files.listdir(QUEUE)) == ["mail-0000000000000002", "mail-0000000000000003"]


def test_at_most_so_many_free_segments_are_kept() -> None:
    files = simulated()
    store = store_in(QUEUE, spare=2)
    store.open(files)
    for segment in [store.prepare(files) for _ in range(4)]:
        files.close(segment.fd)
    for number in range(1, 5):
        store.retire(files, number)
    assert len(files.listdir(QUEUE)) == 2
    assert store_in(QUEUE).open(files) == []


def test_a_segment_that_could_not_be_made_leaves_nothing_behind() -> None:
    for call, at in [("open", 2), ("pwritev", 1), ("pwritev", 2), ("fsync", 2)]:
        files = simulated(failing(call, at, errno.ENOSPC))
        store = store_in(QUEUE)
        store.open(files)
        with pytest.raises(OSError, match="No space"):
            store.prepare(files)
        assert not files.listdir(QUEUE), call
        assert not files.open_fds
        files.fail = None
        assert store.prepare(files).number == 2


def test_a_free_segment_of_another_size_is_not_used() -> None:
    files = simulated()
    small = store_in(QUEUE, BLOCK * 2)
    small.open(files)
    files.close(small.prepare(files).fd)
    small.retire(files, 1)
    store = store_in(QUEUE)
    store.open(files)
    segment = store.prepare(files)
    assert files.fstat(segment.fd).st_size == 65_536
    assert files.listdir(QUEUE) == ["mail-0000000000000002"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mail-00000000000000ff", 255),
        ("mail-00000000000000FF", None),
        ("mail-ff", None),
        ("mail-000000000000000g", None),
        ("mail-+00000000000000f", None),
        ("free-00000000000000ff", None),
    ],
)
def test_names_of_files(name: str, expected: int | None) -> None:
    assert number_of(name, "mail-") == expected


# --- versions ---------------------------------------------------------------------------------------------


def header(**changes: Any) -> bytes:
    fields = {
        "purpose": Purpose.MAIL,
        "epoch": 5,
        "number": 1,
        "size_bytes": 65_536,
        "made_ms": 9,
        "writer": "0.1.0",
    }
    return FileHeader(**{**fields, **changes}).encode()


def with_format(data: bytes, version: int) -> bytes:
    changed = data[:8] + version.to_bytes(2, "little") + data[10:60]
    return changed + _journal.crc32c(changed).to_bytes(4, "little")


def test_a_header_is_read_back_as_it_was_written() -> None:
    data = header(writer="12.34.56-and-more")
    assert len(data) == SIZE_BYTES
    found = read_header(data + bytes(9), "f", Purpose.MAIL, "0.1.0")
    assert (found.epoch, found.number, found.size_bytes, found.made_ms) == (5, 1, 65_536, 9)
    assert found.writer == "12.34.56-and"


def test_a_newer_format_is_refused_by_name_with_both_versions() -> None:
    with pytest.raises(errors.QueueTooNew) as caught:
        read_header(with_format(header(writer="9.9.9"), FORMAT + 1), "queue/mail-1", Purpose.MAIL, "0.1.0")
    for word in ("queue/mail-1", "9.9.9", "0.1.0", f"format {FORMAT + 1}", f"up to {FORMAT}"):
        assert word in str(caught.value)
    assert isinstance(caught.value, errors.ConfigError)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "shorter"),
        (header()[:63], "shorter"),
        (bytes(64), "not a file"),
        (with_format(header(), FORMAT + 1)[:-1] + b"\0", "checksum"),
        (header(purpose=Purpose.DONE), "purpose"),
        (header(epoch=0), "epoch"),
    ],
)
def test_any_other_header_is_damage(data: bytes, reason: str) -> None:
    with pytest.raises(errors.QueueDamaged, match=reason):
        read_header(data, "f", Purpose.MAIL, "0.1.0")


# --- damage -----------------------------------------------------------------------------------------------


def filled(batches: int = 6, each: int = 2) -> tuple[Files, list[Place]]:
    """A queue with so many batches in one segment, and where the records are."""

    async def body() -> tuple[Files, list[Place]]:
        desk = await Desk(simulated(), size_bytes=BLOCK * 64).start()
        futures = []
        for batch in range(batches):
            futures += [desk.journal.append([b"%d-%d " % (batch, n), bytes(3000)]) for n in range(each)]
            await desk.step()
        await desk.close()
        return desk.files, [future.result() for future in futures]

    found: tuple[Files, list[Place]] = run(body())
    return found


def content_of(files: Files, number: int) -> bytearray:
    return files.tree.contents[files.tree.names[f"{QUEUE}/mail-{number:016x}"]]


@pytest.mark.parametrize("where", ["header", "length", "payload", "whole record"])
def test_a_damaged_record_is_quarantined_and_all_others_are_read(where: str) -> None:
    for victim in range(10):
        files, places = filled()
        offset = places[victim].offset
        data = content_of(files, places[0].number)
        if where == "whole record":
            data[offset : offset + HEADER_BYTES + places[victim].size_bytes] = bytes(
                HEADER_BYTES + places[victim].size_bytes
            )
        else:
            data[offset + {"header": 0, "length": 5, "payload": 500}[where]] ^= 0x40
        store = store_in(QUEUE)
        recovery = recover(files, store)
        found = dict(recovery.messages(files, store))
        assert found.keys() == set(places) - {places[victim]}
        (fault,) = recovery.faults
        assert fault.is_damage
        assert fault.offset <= offset < fault.offset + fault.size_bytes
        assert files.tree.names[fault.quarantine]
        again = recover(files, store_in(QUEUE))
        assert again.faults == recovery.faults


def test_damage_in_the_last_batch_is_told_as_torn_since_nothing_proves_more() -> None:
    files, places = filled()
    content_of(files, places[0].number)[places[-1].offset + 100] ^= 1
    recovery = recover(files, store_in(QUEUE))
    assert [fault.is_damage for fault in recovery.faults] == [False]


def test_records_that_a_seal_speaks_of_and_that_are_gone_are_damage() -> None:
    files, places = filled()
    segment = recover(files, store_in(QUEUE)).segments[0]
    content_of(files, places[0].number)[places[8].offset :] = bytes(BLOCK)
    recovery = recover(files, store_in(QUEUE), ends={segment.header.epoch: segment.end})
    (fault,) = recovery.faults
    assert (fault.offset, fault.is_damage, fault.reason) == (places[8].offset, True, "records are missing")


def test_a_segment_with_a_damaged_header_is_put_aside_and_the_others_are_read() -> None:
    files, places = filled()
    name = f"{QUEUE}/mail-{places[0].number:016x}"
    other = next(path for path in files.tree.names if path != name)
    for victim in (name, other):
        files.tree.contents[files.tree.names[victim]][20] ^= 1
        recovery = recover(files, store_in(QUEUE))
        (fault,) = recovery.faults
        assert fault.is_damage
        assert fault.quarantine.startswith(f"{QUEUE}/quarantine/mail-")
        assert victim not in files.tree.names
        assert fault.quarantine in files.tree.names
        # It is told once: the file is out of the way.
        assert not recover(files, store_in(QUEUE)).faults


def test_a_segment_under_another_ones_name_is_put_aside() -> None:
    files, places = filled()
    files.rename(f"{QUEUE}/mail-{places[0].number:016x}", f"{QUEUE}/mail-{99:016x}")
    (fault,) = recover(files, store_in(QUEUE)).faults
    assert "number" in fault.reason


def test_a_read_error_costs_its_blocks_and_nothing_else() -> None:
    files, places = filled()
    bad = range(places[4].offset, places[4].offset + HEADER_BYTES + places[4].size_bytes)

    class Unreadable(Files):
        def pread(self, fd: int, size: int, offset: int) -> bytes:
            if offset < bad[-1] and offset + size > bad[0]:
                raise OSError(errno.EIO, "unreadable")
            return super().pread(fd, size, offset)

    files.__class__ = Unreadable
    store = store_in(QUEUE)
    recovery = recover(files, store)
    found = dict(recovery.messages(files, store))
    assert found.keys() >= set(places) - set(places[4:6])
    assert [(fault.is_damage, fault.reason) for fault in recovery.faults][:1] == [(True, "can't be read")]


def test_a_quarantine_that_cannot_be_written_stops_nothing() -> None:
    files, places = filled()
    content_of(files, places[0].number)[places[2].offset] ^= 1
    files.fail = lambda call, count, what: errno.EROFS if call == "open" and "quarantine" in str(what) else 0
    (fault,) = recover(files, store_in(QUEUE)).faults
    assert (fault.is_damage, fault.quarantine) == (True, "")


def test_a_newer_segment_stops_the_start_and_stays_where_it_is() -> None:
    files, places = filled()
    data = content_of(files, places[0].number)
    data[:SIZE_BYTES] = with_format(bytes(data[:SIZE_BYTES]), FORMAT + 1)
    with pytest.raises(errors.QueueTooNew, match=f"mail-{places[0].number:016x}"):
        recover(files, store_in(QUEUE))
    assert f"{QUEUE}/mail-{places[0].number:016x}" in files.tree.names


def test_what_an_earlier_life_left_in_a_segment_is_never_read() -> None:
    """Eight lives of one file, each shorter than the one before."""

    async def life(files: Files, count: int) -> list[Place]:
        desk = await Desk(files, size_bytes=BLOCK * 64, random=os.urandom).start()
        futures = []
        for _ in range(count):
            futures.append(desk.journal.append([b"life of %d" % count]))
            await desk.step()
        await desk.close()
        return [future.result() for future in futures]

    files = simulated()
    for count in range(8, 0, -1):
        places = run(life(files, count))
        store = store_in(QUEUE)
        recovery = recover(files, store)
        assert dict(recovery.messages(files, store)) == dict.fromkeys(places, b"life of %d" % count)
        assert not recovery.faults
        for segment in recovery.segments:
            store.retire(files, segment.header.number)


def test_a_record_inside_a_message_is_not_a_record() -> None:
    """A sender who knew the epoch could make one; the search would find it only in a damaged message."""

    async def body() -> None:
        desk = await Desk(simulated()).start()
        first = desk.journal.append([b"plain"])
        await desk.step()
        image = bytes(content_of(desk.files, first.result().number)[BLOCK : BLOCK + 40])
        outer = desk.journal.append([image * 100])
        await desk.step()
        found, recovery = desk.recovered()
        assert found.keys() == {first.result(), outer.result()}
        assert not recovery.faults
        # Even where the outer record is damaged: the copies say another offset than their own.
        content_of(desk.files, first.result().number)[outer.result().offset] ^= 1
        found, recovery = desk.recovered()
        assert found.keys() == {first.result()}
        await desk.close()

    run(body())


def test_reading_stops_at_the_synced_offset_and_goes_on_from_there() -> None:
    async def body() -> None:
        desk = await Desk(simulated(), seals=(Seal(3, 4, 8192),)).start()
        segment = desk.journal.segment
        assert segment is not None
        name = desk.store.path(segment.number)
        fd = desk.files.open(name, os.O_RDONLY)
        file_header = read_header(desk.files.pread(fd, BLOCK, 0), name, Purpose.MAIL, "0.1.0")
        at = BLOCK
        seen: list[Place] = []
        futures = []
        for turn in range(4):
            futures += [desk.journal.append([b"%d" % turn, bytes(2000)]) for _ in range(3)]
            await desk.step()
            places, seals, at = read_between(desk.files, fd, file_header, at, desk.writer.end)
            seen += places
            assert seals == ([Seal(3, 4, 8192)] if turn == 0 else [])
            assert at == desk.writer.end
        assert seen == [future.result() for future in futures]
        assert read_record(desk.files, fd, seen[5], name) == b"1" + bytes(2000)
        assert read_between(desk.files, fd, file_header, at, at) == ([], [], at)
        content_of(desk.files, segment.number)[seen[5].offset + 40] ^= 1
        with pytest.raises(errors.QueueDamaged):
            read_record(desk.files, fd, seen[5], name)
        with pytest.raises(errors.QueueDamaged):
            read_between(desk.files, fd, file_header, BLOCK, at)
        desk.files.close(fd)
        await desk.close()

    run(body())


def test_a_segment_in_use_is_read_up_to_what_its_worker_published_and_not_sealed() -> None:
    files, places = filled()
    epoch = places[0].epoch
    recovery = recover(files, store_in(QUEUE), in_use={epoch: places[6].offset})
    (segment,) = [segment for segment in recovery.segments if segment.header.epoch == epoch]
    assert list(segment.places()) == places[:6]
    assert segment.is_in_use
    assert epoch not in {seal.epoch for seal in recovery.seals}
    assert not recovery.faults


def test_seals_are_read_back() -> None:
    assert decode_seal(Seal(1, 2, 3).encode()) == Seal(1, 2, 3)
    with pytest.raises(ValueError, match="24"):
        decode_seal(b"short")
    assert SEAL != MESSAGE
