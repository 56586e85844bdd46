"""The journal over its segments: places, failures, moves, closing; and on a real disk."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from fastsmtp import _record, errors
from fastsmtp._journal import Writer
from fastsmtp._record import BLOCK
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.journal import RETRY_S, Journal, LocalSource
from fastsmtp.queue.place import Place
from fastsmtp.queue.recovery import recover
from fastsmtp.queue.store import Space
from tests.journaling import QUEUE, Desk, failing, run, simulated, store_in


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


class Chain:
    """A receipt that appends the next record when it is told, as a pipelining client does."""

    def __init__(self, journal: Journal, told: list[int], left: int) -> None:
        self.journal = journal
        self.told = told
        self.left = left

    def done(self) -> bool:
        return False

    def set_result(self, place: Place, /) -> None:
        self.told.append(self.left)
        if self.left:
            self.journal.append_for(Chain(self.journal, self.told, self.left - 1), [b"next"])

    def set_exception(self, error: Exception, /) -> None:
        raise error


def test_who_is_synced_is_told_with_the_next_append_and_not_when_the_loop_comes_to_it() -> None:
    async def body() -> None:
        desk = await Desk(simulated()).start()
        first = desk.journal.append([b"first"])
        assert desk.writer.step()
        assert not first.done()
        told: list[int] = []
        desk.journal.append_for(Chain(desk.journal, told, 2), [b"chain"])
        assert first.done()
        # One after the other: what is appended while others are told tells nobody.
        while desk.writer.step():
            desk.journal.append([b"and another"])
        assert told[:2] == [2, 1]
        await desk.step(3)
        assert told == [2, 1, 0]
        await desk.close()

    run(body())


def test_a_failure_that_an_append_finds_is_answered_as_ever() -> None:
    async def body() -> None:
        desk = await Desk(simulated()).start()
        desk.files.fail = failing("fsync", desk.files.calls["fsync"] + 1, errno.EIO)
        first = desk.journal.append([b"first"])
        assert desk.writer.step()
        second = desk.journal.append([b"second"])
        assert isinstance(first.exception(), errors.StorageFailed)
        await desk.step(3)
        found, _ = desk.recovered()
        assert found[second.result()] == b"second"
        await desk.close()

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
        bigger = desk.journal.append([bytes(_record.MAX_PAYLOAD + 1)])
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


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_real_thing_on_a_real_disk(tmp_path: pathlib.Path, loop: str) -> None:
    factory = pytest.importorskip(loop).new_event_loop

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

    with asyncio.Runner(loop_factory=factory) as runner:
        places = runner.run(body())
    assert len({(place.epoch, place.offset) for place in places}) == 400
    store = store_in(str(tmp_path), 1 << 18)
    recovery = recover(os, store)
    found = dict(recovery.messages(os, store))
    assert found.keys() == set(places)
    assert not recovery.faults
    assert all(
        (tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in os.listdir(tmp_path) if name != "body"
    )


def test_a_segment_cannot_be_read_through_what_a_worker_is_given(tmp_path: pathlib.Path) -> None:
    store = store_in(str(tmp_path))
    store.open(os)
    segment = store.prepare(os)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(segment.fd, 10, 0)
    with pytest.raises(OSError, match=r"Permission denied|Bad file descriptor"):
        mmap.mmap(segment.fd, 4096, prot=mmap.PROT_READ)
    os.close(segment.fd)


WORKER = """
import os, sys
fd, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.pwrite(fd, b"mail", 8192)
for attempt in (
    lambda: os.pread(fd, 1, 0),
    lambda: os.open(path, os.O_RDONLY),
    lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY),
    lambda: os.listdir(os.path.dirname(path)),
):
    try:
        attempt()
    except OSError:
        continue
    sys.exit("read")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs root and /proc")
def test_another_account_can_write_through_its_descriptor_and_read_in_no_way(tmp_path: pathlib.Path) -> None:
    queue = tmp_path / "queue"
    queue.mkdir(mode=0o700)
    store = store_in(str(queue))
    store.open(os)
    segment = store.prepare(os)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WORKER, str(segment.fd), store.path(segment.number)],
        pass_fds=[segment.fd], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    os.close(segment.fd)
    assert (done.returncode, done.stderr) == (0, "")
    assert pathlib.Path(store.path(segment.number)).read_bytes()[8192:8196] == b"mail"


def test_a_disk_that_is_really_full_refuses_mail_until_there_is_room(tmp_path: pathlib.Path) -> None:
    """A limit on the size of files is the disk that a test can fill and empty."""

    async def body() -> None:
        store = store_in(str(tmp_path), 131_072, random=os.urandom)
        store.open(os)
        now = [10.0]
        disk = ThreadDisk()
        journal = Journal(
            LocalSource(store, disk), loop=asyncio.get_running_loop(), clock=lambda: now[0], writer=Writer()
        )
        await journal.start()
        # The next one is ready as well before the disk is full.
        first = await journal.append([b"first"])
        while len(os.listdir(tmp_path)) < 2 or any(name.startswith("new-") for name in os.listdir(tmp_path)):
            await asyncio.sleep(0.001)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
        try:
            places, refused = [first], 0
            for number in range(40):
                try:
                    places.append(await journal.append([b"%d " % number, bytes(30_000)]))
                except errors.StorageFull:
                    refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert refused
        assert len(places) + refused == 41
        now[0] += RETRY_S
        places.append(await journal.append([b"again"]))
        await journal.close()
        disk.close()
        found = recover(os, store_in(str(tmp_path), 131_072))
        assert dict(found.messages(os, store)).keys() == set(places)

    run(body())
