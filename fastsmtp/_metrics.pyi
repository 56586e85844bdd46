"""Numbers of all processes in one shared mapping, made before the fork: what fastsmtp.metrics stands on.

Each process has a sheet that only it writes; a series is made when it is first
asked for, so configurations may come and go.  A key is a kind (b"c" counter, b"g" gauge,
b"h" histogram), the name, and the label values, each after a NUL.  The reader sums over
the sheets by key.  When a process has ended the master folds its sheet into its own, so totals
never go back; gauges are dropped then.
"""

from typing import Final, final

MOST: Final[int]  # series of one process

@final
class Board:
    """The mapping.  ValueError, IndexError: numbers out of range."""
    def __init__(self, sheets: int) -> None: ...
    @property
    def sheets(self) -> int: ...
    def sheet(self, number: int) -> Sheet:
        """A process's own, empty when no process before it was left unfolded; one view of a sheet at a time."""
    def fold(self, number: int, into: Sheet) -> None:
        """Move the counts of a sheet whose process is dead into another, and make it empty.  For the master."""
    def read(self) -> dict[bytes, int]:
        """The sum of all sheets, by key."""

@final
class Sheet:
    @property
    def lost(self) -> int:
        """Series that found no place: they are counted by nobody."""
    def cell(self, key: bytes) -> Cell: ...
    def spread(self, key: bytes, bounds: tuple[float, ...]) -> Spread:
        """A histogram: a cell for each bound (numbered from 0), one for more, one for the sum in microseconds."""

@final
class Cell:
    """One number.  Some 20 ns a call."""
    def inc(self) -> None: ...
    def dec(self) -> None: ...
    def add(self, amount: int) -> None: ...
    def set(self, value: int) -> None: ...
    def __int__(self) -> int: ...

@final
class Spread:
    def observe(self, seconds: float) -> None: ...
