"""Counters that all workers see: one shared mapping, made before the fork.

Each worker owns a region that only it writes; a reader sums over the regions
(no lock, no atomic read-modify-write).  A region is a header (connections in
all, heartbeat, overflows) and a fixed hash table client -> counts.  The
master clears the region of a worker that died.  A client that finds no place
in the table is not counted (it is never refused for that) and `overflows` rises.
A slot is given to another client when it has no connection, no event in this
minute or the last, and no valid pass; failing that, the pass that ends first goes.

The client key is 16 bytes: IPv4 as ::ffff:a.b.c.d, IPv6 cut to its /64.
Rates are sliding over a minute: the last full minute weighed, plus this one.
Time comes in: now_s is seconds on the monotonic clock, the same for all workers.
"""

from typing import Final, final

CONNECTIONS: Final[int]  # 0, the numbers of fastsmtp.policy.decision.Token
MESSAGES: Final[int]  # 1
RECIPIENTS: Final[int]  # 2
HANDSHAKES: Final[int]  # 3

@final
class Counters:
    """The mapping.  workers regions of slots (rounded up to a power of two) clients each; anonymous MAP_SHARED memory.

    Raises ValueError for numbers out of range, IndexError for a region that isn't there.  A region costs memory
    from its first use on, so more may be made than there are workers: a reload needs them.
    """
    def __init__(self, workers: int, slots: int = 32_768) -> None: ...
    @property
    def workers(self) -> int: ...
    def region(self, worker: int) -> Region:
        """The view of one worker: it writes region `worker`, and reads all."""
    def use(self, workers: int) -> None:
        """From now on readers look at the regions 0 to workers - 1 only (at first: all).  For the master."""
    def clear(self, worker: int) -> None:
        """Forget everything that a worker wrote; it must be dead."""
    def release(self, worker: int) -> None:
        """Forget the connections and the beat of a worker that ended in order; rates and passes stay."""
    def beat_s(self, worker: int) -> float:
        """When this worker last called Region.beat, 0.0 if never."""
    def connections(self) -> int: ...

@final
class Region:
    @property
    def overflows(self) -> int: ...
    def beat(self, now_s: float) -> None: ...
    def connect(self, client: bytes, now_s: float) -> int:
        """Count a connection of this client and in all; returns the client's open connections, all workers together."""
    def disconnect(self, client: bytes) -> None: ...
    def connect_uncounted(self) -> None:
        """A connection that counts in all only (relay clients)."""
    def disconnect_uncounted(self) -> None: ...
    def connections(self) -> int:
        """Open connections in all, all workers together."""
    def client_connections(self, client: bytes) -> int: ...
    def take(self, client: bytes, token: int, now_s: float, amount: int = 1) -> None:
        """Count amount events of this kind in the current minute."""
    def rate(self, client: bytes, token: int, now_s: float) -> int:
        """Events of this kind in the last minute, all workers together."""
    def grant_pass(self, client: bytes, until_s: float) -> None: ...
    def has_pass(self, client: bytes, now_s: float) -> bool: ...
