"""What lspawn's child does when it is the account: reads the records that it was handed, and delivers.

Everything here runs as somebody without rights, in a process that delivers one message after the other to one
DEST as one account: all blocks, and the code is that of the delivery processes (local.py) on an inline disk.
Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from fastsmtp import errors, reply
from fastsmtp._payload import decode
from fastsmtp.config.dest import parse_dest
from fastsmtp.delivery.errand import DESCRIPTORS, ERRAND_BYTES, RECORD_BYTES, answer, read_errand
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.local import LocalDeliverer, outcome_of
from fastsmtp.delivery.maildir import MaildirPath
from fastsmtp.delivery.outcome import Failed, Outcome, Retry
from fastsmtp.delivery.pipe import ANSWER_S
from fastsmtp.delivery.stored import StoredMessage
from fastsmtp.queue.bodies import Bodies
from fastsmtp.queue.disk import InlineDisk

T = TypeVar("T")

MESSAGES: Final = 1_000
"""One process delivers so many at most."""

IDLE_S: Final = 5.0
"""A process stays so long without one, as connections to next hops do."""

PATH: Final = "/usr/local/bin:/usr/bin:/bin"


def environment_of(user: str, home: str) -> dict[str, str]:
    """All that a program finds in its environment, but what is told of the message."""
    return {"HOME": home, "LOGNAME": user, "PATH": PATH, "SHELL": "/bin/sh", "USER": user}


class Carrier:
    """Delivers to one DEST, as whoever we are.

    deliver       the DEST
    user          for the reason of what fails
    home          of the account: no link below it may lead a Maildir out of it
    version       of the running program
    """

    def __init__(
        self,
        deliver: str,
        user: str,
        home: str,
        *,
        hostname: str,
        version: str,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._deliver = deliver
        self._user = user
        self._home = os.fsencode(home)
        self._version = version
        dest = parse_dest(deliver)
        self._maildir = MaildirPath(dest.path) if dest.kind == "maildir" else None
        self._disk = InlineDisk()
        self._local = LocalDeliverer(disk=self._disk, hostname=hostname, answer_s=answer_s)

    def carry(self, descriptors: Sequence[int]) -> Outcome | Damaged:
        """Deliver the message of an errand; never raises."""
        try:
            outcome = self._carry(descriptors)
        except OSError as error:
            outcome = outcome_of(errors.StorageFailed(str(error)))
        except Exception as error:  # noqa: BLE001 - ours: it is tried again, and the reason says what it was
            outcome = outcome_of(error)
        if isinstance(outcome, Retry | Failed):
            # For the log; never for a sender.
            return type(outcome)(outcome.reply, f"as {self._user}: {outcome.reason}")
        return outcome

    def _carry(self, descriptors: Sequence[int]) -> Outcome | Damaged:
        bodies = _Handed(descriptors[1:], self._version)
        stored = StoredMessage(decode(_read(descriptors[0])), bodies, self._disk)
        recipients = stored.envelope.recipients
        maildir = self._maildir
        if maildir is not None:
            for one in recipients:
                check_inside(maildir.directory(one.address), maildir.root, self._home)
        outcomes = _at_once(self._local.deliver(stored, recipients, self._deliver))
        if not outcomes:
            raise errors.QueueDamaged("a record without a recipient")
        # A Maildir's are all the same, and a program gets one recipient.
        return outcomes[0]


class Stay:
    """How long a child is there for more errands of its account and DEST.

    fd        readable, or hung up, when it shall go
    until_s   by its clock; messages  in all;  idle_s  without one
    """

    __slots__ = ("fd", "idle_s", "messages", "until_s")

    def __init__(self, fd: int, until_s: float, *, messages: int = MESSAGES, idle_s: float = IDLE_S) -> None:
        self.fd = fd
        self.until_s = until_s
        self.messages = messages
        self.idle_s = idle_s


def serve(
    sock: socket.socket,
    key: bytes,
    carry: Callable[[Sequence[int]], Outcome | Damaged],
    descriptors: Sequence[int],
    stay: Stay,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Deliver the message that is here, and those that come on the same line.

    Who calls sends an errand when the one before is answered.  Before this ends nothing more can be sent: who
    tries is told by the kernel (EPIPE), and what was sent by then is delivered.
    """
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(stay.fd, 0)
    served = 0
    is_going = False
    while True:
        outcome = carry(descriptors)
        _close_all(descriptors)
        served += 1
        if not is_going:
            is_going = served >= stay.messages or now() >= stay.until_s or _is_called_off(stay.fd)
            if is_going:
                _take_no_more(sock)
        # Nobody may be there any more: then it will be delivered again.
        with suppress(OSError):
            sock.send(answer(outcome))
        if not is_going:
            left_s = min(stay.idle_s, stay.until_s - now())
            is_going = not any(fd == sock.fileno() for fd, _ in poll.poll(max(0.0, left_s) * 1000))
            if is_going:
                _take_no_more(sock)
        try:
            packet, found, _, _ = socket.recv_fds(
                sock, ERRAND_BYTES + 1, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return
        descriptors = found
        if not packet:
            return
        try:
            check_handed(descriptors)
            if read_errand(packet) != key:
                raise ValueError("an errand for another process")
        except ValueError as error:
            _close_all(descriptors)
            with suppress(OSError):
                sock.send(answer(Retry(reply.STORAGE_FAILED, str(error))))
            return


def check_handed(descriptors: Sequence[int]) -> None:
    """Raises ValueError where these are not what a message is handed over in."""
    if not descriptors:
        raise ValueError("an errand without a message")
    for fd in descriptors:
        if (
            not stat.S_ISREG(os.fstat(fd).st_mode)
            or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        ):
            raise ValueError("a message is handed over in files, for reading only")


def _is_called_off(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def _take_no_more(sock: socket.socket) -> None:
    with suppress(OSError):  # the other side has gone
        sock.shutdown(socket.SHUT_RD)


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


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
