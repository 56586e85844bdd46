"""What lspawn's child does when it is the account: reads the record that it was handed, and delivers.

Everything here runs as somebody without rights, in a process with one message to deliver: all blocks, and the
code is that of the delivery processes (local.py) on an inline disk.  Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from fastsmtp import errors
from fastsmtp._payload import decode
from fastsmtp.config.dest import parse_dest
from fastsmtp.delivery.errand import RECORD_BYTES
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.local import LocalDeliverer, outcome_of
from fastsmtp.delivery.maildir import MaildirPath
from fastsmtp.delivery.outcome import Failed, Outcome, Retry
from fastsmtp.delivery.pipe import ANSWER_S
from fastsmtp.delivery.stored import StoredMessage
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import InlineDisk

T = TypeVar("T")

PATH: Final = "/usr/local/bin:/usr/bin:/bin"


def environment_of(user: str, home: str) -> dict[str, str]:
    """All that a program finds in its environment, but what is told of the message."""
    return {"HOME": home, "LOGNAME": user, "PATH": PATH, "SHELL": "/bin/sh", "USER": user}


def carry(
    deliver: str,
    user: str,
    home: str,
    descriptors: Sequence[int],
    *,
    hostname: str,
    version: str,
    answer_s: float = ANSWER_S,
) -> Outcome | Damaged:
    """Deliver to this DEST, as whoever we are; never raises.

    user          for the reason of what fails
    home          of the account: no link below it may lead a Maildir out of it
    descriptors   of an errand
    version       of the running program
    """
    try:
        outcome = _carry(deliver, home, descriptors, hostname, version, answer_s)
    except OSError as error:
        outcome = outcome_of(errors.StorageFailed(str(error)))
    except Exception as error:  # noqa: BLE001 - ours: it is tried again, and the reason says what it was
        outcome = outcome_of(error)
    if isinstance(outcome, Retry | Failed):
        # For the log; never for a sender.
        return type(outcome)(outcome.reply, f"as {user}: {outcome.reason}")
    return outcome


def _carry(
    deliver: str, home: str, descriptors: Sequence[int], hostname: str, version: str, answer_s: float
) -> Outcome | Damaged:
    bodies = _Handed(descriptors[1:], version)
    stored = StoredMessage(decode(_read(descriptors[0])), bodies, InlineDisk())
    dest = parse_dest(deliver)
    recipients = stored.envelope.recipients
    if dest.kind == "maildir":
        maildir = MaildirPath(dest.path)
        for one in recipients:
            check_inside(maildir.directory(one.address), maildir.root, os.fsencode(home))
    local = LocalDeliverer(disk=InlineDisk(), hostname=hostname, answer_s=answer_s)
    outcomes = _at_once(local.deliver(stored, recipients, deliver))
    if not outcomes:
        raise errors.QueueDamaged("a record without a recipient")
    # A Maildir's are all the same, and a program gets one recipient.
    return outcomes[0]


def check_inside(directory: bytes, root: bytes, home: bytes) -> None:
    """Raises errors.StorageFailed when a symbolic link leads a Maildir out of where it belongs.

    That is the account's home for what is below it, else the fixed part of the path.  The kernel asks for the
    account's rights in any case; this is for accounts that hold the mail of many.
    """
    base = home if len(home) > 1 and directory.startswith(home.rstrip(b"/") + b"/") else root
    real_base = os.path.realpath(base)
    for path in (directory, os.path.join(directory, b"tmp"), os.path.join(directory, b"new")):
        real = os.path.realpath(path)
        if real != real_base and not real.startswith(real_base.rstrip(b"/") + b"/"):
            raise errors.StorageFailed(f"{os.fsdecode(path)} leads out of {os.fsdecode(base)}")


class _Handed(Bodies):
    """A body file by its descriptor: none is opened by its name."""

    __slots__ = ("_descriptors",)

    def __init__(self, descriptors: Sequence[int], version: str) -> None:
        super().__init__("(handed over)", version=version, wall=_no_clock, random=os.urandom)
        self._descriptors = descriptors

    def open(self, system: Any, number: int) -> int:
        if not self._descriptors:
            raise errors.QueueDamaged(f"{self.path(number)}: the body was not handed over")
        return os.dup(self._descriptors[0])


def _no_clock() -> float:
    raise RuntimeError("nothing is made here")


def _read(fd: int) -> bytes:
    """All of the record.  Raises errors.QueueDamaged, OSError."""
    size = os.fstat(fd).st_size
    if size > RECORD_BYTES:
        raise errors.QueueDamaged(f"a record of {size} bytes")
    data = os.pread(fd, size, 0)
    if len(data) != size:
        raise errors.QueueDamaged(f"a record of {size} bytes, {len(data)} of which can be read")
    return data


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The value of what never waits, as nothing does on an inline disk."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    coroutine.close()
    raise RuntimeError("it waits for something")
