"""The one seam through which bodies and Maildirs reach the file system.

A blocking job is a function `job(system, *arguments)`; `system` is the os
module, or in tests something that fails at the nth call.  A daemon runs jobs
in a few threads, so that no blocking call stands on the loop; a library runs
them where it is, and needs no thread.

Rank 5: may import ranks 0 to 4; imports only errors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from fastsmtp import errors

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")

# A few, so that the syncs of several messages meet in one journal commit of the file system.
DISK_THREADS = 4

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Disk(Protocol):
    """Runs blocking jobs.  An OSError of a job comes out as errors.StorageFull or errors.StorageFailed."""

    def run(
        self, job: Callable[Concatenate[Any, P], T], *arguments: P.args, **named: P.kwargs
    ) -> T | Awaitable[T]:
        """The job's value, at once or to be awaited.  Cancelling that doesn't stop a job that runs."""

    def forget(self, job: Callable[Concatenate[Any, P], object], *args: P.args, **named: P.kwargs) -> None:
        """Run a job that nobody waits for, such as closing a file; never raises, never waits."""

    def close(self) -> None:
        """Wait for the jobs that run, and give the threads back."""


class InlineDisk:
    """Jobs run where they are called."""

    __slots__ = ("system",)

    def __init__(self, system: Any = os) -> None:
        self.system = system

    def run(self, job: Callable[Concatenate[Any, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        return _translated(job, self.system, *arguments, **named)

    def forget(self, job: Callable[Concatenate[Any, P], object], *args: P.args, **named: P.kwargs) -> None:
        _quietly(job, self.system, *args, **named)

    def close(self) -> None:
        return None


class ThreadDisk:
    """Jobs run in DISK_THREADS threads, which are made with the first job: never before a fork."""

    __slots__ = ("_executor", "_threads", "system")

    def __init__(self, system: Any = os, threads: int = DISK_THREADS) -> None:
        self.system = system
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None

    def _pool(self) -> ThreadPoolExecutor:
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="fastsmtp-disk")
        return self._executor

    def run(
        self, job: Callable[Concatenate[Any, P], T], *arguments: P.args, **named: P.kwargs
    ) -> Awaitable[T]:
        """The job is on its way when this returns, awaited or not."""
        import asyncio

        future = self._pool().submit(_translated, job, self.system, *arguments, **named)
        return asyncio.wrap_future(future)

    def forget(self, job: Callable[Concatenate[Any, P], object], *args: P.args, **named: P.kwargs) -> None:
        try:
            self._pool().submit(_quietly, job, self.system, *args, **named)
        except RuntimeError:
            # Closed already: the process ends, or the sink was closed before its transactions.
            _quietly(job, self.system, *args, **named)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True)


def storage_error(error: OSError) -> errors.TemporaryError:
    """The error of ours for what the file system said; its text is for the log, never for a peer."""
    text = errors.system_words(error)
    if isinstance(error.filename, str | bytes):
        text = f"{os.fsdecode(error.filename)}: {text}"
    return errors.StorageFull(text) if error.errno in _FULL else errors.StorageFailed(text)


def _translated(
    job: Callable[Concatenate[Any, P], T], system: Any, /, *arguments: P.args, **named: P.kwargs
) -> T:
    try:
        return job(system, *arguments, **named)
    except OSError as error:
        raise storage_error(error) from error


def _quietly(job: Callable[..., object], /, *arguments: Any, **named: Any) -> None:
    try:
        job(*arguments, **named)
    except OSError:
        # Nobody waits for this job, and what it releases is released: a failed close() leaves no descriptor.
        return
