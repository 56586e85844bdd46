"""The native thread that writes and syncs a journal.  docs/queue.md has the format.

Descriptors come in; nothing here opens a file.  Make a Writer after the fork only.  All calls come from one thread,
the loop's.  Offsets, sizes and lengths are bytes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, final

Cookie = TypeVar("Cookie")

def answer_soon() -> None:
    """For the thread of a loop whose clients wait for syncs: it is to run soon after it was woken up.

    Asks the kernel for short slices; where that can't be had, nothing.
    """

@final
class Progress:
    """How far each worker's journal is synced: anonymous shared memory, made before the fork.

    Each region is written by its worker, and by the owner of the queue where that asks.

    Raises IndexError for a worker that isn't there.
    """
    workers: int
    def __init__(self, workers: int) -> None: ...
    def read(self, worker: int) -> tuple[int, int, int]:
        """(number, epoch, synced offset) of the segment in use as they stood at one moment; zeros: none yet."""
    def clear(self, worker: int) -> None:
        """Forget a worker that died, when all that it had synced has been read."""
    def ask(self, worker: int) -> None:
        """The reader is going to sleep: the worker shall tell it of its next sync.  read() once more after this."""
    def is_asked(self, worker: int) -> bool:
        """Whether somebody asked since the last call; the worker calls it after each sync."""
    is_low: bool
    """Below the low-water mark, as the owner of the queue says: no mail is taken."""

@final
class Writer(Generic[Cookie]):
    """Appends records to a segment, many with one sync.  Cookies are the caller's, and come back from reap().

    progress, worker   where the synced offset is published
    system             what does pwritev and fdatasync, as os has them; None: the kernel, without the GIL
    is_threaded        without: nothing happens but in step()

    It begins without a segment, and stops at a failed write or sync; use() makes it go on.
    """
    is_threaded: bool
    is_closed: bool
    timed: Callable[[float], object] | None
    """Called in reap() with the seconds that each batch took to be written and synced.  It must not raise."""
    def __init__(self, *, progress: Progress | None = None, worker: int = 0, system: Any = None, is_threaded: bool = True) -> None: ...
    def use(self, fd: int, *, number: int, epoch: int, size: int, offset: int = 4096) -> None:
        """Go on in this segment.  The descriptor stays the caller's, and open until the next use() or close().

        Raises RuntimeError unless is_stopped, ValueError when what waits has no room there.
        """
    def pause(self) -> None:
        """Stop, as after a failure, so that what is appended now goes into the next segment; RuntimeError unless idle."""
    def append(self, pieces: Sequence[bytes], cookie: Cookie, *, kind: int = 1, body_fd: int = -1) -> bool:
        """Put one record into the next batch; its payload is the pieces, which are not copied.  False: no room.

        body_fd is duplicated, and synced before the record is written.
        Raises ValueError for a payload over MAX_PAYLOAD, OSError when there is no descriptor left.
        """
    @property
    def has_news(self) -> bool:
        """Whether reap() would give something: a look at memory, no more."""
    def reap(self) -> list[tuple[Cookie, int, int, int]]:
        """What is over: (cookie, errno or 0, offset, length of the payload).  Call it when fileno() is readable."""
    def withdraw(self) -> list[Cookie]:
        """Take back what was appended and waits, after a failure; RuntimeError when it is going to be written."""
    def step(self) -> bool:
        """Without a thread: write one batch here and now; False when there is none."""
    def close(self) -> None:
        """Write what waits, end the thread.  Blocks as long as that takes; reap() afterwards."""
    def duplicate(self, fd: int) -> int:
        """A descriptor of our own for a body whose record can't be appended yet; raises OSError."""
    def close_duplicate(self, fd: int) -> None:
        """Close it; -1 is none."""
    def fileno(self) -> int: ...
    @property
    def is_idle(self) -> bool:
        """Nothing waits to be written (after a failure: nothing is under way)."""
    @property
    def is_stopped(self) -> bool:
        """There is no segment, or it had a failure."""
    @property
    def end(self) -> int:
        """Synced up to here, in the segment in use."""
    @property
    def batches(self) -> int:
        """Written and synced so far."""
