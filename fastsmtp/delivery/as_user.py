"""Delivery as another account, the delivery process's side: each message is an errand for lspawn (errand.py).

Who has done one errand takes the next for the same account and DEST on the same line, for as long as it stays
(carrier.py); when no such process is idle, lspawn is called.

What is handed over is a copy of the record in memory with this errand's recipients only, and the descriptor of
the body's file; both can be read and not written.  Not here: who becomes whom (supervisor/lspawn.py), and what
is done as that account (carrier.py).  Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from fastsmtp import errors, reply
from fastsmtp.config.routes import Route
from fastsmtp.delivery.errand import errand, key_of, read_answer
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.outcome import Outcome, Retry
from fastsmtp.delivery.stored import StoredMessage
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.disk import Disk
from fastsmtp.queue.line import PACKET_BYTES, connect
from fastsmtp.queue.memory import memory_file
from fastsmtp.queue.model import QueuedMessage, encode

AT_ONCE: Final = 10
"""Errands of one account and DEST at a time: qmail's concurrencylocal."""

ANSWER_S: Final = 1_200.0
"""For an answer: lspawn ends each process after 630 s, and others may be before us."""

_RECONNECT_S: Final = 0.25
# Whoever keeps root is started again within moments; the master holds its socket meanwhile.
_CONNECT_S: Final = 10.0


