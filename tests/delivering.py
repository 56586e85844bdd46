"""What tests of delivery share: messages of the queue, a resolver with a zone, and a Deliverer on loopback."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastsmtp._dns import Answer, Question
from fastsmtp.config.dest import parse_dest
from fastsmtp.config.outgoing import Remote
from fastsmtp.config.routes import Route, Source
from fastsmtp.delivery.deliverer import Deliverer
from fastsmtp.log import Log
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.model import Origins
from tests.fakes.zone import Zone, answer

PATIENCE_S = 30.0


class Stored:
    """A message; in_file: its body is only there in pieces, as that of a body file."""

    id = "4711"
    accepted_ms = 0

    def __init__(
        self,
        body: bytes = b"Subject: Hello\r\n\r\nText\r\n",
        *,
        sender: bytes = b"me@home.example",
        prefix: bytes = b"Received: here\r\n",
        in_file: bool = False,
        origins: Origins | None = None,
        piece_bytes: int = 1_000,
        **envelope: Any,
    ) -> None:
        self.body = body
        self.prefix = prefix
        self.envelope = Envelope(sender, sender.rpartition(b"@")[2].lower(), **envelope)
        self.origins = origins or Origins(
            address="192.0.2.77", port=4321, name="client.example", helo=b"client"
        )
        self.chunks: Sequence[bytes] | None = None if in_file else (body,)
        self.size_bytes = len(body)
        self.failure: Exception | None = None
        self._piece_bytes = piece_bytes

    @property
    def whole(self) -> bytes:
        return self.prefix + self.body

    @property
    def tail(self) -> bytes:
        return self.body[-2:]

    @property
    def ends_with_crlf(self) -> bool:
        return self.body.endswith(b"\r\n")

    async def pieces(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.body), self._piece_bytes):
            await asyncio.sleep(0)
            if self.failure is not None and at:
                raise self.failure
            yield self.body[at : at + self._piece_bytes]

    def blocking_pieces(self, system: Any) -> Any:
        return iter((self.body,))


def rcpt(address: bytes) -> Recipient:
    return Recipient(address, address.rpartition(b"@")[2].lower())


def to(*addresses: bytes) -> list[Recipient]:
    return [rcpt(address) for address in addresses]


class ZoneAsker:
    """A resolver whose answers are a zone's; asked  the names, in order."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.asked: list[tuple[str, int]] = []

    async def ask(self, questions: Sequence[Question], deadline: float | None = None) -> tuple[Answer, ...]:
        self.asked += [(question.name.decode(), question.type) for question in questions]
        await asyncio.sleep(0)
        return tuple(answer(self.zone, question) for question in questions)

    def put(self, questions: Any, deadline: float, callback: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def make(
    zone: Zone | None = None,
    *,
    port: int = 25,
    remote: dict[str, Any] | None = None,
    log: Log | None = None,
    resolver: Any = None,
    **more: Any,
) -> Deliverer:
    """A Deliverer whose choices are always the same."""
    return Deliverer(
        remote=Remote(**(remote or {})),
        hostname="mx.home.example",
        resolver=resolver or ZoneAsker(zone or {}),
        port=port,
        chance=random.Random(7),
        log=log,
        **more,
    )


def route(dest: str, *sources: tuple[Source, int] | Source, **more: Any) -> Route:
    weighted = tuple(one if isinstance(one, tuple) else (one, 1) for one in sources)
    return Route(dest, parse_dest(dest), sources=weighted, **more)
