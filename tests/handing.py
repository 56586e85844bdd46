"""One message through a sink, the way the connection hands it on."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

from fastsmtp.address import Address
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy.facts import Client, Facts
from fastsmtp.reply import Reply
from fastsmtp.sink import Sink, Transaction

T = TypeVar("T")
PREFIX = b"Received: from here\r\n\tby there\r\n"


def facts(client: str = "192.0.2.1") -> Facts:
    known = Facts("7F3A9C2E", "mx", "127.0.0.1", Client(Address(client), 4711))
    known.helo = b"client.example"
    known.is_extended = True
    return known


def rcpt(address: bytes, deliver: str, pass_client: str = "none") -> Recipient:
    domain = address.rpartition(b"@")[2].lower()
    return Recipient(address, domain, deliver=deliver, pass_client=pass_client)


async def settled(value: T | Awaitable[T]) -> T:
    return await value if isinstance(value, Awaitable) else value


async def opened(
    sink: Sink, recipients: Sequence[Recipient], envelope: Envelope | None = None, known: Facts | None = None
) -> tuple[Transaction, list[Reply | None]]:
    """A transaction with these recipients, and what each was answered."""
    envelope = envelope or Envelope(b"from@example.net", b"example.net")
    transaction = sink.open(envelope, known or facts())
    answers = []
    for recipient in recipients:
        answer = await settled(transaction.add(recipient))
        answers.append(answer)
        if answer is None:
            envelope.recipients.append(recipient)
    return transaction, answers


async def finished(transaction: Transaction, *chunks: bytes, prefix: bytes = PREFIX) -> Reply:
    """The message; DATA's refusal is the answer."""
    refusal = await settled(transaction.begin(facts()))
    if refusal is not None:
        transaction.abort()
        return refusal
    for chunk in chunks:
        await settled(transaction.write(chunk))
    return await settled(transaction.commit(prefix))


async def deliver(
    sink: Sink,
    recipients: Sequence[Recipient],
    *chunks: bytes,
    prefix: bytes = PREFIX,
    envelope: Envelope | None = None,
    known: Facts | None = None,
) -> Reply:
    """One whole message; RCPT's first refusal is the answer."""
    transaction, answers = await opened(sink, recipients, envelope, known)
    refusal = next(filter(None, answers), None)
    if refusal is not None:
        transaction.abort()
        return refusal
    return await finished(transaction, *chunks, prefix=prefix)
