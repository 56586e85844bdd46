"""What is read back from segments that are whole, damaged, unreadable or in use."""

from __future__ import annotations

import errno
import os

import pytest

from fastsmtp import errors
from fastsmtp._record import BLOCK, HEADER_BYTES, MESSAGE, SEAL
from fastsmtp.queue.fileheader import FORMAT, SIZE_BYTES
from fastsmtp.queue.place import Place, Seal, decode_seal
from fastsmtp.queue.recovery import read_record, recover
from tests.fakes.files import Files
from tests.journaling import QUEUE, Desk, content_of, filled, run, simulated, store_in, with_format


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
    recovery = recover(files, store_in(QUEUE), ends={segment.header.epoch: (segment.end, segment.end)})
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
    assert found.keys() == set(places) - set(places[4:6])
    assert [(fault.is_damage, fault.reason) for fault in recovery.faults][:1] == [(True, "can't be read")]
    assert places[4].number in recovery.unreadable


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


def test_a_record_is_read_as_it_was_appended_or_is_damaged() -> None:
    async def body() -> None:
        desk = await Desk(simulated(), seals=(Seal(3, 4, 8192, 4096),)).start()
        segment = desk.journal.segment
        assert segment is not None
        name = desk.store.path(segment.number)
        fd = desk.files.open(name, os.O_RDONLY)
        futures = [desk.journal.append([b"%d" % turn, bytes(2000)]) for turn in range(3)]
        await desk.step()
        places = [future.result() for future in futures]
        for turn, place in enumerate(places):
            assert read_record(desk.files, fd, place, name) == b"%d" % turn + bytes(2000)
        content_of(desk.files, segment.number)[places[1].offset + 40] ^= 1
        with pytest.raises(errors.QueueDamaged):
            read_record(desk.files, fd, places[1], name)
        assert read_record(desk.files, fd, places[2], name) == b"2" + bytes(2000)
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
    assert decode_seal(Seal(1, 2, 3, 4).encode()) == Seal(1, 2, 3, 4)
    with pytest.raises(ValueError, match="32"):
        decode_seal(b"short")
    assert SEAL != MESSAGE
