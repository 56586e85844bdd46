"""Delivery out of the queue on this machine: each recipient has an outcome of its own."""

from __future__ import annotations

import asyncio
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from fastsmtp import errors
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.local import LocalDeliverer
from fastsmtp.delivery.outcome import Delivered, Outcome, Retry
from fastsmtp.delivery.stored import StoredMessage
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.model import Origins, QueuedMessage


def message(*names: bytes) -> StoredMessage:
    recipients = [Recipient(b"%s@example.org" % name, b"example.org") for name in names]
    envelope = Envelope(b"a@example.org", b"example.org", recipients=recipients)
    queued = QueuedMessage("1", 0, envelope, Origins(address="192.0.2.1"), b"", [b"Text\r\n"], 6)
    bodies = Bodies("/nowhere", version="1", wall=lambda: 0.0, random=os.urandom)
    return StoredMessage(queued, bodies, InlineDisk())


def test_one_bad_maildir_does_not_keep_the_others_mail(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad").write_bytes(b"no directory")
    stored = message(b"joe", b"bad", b"ann")

    async def scenario() -> Sequence[Outcome | Damaged]:
        deliverer = LocalDeliverer(disk=InlineDisk(), hostname="mx.example.org")
        done: asyncio.Future[Sequence[Outcome | Damaged]] = asyncio.get_running_loop().create_future()
        deliverer.put(stored, stored.envelope.recipients, f"maildir:{tmp_path}/{{local}}", done.set_result)
        async with asyncio.timeout(60):
            return await done

    found = asyncio.run(scenario())
    assert [type(outcome) for outcome in found] == [Delivered, Retry, Delivered]
    # Once each: what was taken back isn't there beside it.
    assert [len(list((tmp_path / name / "new").iterdir())) for name in ("joe", "ann")] == [1, 1]


def test_what_fails_at_one_recipient_of_a_program_is_no_second_copy_for_the_others() -> None:
    class Pipe:
        def store(self, path: str, sender: bytes, address: bytes, *more: Any) -> Outcome:
            if address.startswith(b"bad"):
                raise errors.StorageFailed("its body can't be read now")
            return Delivered("ok")

    async def scenario() -> Sequence[Outcome | Damaged]:
        deliverer = LocalDeliverer(disk=InlineDisk(), hostname="mx.example.org")
        deliverer._pipe = Pipe()  # type: ignore[assignment]
        stored = message(b"joe", b"bad", b"ann")
        return await deliverer.deliver(stored, stored.envelope.recipients, "pipe:/bin/true")

    found = asyncio.run(scenario())
    assert [type(outcome) for outcome in found] == [Delivered, Retry, Delivered]
