"""What a child does first, and the short-lived child that tries something out for the master.

A child inherits everything: listeners of its siblings (a copy that nobody
accepts from would be a black hole), the master's ends of all lines, its signal
handlers and the pipe that they write to.  So: signals are blocked around the
fork, and the child closes and resets before it does anything else.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NoReturn

from fastsmtp.errors import ConfigError

HANDLED: Final = frozenset({
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD,
})  # fmt: skip

OK: Final = b"ok"


def fork(keep: Iterable[int], body: Callable[[], int]) -> int:
    """Fork; the child closes every descriptor but 0, 1, 2 and keep, runs body and exits with its result.

    Returns the child's pid to the parent.  The child never returns, whatever body does.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk, or nobody reads any more
            stream.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _live(keep, body)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(keep: Iterable[int], body: Callable[[], int]) -> NoReturn:
    status = 70  # EX_SOFTWARE of sysexits.h
    try:
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        # Ctrl-C and a hang-up of the terminal go to the whole group; the master decides what they mean.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        close_all_but({0, 1, 2, *keep})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        status = body()
    except BaseException:  # noqa: BLE001 - the child must not return into the master's code
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            status = status or 70
        os._exit(status)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in keep."""
    start = 0
    for fd in sorted(keep):
        # An empty range must not reach it: CPython 3.11 makes "all of them" of (0, 0).
        if start < fd:
            os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1 << 30)


class Trial:
    """A child that tries something out, so that whatever goes wrong there changes nothing here.

    The master polls `fd` and calls `read` until it gives the verdict.
    """

    def __init__(self, keep: Iterable[int], attempt: Callable[[], None], deadline_s: float) -> None:
        """attempt raises ConfigError or OSError if it doesn't work out."""
        self.fd, tell = os.pipe()
        os.set_blocking(self.fd, False)
        self.deadline_s = deadline_s
        self._heard = b""

        def body() -> int:
            try:
                attempt()
                verdict = OK
            except (ConfigError, OSError) as error:
                verdict = str(error).encode() or b"failed"
            left = memoryview(verdict)
            while left:
                left = left[os.write(tell, left) :]
            return 0

        try:
            self.pid = fork([*keep, tell], body)
        finally:
            os.close(tell)

    def read(self) -> str | None:
        """ "" when all is well, the faults otherwise, None while it isn't known."""
        while True:
            try:
                piece = os.read(self.fd, 65_536)
            except BlockingIOError:
                return None
            if not piece:
                break
            self._heard += piece
        if self._heard == OK:
            return ""
        return self._heard.decode("utf-8", "replace") or "the check died; its traceback is on stderr"

    def close(self) -> None:
        os.close(self.fd)
