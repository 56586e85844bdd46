"""Delivery out of the queue on this machine: each recipient has an outcome of its own."""

from __future__ import annotations

import asyncio
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.local import LocalDeliverer
from fastsmtp.delivery.outcome import Delivered, Outcome, Retry
from fastsmtp.delivery.stored import StoredMessage
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import InlineDisk
from fastsmtp.queue.model import Origins, QueuedMessage


def test_one_bad_maildir_does_not_keep_the_others_mail(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad").write_bytes(b"no directory")
    recipients = [Recipient(b"%s@example.org" % name, b"example.org") for name in (b"joe", b"bad", b"ann")]
    envelope = Envelope(b"a@example.org", b"example.org", recipients=recipients)
    queued = QueuedMessage("1", 0, envelope, Origins(address="192.0.2.1"), b"", [b"Text\r\n"], 6)
    disk: Any = InlineDisk()
    stored = StoredMessage(queued, Bodies("/nowhere", version="1", wall=lambda: 0.0, random=os.urandom), disk)

    async def scenario() -> Sequence[Outcome | Damaged]:
        deliverer = LocalDeliverer(disk=disk, hostname="mx.example.org")
        done: asyncio.Future[Sequence[Outcome | Damaged]] = asyncio.get_running_loop().create_future()
        deliverer.put(stored, recipients, f"maildir:{tmp_path}/{{local}}", done.set_result)
        async with asyncio.timeout(60):
            return await done

    found = asyncio.run(scenario())
    assert [type(outcome) for outcome in found] == [Delivered, Retry, Delivered]
    # Once each: what was taken back isn't there beside it.
    assert [len(list((tmp_path / name / "new").iterdir())) for name in ("joe", "ann")] == [1, 1]
