"""Where log lines go: stderr, a file, syslog.  None of them ever waits for its reader.

send() takes lines off the left of a deque, as many as the destination takes
now, and gives back how many bytes that were.  What fails stays in the deque:
the writer bounds it and counts what it has to drop.

Rank 0: imports only its own rank.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from fastsmtp.errors import ConfigError
from fastsmtp.events import EVENTS, INFO

# Only a socket needs it; `fastsmtp smtpd` starts for each connection, and mostly writes to a pipe.
if TYPE_CHECKING:
    import socket

MAX_WRITE = 65_536  # bytes of one write to a file or a socket; a pipe takes PIPE_BUF
SYSLOG_SOCKET = "/dev/log"
FACILITY_MAIL = 2  # RFC 5424 section 6.2.1
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Destination(Protocol):
    """See the module's text."""

    def frame(self, when: float, event: str, line: bytes) -> bytes:
        """The line as this destination wants it, with its end or its header."""

    def send(self, lines: deque[bytes]) -> int: ...
    def reopen(self) -> None: ...
    def close(self) -> None: ...

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a forked child that uses this destination must not close."""


def open_destination(to: str) -> Destination:
    """The destination of log.to: "stderr", "syslog", or the path of a file.

    Open it before privileges are dropped and before the fork.  Raises ConfigError.
    """
    if to == "stderr":
        return Stream(2)
    if to == "syslog":
        return Syslog()
    return File(to)


def _send(lines: deque[bytes], limit: int, write: Callable[[bytes], int]) -> int:
    """Write in blocks of at most limit until all is gone, or no more is taken; how many octets."""
    sent = 0
    while lines:
        try:
            written = write(_block(lines, limit))
        except OSError:  # full, or the reader is gone: keep, and try again at the next flush
            break
        if not written:
            break
        _take(lines, written)
        sent += written
    return sent


def _block(lines: deque[bytes], limit: int) -> bytes:
    """The lines from the left that together fit in limit bytes, at least one; they stay in the deque."""
    size = 0
    block: list[bytes] = []
    for line in lines:
        size += len(line)
        if size > limit and block:
            break
        block.append(line)
    return b"".join(block)


def _take(lines: deque[bytes], size: int) -> None:
    """Remove size bytes from the left; what is left of a line stays in its place."""
    while size:
        line = lines.popleft()
        if len(line) > size:
            lines.appendleft(line[size:])
            return
        size -= len(line)


class Stream:
    """An open descriptor: stderr, whatever stands behind it.

    The descriptor is shared with other programs, so it is never made non-blocking.  A pipe or a
    terminal is opened once more through /proc, which gives us a description of our own; where that
    isn't possible, and for sockets, each write is asked for first or says MSG_DONTWAIT.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own: int | socket.socket | None = None
        self._limit = MAX_WRITE
        self._write: Callable[[bytes], int] = self._write_plain
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return
        if stat.S_ISSOCK(mode):
            import socket

            own = socket.socket(fileno=os.dup(fd))
            self._own = own
            # Not own.setblocking(False): that would change the shared description.
            self._write = lambda block: own.send(block, socket.MSG_DONTWAIT)
            return
        # A write of at most PIPE_BUF bytes to a pipe is whole or not at all, so workers don't mix lines.
        self._limit = select.PIPE_BUF
        try:
            self._own = os.open(
                f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_APPEND
            )
        except OSError:
            self._write = self._write_when_ready
        else:
            self._fd = self._own

    def frame(self, when: float, event: str, line: bytes) -> bytes:
        """The line with its newline."""
        return line + b"\n"

    def send(self, lines: deque[bytes]) -> int:
        """Write until all is gone or the reader takes no more."""
        return _send(lines, self._limit, self._write)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Our own description: an account without rights on the pipe couldn't open another one."""
        if self._own is not None and not isinstance(self._own, int):
            return (self._own.fileno(),)
        return () if self._own is None else (self._own,)

    def reopen(self) -> None:
        """Nothing: the descriptor is not ours to open."""

    def close(self) -> None:
        """Close our own description; stderr stays open."""
        if self._own is not None and not isinstance(self._own, int):
            self._own.close()
        elif self._own is not None:
            os.close(self._own)
        self._own = None

    def _write_plain(self, block: bytes) -> int:
        return os.write(self._fd, block)

    def _write_when_ready(self, block: bytes) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return os.write(self._fd, block[: self._limit]) if poll.poll(0) else 0


