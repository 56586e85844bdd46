"""Metrics: declared where they are counted, added up over all processes, shown by admin/exposition.py.

    REFUSED = Counter("fastsmtp_connections_refused_total", "Connections ...", "listener", "stage")

    cell = REFUSED.of(sheet, listener, stage)      # once, when the label values are known
    cell.inc()                                     # some 20 ns

A declaration is a constant of the module that counts; admin/catalogue.py has the list of those modules, and
docs/metrics.md is made from them.  A sheet (_metrics.pyi) is the process's own part of a shared mapping;
a component gets one as it gets its log.  What has a count of its own already (the DNS engine,
the log) is set() into its cell now and then.

Names follow Prometheus: fastsmtp_, what is counted, the unit, _total for counters.  Label values come from the
configuration or from closed sets of ours, never from a peer: every value is a series for ever.

Rank 0.
"""

from __future__ import annotations

from fastsmtp._metrics import Board, Cell, Sheet, Spread
from fastsmtp.typed import ClassVar

__all__ = ["LATENCIES_S", "Board", "Cell", "Counter", "Declared", "Gauge", "Histogram", "Sheet", "Spread"]

LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of buckets in seconds: from a cached answer to the longest reasonable wait."""


class Declared:
    """What is counted.

    name    as it is shown
    text    one sentence for the operator
    labels  names of the labels
    """

    __slots__ = ("labels", "name", "text")
    kind: ClassVar[str]

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.text = text
        self.labels = labels

    def key(self, values: tuple[str, ...]) -> bytes:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {values}")
        # A key is bounded by 4 kB; nobody reads a label of more than 200 characters.
        return "\0".join(
            [self.kind[0] + self.name, *(value.replace("\0", "")[:200] for value in values)]
        ).encode()


class Counter(Declared):
    """A number that only grows; its name ends in _total.  Those in seconds are kept in microseconds."""

    __slots__ = ()
    kind = "counter"

    def of(self, sheet: Sheet, *values: str) -> Cell:
        return sheet.cell(self.key(values))


class Gauge(Declared):
    """A number that comes and goes; the sum over the processes that live.  Seconds are kept in microseconds."""

    __slots__ = ()
    kind = "gauge"

    def of(self, sheet: Sheet, *values: str) -> Cell:
        return sheet.cell(self.key(values))


class Histogram(Declared):
    """How long something took, in seconds: how many up to each of its bounds, and the sum."""

    __slots__ = ("bounds_s",)
    kind = "histogram"

    def __init__(self, name: str, text: str, *labels: str, bounds_s: tuple[float, ...] = LATENCIES_S) -> None:
        super().__init__(name, text, *labels)
        self.bounds_s = bounds_s

    def of(self, sheet: Sheet, *values: str) -> Spread:
        return sheet.spread(self.key(values), self.bounds_s)
