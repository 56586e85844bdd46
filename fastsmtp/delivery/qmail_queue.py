"""qmail-queue: the program that puts a message into qmail's queue, or a filter in its place.

It reads the message on descriptor 0 and the envelope on 1: F sender NUL, for
each recipient T recipient NUL, and a NUL.  Without that last NUL nothing is
queued; so a message that we can't finish, or a death of ours, leaves nothing
behind.  Its exit status is the answer (reply.QMAIL_QUEUE); with 82 it gives a
text of its own on descriptor 6 (notqmail) or 4 (the older patch).

Addresses go into the envelope and nowhere else: neither into an argument nor
into the environment.

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastsmtp import reply
from fastsmtp.delivery.maildir import split_address
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.delivery.program import Command, Content, Ending, NotStarted, Programs, is_runnable, lines_lf
from fastsmtp.message import Recipient
from fastsmtp.policy.facts import Facts
from fastsmtp.queue.disk import Disk

DEFAULT_HOME = "/var/qmail"
PROGRAM = "bin/qmail-queue"
# Clients wait 600 s for the answer to the dot (RFC 5321 section 4.5.3.2.6), as with a next hop.
ANSWER_S = 540.0

_SPEAKS = 82
_SAID_ON = (4, 6)


class QmailQueue:
    """Hands messages to qmail-queue.

    disk         where it blocks; as many at a time as it has threads
    home         the qmail home: where a relative $QMAILQUEUE begins, and where the program starts
    hostname     $TCPLOCALHOST
    environment  what every child gets; a client's own variables and those about its connection come on top
    """

    __slots__ = ("_disk", "_environment", "_hostname", "_now", "_programs", "answer_s", "home")

    def __init__(
        self,
        disk: Disk,
        *,
        hostname: str,
        home: str = DEFAULT_HOME,
        environment: Mapping[str, str] | None = None,
        answer_s: float = ANSWER_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self.home = home
        self._hostname = hostname
        self._environment = os.environ if environment is None else environment
        self.answer_s = answer_s
        self._now = now
        self._programs = Programs(now)

    def program(self, path: str, environment: Mapping[str, str]) -> str:
        """The program to run: $QMAILQUEUE, else the DEST's own, else the home's."""
        return os.path.join(self.home, environment.get("QMAILQUEUE") or path or PROGRAM)

    def environment(self, facts: Facts) -> dict[str, str]:
        """What the child of this client gets."""
        found = {**self._environment, **connection_variables(facts, self._hostname)}
        found.update(facts.client.environment)
        if facts.client.may_relay:
            # Whatever it was granted for; filters ask for this.
            found.setdefault("RELAYCLIENT", "")
        return found

    def check(self, path: str, facts: Facts) -> bool | Awaitable[bool]:
        """Whether there is such a program to run: asked before the client sends its message."""
        return self._disk.run(is_runnable, self.program(path, self.environment(facts)))

    def store(
        self,
        path: str,
        sender: bytes,
        recipients: Sequence[Recipient],
        environment: dict[str, str],
        prefix: bytes,
        body: Content,
    ) -> Outcome | Awaitable[Outcome]:
        """Hand the message over, in one envelope.  Raises, or the awaitable does, what reading the body raises."""
        program = self.program(path, environment)
        envelope = envelope_of(sender, recipients)
        deadline_s = self._now() + self.answer_s
        return self._disk.run(self._store, program, environment, envelope, prefix, body, deadline_s)

    def _store(
        self,
        system: Any,
        program: str,
        environment: dict[str, str],
        envelope: bytes,
        prefix: bytes,
        body: Content,
        deadline_s: float,
    ) -> Outcome:
        command = Command(
            program,
            [program],
            environment,
            [(0, lines_lf(system, prefix, body, is_ended=True)), (1, (envelope,))],
            deadline_s=deadline_s,
            directory=self.home if os.path.isdir(self.home) else None,
            said=_SAID_ON,
        )
        try:
            ending = self._programs.run(system, command)
        except NotStarted as error:
            return Retry(reply.QUEUE_NOT_STARTED, f"{program} can't be run: {error}")
        return outcome(program, ending)


def envelope_of(sender: bytes, recipients: Sequence[Recipient]) -> bytes:
    """The envelope as qmail-queue reads it; addresses without their quoting."""
    words = [b"F", _plain(sender), b"\0"]
    for recipient in recipients:
        words += (b"T", _plain(recipient.address), b"\0")
    words.append(b"\0")
    return b"".join(words)


def _plain(address: bytes) -> bytes:
    local, domain = split_address(address)
    plain = b"%b@%b" % (local, domain) if b"@" in address else address
    if b"\0" in plain or b"\n" in plain:
        raise ValueError("a NUL or a line end in an address")
    return plain


def outcome(program: str, ending: Ending) -> Outcome:
    """What the exit status means."""
    status = ending.status
    if status is None:
        return Retry(reply.QUEUE_TIMED_OUT, f"{program} took too long and was killed", ending.is_fed)
    if status < 0:
        return Retry(reply.QUEUE_CRASHED, f"{program} was killed by signal {-status}")
    if status == 0:
        if ending.is_fed:
            return Delivered(f"qp {ending.pid}")
        # It can't have had the envelope's end: nothing is queued, whatever it says.
        return Retry(reply.QMAIL_QUEUE[54], f"{program} did not read all and ended with 0")
    answer = reply.qmail_queue_said(ending.said) if status == _SPEAKS else None
    if answer is None:
        answer = reply.qmail_queue(status)
    reason = f"{program} ended with {status}"
    return Failed(answer, reason) if answer.is_permanent else Retry(answer, reason)


def connection_variables(facts: Facts, hostname: str) -> dict[str, str]:
    """The variables of tcpserver about this connection; with those of its IPv6 patch, for both families."""
    client = facts.client
    address = client.address.text
    is_ipv6 = ":" in address
    found = {"PROTO": "TCP6" if is_ipv6 else "TCP", "TCPREMOTEIP": address}
    found["TCPLOCALHOST"] = found["TCP6LOCALHOST"] = hostname
    found["TCP6REMOTEIP"] = address if is_ipv6 else f"::ffff:{address}"
    if facts.local_address:
        found["TCPLOCALIP"] = facts.local_address
        found["TCP6LOCALIP"] = facts.local_address if is_ipv6 else f"::ffff:{facts.local_address}"
    if facts.local_port:
        found["TCPLOCALPORT"] = found["TCP6LOCALPORT"] = str(facts.local_port)
    if client.port:
        found["TCPREMOTEPORT"] = found["TCP6REMOTEPORT"] = str(client.port)
    if client.name:
        found["TCPREMOTEHOST"] = found["TCP6REMOTEHOST"] = client.name
    return found
