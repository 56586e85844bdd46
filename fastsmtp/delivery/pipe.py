"""pipe: a program of the operator's that takes one recipient's message on its standard input.

There is no shell: the command is split once, by the configuration.  Addresses stand in the environment and
never in an argument, as with a .qmail command: SENDER, RECIPIENT, LOCAL, HOST, and the lines that preline
writes (UFLINE, RPLINE, DTLINE).  What it says on 1 and 2 goes to the log, never to a client.

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastsmtp import reply
from fastsmtp.delivery.maildir import split_address
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.delivery.program import Command, Content, Ending, NotStarted, Programs, is_runnable, lines_lf
from fastsmtp.queue.disk import Disk

# As for qmail-queue: clients wait 600 s for the answer to the dot.
ANSWER_S = 540.0
# Of what the program says, in the log.
_SAID = 200

DELIVERED = frozenset({0, 99})
"""99 is qmail-command's "delivered, and the rest of .qmail is skipped": here there is no rest."""


class Pipe:
    """Hands messages to programs.

    disk         where it blocks; as many at a time as it has threads
    environment  what every program gets; what is known of the connection and the addresses come on top
    wall         seconds since 1970
    """

    __slots__ = ("_disk", "_environment", "_now", "_programs", "_wall", "answer_s")

    def __init__(
        self,
        disk: Disk,
        *,
        environment: Mapping[str, str] | None = None,
        answer_s: float = ANSWER_S,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._disk = disk
        self._environment = os.environ if environment is None else environment
        self.answer_s = answer_s
        self._now = now
        self._wall = wall
        self._programs = Programs(now)

    def check(self, command: str) -> bool | Awaitable[bool]:
        """Whether there is such a program to run: asked before the client sends its message."""
        return self._disk.run(is_runnable, shlex.split(command)[0])

    def store(
        self,
        command: str,
        sender: bytes,
        recipient: bytes,
        connection: Mapping[str, str],
        prefix: bytes,
        body: Content,
    ) -> Outcome | Awaitable[Outcome]:
        """Hand the message over for one recipient.  Raises, or the awaitable does, what reading the body raises.

        connection  variables about the client (qmail_queue.connection_variables)
        """
        environment = {
            **self._environment, **connection, **address_variables(sender, recipient, self._wall()),
        }  # fmt: skip
        return self._disk.run(
            self._store, shlex.split(command), environment, prefix, body, self._now() + self.answer_s
        )

    def _store(
        self,
        system: Any,
        words: list[str],
        environment: dict[str, str],
        prefix: bytes,
        body: Content,
        deadline_s: float,
    ) -> Outcome:
        command = Command(
            words[0], words, environment, [(0, lines_lf(system, prefix, body))], deadline_s=deadline_s, said=(1, 2)
        )  # fmt: skip
        try:
            ending = self._programs.run(system, command)
        except NotStarted as error:
            return Retry(reply.PROGRAM_NOT_STARTED, f"{words[0]} can't be run: {error}")
        return outcome(words[0], ending)


def outcome(program: str, ending: Ending) -> Outcome:
    """What the exit status means.  A program that ends with 0 has taken the message, read to its end or not."""
    status = ending.status
    said = " ".join(ending.said.decode("utf-8", "replace").split())[:_SAID]
    also = f": {said}" if said else ""
    if status is None:
        return Retry(
            reply.PROGRAM_TIMED_OUT, f"{program} took too long and was killed{also}", may_have_arrived=True
        )
    if status in DELIVERED:
        return Delivered(f"{os.path.basename(program)} took it")
    if status < 0:
        return Retry(reply.PROGRAM_FAILED, f"{program} was killed by signal {-status}{also}")
    answer = reply.PROGRAM.get(status, reply.PROGRAM_FAILED)
    reason = f"{program} ended with {status}{also}"
    return Failed(answer, reason) if answer.is_permanent else Retry(answer, reason)


def address_variables(sender: bytes, recipient: bytes, now_s: float) -> dict[str, str]:
    """The addresses, and what preline makes of them."""
    local, domain = split_address(recipient)
    from_ = sender.replace(b" ", b"-") or b"MAILER-DAEMON"
    words = {
        "SENDER": sender,
        "RECIPIENT": recipient,
        "LOCAL": local,
        "HOST": domain,
        "UFLINE": b"From %b %b\n" % (from_, time.asctime(time.gmtime(now_s)).encode()),
        "RPLINE": b"Return-Path: <%b>\n" % sender,
        "DTLINE": b"Delivered-To: %b\n" % recipient,
    }
    if any(b"\0" in word or word.count(b"\n") > name.endswith("LINE") for name, word in words.items()):
        raise ValueError("a NUL or a line end in an address")
    return {name: os.fsdecode(word) for name, word in words.items()}
