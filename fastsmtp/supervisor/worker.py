"""The life of a worker, or of a process beside them, from just after the fork to its exit.

It becomes its account, starts an event loop, lets the plan or aside work, says that it
is ready, and does what the master orders until it has drained.  Exit status 0:
in order; START_FAILED: it never served, and told the master why.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import socket
import time
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Final

from fastsmtp._counters import Region
from fastsmtp.errors import ConfigError
from fastsmtp.metrics import Board
from fastsmtp.supervisor import privilege
from fastsmtp.supervisor.channel import Channel
from fastsmtp.supervisor.privilege import Account
from fastsmtp.supervisor.shapes import Running, Seat, Starter

# Imported by the master, so that it is there once for all workers.
uvloop: ModuleType | None
try:
    import uvloop
except ImportError:
    uvloop = None

START_FAILED: Final = 71
"""EX_OSERR of sysexits.h."""

BEAT_S: Final = 0.5

DRAIN_S: Final = 30.0
"""For transactions to end when the server stops.  What runs beside the workers has as long after them; the
unit in contrib/ gives 75."""


def live(
    starter: Starter,
    number: int,
    identity: int,
    region: Region,
    board: Board,
    *,
    sockets: Sequence[tuple[int, int]],
    channel: Channel,
    account: Account | None,
    descriptors: int,
    is_beating: bool = False,
) -> int:
    """Serve until told to stop; the exit status.  Everything else that was inherited is closed already.

    is_beating   the loop itself beats; False: what was started does
    """
    faulthandler.enable()
    os.umask(0o077)
    try:
        privilege.become(account, runs_programs=getattr(starter, "runs_programs", False))
    except OSError as error:
        channel.say("failed", f"cannot become {account.name if account else 'itself'}: {error.strerror}")
        return START_FAILED
    seat = Seat(
        number,
        identity,
        region,
        board.sheet(identity),
        board,
        [(listener, socket.socket(fileno=fd)) for listener, fd in sockets],
        descriptors,
    )
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_Worker(starter, seat, channel, is_beating).run())


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one."""
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()


class _Worker:
    """Waits for orders: the drain, an immediate close, new contents of files."""

    def __init__(self, starter: Starter, seat: Seat, channel: Channel, is_beating: bool) -> None:
        self._starter = starter
        self._seat = seat
        self._channel = channel
        self._is_beating = is_beating
        self._drain_s = DRAIN_S
        self._leave = asyncio.Event()
        self._hurry = asyncio.Event()
        self._files: asyncio.Queue[dict[str, bytes]] = asyncio.Queue()

    async def run(self) -> int:
        try:
            running = await self._starter.start(self._seat)
        except (ConfigError, OSError) as error:
            self._channel.say("failed", str(error))
            return START_FAILED
        except Exception as error:  # noqa: BLE001 - ours; the operator sees where
            traceback.print_exc()
            self._channel.say("failed", f"{type(error).__name__}: {error}")
            return START_FAILED
        # What was made so far lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        # A message makes some thirty objects and frees them by itself; the default threshold of 700 has the
        # collector look for cycles every twenty messages (4 % of a message's CPU).
        gc.set_threshold(20_000, 20, 100)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave_unasked)
        loop.add_signal_handler(signal.SIGQUIT, self._hurry.set)
        loop.add_reader(self._channel.fileno(), self._listen)
        self._beat()
        self._channel.say("ready")
        changing = loop.create_task(self._change(running))
        await self._until(self._leave, self._hurry)
        changing.cancel()
        if not self._hurry.is_set():
            draining = loop.create_task(running.drain(self._drain_s))
            hurrying = loop.create_task(self._hurry.wait())
            await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            hurrying.cancel()
            if not draining.done():
                draining.cancel()
            elif (error_ := draining.exception()) is not None:
                traceback.print_exception(error_)
        await running.close()
        return 0

    def _beat(self) -> None:
        self._seat.region.beat(time.monotonic())
        if self._is_beating:
            asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    async def _until(self, *events: asyncio.Event) -> None:
        """Until one of them is set."""
        tasks = [asyncio.ensure_future(event.wait()) for event in events]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def _leave_unasked(self) -> None:
        """SIGTERM to this worker alone: drain, and let the master have a replacement meanwhile."""
        self._channel.say("leaving")
        self._leave.set()

    def _listen(self) -> None:
        """Orders of the master."""
        while (heard := self._channel.hear_with_files()) is not None:
            word, text, files = heard
            if word == "drain":
                self._drain_s = float(text)
                self._leave.set()
            elif word == "close":
                self._hurry.set()
            elif word == "files":
                self._files.put_nowait(files)
            elif not word:
                # The master is dead.  Nobody will replace us: finish what is open and go.
                asyncio.get_running_loop().remove_reader(self._channel.fileno())
                self._leave.set()
                return

    async def _change(self, running: Running) -> None:
        """New contents of files, one after another."""
        while True:
            files = await self._files.get()
            try:
                await running.replace(files)
            except Exception as error:  # noqa: BLE001 - they were checked, so this is ours; serve on with the old
                traceback.print_exception(error)
                self._channel.say("refused", f"{type(error).__name__}: {error}")