class File:
    """A file, appended to, and opened anew when its name stands for another one (logrotate)."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError when the file can't be opened."""
        self.path = path
        try:
            self._fd, self._inode = self._open()
        except OSError as error:
            raise ConfigError(f"log.to: can't open {path}: {error.strerror}") from error

    def frame(self, when: float, event: str, line: bytes) -> bytes:
        """The line with its newline."""
        return line + b"\n"

    def send(self, lines: deque[bytes]) -> int:
        """Append everything; on a full disk what has found room."""
        if self._is_rotated():
            self.reopen()
        return _send(lines, MAX_WRITE, lambda block: os.write(self._fd, block))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open file."""
        return (self._fd,)

    def reopen(self) -> None:
        """Open the path anew.  When that fails (the directory is not writable) the old file stays in use."""
        try:
            fresh, inode = self._open()
        except OSError:
            return
        os.close(self._fd)
        self._fd, self._inode = fresh, inode

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self) -> tuple[int, tuple[int, int]]:
        # O_NONBLOCK matters only when the operator names a FIFO: no waiting for its reader.
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
        status = os.fstat(fd)
        return fd, (status.st_dev, status.st_ino)

    def _is_rotated(self) -> bool:
        try:
            status = os.stat(self.path)
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self._inode


class Syslog:
    """The local syslog daemon: one datagram a line, as syslog(3) writes them (RFC 3164, local time).

    RFC 5424 would have the better time stamp, but the socket is also served by systemd-journald,
    which does not read it (2026); ours stands in the line anyway.
    """

    def __init__(self, path: str = SYSLOG_SOCKET, *, program: str = "fastsmtp") -> None:
        self.path = path
        self._tag = program
        self._socket: socket.socket | None = None
        self._second = -1
        self._stamp = ""

    def frame(self, when: float, event: str, line: bytes) -> bytes:
        """<PRI>Mmm dd hh:mm:ss program[pid]: line."""
        second = int(when)
        if second != self._second:
            at = time.localtime(second)
            self._second = second
            # Not strftime: the names of the months must not follow a locale.
            self._stamp = (
                f"{_MONTHS[at.tm_mon - 1]} {at.tm_mday:2d} {at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
            )
        known = EVENTS.get(event)
        priority = FACILITY_MAIL * 8 + (known.severity if known else INFO)
        return f"<{priority}>{self._stamp} {self._tag}[{os.getpid()}]: ".encode() + line

    def send(self, lines: deque[bytes]) -> int:
        """One datagram each, as long as the daemon takes them; connects anew when it was restarted."""
        sent = 0
        is_fresh = False
        while lines:
            try:
                if self._socket is None:
                    self._socket = self._connect()
                    is_fresh = True
                self._socket.send(lines[0])
            except BlockingIOError:
                break
            except OSError:
                # The daemon was restarted or is away: one new connection now, then at the next flush.
                self.close()
                if is_fresh:
                    break
                is_fresh = True
                continue
            sent += len(lines.popleft())
        return sent

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The socket, once there is one; a child may use it too, since each line is a datagram."""
        return () if self._socket is None else (self._socket.fileno(),)

    def reopen(self) -> None:
        """Connect anew with the next line."""
        self.close()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        import socket

        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        fresh.setblocking(False)
        try:
            fresh.connect(self.path)
        except OSError:
            fresh.close()
            raise
        return fresh
