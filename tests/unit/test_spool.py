"""Bodies: in memory up to a bound, then in a file without a name; nothing is kept after release."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fastsmtp import errors
from fastsmtp.queue.disk import InlineDisk, ThreadDisk
from fastsmtp.queue.spool import MEMORY_BYTES, Body, Budget
from tests.faulty import FaultyOs


async def contents(body: Body) -> bytes:
    return b"".join([piece async for piece in body.pieces()])


def test_a_small_body_stays_in_memory(tmp_path: Path) -> None:
    budget = Budget(1_000_000)
    system = FaultyOs()
    body = Body(InlineDisk(system), budget, str(tmp_path))
    assert body.write(b"one\r\n") is None
    assert body.write(b"two") is None
    assert asyncio.run(contents(body)) == b"one\r\ntwo"
    assert (body.size_bytes, body.tail, body.ends_with_crlf, body.is_spooled) == (8, b"wo", False, False)
    assert budget.used_bytes == 8
    assert not system.calls
    body.release()
    body.release()
    assert budget.used_bytes == 0


def test_the_tail_is_known_however_the_body_is_cut(tmp_path: Path) -> None:
    body = Body(InlineDisk(), Budget(100), str(tmp_path))
    assert body.ends_with_crlf
    body.write(b"a\r")
    assert not body.ends_with_crlf
    body.write(b"")
    body.write(b"\n")
    assert body.ends_with_crlf
    body.release()


@pytest.mark.parametrize("is_threaded", [False, True])
def test_a_big_body_goes_to_a_file_without_a_name(tmp_path: Path, is_threaded: bool) -> None:
    async def scenario() -> None:
        system = FaultyOs()
        disk = ThreadDisk(system) if is_threaded else InlineDisk(system)
        budget = Budget(1_000_000)
        body = Body(disk, budget, str(tmp_path))
        chunk = bytes(range(256)) * 64
        for _ in range(20):
            done = body.write(chunk)
            if done is not None:
                await done
        assert body.is_spooled
        assert budget.used_bytes == 0
        assert list(tmp_path.iterdir()) == []
        assert await contents(body) == chunk * 20
        assert b"".join(body.blocking_pieces(os)) == chunk * 20
        body.release()
        disk.close()
        assert not system.open_fds

    asyncio.run(scenario())


def test_exactly_the_bound_stays_in_memory(tmp_path: Path) -> None:
    body = Body(InlineDisk(), Budget(10 * MEMORY_BYTES), str(tmp_path))
    body.write(b"x" * MEMORY_BYTES)
    assert not body.is_spooled
    body.write(b"y")
    assert body.is_spooled
    body.release()


def test_a_used_up_budget_sends_bodies_to_files_at_once(tmp_path: Path) -> None:
    budget = Budget(100)
    bodies = [Body(InlineDisk(), budget, str(tmp_path)) for _ in range(3)]
    for body in bodies:
        body.write(b"z" * 60)
    assert [body.is_spooled for body in bodies] == [False, True, True]
    assert budget.used_bytes == 60
    for body in bodies:
        assert asyncio.run(contents(body)) == b"z" * 60
        body.release()
    assert budget.used_bytes == 0


FULL = [(number, errors.StorageFull) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
BROKEN = [(errno.EIO, errors.StorageFailed), (errno.EROFS, errors.StorageFailed)]


@pytest.mark.parametrize("is_threaded", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize(("number", "error"), [*FULL, *BROKEN])
def test_a_full_or_broken_disk_is_told_apart(
    tmp_path: Path, number: int, error: type[Exception], at: int, is_threaded: bool
) -> None:
    async def scenario() -> None:
        system = FaultyOs("pwrite", at, number)
        disk = ThreadDisk(system) if is_threaded else InlineDisk(system)
        budget = Budget(1_000_000)
        body = Body(disk, budget, str(tmp_path))
        with pytest.raises(error):
            for _ in range(9):
                done = body.write(b"w" * 40_000)
                if done is not None:
                    await done
        body.release()
        disk.close()
        assert not system.open_fds
        assert budget.used_bytes == 0

    asyncio.run(scenario())


def test_a_file_system_without_tmpfile_gets_a_file_that_is_unlinked(tmp_path: Path) -> None:
    system = FaultyOs("open", 1, errno.EOPNOTSUPP)
    body = Body(InlineDisk(system), Budget(0), str(tmp_path))
    body.write(b"here")
    assert list(tmp_path.iterdir()) == []
    assert asyncio.run(contents(body)) == b"here"
    body.release()


class SlowOs(FaultyOs):
    """pwrite waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self.has_begun.set()
        assert self.may_go_on.wait(60)
        assert fd in self.open_fds, "written after close"
        return os.pwrite(fd, data, offset)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_an_abort_while_a_write_is_under_way_releases_everything(tmp_path: Path, is_cancelled: bool) -> None:
    async def scenario() -> None:
        system = SlowOs()
        disk = ThreadDisk(system, threads=2)
        budget = Budget(1_000_000)
        body = Body(disk, budget, str(tmp_path))
        body.write(b"first")
        done = body.write(b"x" * 100_000)
        assert done is not None
        waiting = asyncio.ensure_future(done)
        while not system.has_begun.is_set():
            await asyncio.sleep(0)
        if is_cancelled:
            waiting.cancel()
        body.release()
        assert system.open_fds
        system.may_go_on.set()
        await asyncio.wait([waiting])
        disk.close()
        assert not system.open_fds
        assert budget.used_bytes == 0

    asyncio.run(scenario())


def test_a_write_that_comes_after_release_fails(tmp_path: Path) -> None:
    body = Body(InlineDisk(), Budget(0), str(tmp_path))
    body.write(b"a")
    body.release()
    with pytest.raises(errors.StorageFailed):
        body.write(b"b")
