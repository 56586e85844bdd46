"""A program that is given a message through pipes: started, fed, waited for, in bounded time.

All here blocks, so it runs as a job of a Disk.  A program that hangs is killed
with all that it has started, and none is left behind as a zombie.  What a
program's exit status means is for qmail_queue.py and pipe.py.

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from fastsmtp._spawn import spawn
from fastsmtp.delivery.dot import LfDecoder

# Descriptors of ours are moved here before they are given: what the child gets is below.
_ABOVE = 10
# What is gathered for one write; a pipe takes as much at once (Linux).
_WRITE_BYTES = 65_536
# Of what a program says on the descriptors where it may; the rest is read and thrown away.
_SAID_BYTES = 1_024
# Without pidfd_open (Linux before 5.3, others than Linux) a child is looked at so often.
_LOOK_S = 0.02
# A killed child is gone at once, unless the kernel keeps it (a dead NFS server): nobody waits longer for it.
_KILLED_S = 2.0
_SIGKILL = 9  # POSIX; signal costs more to import than all else here


class Content(Protocol):
    """A body that can be read by blocking calls: queue.spool.Body, delivery.job.Stored."""

    @property
    def ends_with_crlf(self) -> bool: ...
    def blocking_pieces(self, system: Any) -> Iterator[bytes]: ...


class Command:
    """What is to be run.

    program      absolute path
    arguments    with argv[0]; no address is ever among them
    environment  the child's
    directory    where it starts, None: here
    inputs       (descriptor, its contents): written one after another, each closed before the next begins
    said         descriptors on which it may say something
    deadline_s   monotonic seconds
    """

    __slots__ = ("arguments", "deadline_s", "directory", "environment", "inputs", "program", "said")

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        inputs: Sequence[tuple[int, Iterable[bytes]]],
        *,
        deadline_s: float,
        directory: str | None = None,
        said: Sequence[int] = (),
    ) -> None:
        self.program = program
        self.arguments = arguments
        self.environment = environment
        self.inputs = inputs
        self.deadline_s = deadline_s
        self.directory = directory
        self.said = said


class Ending:
    """How a program ended.

    pid       its process id
    status    exit status, or -N for signal N; None: it was killed because its time was over
    is_fed    it took all of its input; without that even status 0 is no success
    said      the first bytes that it said
    """

    __slots__ = ("is_fed", "pid", "said", "status")

    def __init__(self, pid: int, status: int | None, said: bytes, *, is_fed: bool) -> None:
        self.pid = pid
        self.status = status
        self.said = said
        self.is_fed = is_fed


class NotStarted(Exception):
    """The program can't be run, now or at all; why says the OSError that is its cause."""


class Programs:
    """Runs programs.

    now   monotonic seconds
    """

    __slots__ = ("_lost", "_now")

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # Killed, and not gone yet; see _KILLED_S.
        self._lost: list[int] = []

    def run(self, system: Any, command: Command) -> Ending:
        """Blocks until the program has ended, at the deadline by force.

        Raises NotStarted, and whatever the inputs raise: then the program has found the end of that
        input and nothing on those behind it, and has ended.
        """
        self._reap_lost()
        child = _Child(system, command, self._now)
        try:
            is_fed = child.feed()
        except BaseException:
            child.close()
            self._end(child)
            raise
        return Ending(child.pid, self._end(child), bytes(child.heard), is_fed=is_fed)

    def _end(self, child: _Child) -> int | None:
        status = child.wait()
        if status is None:
            child.kill()
            if child.collect(self._now() + _KILLED_S) is None:
                self._lost.append(child.pid)
        child.forget()
        return status

    def _reap_lost(self) -> None:
        for pid in list(self._lost):
            with suppress(ChildProcessError):
                if not os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            with suppress(ValueError):
                # Another thread may have been quicker.
                self._lost.remove(pid)


