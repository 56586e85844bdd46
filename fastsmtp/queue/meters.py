"""What is counted of a journal, by the process that writes it.

Records and bytes are added once for all that one sync brought; how long that took comes from the
native thread's own clock.  Rank 5.
"""

from __future__ import annotations

from fastsmtp import errors
from fastsmtp.metrics import Counter, Histogram, Sheet

RECORDS = Counter(
    "fastsmtp_queue_records_total",
    "Records that were written and synced: messages (mail), what became of them (done), our own reports and "
    "copies (own)",
    "journal",
)
BYTES = Counter("fastsmtp_queue_record_bytes_total", "Bytes of their payloads", "journal")
SYNCS = Histogram(
    "fastsmtp_queue_sync_seconds",
    "How long a batch of records took to be written and synced; records divided by its count are those that "
    "shared a sync",
    "journal",
)
REFUSED = Counter(
    "fastsmtp_queue_refused_total",
    "Messages and records that were not taken: full (below queue.free_bytes, or the disk is), failed (any other "
    "error of the disk)",
    "journal",
    "reason",
)

MAIL, DONE, OWN = "mail", "done", "own"


class JournalMeter:
    """The cells of one journal: MAIL, DONE or OWN."""

    __slots__ = ("_failed", "_full", "bytes", "records", "syncs")

    def __init__(self, sheet: Sheet, journal: str) -> None:
        self.records = RECORDS.of(sheet, journal)
        self.bytes = BYTES.of(sheet, journal)
        self.syncs = SYNCS.of(sheet, journal)
        self._full = REFUSED.of(sheet, journal, "full")
        self._failed = REFUSED.of(sheet, journal, "failed")

    def synced(self, records: int, size_bytes: int) -> None:
        self.records.add(records)
        self.bytes.add(size_bytes)

    def full(self) -> None:
        self._full.inc()

    def refused(self, error: errors.TemporaryError, records: int = 1) -> None:
        (self._full if isinstance(error, errors.StorageFull) else self._failed).add(records)