class AsUser:
    """Sends errands.

    path   of lspawn's socket
    disk   where bodies are opened
    """

    def __init__(self, path: str, disk: Disk, *, answer_s: float = ANSWER_S) -> None:
        self._path = path
        self._disk = disk
        self._answer_s = answer_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[tuple[str, str], asyncio.Semaphore] = {}
        self._idle: dict[bytes, list[_Call]] = {}

    def put(
        self,
        stored: StoredMessage,
        recipients: Sequence[Recipient],
        route: Route,
        done: Callable[[Sequence[Outcome | Damaged]], object],
    ) -> None:
        """See delivery.job.Deliverer; route.user is not ""."""
        task = asyncio.get_running_loop().create_task(self._finish(stored, recipients, route, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """What is under way ends without us, and nobody hears of it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        for calls in self._idle.values():
            for call in calls:
                call.close()
        self._idle.clear()

    async def _finish(
        self,
        stored: StoredMessage,
        recipients: Sequence[Recipient],
        route: Route,
        done: Callable[[Sequence[Outcome | Damaged]], object],
    ) -> None:
        # A program takes one recipient: each has its own time, and its own outcome.
        groups = [[one] for one in recipients] if route.dest.kind == "pipe" else [list(recipients)]
        turns = self._turns.setdefault((route.user, route.deliver), asyncio.Semaphore(AT_ONCE))
        outcomes: list[Outcome | Damaged] = []
        for group in groups:
            async with turns:
                outcome, is_answer = await self._send(stored, group, route)
                if len(group) > 1 and is_answer and isinstance(outcome, Retry):
                    # None of them has it: each by itself, so that one bad Maildir doesn't keep the others' mail.
                    outcomes += [(await self._send(stored, [one], route))[0] for one in group]
                else:
                    outcomes += [outcome] * len(group)
        done(outcomes)

    async def _send(
        self, stored: StoredMessage, recipients: Sequence[Recipient], route: Route
    ) -> tuple[Outcome | Damaged, bool]:
        """One errand: all of these recipients, or none; and whether that was its answer."""
        may_have_arrived = False
        key = key_of(route.user, route.deliver)
        call: _Call | None = None
        try:
            found = self._disk.run(_descriptors, stored, recipients)
            descriptors = await found if inspect.isawaitable(found) else found
            try:
                call = await self._handed(key, descriptors)
            finally:
                _close_all(descriptors)
            may_have_arrived = True
            async with asyncio.timeout(self._answer_s):
                packet = await call.answered()
            outcome = read_answer(packet)
            self._idle.setdefault(key, []).append(call)
            call = None
            return outcome, True
        except errors.QueueDamaged as error:
            return Damaged(str(error)), False
        except errors.TemporaryError as error:
            retry = Retry(reply.of_error(error), f"as {route.user}: {error}")
        except TimeoutError:
            reason = f"as {route.user}: no answer in {self._answer_s:g} s"
            retry = Retry(reply.STORAGE_FAILED, reason, may_have_arrived)
        except (OSError, ValueError) as error:
            retry = Retry(reply.STORAGE_FAILED, f"as {route.user}: {error}", may_have_arrived)
        except Exception as error:  # noqa: BLE001 - ours: it is tried again, and the reason says what it was
            retry = Retry(reply.OUR_DEFECT, repr(error), may_have_arrived)
        finally:
            if call is not None:
                call.close()
        return retry, False

    async def _handed(self, key: bytes, descriptors: Sequence[int]) -> _Call:
        """A line to a process that has this errand: one that has done another, or a new one."""
        packet = errand(key)
        idle = self._idle.get(key, [])
        while idle:
            # The last one: what is not needed any more has nothing to do then, and ends.
            call = idle.pop()
            if call.hand(packet, descriptors):
                return call
            call.close()
        call = _Call(await self._connect(), asyncio.get_running_loop())
        if not call.hand(packet, descriptors):
            call.close()
            raise OSError("the process that keeps root hung up")
        return call

    async def _connect(self) -> socket.socket:
        end_s = time.monotonic() + self._answer_s
        deadline_s = time.monotonic() + _CONNECT_S
        while True:
            try:
                return connect(self._path)
            except BlockingIOError:
                # It is there, and so many wait before us that its backlog is full.
                if time.monotonic() >= end_s:
                    raise
                deadline_s = time.monotonic() + _CONNECT_S
            except OSError:
                if time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(_RECONNECT_S)


class _Call:
    """A line to a process of one account, for one errand at a time.  Who answers may be that account's to say."""

    __slots__ = ("_answer", "_loop", "_sock", "is_open")

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._answer: asyncio.Future[bytes] | None = None
        self.is_open = True
        loop.add_reader(sock.fileno(), self._read)

    def hand(self, packet: bytes, descriptors: Sequence[int]) -> bool:
        """False when the process takes no more: then it has not taken this one."""
        if not self.is_open:
            return False
        try:
            socket.send_fds(self._sock, [packet], descriptors)
        except OSError:
            return False
        self._answer = self._loop.create_future()
        return True

    async def answered(self) -> bytes:
        """The answer; ValueError when there is none."""
        if self._answer is None:
            raise AssertionError("nothing was handed over")
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _read(self) -> None:
        try:
            # Descriptors that it may send are the kernel's to close.
            packet = self._sock.recv(PACKET_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet = b""
        if self._answer is None or self._answer.done():
            self.close()  # its end, or what nobody has asked for
        elif packet:
            self._answer.set_result(packet)
        else:
            self.close()
            self._answer.set_exception(ValueError("the process that keeps root gave no answer"))


def _descriptors(system: Any, stored: StoredMessage, recipients: Sequence[Recipient]) -> list[int]:
    """A job: the record with these recipients, and the body's file; raises errors.QueueDamaged, OSError."""
    message, whole = stored.message, stored.envelope
    envelope = Envelope(
        whole.sender, whole.sender_domain, whole.size_bytes, whole.body, whole.is_smtputf8, whole.ret, whole.envid,
        [Recipient(one.address, one.domain) for one in recipients],
    )  # fmt: skip
    handed = QueuedMessage(
        message.id, message.accepted_ms, envelope, message.origins, message.prefix, message.body,
        message.body_bytes, message.cuts,
    )  # fmt: skip
    writable = memory_file("record", b"".join(encode(handed)))
    try:
        found = [os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)]
    finally:
        os.close(writable)
    try:
        body = stored.open_body(system)
    except BaseException:
        _close_all(found)
        raise
    return found if body is None else [*found, body]


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        with suppress(OSError):
            os.close(fd)
