"""What a journal holds after a stop of any kind: every record that is there, and every fault by place and kind.

Nothing that a file holds raises here, but a later format (errors.QueueTooNew):
what can't be read is copied to quarantine/, reported, and reading goes on.
docs/queue.md, "Start-up".  Blocking; the system comes first.  Rank 5.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastsmtp import errors
from fastsmtp._record import BLOCK, END, HEADER_BYTES, KEPT, MAX_PAYLOAD, SEAL, find, holds, scan
from fastsmtp.queue.fileheader import FileHeader, read_header
from fastsmtp.queue.place import Place, Seal, decode_seal
from fastsmtp.queue.store import Store, sync_directory, write_all

# Read at once; a record that is bigger gets a window of its own.
WINDOW_BYTES = 4_194_304
QUARANTINE = "quarantine"
# A segment's size, at most.
MAX_BYTES = 0xFFFF_FFFF
# The disk said so: another time it may say something else.
UNREADABLE = "can't be read"


class Fault(NamedTuple):
    """Bytes that are no valid record where one must be.

    is_damage    accepted mail was there; else a batch that a crash tore, of which nobody heard 250
    quarantine   the copy, "" when it couldn't be made
    """

    file: str
    offset: int
    size_bytes: int
    is_damage: bool
    reason: str
    quarantine: str


class Scanned:
    """One segment.

    end          where its records end; what is behind is void
    is_sealed    a later segment says so
    is_in_use    a living worker writes to it
    offsets, sizes   of its records (not seals), rising; of the payloads
    kept         offsets of records that only the deferred index names
    void         records behind the end
    """

    __slots__ = (
        "_gaps",
        "_proof",
        "end",
        "header",
        "is_in_use",
        "is_sealed",
        "kept",
        "offsets",
        "seals",
        "sizes",
        "void",
    )

    def __init__(self, header: FileHeader) -> None:
        self.header = header
        self.end = BLOCK
        self.is_sealed = False
        self.is_in_use = False
        self.offsets = array("I")
        self.sizes = array("I")
        self.seals: list[Seal] = []
        self.kept: set[int] = set()
        self.void = 0
        # (start, end, reason), and the latest batch that was seen: everything before it was synced.
        self._gaps: list[tuple[int, int, str]] = []
        self._proof = BLOCK

    def places(self) -> Iterator[Place]:
        number, epoch = self.header.number, self.header.epoch
        for offset, size in zip(self.offsets, self.sizes, strict=True):
            yield Place(number, epoch, offset, size)

    def cut(self, end: int, accepted: int) -> None:
        """What a seal says."""
        keep = bisect_left(self.offsets, end)
        self.void = len(self.offsets) - keep
        del self.offsets[keep:], self.sizes[keep:]
        if self.end < end:
            self._gaps.append((self.end, end, "records are missing"))
        self.end = end
        self.is_sealed = True
        self._proof = max(self._proof, accepted)

    def seal(self) -> Seal:
        """For one that has none yet."""
        return Seal(self.header.number, self.header.epoch, self.end, self._proof)

    def gaps(self) -> Iterator[tuple[int, int, bool, str]]:
        """(start, end, is_damage, reason) of what is no record."""
        for start, end, reason in self._gaps:
            if not self.is_sealed or start < self.end:
                yield start, end, start < self._proof, reason


class Recovery:
    """All segments of a store, rising, and what was wrong with them.

    seals   for the journal that comes next: of the segments that have none
    unreadable   numbers of segments with blocks that the disk didn't give: they are to stay as they are
    """

    __slots__ = ("faults", "seals", "segments", "unreadable")

    def __init__(self) -> None:
        self.segments: list[Scanned] = []
        self.faults: list[Fault] = []
        self.seals: list[Seal] = []
        self.unreadable: set[int] = set()

    def fault(self, store: Store, place: Place, reason: str) -> None:
        """A record that is whole, and yet makes no sense to who reads it."""
        size = HEADER_BYTES + place.size_bytes
        self.faults.append(Fault(store.path(place.number), place.offset, size, True, reason, ""))

    def messages(self, system: Any, store: Store) -> Iterator[tuple[Place, bytes]]:
        """Every record with its payload.  What was readable a moment ago and isn't now becomes a fault."""
        for segment in self.segments:
            name = store.path(segment.header.number)
            fd = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for place in segment.places():
                    try:
                        payload = read_record(system, fd, place, name)
                    except errors.QueueDamaged as error:
                        self.fault(store, place, str(error))
                    except errors.StorageFailed as error:
                        self.fault(store, place, str(error))
                        self.unreadable.add(place.number)
                    else:
                        yield place, payload
            finally:
                system.close(fd)


