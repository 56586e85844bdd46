"""Where an accepted message goes: the interface, and what joins queue and delivery.

A sink opens a Transaction with the first accepted recipient.  Every step
answers at once or with an awaitable; the connection waits only for the
awaitable, so a sink that needs no waiting costs no task.

    transaction = sink.open(envelope, facts)     never waits
    transaction.add(recipient)   -> Reply | None      None: taken; a Reply refuses this recipient (RCPT's answer)
    transaction.begin(facts)     -> Reply | None      at DATA or the first BDAT; a Reply refuses the message
    transaction.write(chunk)     -> None              back-pressure when it is an awaitable
    transaction.commit(prefix)   -> Reply             the client's answer; 2xx only when the message is safe there
    transaction.abort()                               at any time before commit's answer; never waits, never fails

The prefix is the header block that we add (Received and so on), known only now.
Any exception out of a sink is ours: 451 4.3.0, logged, never 250 - but
errors.TemporaryError, which has a reply of its own in reply.py.

Rank 7: may import queue/ and delivery/.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy.facts import Facts
from fastsmtp.reply import Reply


class Transaction(Protocol):
    """One message on its way; see the module's text."""

    def add(self, recipient: Recipient) -> Reply | None | Awaitable[Reply | None]: ...
    def begin(self, facts: Facts) -> Reply | None | Awaitable[Reply | None]: ...
    def write(self, chunk: bytes) -> None | Awaitable[None]: ...
    def commit(self, prefix: bytes) -> Reply | Awaitable[Reply]: ...
    def abort(self) -> None: ...


class Sink(Protocol):
    """Opens transactions."""

    def open(self, envelope: Envelope, facts: Facts) -> Transaction: ...
    async def close(self) -> None:
        """Give back connections and files; open transactions have been aborted."""
