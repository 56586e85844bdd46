"""The delivery process's side of errands: who has done one gets the next, and nothing is sent into a void."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import fastsmtp.delivery.as_user
from fastsmtp import reply
from fastsmtp._payload import decode
from fastsmtp.config.dest import parse_dest
from fastsmtp.config.routes import Route
from fastsmtp.delivery.as_user import AsUser
from fastsmtp.delivery.errand import DESCRIPTORS, answer, key_of, read_errand
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.outcome import Delivered, Outcome, Retry
from fastsmtp.delivery.stored import StoredMessage
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.line import connect, listen
from fastsmtp.queue.model import Origins, QueuedMessage

DEST = "maildir:/m/{local}"


def message(name: str, *to: bytes) -> StoredMessage:
    recipients = [Recipient(address, b"example.org") for address in to or (b"joe@example.org",)]
    envelope = Envelope(b"a@example.org", b"example.org", recipients=recipients)
    queued = QueuedMessage(name, 0, envelope, Origins(address="192.0.2.1"), b"", [b"Text\r\n"], 6)
    bodies = Bodies("/nowhere", version="1", wall=lambda: 0.0, random=os.urandom)
    return StoredMessage(queued, bodies, InlineDisk())


class Process:
    """A child of a made-up lspawn: what it was given, and what it does with each."""

    def __init__(self, sock: socket.socket, act: Callable[[Process], None]) -> None:
        self.sock = sock
        self.errands: list[tuple[bytes, str]] = []
        self.recipients: list[bytes] = []
        self._act = act
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)

    def _read(self) -> None:
        packet, descriptors, _, _ = socket.recv_fds(self.sock, 100, DESCRIPTORS)
        if not packet:
            self.close()
            return
        record = decode(os.pread(descriptors[0], 1 << 20, 0))
        for fd in descriptors:
            os.close(fd)
        self.errands.append((read_errand(packet), record.id))
        self.recipients = [one.address for one in record.envelope.recipients]
        self._act(self)

    def answer(self, outcome: Outcome | None = None) -> None:
        self.sock.send(answer(outcome or Delivered(self.errands[-1][1])))

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.sock.close()


class Lspawn:
    """`async with` it: takes calls, and makes a Process of each."""

    def __init__(self, folder: pathlib.Path, act: Callable[[Process], None]) -> None:
        self._path = str(folder / "socket")
        self._act = act
        self.processes: list[Process] = []

    async def __aenter__(self) -> tuple[Lspawn, AsUser]:
        self._sock = listen(self._path)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._called)
        self._as_user = AsUser(self._path, InlineDisk())
        return self, self._as_user

    def _called(self) -> None:
        sock, _ = self._sock.accept()
        self.processes.append(Process(sock, self._act))

    async def __aexit__(self, *_: Any) -> None:
        await self._as_user.close()
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        for process in self.processes:
            process.close()


async def put(as_user: AsUser, name: str, user: str = "joe", deliver: str = DEST) -> Outcome | Damaged:
    done: asyncio.Future[Sequence[Outcome | Damaged]] = asyncio.get_running_loop().create_future()
    stored = message(name)
    route = Route(deliver, parse_dest(deliver), user=user)
    as_user.put(stored, stored.envelope.recipients, route, done.set_result)
    async with asyncio.timeout(60):
        (outcome,) = await done
    return outcome


def test_the_next_message_of_an_account_goes_to_the_same_process(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        async with Lspawn(tmp_path, Process.answer) as (lspawn, as_user):
            for name in ("1", "2", "3"):
                assert await put(as_user, name) == Delivered(name)
            assert [process.errands for process in lspawn.processes] == [
                [(key_of("joe", DEST), name) for name in ("1", "2", "3")]
            ]

    asyncio.run(scenario())


def test_another_accounts_message_and_another_place_never_do(tmp_path: pathlib.Path) -> None:
    pairs = [("joe", DEST), ("ann", DEST), ("joe", "maildir:/m/all"), ("joe", "pipe:/bin/true")]

    async def scenario() -> None:
        async with Lspawn(tmp_path, Process.answer) as (lspawn, as_user):
            for turn in range(2):
                for user, deliver in pairs:
                    assert await put(as_user, str(turn), user, deliver) == Delivered(str(turn))
            assert [process.errands for process in lspawn.processes] == [
                [(key_of(*pair), "0"), (key_of(*pair), "1")] for pair in pairs
            ]

    asyncio.run(scenario())


def test_two_at_once_go_to_two(tmp_path: pathlib.Path) -> None:
    def when_both_are_here(process: Process) -> None:
        waiting.append(process)
        if len(waiting) == 2:
            for one in waiting:
                one.answer()

    waiting: list[Process] = []

    async def scenario() -> None:
        async with Lspawn(tmp_path, when_both_are_here) as (lspawn, as_user):
            outcomes = await asyncio.gather(put(as_user, "1"), put(as_user, "2"))
            assert list(outcomes) == [Delivered("1"), Delivered("2")]
            assert len(lspawn.processes) == 2

    asyncio.run(scenario())


def test_one_that_takes_no_more_is_replaced_and_nothing_is_delivered_twice(tmp_path: pathlib.Path) -> None:
    def once(process: Process) -> None:
        process.sock.shutdown(socket.SHUT_RD)
        process.answer()

    def once_and_away(process: Process) -> None:
        process.answer()
        process.close()

    async def scenario(act: Callable[[Process], None]) -> None:
        async with Lspawn(tmp_path, act) as (lspawn, as_user):
            for name in ("1", "2", "3"):
                assert await put(as_user, name) == Delivered(name)
            assert [[name for _, name in process.errands] for process in lspawn.processes] == [
                ["1"], ["2"], ["3"],
            ]  # fmt: skip

    for act in (once, once_and_away):
        asyncio.run(scenario(act))
        (tmp_path / "socket").unlink(missing_ok=True)


def test_a_full_backlog_is_waited_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastsmtp.delivery.as_user, "_CONNECT_S", 0.0)

    async def scenario() -> None:
        path = str(tmp_path / "socket")
        sock = listen(path, 0)
        before: list[socket.socket] = []
        with pytest.raises(BlockingIOError):
            while len(before) < 10:
                before.append(connect(path))
        as_user = AsUser(path, InlineDisk())
        outcome = asyncio.get_running_loop().create_task(put(as_user, "1"))
        # It has tried by now.
        for _ in range(10):
            await asyncio.sleep(0)
        assert not outcome.done()
        processes: list[Process] = []
        asyncio.get_running_loop().add_reader(
            sock.fileno(), lambda: processes.append(Process(sock.accept()[0], Process.answer))
        )
        assert await outcome == Delivered("1")
        await as_user.close()
        asyncio.get_running_loop().remove_reader(sock.fileno())
        for process in processes:
            process.close()
        for one in (*before, sock):
            one.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("has_done_one", [False, True])
def test_one_that_ends_without_an_answer_may_have_delivered(
    tmp_path: pathlib.Path, has_done_one: bool
) -> None:
    def die(process: Process) -> None:
        if has_done_one and len(process.errands) == 1:
            process.answer()
        else:
            process.close()

    async def scenario() -> None:
        async with Lspawn(tmp_path, die) as (_, as_user):
            if has_done_one:
                assert await put(as_user, "1") == Delivered("1")
            outcome = await put(as_user, "2")
            assert isinstance(outcome, Retry)
            assert outcome.may_have_arrived
            assert outcome.reason == "as joe: the process that keeps root gave no answer"

    asyncio.run(scenario())


def test_an_answer_that_nobody_asked_for_is_nobodys(tmp_path: pathlib.Path) -> None:
    def twice(process: Process) -> None:
        process.answer()
        if len(lspawns[0].processes) == 1:
            process.answer(Delivered("of the account's own"))

    lspawns: list[Lspawn] = []

    async def scenario() -> None:
        async with Lspawn(tmp_path, twice) as (lspawn, as_user):
            lspawns.append(lspawn)
            assert await put(as_user, "1") == Delivered("1")
            assert await put(as_user, "2") == Delivered("2")
            assert len(lspawn.processes) == 2

    asyncio.run(scenario())


def test_one_bad_maildir_does_not_keep_the_others_mail(tmp_path: pathlib.Path) -> None:
    """An errand is for all of its recipients or none: where it fails for now, each has one of its own."""
    bad = Retry(reply.STORAGE_FULL, "over quota")

    def act(process: Process) -> None:
        process.answer(bad if b"bad@example.org" in process.recipients else None)

    async def scenario() -> None:
        async with Lspawn(tmp_path, act) as (_, as_user):
            stored = message("1", b"joe@example.org", b"bad@example.org", b"ann@example.org")
            done: asyncio.Future[Sequence[Outcome | Damaged]] = asyncio.get_running_loop().create_future()
            route = Route(DEST, parse_dest(DEST), user="joe")
            as_user.put(stored, stored.envelope.recipients, route, done.set_result)
            async with asyncio.timeout(60):
                found = await done
            assert [type(outcome) for outcome in found] == [Delivered, Retry, Delivered]

    asyncio.run(scenario())