def recover(
    system: Any,
    store: Store,
    *,
    numbers: Sequence[int] | None = None,
    in_use: Mapping[int, int] | None = None,
    ends: Mapping[int, tuple[int, int]] | None = None,
    held: Callable[[int], bool] | None = None,
) -> Recovery:
    """Open the store and read everything in it.

    numbers  of an open store: the segments to read, and no others, which may be written to meanwhile
    in_use   epoch -> synced offset, of segments that living workers write to: read up to there, and not sealed
    ends     epoch -> (end, accepted), what the done-log remembers of seals
    held     whether a living worker has this open file to write to; such a segment is read up to its synced offset too

    Raises errors.QueueTooNew, and OSError where the directory itself can't be read.
    """
    in_use = in_use or {}
    found = Recovery()
    for number in store.open(system) if numbers is None else numbers:
        segment = _read_segment(system, store, number, in_use, found, held)
        if segment is not None:
            found.segments.append(segment)
    by_epoch = {segment.header.epoch: segment for segment in found.segments}
    for epoch, (end, accepted) in (ends or {}).items():
        if epoch in by_epoch:
            by_epoch[epoch].cut(end, accepted)
    for segment in found.segments:
        for seal in segment.seals:
            sealed = by_epoch.get(seal.epoch)
            if sealed is not None and not sealed.is_sealed:
                sealed.cut(seal.end, seal.accepted)
    for segment in found.segments:
        _close(system, store, segment, found)
    return found


def refuse_later(system: Any, store: Store, numbers: Sequence[int]) -> int:
    """Look at the headers of these segments; how many bytes they have.

    Raises errors.QueueTooNew; all else that is wrong is recover()'s.
    """
    total_bytes = 0
    for number in numbers:
        name = store.path(number)
        try:
            fd = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            total_bytes += system.fstat(fd).st_size
            read_header(system.pread(fd, BLOCK, 0), name, store.purpose, store.version)
        except (OSError, errors.QueueDamaged):
            continue
        finally:
            system.close(fd)
    return total_bytes


def _read_segment(
    system: Any,
    store: Store,
    number: int,
    in_use: Mapping[int, int],
    found: Recovery,
    held: Callable[[int], bool] | None = None,
) -> Scanned | None:
    name = store.path(number)
    fd = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = system.fstat(fd).st_size
        file = _File(system, fd)
        try:
            header = read_header(file.read(0, BLOCK), name, store.purpose, store.version)
            if header.number != number:
                raise errors.QueueDamaged(f"{name}: its header has the number {header.number:016x}")
        except errors.QueueDamaged as error:
            moved = _put_aside(system, store, name)
            found.faults.append(Fault(name, 0, size, True, str(error), moved))
            return None
        segment = Scanned(header)
        synced = in_use.get(header.epoch)
        if held is not None:
            synced = max(synced or 0, BLOCK) if held(fd) else None
        segment.is_in_use = synced is not None
        _scan(file, segment, size if synced is None else min(size, synced))
        return segment
    finally:
        system.close(fd)


def recover_one(system: Any, store: Store, number: int, end: tuple[int, int] | None = None) -> Recovery:
    """One segment whose writer has died; as recover() for a store with nothing else in it.

    end   (end, accepted), when a seal has been seen
    """
    found = Recovery()
    segment = _read_segment(system, store, number, {}, found)
    if segment is not None:
        found.segments.append(segment)
        if end is not None:
            segment.cut(*end)
        _close(system, store, segment, found)
    return found


