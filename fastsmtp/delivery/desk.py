"""Where workers and shards call the dispatcher: who they are, what they may ask, and who sleeps until whom.

Workers get files to write to, and are read after their syncs.  Under load they
aren't heard at all: the desk looks every LOOK_S by itself; only when it found
nothing it asks to be woken up by the next sync.

A worker's line that ends means that he is dead; what he wrote is read to its
end.

While the queue of an earlier life is still being read, workers get files and
nothing else happens: what they write lies in segments of its own until open(),
and so does what shards and workers have to say.

Rank 6: I/O on the loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from fastsmtp import errors
from fastsmtp._journal import Progress
from fastsmtp.delivery import wire
from fastsmtp.delivery.dispatcher import Acks, Dispatcher
from fastsmtp.log import Log
from fastsmtp.queue import frames
from fastsmtp.queue.bodies import BodyFile
from fastsmtp.queue.disk import ThreadDisk
from fastsmtp.queue.keeper import Arrived, Keeper, Kept, is_held, lock
from fastsmtp.queue.line import Line
from fastsmtp.queue.store import Space

# Between two looks while mail comes in: at most so much later is it delivered, and so rarely is a batch begun.
LOOK_S = 0.01
TICK_S = 1.0
# What a worker that accepts mail can't do without.
_AT_ONCE = frozenset({frames.WANT_SEGMENT, frames.WANT_BODIES})
# That a worker may hold: the one in use, the one ahead, and two on their way.
SEGMENTS = 4


class Caller:
    """One connection.  number: the worker's place in the progress, or the shard's number."""

    __slots__ = ("acks", "is_ready", "line", "number", "role")

    def __init__(self) -> None:
        self.line: Line | None = None
        self.role: frames.Role | None = None
        self.number = -1
        self.acks: Acks | None = None
        self.is_ready = False

    def send(self, packet: bytes, descriptors: tuple[int, ...] = ()) -> None:
        if self.line is not None:
            self.line.send(packet, descriptors)


class Desk:
    """See the module's text.

    sock          listening, of the master
    users         role -> the account (uid) that may have it
    own_number    our own journal's place in the progress
    ticked        called every TICK_S
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        keeper: Keeper,
        dispatcher: Dispatcher,
        progress: Progress,
        space: Space,
        disk: ThreadDisk,
        users: dict[frames.Role, int],
        own_number: int,
        log: Log,
        loop: asyncio.AbstractEventLoop,
        ticked: Callable[[], object],
    ) -> None:
        self._ticked = ticked
        self._sock = sock
        self._keeper = keeper
        self._dispatcher = dispatcher
        self._progress = progress
        self._space = space
        self._disk = disk
        self._users = users
        self._log = log
        self._loop = loop
        self._callers: set[Caller] = set()
        self._workers: dict[int, Caller] = {}
        self._own_number = own_number
        self._shards: list[Caller | None] = [None] * dispatcher.sites.shards
        # Body files in a worker's hands: their numbers -> who; a record that is read takes its one out.
        self._given: dict[int, Caller] = {}
        self._looking: asyncio.TimerHandle | asyncio.Handle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._pumping: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        # Body files may be there that nobody knows of.
        self.wants_sweep = False
        self.is_open = False
        # Said before open(), in the order in which it was said.
        self._unheard: list[tuple[Caller, bytes]] = []

    def hand_out(self) -> None:
        """Take calls, and give workers files to write to; all else waits for open()."""
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock.fileno(), self._accept)
        self._tick()

    def open(self) -> None:
        """The dispatcher knows what there is: serve."""
        self.is_open = True
        unheard, self._unheard = self._unheard, []
        for caller, packet in unheard:
            if caller in self._callers:
                self._heard(caller, packet, [])
        if self._ticking is None:
            self.hand_out()
        self._read_abandoned()
        self.look_soon()
        self.pump_soon()

    def stop(self) -> None:
        """Hand out no more jobs; what the shards have goes on."""
        self._is_closing = True

    def close(self) -> None:
        """Let go of all lines."""
        self._is_closing = True
        self._loop.remove_reader(self._sock.fileno())
        for handle in (self._looking, self._ticking, self._pumping):
            if handle is not None:
                handle.cancel()
        for task in self._tasks:
            task.cancel()
        for caller in self._callers:
            if caller.line is not None:
                caller.line.flush()
                caller.line.close()
        self._callers.clear()

    # --- calls ------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptor to be had: who called stays in the backlog, and the next tick comes back to him.
                self._log.line("queue_failed", reason=str(error))
                return
            caller = Caller()
            self._callers.add(caller)
            caller.line = Line(
                sock,
                self._loop,
                lambda packet, descriptors, caller=caller: self._heard(caller, packet, descriptors),  # type: ignore[misc]
                lambda caller=caller: self._ended(caller),  # type: ignore[misc]
            )

    def _heard(self, caller: Caller, packet: bytes, descriptors: list[int]) -> None:
        for fd in descriptors:
            # Nobody has any to give us.
            os.close(fd)
        try:
            if caller.role is None:
                self._greet(caller, frames.read_hello(packet))
            elif not self.is_open and packet[0] not in _AT_ONCE:
                self._unheard.append((caller, packet))
            elif caller.role is frames.Role.WORKER:
                self._hear_worker(caller, packet)
            else:
                self._hear_shard(caller, packet)
        except (struct.error, ValueError, UnicodeError) as error:
            self._log.line("queue_caller_refused", pid=self._peer(caller)[0], reason=str(error))
            self._hang_up(caller)

    def _greet(self, caller: Caller, hello: frames.Hello) -> None:
        process, user = self._peer(caller)
        if user != self._users[hello.role]:
            raise ValueError(f"account {user} may not call as {hello.role.name.lower()} (process {process})")
        if hello.role is frames.Role.WORKER:
            if not 0 <= hello.number < self._own_number:
                raise ValueError(f"no worker has the number {hello.number}")
            before = self._workers.get(hello.number)
            self._workers[hello.number] = caller
        else:
            if hello.of != len(self._shards) or not 0 <= hello.number < hello.of:
                raise ValueError(f"shard {hello.number} of {hello.of}: there are {len(self._shards)}")
            before = self._shards[hello.number]
            self._shards[hello.number] = caller
            caller.acks = Acks(lambda number: caller.send(wire.ack(number)))
        caller.role, caller.number = hello.role, hello.number
        if before is not None:
            # He died, and we hear of his successor first.
            self._hang_up(before)
        self.look_soon()

    def _peer(self, caller: Caller) -> tuple[int, int]:
        return (0, -1) if caller.line is None else caller.line.peer()

    def _hang_up(self, caller: Caller) -> None:
        if caller.line is not None:
            caller.line.close()
        self._ended(caller)

    def _ended(self, caller: Caller) -> None:
        if caller not in self._callers:
            return
        self._callers.discard(caller)
        caller.line = None
        if caller.role is frames.Role.WORKER:
            if self._workers.get(caller.number) is caller:
                del self._workers[caller.number]
            self._keeper.forget_holder(caller)
            self._read_abandoned()
        elif caller.role is frames.Role.SHARD:
            if self._shards[caller.number] is caller:
                self._shards[caller.number] = None
            self._dispatcher.died(caller.number)

    # --- workers ----------------------------------------------------------------------------------

    def _hear_worker(self, caller: Caller, packet: bytes) -> None:
        word = packet[0]
        if word == frames.LOOK:
            self.look_soon()
        elif word == frames.WANT_SEGMENT:
            self._spawn(self._give_segment(caller, frames.read_want(packet)))
        elif word == frames.WANT_BODIES:
            self._spawn(self._give_bodies(caller, frames.read_want(packet)))
        elif word == frames.RELEASED:
            self.released(*frames.read_released(packet), caller)
        elif word == frames.UNUSED:
            number = frames.read_unused(packet)
            if self._given.pop(number, None) is not None:
                self._keeper.remove_body(number)
            else:
                # An earlier dispatcher gave it: it is looked for where it can't be mistaken for another's.
                self.wants_sweep = True
        else:
            raise ValueError(f"a worker says {word}")

    async def _give_segment(self, caller: Caller, request: int) -> None:
        held = sum(kept.holder is caller for kept in self._keeper.segments.values())
        try:
            if held >= SEGMENTS:
                raise errors.StorageFailed(f"worker {caller.number} has {held} segments and wants another")
            kept, segment = await self._keeper.give(caller)
        except errors.TemporaryError as error:
            self._refuse(caller, request, error)
            return
        caller.send(frames.segment(request, segment.number, segment.epoch, segment.size_bytes), (segment.fd,))
        os.close(segment.fd)
        if caller.line is None:
            kept.holder = None

    async def _give_bodies(self, caller: Caller, request: int) -> None:
        try:
            files = await self._disk.run(_locked_bodies, self._keeper)
        except errors.TemporaryError as error:
            self._refuse(caller, request, error)
            return
        caller.send(
            frames.bodies(request, [(file.number, file.epoch) for file in files]),
            tuple(file.fd for file in files),
        )
        for file in files:
            os.close(file.fd)
            self._given[file.number] = caller
        if caller.line is None:
            self._read_abandoned()

    def _refuse(self, caller: Caller, request: int, error: errors.TemporaryError) -> None:
        self._log.line("queue_failed", reason=str(error))
        caller.send(frames.refused(request, is_full=isinstance(error, errors.StorageFull)))

    def released(self, number: int, epoch: int, end: int, holder: object) -> None:
        """A segment gets no further record."""
        kept = self._keeper.segments.get(epoch)
        if kept is None or kept.holder not in (None, holder):
            return
        if self._keeper.released(number, epoch, end) is None or kept.end is None:
            return
        self._read(kept, kept.end)
        self._keeper.look_at(kept)

    def _read(self, kept: Kept, synced: int) -> None:
        """What the disk doesn't give now is looked at again with the next tick."""
        try:
            for batch in self._keeper.read(kept, synced):
                self._arrived(kept, batch)
        except OSError as error:
            self._log.line("queue_failed", reason=f"{self._keeper.store.path(kept.number)}: {error}")

    def _arrived(self, kept: Kept, batch: list[Arrived]) -> None:
        if self._given:
            for message in batch:
                if message.body is not None:
                    self._given.pop(message.body, None)
        self._dispatcher.arrived(kept, batch)
        self.pump_soon()

    def _read_abandoned(self, *, whoever_had_them: bool = False) -> None:
        """Segments whose writers are dead: all that is there, and then the body files that nobody named."""
        if not self.is_open:
            return
        for kept in self._keeper.abandoned(whoever_had_them=whoever_had_them):
            try:
                for batch in self._keeper.finish(kept):
                    self._arrived(kept, batch)
            except OSError as error:
                self._log.line("queue_failed", reason=f"{self._keeper.store.path(kept.number)}: {error}")
                continue
            self._keeper.look_at(kept)
        dead = [number for number, caller in self._given.items() if caller not in self._callers]
        if dead and not any(
            kept.end is None and kept.holder is None for kept in self._keeper.segments.values()
        ):
            # A line may end without its worker: whether somebody has them open, the sweep looks.
            for number in dead:
                del self._given[number]
            self.wants_sweep = True

    # --- looking ----------------------------------------------------------------------------------

    def look_soon(self) -> None:
        if self._looking is None and self.is_open and not self._is_closing:
            self._looking = self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = None
        found = self._look_once()
        if not found:
            for number in (*self._workers, self._own_number):
                self._progress.ask(number)
            # Once more: what was synced before the question would not be told.
            found = self._look_once()
        if found and not self._is_closing:
            self._looking = self._loop.call_later(LOOK_S, self._look)

    def _look_once(self, numbers: Iterable[int] | None = None) -> bool:
        """Read what these workers (those that have called, and ourselves) have synced; whether there was anything."""
        found = False
        for number in numbers or (*self._workers, self._own_number):
            _, epoch, synced = self._progress.read(number)
            kept = self._keeper.segments.get(epoch)
            if kept is not None and kept.end is None and kept.at < synced:
                at = kept.at
                self._read(kept, synced)
                found = found or kept.at > at
        return found

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(TICK_S, self._tick)
        self._ticked()
        self._read_abandoned()
        self._read_the_rest()
        self._accept()
        self._spawn(self._look_at_space())
        if self.wants_sweep and self.is_open:
            self.wants_sweep = False
            self._spawn(self._sweep())
        self.look_soon()
        self.pump_soon()

    def _read_the_rest(self) -> None:
        """Of segments that have ended, where the disk didn't give it at once."""
        if not self.is_open:
            return
        for kept in list(self._keeper.segments.values()):
            if kept.end is not None and kept.at < kept.end:
                self._read(kept, kept.end)
                self._keeper.look_at(kept)

    async def _sweep(self) -> None:
        """Remove body files that nobody has open and no record names.

        In this order: who closes such a file has synced the record that names it, if there is one; so what is
        read after that knows of it.
        """
        try:
            loose = await self._disk.run(_loose, self._keeper)
        except errors.TemporaryError as error:
            self._log.line("queue_failed", reason=str(error))
            return
        # Of all that there may be: one that hasn't called yet writes all the same.
        self._look_once(range(self._progress.workers))
        # A segment is closed before the next one is written to: one that a worker has left is nobody's by now, though
        # we haven't heard where it ends.
        self._read_abandoned(whoever_had_them=True)
        named = {
            message.body for kept in self._keeper.segments.values() for message in kept.messages.values()
        }
        for number in loose:
            if number not in named and number not in self._given:
                self._keeper.remove_body(number)

    async def _look_at_space(self) -> None:
        try:
            await self._disk.run(_look_at_space, self._space)
        except errors.TemporaryError as error:
            self._log.line("queue_failed", reason=str(error))
            return
        is_low = self._space.is_low
        if is_low != self._progress.is_low:
            self._progress.is_low = is_low
            self._log.line("queue_full" if is_low else "queue_full_end", limit=self._space.low_water_bytes)

    # --- shards -----------------------------------------------------------------------------------

    def _hear_shard(self, caller: Caller, packet: bytes) -> None:
        word = packet[0]
        if word == wire.DELIVERED and caller.acks is not None:
            number, named = wire.read_delivered(packet)
            self._dispatcher.delivered_by(caller.number, named, caller.acks.take(number))
            self.pump_soon()
        elif word == wire.RESULTS and caller.acks is not None:
            number, batch = wire.read_results(packet)
            self._dispatcher.results(caller.number, batch, caller.acks.take(number))
            self.pump_soon()
        elif word == wire.HELD:
            self._dispatcher.holds(caller.number, wire.read_held(packet))
        elif word == wire.READY:
            caller.is_ready = True
            self._pump()
        elif word == wire.CLOSING:
            caller.is_ready = False
            self._keeper.log.hurry()
        else:
            raise ValueError(f"a shard says {word}")

    def wake_shards(self) -> None:
        """Sites that pause are to be tried; before the jobs that are handed out from now on."""
        for caller in self._shards:
            if caller is not None:
                caller.send(wire.wake())

    def pump_soon(self) -> None:
        """Hand out what may be handed out, once a turn of the loop."""
        if self._pumping is None and self.is_open and not self._is_closing:
            self._pumping = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        if self._is_closing or self._keeper.log.is_behind:
            return
        for caller in self._shards:
            if caller is not None and caller.is_ready:
                for packet in wire.jobs(self._dispatcher.jobs(caller.number)):
                    caller.send(packet)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _locked_bodies(system: Any, keeper: Keeper) -> list[BodyFile]:
    """A job: body files that are held by whoever has their descriptors."""
    files = keeper.bodies.make(system)
    for file in files:
        lock(file.fd)
    return files


def _loose(system: Any, keeper: Keeper) -> list[int]:
    return keeper.bodies.loose(system, is_held)


def _look_at_space(system: Any, space: Space) -> None:
    if space.low_water_bytes:
        space.look(system)
    else:
        space.measure(system)