class _Child:
    """A running program with our ends of its pipes."""

    __slots__ = (
        "_deadline_s", "_inputs", "_now", "_open", "_pidfd", "_said", "_system", "heard", "pid",
    )  # fmt: skip

    def __init__(self, system: Any, command: Command, now: Callable[[], float]) -> None:
        self._system = system
        self._now = now
        self._deadline_s = command.deadline_s
        self._open: set[int] = set()
        self._said = -1
        self._inputs: list[tuple[int, Iterable[bytes]]] = []
        self.heard = bytearray()
        try:
            self.pid = self._start(command)
        except OSError as error:
            self.close()
            raise NotStarted(error.strerror) from error
        except BaseException:
            self.close()
            raise
        self._pidfd = self._watch()

    def _start(self, command: Command) -> int:
        """Pipes, and the child with its ends of them."""
        given: list[tuple[int, int]] = []
        try:
            for descriptor, content in command.inputs:
                read, write = self._pipe()
                given.append((self._above(read), descriptor))
                os.set_blocking(write, False)
                self._inputs.append((write, content))
            if command.said:
                read, write = self._pipe()
                high = self._above(write)
                given += [(high, descriptor) for descriptor in command.said]
                os.set_blocking(read, False)
                self._said = read
            pid = spawn(
                os.fsencode(command.program),
                [os.fsencode(word) for word in command.arguments],
                [os.fsencode(f"{name}={value}") for name, value in command.environment.items()],
                given,
                None if command.directory is None else os.fsencode(command.directory),
            )
        finally:
            for descriptor in {own for own, _ in given}:
                self._close(descriptor)
        return pid

    def _pipe(self) -> tuple[int, int]:
        read, write = self._system.pipe()
        self._open |= {read, write}
        return read, write

    def _above(self, descriptor: int) -> int:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
        self._open.add(high)
        self._close(descriptor)
        return high

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.discard(descriptor)
            self._system.close(descriptor)

    def close(self) -> None:
        """Close all of our ends: the child finds the end of what it reads."""
        for descriptor in list(self._open):
            self._close(descriptor)

    def forget(self) -> None:
        self._hear()
        self.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _watch(self) -> int:
        """A descriptor that becomes readable when the child ends, or -1 where there is none."""
        try:
            return os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return -1

    # --- its input -------------------------------------------------------------------------------

    def feed(self) -> bool:
        """Write all inputs; False when the child has stopped reading, or its time is over."""
        for descriptor, content in self._inputs:
            for piece in _gathered(content):
                if not self._write(descriptor, piece):
                    return False
            self._close(descriptor)
        return True

    def _write(self, descriptor: int, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[self._system.write(descriptor, view) :]
            except BlockingIOError:
                if not self._wait_for(descriptor):
                    return False
            except BrokenPipeError:
                return False
        return True

    def _wait_for(self, descriptor: int) -> bool:
        """Until the pipe takes more; False when the child has ended, or its time is over."""
        while True:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            ready = self._poll(poll, self._deadline_s)
            if descriptor in ready:
                # Room, or nobody there to read: the write will say.
                return True
            if self._pidfd in ready or self._now() >= self._deadline_s:
                # A child of its own may still have the pipe open: it isn't whom we gave the message to.
                return False

    def _poll(self, poll: select.poll, deadline_s: float) -> dict[int, int]:
        """Wait for what is registered, for the child's end, and for what it says."""
        if self._said >= 0:
            poll.register(self._said, select.POLLIN)
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        left_s = max(deadline_s - self._now(), 0.0)
        if self._pidfd < 0:
            left_s = min(left_s, _LOOK_S)
        ready = dict(poll.poll(left_s * 1000.0 + 1.0))
        if self._said in ready:
            self._hear()
        return ready

    def _hear(self) -> None:
        while self._said >= 0:
            try:
                piece = os.read(self._said, _SAID_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EINTR:
                    piece = b""
                else:
                    continue
            if not piece:
                self._close(self._said)
                self._said = -1
                return
            self.heard += piece[: _SAID_BYTES - len(self.heard)]

    # --- its end ---------------------------------------------------------------------------------

    def wait(self) -> int | None:
        """Its status when it has ended; None at the deadline."""
        for descriptor, _ in self._inputs:
            self._close(descriptor)
        return self.collect(self._deadline_s)

    def collect(self, deadline_s: float) -> int | None:
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Somebody else in this process waits for all children; how it ended nobody will know.
                return -_SIGKILL
            if pid:
                return os.waitstatus_to_exitcode(status)
            if self._now() >= deadline_s:
                return None
            self._poll(select.poll(), deadline_s)

    def kill(self) -> None:
        """It and all that it has started, as far as that stayed in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, _SIGKILL)


def is_runnable(system: Any, program: str) -> bool:
    """Whether it is a file that we may run."""
    try:
        return stat.S_ISREG(system.stat(program).st_mode) and bool(system.access(program, os.X_OK))
    except FileNotFoundError:
        return False


def lines_lf(system: Any, prefix: bytes, body: Content, *, is_ended: bool = False) -> Iterator[bytes]:
    """Prefix and body with LF line ends; is_ended: a last line without its end gets one."""
    decoder = LfDecoder()
    yield prefix.replace(b"\r\n", b"\n")
    for piece in body.blocking_pieces(system):
        yield decoder.feed(piece)
    rest = decoder.finish()
    if is_ended and not body.ends_with_crlf:
        rest += b"\n"
    yield rest


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Small pieces in one write."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _WRITE_BYTES:
            yield b"".join(held)
            held.clear()
            size = 0
    if size:
        yield b"".join(held)