def read_now(system: Any, store: Store, number: int, limit: int = MAX_BYTES) -> Recovery:
    """What stands in one segment at this moment, up to limit, with somebody perhaps writing to it.

    Nothing is moved, copied or synced, and what is no valid record is passed over.  Raises errors.QueueTooNew and
    errors.QueueDamaged for its header, OSError.
    """
    found = Recovery()
    name = store.path(number)
    fd = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        file = _File(system, fd)
        segment = Scanned(read_header(file.read(0, BLOCK), name, store.purpose, store.version))
        _scan(file, segment, min(limit, system.fstat(fd).st_size))
        found.segments.append(segment)
    finally:
        system.close(fd)
    return found


def _close(system: Any, store: Store, segment: Scanned, found: Recovery) -> None:
    """Report its faults; sync it and note its seal, unless it has one or somebody writes to it."""
    name = store.path(segment.header.number)
    for start, end, is_damage, reason in segment.gaps():
        copy = quarantine(system, store, name, start, end)
        found.faults.append(Fault(name, start, end - start, is_damage, reason, copy))
        if reason == UNREADABLE:
            found.unreadable.add(segment.header.number)
    if not segment.is_sealed and not segment.is_in_use:
        _sync(system, name, found)
        found.seals.append(segment.seal())


def _sync(system: Any, name: str, found: Recovery) -> None:
    """What a killed process wrote and didn't sync was just read: it must outlive the next power failure too."""
    try:
        fd = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            system.fsync(fd)
        finally:
            system.close(fd)
    except OSError as error:
        found.faults.append(Fault(name, 0, 0, False, f"can't be synced: {error}", ""))


