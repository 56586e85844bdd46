"""A line between two processes of the queue: whole packets both ways, descriptors along with them.

A UNIX socket of kind SOCK_SEQPACKET: no framing, and its end is seen at once.
What the kernel doesn't take is kept here, in order.  Not here: what the packets
mean (frames.py).  Rank 5.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

# Of a packet.  Below the size from which the C library maps memory for each buffer; far below wmem_default.
PACKET_BYTES = 32_768
# Of one packet; SCM_MAX_FD of the kernel is 253.
DESCRIPTORS = 64
# Read in one turn of the loop: others have packets too.
_AT_ONCE = 64

_CREDENTIALS = struct.Struct("3i")
# sun_path has 108 bytes; a state directory may have more.
_PATH_BYTES = 100


class Line:
    """One end.  Callbacks come from the loop; ended() once, however it ended, unless close() was called."""

    __slots__ = ("_ended", "_heard", "_is_writing", "_loop", "_sock", "_waiting", "is_open")

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        heard: Callable[[bytes, list[int]], None],
        ended: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._heard = heard
        self._ended = ended
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._is_writing = False
        self.is_open = True
        loop.add_reader(sock.fileno(), self._read)

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send it, in order; the descriptors stay the caller's.  Never waits, never fails: ended() tells of an end."""
        if not self.is_open:
            return
        if not self._waiting and self._send(packet, descriptors):
            return
        # They may be closed by the time when there is room.
        self._waiting.append((packet, [os.dup(fd) for fd in descriptors]))
        if not self._is_writing:
            self._is_writing = True
            self._loop.add_writer(self._sock.fileno(), self._write)

    def peer(self) -> tuple[int, int]:
        """(process, user) of the other side, as the kernel knows them."""
        found = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(found)
        return process, user

    def close(self) -> None:
        """Let go of it; what waits is lost."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._sock.fileno())
        if self._is_writing:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, descriptors in self._waiting:
            _close_all(descriptors)
        self._waiting.clear()

    def flush(self) -> None:
        """Send what waits, as far as it goes at once: before close()."""
        while self._waiting and self._send(*self._waiting[0]):
            self._sent()

    def _send(self, packet: bytes, descriptors: Sequence[int]) -> bool:
        """False when there is no room now."""
        try:
            if descriptors:
                socket.send_fds(self._sock, [packet], descriptors)
            else:
                self._sock.send(packet)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            # It is dead.  The reader sees that too, and tells.
            return True
        return True

    def _write(self) -> None:
        self.flush()
        if not self._waiting and self.is_open:
            self._is_writing = False
            self._loop.remove_writer(self._sock.fileno())

    def _sent(self) -> None:
        _, descriptors = self._waiting.popleft()
        _close_all(descriptors)

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._sock, PACKET_BYTES, DESCRIPTORS)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                packet, descriptors = b"", []
            if not packet:
                _close_all(descriptors)
                self.close()
                self._ended()
                return
            self._heard(packet, descriptors)
            if not self.is_open:
                return


def listen(path: str, backlog: int = 128) -> socket.socket:
    """A listening socket at this path; an old one there is replaced.  The caller says who may open it.  OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        before = os.umask(0o177)
        try:
            _at(path, sock.bind)
        finally:
            os.umask(before)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str) -> socket.socket:
    """A connection to who listens there; raises OSError.  Never waits: a full backlog is BlockingIOError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _at(path, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock


def _at(path: str, call: Callable[[str], object]) -> None:
    """call(path), by way of its directory's descriptor where the path is too long for a socket's name."""
    if len(os.fsencode(path)) <= _PATH_BYTES:
        call(path)
        return
    fd = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(f"/proc/self/fd/{fd}/{os.path.basename(path)}")
    finally:
        os.close(fd)


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
