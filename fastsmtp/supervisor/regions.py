"""Which region of the shared counters, and which sheet of the metrics, belongs to which process.

Workers take the lowest free ones, since every look-up of a client reads all
regions up to the highest that a worker ever had; what runs beside them counts no
clients, and takes the highest.
"""

from __future__ import annotations

from fastsmtp._counters import Counters, Region
from fastsmtp.metrics import Board
from fastsmtp.supervisor.meters import ProcessMeter


class Regions:
    """The regions of a mapping; an index is taken until it is given back.

    board    the metrics; the master's own sheet is the last
    meter    what is counted of the processes
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.board = Board(counters.workers + 1)
        self._sheet = self.board.sheet(counters.workers)
        self.meter = ProcessMeter(self._sheet)
        self._taken: set[int] = set()
        self._used = 1

    def free(self) -> int:
        """How many are."""
        return self._counters.workers - len(self._taken)

    def take(self) -> int | None:
        """One for a worker; None when there is none."""
        index = next((at for at in range(self._counters.workers) if at not in self._taken), None)
        if index is not None:
            self._taken.add(index)
            # Never fewer: what an ended worker knew of rates and passes still counts.
            self._used = max(self._used, index + 1)
            self._counters.use(self._used)
        return index

    def take_aside(self) -> int | None:
        """One for a process that counts no clients."""
        index = next((at for at in reversed(range(self._counters.workers)) if at not in self._taken), None)
        if index is not None:
            self._taken.add(index)
        return index

    def give_back(self, index: int, *, is_in_order: bool) -> None:
        """Its process is dead, and did or did not end in order; what it counted of clients is forgotten."""
        self._taken.discard(index)
        self.board.fold(index, self._sheet)
        if is_in_order:
            self._counters.release(index)
        else:
            self._counters.clear(index)

    def region(self, index: int) -> Region:
        return self._counters.region(index)

    def beat_s(self, index: int) -> float:
        return self._counters.beat_s(index)
