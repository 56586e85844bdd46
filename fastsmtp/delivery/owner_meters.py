"""What the queue's owner shows of it: numbers that its parts keep, copied twice a second, and what the index says.

The index is counted by its own thread, which must do other things too: 50 ms for a million rows, and the
next time after 200 times as long, five seconds at least.

Rank 6.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from fastsmtp import errors
from fastsmtp.metrics import Counter, Gauge, Sheet

if TYPE_CHECKING:
    from fastsmtp.delivery.owner import Owner
    from fastsmtp.queue.index import Numbers

LOOK_S = 5.0
SHARE = 200

ARRIVED = Counter(
    "fastsmtp_queue_messages_total", "Messages that came into the queue, our reports among them"
)
PENDING = Gauge(
    "fastsmtp_queue_pending",
    "What the dispatcher has in memory: jobs that wait for a delivery process, recipients that one has, "
    "recipients that are on their way into the index or to a report (settling)",
    "state",
)
INDEXED = Gauge(
    "fastsmtp_queue_indexed",
    "Recipients in the index: deferred, held, and those of the deferred whose time has come (due)",
    "state",
)
OLDEST = Gauge(
    "fastsmtp_queue_oldest_seconds", "Age of the oldest message among those that are in the index for longest"
)
SEGMENTS = Gauge(
    "fastsmtp_queue_segments",
    "Segments of the journal: written (somebody writes to it), needed (full, and not all of it is over), free",
    "state",
)
STILL = Gauge(
    "fastsmtp_queue_segments_still",
    "Segments of which only recipients in the index are left, compacted when they are a quarter of it or less",
)
COMPACTED = Counter("fastsmtp_queue_compacted_total", "Records that were copied so that their segment goes")
DISK = Gauge("fastsmtp_queue_bytes", "Bytes on disk: segments, free segments, index", "what")
FREE = Gauge("fastsmtp_queue_disk_free_bytes", "Bytes that the file system of the queue has left")
LOW = Gauge("fastsmtp_queue_disk_low", "1 while no mail is taken because less than queue.free_bytes is left")
BODIES = Gauge("fastsmtp_queue_body_files", "Files of bodies, those that workers have ready among them")
BEHIND = Gauge("fastsmtp_queue_done_behind", "Entries of the done-log that are not synced yet")
REPORTS = Counter("fastsmtp_queue_reports_total", "Reports that were sent (RFC 3464), by action", "action")
STRANDED = Counter(
    "fastsmtp_queue_stranded_total", "Recipients that were found to be nobody's: a defect of ours"
)
STARTED = Gauge("fastsmtp_queue_start_seconds", "How long the last start took to read the queue")
READING = Gauge(
    "fastsmtp_queue_reading", "1 while mail is taken and the queue of an earlier life is still being read"
)
COMMANDS = Counter("fastsmtp_queue_commands_total", "What operators asked of the queue", "command")

_MICROSECONDS = 1_000_000


class OwnerMeter:
    """Copies an owner's numbers to a sheet.

    commands   of the admin server: command -> how often
    """

    def __init__(self, sheet: Sheet, owner: Owner, commands: dict[str, int]) -> None:
        self._sheet = sheet
        self._owner = owner
        self._commands = commands
        self._arrived = ARRIVED.of(sheet)
        self._pending = [PENDING.of(sheet, state) for state in ("jobs", "sent", "settling")]
        self._indexed = [INDEXED.of(sheet, state) for state in ("deferred", "held", "due")]
        self._oldest = OLDEST.of(sheet)
        self._segments = [SEGMENTS.of(sheet, state) for state in ("written", "needed", "free")]
        self._disk = [DISK.of(sheet, what) for what in ("segments", "free", "index")]
        self._still, self._compacted = STILL.of(sheet), COMPACTED.of(sheet)
        self._free, self._low, self._bodies = FREE.of(sheet), LOW.of(sheet), BODIES.of(sheet)
        self._behind, self._stranded, self._started = BEHIND.of(sheet), STRANDED.of(sheet), STARTED.of(sheet)
        self._reading = READING.of(sheet)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def publish(self) -> None:
        owner = self._owner
        dispatcher = owner.dispatcher
        self._arrived.set(dispatcher.arrivals)
        for cell, value in zip(
            self._pending, (dispatcher.sites.waiting, dispatcher.sent, owner.afterwards.waiting), strict=True
        ):
            cell.set(value)
        self._publish_disk()
        self._behind.set(owner.log.added - owner.log.written)
        self._still.set(owner.compactor.still)
        self._compacted.set(owner.compactor.copied)
        self._stranded.set(owner.rounds.stranded)
        self._reading.set(not owner.desk.is_open)
        self._started.set(round(owner.took_s * _MICROSECONDS))
        for action, count in owner.afterwards.reported.items():
            REPORTS.of(self._sheet, action).set(count)
        for command, count in self._commands.items():
            COMMANDS.of(self._sheet, command).set(count)

    def _publish_disk(self) -> None:
        owner = self._owner
        segments = owner.keeper.segments.values()
        written = sum(kept.end is None for kept in segments)
        free = owner.store.free
        for cell, value in zip(self._segments, (written, len(segments) - written, free), strict=True):
            cell.set(value)
        try:
            index_bytes = os.stat(owner.index.file.path).st_size
        except OSError:
            index_bytes = 0
        sizes = sum(kept.size_bytes for kept in segments), free * owner.store.size_bytes, index_bytes
        for cell, value in zip(self._disk, sizes, strict=True):
            cell.set(value)
        self._free.set(owner.space.left_bytes)
        self._low.set(owner.space.is_low)
        self._bodies.set(owner.bodies.files)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        index = self._owner.index
        await self._owner.known()
        while True:
            began = loop.time()
            now_ms = self._owner.now_ms()
            try:
                found = await index.call(index.file.numbers, now_ms)
            except (errors.TemporaryError, errors.QueueDamaged):
                # Whoever works with the index says what is wrong with it; the numbers stay as they were.
                pass
            else:
                self._take(found, now_ms)
            await asyncio.sleep(max(LOOK_S, SHARE * (loop.time() - began)))

    def _take(self, found: Numbers, now_ms: int) -> None:
        for cell, value in zip(self._indexed, (found.deferred, found.held, found.due), strict=True):
            cell.set(value)
        self._oldest.set(0 if found.oldest_ms is None else max(now_ms - found.oldest_ms, 0) * 1_000)
