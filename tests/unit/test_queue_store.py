"""The files of segments, and their versions."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from fastsmtp import errors
from fastsmtp._record import BLOCK
from fastsmtp.queue.fileheader import FORMAT, SIZE_BYTES, FileHeader, Purpose, read_header
from fastsmtp.queue.store import PIECE_BYTES, number_of
from tests.journaling import QUEUE, failing, simulated, store_in, with_format


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


def test_a_big_segment_is_synced_in_pieces_so_that_no_other_sync_waits_for_all_of_it() -> None:
    files = simulated()
    store = store_in(QUEUE, 4 * PIECE_BYTES)
    store.open(files)
    start = len(files.trace)
    segment = store.prepare(files)
    number = files._file(segment.fd)
    unsynced = most = 0
    for step in files.trace[start:]:
        if step[0] == "write":
            unsynced += len(step[3])
            most = max(most, unsynced)
        elif step[:2] == ("sync", number):
            unsynced = 0
    assert (most, unsynced) == (PIECE_BYTES + BLOCK, 0)


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