class _File:
    """Reads that don't fail: what can't be read is zeros, block by block, and zeros are no record."""

    __slots__ = ("_bad", "_fd", "_system")

    def __init__(self, system: Any, fd: int) -> None:
        self._system = system
        self._fd = fd
        # Blocks, by their offsets.
        self._bad: set[int] = set()

    def is_bad(self, start: int, end: int) -> bool:
        """Whether a block between the two could not be read."""
        return any(start < block + BLOCK and block < end for block in self._bad)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """size_bytes from offset, fewer at the file's end."""
        try:
            return _pread(self._system, self._fd, offset, size_bytes)
        except OSError:
            pass  # which of its blocks, is seen one by one
        blocks = []
        at, end = offset, offset + size_bytes
        while at < end:
            # Up to where the next block begins: a bad one costs nothing of its neighbours.
            wanted = min(BLOCK - at % BLOCK, end - at)
            try:
                blocks.append(_pread(self._system, self._fd, at, wanted))
            except OSError:
                self._bad.add(at // BLOCK * BLOCK)
                blocks.append(bytes(wanted))
            at += wanted
        return b"".join(blocks)


def _pread(system: Any, fd: int, offset: int, size_bytes: int) -> bytes:
    pieces = []
    while size_bytes:
        piece: bytes = system.pread(fd, size_bytes, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        size_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _scan(file: _File, segment: Scanned, limit: int) -> None:
    """Records and gaps of a segment up to limit."""
    epoch = segment.header.epoch
    at, at_batch, window, base = BLOCK, True, b"", 0
    while at + HEADER_BYTES <= limit:
        if not base <= at <= base + len(window) - HEADER_BYTES:
            window, base = file.read(at, min(WINDOW_BYTES, limit - at)), at
        records, at, at_batch, wanted = scan(window, base=base, epoch=epoch, start=at, at_batch=at_batch)
        _keep(segment, window, base, records)
        if records:
            segment.end = max(segment.end, _block_up(at))
        if wanted and at + wanted <= limit:
            window, base = file.read(at, min(max(wanted, WINDOW_BYTES), limit - at)), at
            if len(window) >= wanted:
                continue
        elif wanted == HEADER_BYTES:
            break
        following = _search(file, segment, at, limit)
        if following < 0:
            _note_tail(file, segment, at, at_batch, limit)
            return
        segment._gaps.append((at, following, _reason(file, at, following)))
        at, at_batch = following, False


def _keep(segment: Scanned, window: bytes, base: int, records: list[tuple[int, int, int, int]]) -> None:
    for kind, offset, size_bytes, batch in records:
        segment._proof = max(segment._proof, batch)
        if kind == SEAL:
            start = offset + HEADER_BYTES - base
            segment.seals.append(decode_seal(window[start : start + size_bytes]))
        elif kind != END:
            segment.offsets.append(offset)
            segment.sizes.append(size_bytes)
            if kind == KEPT:
                segment.kept.add(offset)


def _search(file: _File, segment: Scanned, after: int, limit: int) -> int:
    """Offset of the next valid record behind one that is none, -1 if there is no more."""
    epoch = segment.header.epoch
    at = after + 8
    while at + HEADER_BYTES <= limit:
        window = file.read(at, min(WINDOW_BYTES, limit - at))
        candidate, base = at, at
        while (candidate := find(window, base=base, epoch=epoch, start=candidate)) >= 0:
            piece, start = window, base
            records, _, _, wanted = scan(piece, base=start, epoch=epoch, start=candidate, at_batch=False)
            if not records and wanted and candidate + wanted <= limit:
                piece, start = file.read(candidate, wanted), candidate
                records, *_ = scan(piece, base=start, epoch=epoch, start=candidate, at_batch=False)
            if records:
                return candidate
            candidate += 8
        # A header may lie across the window's end.
        at = base + max(len(window) - HEADER_BYTES + 8 & ~7, 8)
    return -1


def _note_tail(file: _File, segment: Scanned, at: int, at_batch: bool, limit: int) -> None:
    """Behind the last record: nothing, or the beginning of one that isn't whole."""
    epoch = segment.header.epoch
    head = file.read(at, min(HEADER_BYTES, limit - at))
    is_begun = find(head, base=at, epoch=epoch, start=at) == at
    if at_batch and not is_begun:
        if file.is_bad(at, limit):
            segment._gaps.append((at, limit, UNREADABLE))
        return
    size = HEADER_BYTES
    if is_begun:
        size += min(int.from_bytes(head[4:8], "little"), MAX_PAYLOAD)
    end = min(_block_up(at + size), limit)
    segment._gaps.append((at, end, _reason(file, at, end)))
    segment.end = max(segment.end, end)


def _reason(file: _File, start: int, end: int) -> str:
    return UNREADABLE if file.is_bad(start, end) else "no valid record"


def _block_up(offset: int) -> int:
    return (offset + BLOCK - 1) // BLOCK * BLOCK


def read_record(system: Any, fd: int, place: Place, name: str) -> bytes:
    """The payload of one record; raises errors.QueueDamaged when it isn't there as a whole.

    Raises errors.StorageFailed when the disk doesn't give it: that is no word about what is there.
    """
    return read_whole(system, fd, place, name)[HEADER_BYTES:]


def read_whole(system: Any, fd: int, place: Place, name: str) -> bytes:
    """The same with its header."""
    file = _File(system, fd)
    data = file.read(place.offset, HEADER_BYTES + place.size_bytes)
    if len(data) != HEADER_BYTES + place.size_bytes or not holds(data, place.epoch, place.offset):
        if file.is_bad(place.offset, place.offset + len(data)):
            raise errors.StorageFailed(f"{name}: {UNREADABLE} at {place.offset}")
        raise errors.QueueDamaged(f"{name}: no valid record at {place.offset}")
    return data


def quarantine(system: Any, store: Store, name: str, start: int, end: int) -> str:
    """Copy bytes of a segment to a file of their own; its name, "" when that fails: the report says so."""
    copy = f"{store.directory}/{QUARANTINE}/{os.path.basename(name)}-{start:08x}"
    try:
        source = system.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = _File(system, source).read(start, end - start)
        finally:
            system.close(source)
        make_quarantine(system, store)
        try:
            fd = system.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            # From the start before this one.
            return copy
        try:
            write_all(system, fd, data, 0)
            system.fsync(fd)
        finally:
            system.close(fd)
    except OSError:
        return ""
    return copy


def _put_aside(system: Any, store: Store, name: str) -> str:
    """Move a whole file into quarantine/; its new name, "" when that fails."""
    moved = f"{store.directory}/{QUARANTINE}/{os.path.basename(name)}"
    try:
        make_quarantine(system, store)
        system.rename(name, moved)
        sync_directory(system, store.directory)
    except OSError:
        return ""
    return moved


def make_quarantine(system: Any, store: Store) -> None:
    """Its directory is there; raises OSError."""
    try:
        system.mkdir(f"{store.directory}/{QUARANTINE}", 0o700)
    except FileExistsError:
        return
