"""The checksum and the native writer: framing, group commit, failures, the thread."""

from __future__ import annotations

import errno
import gc
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastsmtp import _record
from fastsmtp._journal import Progress, Writer
from fastsmtp._record import BLOCK, HEADER_BYTES, MESSAGE
from tests.fakes.files import Files
from tests.journaling import EPOCH, QUEUE, failing, simulated


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
    assert _record.crc32c(data) == expected
    assert _record.crc32c_by_table(data) == expected


def test_crc32c_goes_on_from_a_part_and_is_the_same_with_and_without_the_instruction() -> None:
    dice = random.Random(4)
    for size in range(0, 70):
        data = dice.randbytes(size)
        cut = dice.randrange(size + 1)
        whole = _record.crc32c_by_table(data)
        assert _record.crc32c(data[cut:], _record.crc32c(data[:cut])) == whole
        assert _record.crc32c(memoryview(data)) == _record.crc32c(bytearray(data)) == whole


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
        found, *_ = _record.scan(self.data(), base=0, epoch=EPOCH, start=BLOCK)
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
        (MESSAGE, 4096, 9), (MESSAGE, 4144, 9), (MESSAGE, 4192, 9), (_record.END, 4240, 0)
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
    assert [record[:3] for record in bench.records()] == [(MESSAGE, 4096, 5000), (_record.END, 9128, 0)]


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
        (_record.END, 4096), (MESSAGE, 8192), (_record.END, 8232)
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
        bench.writer.append([bytes(_record.MAX_PAYLOAD), b"x"], "x")
    with pytest.raises(ValueError, match="kind"):
        bench.writer.append([b""], "x", kind=_record.END)
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
    gc.collect()  # what other tests have left open
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    del bench
    assert files.open_fds == {fd}
    if before:
        assert len(os.listdir("/proc/self/fd")) == before - 1


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
    found, *_ = _record.scan(data, base=0, epoch=EPOCH, start=BLOCK)
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


FORKED = """
import os, sys
from fastsmtp._journal import Progress, Writer
progress = Progress(2)
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
child = os.fork()
if not child:
    writer = Writer(progress=progress, worker=1)
    writer.use(fd, number=3, epoch=4, size=65536)
    writer.append([b"mail"], 0)
    writer.close()
    os._exit(0)
os.waitpid(child, 0)
print(progress.read(0), progress.read(1))
"""


def test_what_a_forked_worker_has_synced_is_seen_by_who_made_the_mapping(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "s")], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("(0, 0, 0) (3, 4, 8192)\n", "")


def test_a_process_that_ends_with_a_writer_open_ends() -> None:
    code = "from fastsmtp._journal import Writer\nkept = Writer()\nagain = Writer()\nprint('made')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "made\n", "")
