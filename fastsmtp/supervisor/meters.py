"""What the master counts of its processes.

Rank 9.
"""

from __future__ import annotations

from fastsmtp.metrics import Counter, Gauge, Sheet

PROCESSES = Gauge(
    "fastsmtp_processes", "Processes that live: worker, or the name of one beside them", "process"
)
STARTS = Counter("fastsmtp_process_starts_total", "Processes that were started", "process")
EXITS = Counter(
    "fastsmtp_process_exits_total",
    "Processes that ended: asked (told to, and in order) or died",
    "process",
    "how",
)
STALLED = Counter(
    "fastsmtp_process_stalled_total", "Processes that gave no sign of life and were killed", "process"
)
RELOADS = Counter("fastsmtp_reloads_total", "Configurations that came into force, or were refused", "outcome")

ERRANDS = Counter(
    "fastsmtp_lspawn_errands_total",
    "What was asked of lspawn: begun (a process was forked, for this message and those that follow), refused; "
    "failed: that process died",
    "outcome",
)
DELIVERING = Gauge(
    "fastsmtp_lspawn_children", "Processes that deliver as another account, or wait for more of its mail"
)

WORKER = "worker"


class ErrandMeter:
    """The cells of lspawn."""

    def __init__(self, sheet: Sheet) -> None:
        self.begun = ERRANDS.of(sheet, "begun")
        self.refused = ERRANDS.of(sheet, "refused")
        self.failed = ERRANDS.of(sheet, "failed")
        self.children = DELIVERING.of(sheet)


class ProcessMeter:
    """The cells; a process is WORKER or an aside's name."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self.reloads = RELOADS.of(sheet, "accepted")
        self.reloads_refused = RELOADS.of(sheet, "refused")

    def started(self, process: str) -> None:
        STARTS.of(self._sheet, process).inc()
        PROCESSES.of(self._sheet, process).inc()

    def ended(self, process: str, *, is_in_order: bool) -> None:
        EXITS.of(self._sheet, process, "asked" if is_in_order else "died").inc()
        PROCESSES.of(self._sheet, process).dec()

    def stalled(self, process: str) -> None:
        STALLED.of(self._sheet, process).inc()
