"""The owner of the queue as a worker reaches it: segments and body files to write to, over a line.

    remote = Remote(path, number, progress, loop=loop)
    remote.connect()
    journal = Journal(remote, ..., synced=remote.synced)
    file = await remote.body()

The master holds the listening socket, so an owner that is dead or starting is
reached again by itself: what is asked for is asked again, and who waits longer
than PATIENCE_S hears errors.StorageFailed.  Segments and body files that were
handed out stay good meanwhile.  Rank 5.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections import deque

from fastsmtp import errors
from fastsmtp._journal import Progress
from fastsmtp.queue import frames
from fastsmtp.queue.bodies import BodyFile
from fastsmtp.queue.line import Line, connect
from fastsmtp.queue.store import Segment

# The client waits 10 minutes for the answer to its dot (RFC 5321 section 4.5.3.2.6); a message that can't be stored
# now is better known to be so soon.  A start of the owner takes less, up to some 300,000 messages.
PATIENCE_S = 5.0
# Between two tries to reach an owner that nobody listens for.
RETRY_S = 0.25
# Fewer body files than that in reserve: ask for more.
RESERVE = 4


class Remote:
    """See the module's text.  A journal.Source; all calls from the loop's thread.

    number   our place in the shared progress
    """

    def __init__(
        self,
        path: str,
        number: int,
        progress: Progress,
        *,
        loop: asyncio.AbstractEventLoop,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._path = path
        self._number = number
        self._progress = progress
        self._loop = loop
        self._patience_s = patience_s
        self._line: Line | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._requests = 0
        # What is asked for and not answered: number -> (packet, who waits).
        self._open: dict[int, tuple[bytes, asyncio.Future[Segment] | None]] = {}
        self._bodies: deque[BodyFile] = deque()
        self._wanting: deque[asyncio.Future[BodyFile]] = deque()
        self._body_request = 0
        self._is_closed = False

    def connect(self) -> None:
        """Reach the owner, now or as soon as it can be reached."""
        self._retry = None
        try:
            sock = connect(self._path)
        except OSError:
            self._retry = self._loop.call_later(RETRY_S, self.connect)
            return
        line = self._line = Line(sock, self._loop, self._heard, self._ended)
        line.send(frames.hello(frames.Role.WORKER, self._number))
        for packet, _ in self._open.values():
            line.send(packet)

    def be_patient_no_more(self) -> None:
        """We have started: from now on clients wait for us."""
        self._patience_s = PATIENCE_S

    @property
    def is_low(self) -> bool:
        """Below the low-water mark: take no mail."""
        return self._progress.is_low

    def synced(self) -> None:
        """After a sync: wake the owner up if it sleeps."""
        if self._progress.is_asked(self._number) and self._line is not None:
            self._line.send(frames.LOOK_PACKET)

    async def next(self) -> Segment:
        future: asyncio.Future[Segment] = self._loop.create_future()
        request = self._number_of_request()
        packet = frames.want_segment(request)
        self._open[request] = packet, future
        self._say(packet)
        try:
            async with asyncio.timeout(self._patience_s):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result(), 0)
            if isinstance(error, TimeoutError):
                raise errors.StorageFailed("the owner of the queue doesn't answer") from None
            raise
        finally:
            self._open.pop(request, None)

    def release(self, segment: Segment, end: int) -> None:
        os.close(segment.fd)
        self._say(frames.released(segment.number, segment.epoch, end))

    async def body(self) -> BodyFile:
        """A file for one body; it is the caller's from here on.  Raises errors.StorageFull, errors.StorageFailed."""
        if self._bodies:
            file = self._bodies.popleft()
            self._keep_reserve()
            return file
        future: asyncio.Future[BodyFile] = self._loop.create_future()
        self._wanting.append(future)
        self._keep_reserve()
        try:
            async with asyncio.timeout(self._patience_s):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                # It came in the same turn: another one's.
                self._bodies.append(future.result())
            if isinstance(error, TimeoutError):
                raise errors.StorageFailed("the owner of the queue doesn't answer") from None
            raise

    def give_up(self, file: BodyFile) -> None:
        """No record names it, and none will: its descriptor is closed, or is about to be."""
        self._say(frames.unused(file.number))

    def close(self) -> None:
        """After the journal: everything that was handed out and isn't used goes back."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        for file in self._bodies:
            os.close(file.fd)
            self.give_up(file)
        self._bodies.clear()
        if self._line is not None:
            self._line.flush()
            self._line.close()

    def _number_of_request(self) -> int:
        self._requests = self._requests + 1 & 0xFFFF_FFFF
        return self._requests

    def _say(self, packet: bytes) -> None:
        if self._line is not None:
            self._line.send(packet)

    def _keep_reserve(self) -> None:
        if len(self._bodies) < RESERVE and not self._body_request:
            self._body_request = self._number_of_request()
            packet = frames.want_bodies(self._body_request)
            self._open[self._body_request] = packet, None
            self._say(packet)

    def _ended(self) -> None:
        """The owner is dead.  Its successor is greeted, and asked what this one left unanswered."""
        self._line = None
        if not self._is_closed:
            self.connect()

    def _heard(self, packet: bytes, descriptors: list[int]) -> None:
        try:
            if packet[0] == frames.SEGMENT:
                self._take_segment(frames.read_segment(packet), descriptors)
            elif packet[0] == frames.BODIES:
                self._take_bodies(*frames.read_bodies(packet), descriptors)
            elif packet[0] == frames.REFUSED:
                self._take_refusal(*frames.read_refused(packet))
        except struct.error:
            # Not a word of ours: the owner is of another version, and whoever waits will hear that nobody answers.
            return
        finally:
            for fd in descriptors:
                os.close(fd)

    def _take_segment(self, given: frames.Given, descriptors: list[int]) -> None:
        _, future = self._open.pop(given.request, (b"", None))
        if future is None or future.done() or not descriptors:
            # Nobody waits any more: it goes back as it is.
            self._say(frames.released(given.number, given.epoch, 0))
            return
        future.set_result(Segment(given.number, given.epoch, given.size_bytes, descriptors.pop(0)))

    def _take_bodies(self, request: int, files: list[tuple[int, int]], descriptors: list[int]) -> None:
        self._open.pop(request, None)
        if request == self._body_request:
            self._body_request = 0
        for number, epoch in files:
            if descriptors:
                self._bodies.append(BodyFile(number, epoch, descriptors.pop(0)))
        self._hand_out()

    def _hand_out(self) -> None:
        while self._wanting and self._bodies:
            future = self._wanting.popleft()
            if not future.done():
                future.set_result(self._bodies.popleft())
        if self._wanting or len(self._bodies) < RESERVE:
            self._keep_reserve()

    def _take_refusal(self, request: int, is_full: bool) -> None:
        error = errors.StorageFull if is_full else errors.StorageFailed
        _, future = self._open.pop(request, (b"", None))
        if future is not None and not future.done():
            future.set_exception(error("the owner of the queue has none"))
        if request == self._body_request:
            # Nobody asks again before somebody needs one.
            self._body_request = 0
            waiting, self._wanting = self._wanting, deque()
            for one in waiting:
                if not one.done():
                    one.set_exception(error("the owner of the queue has none"))
