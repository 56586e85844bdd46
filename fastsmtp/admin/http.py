"""Answers GET and HEAD for a few fixed paths, over HTTP/1.0 and 1.1 (RFC 9112), and nothing else.

One request a connection, then it is closed: who asks every fifteen seconds needs
no more.  Whoever is hostile costs a bounded amount of everything: so many
connections, so many bytes of a request, so many seconds in all.  What a client sends behind
its request's head is dropped unread.

Rank 9.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

MOST_CONNECTIONS: Final = 32
"""A newer one takes the place of the oldest, so that nobody keeps a Prometheus out by holding them all."""

HEAD_BYTES: Final = 8_192
"""Of request line and fields; what Apache and nginx allow by default for a line."""

DEADLINE_S: Final = 10.0
"""For a connection, from accept to the last byte of the answer: Prometheus' own scrape_timeout."""

DRAIN_BYTES: Final = 65_536
"""What is still read and dropped after the answer, so that no reset eats it."""


class Answer(NamedTuple):
    """content_type and body of a 200."""

    content_type: str
    body: bytes


# The value of Accept, "" for none, to an answer.
Page = Callable[[str], Answer]


class Front:
    """Serves pages; `connection` is the protocol factory of a loop's create_server.

    pages  by path, without the query
    """

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        # In their order.
        self.connections: dict[Connection, None] = {}

    def connection(self) -> Connection:
        return Connection(self)

    def close(self) -> None:
        """End all connections."""
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = ("_front", "_head", "_is_answered", "_left", "_timer", "_transport")

    def __init__(self, front: Front) -> None:
        self._front = front
        self._head = b""
        self._is_answered = False
        self._left = DRAIN_BYTES
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        others = self._front.connections
        if len(others) >= MOST_CONNECTIONS:
            oldest = next(iter(others))
            del others[oldest]
            oldest.abort()
        others[self] = None
        self._timer = asyncio.get_running_loop().call_later(DEADLINE_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._is_answered:
            self._left -= len(data)
            if self._left < 0:
                self.abort()
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if 0 <= end <= HEAD_BYTES:
            self._answer(self._head[:end])
        elif len(self._head) > HEAD_BYTES:
            self._say(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def eof_received(self) -> bool:
        """Half-closed: who has asked gets the answer all the same."""
        if not self._is_answered:
            self.abort()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._front.connections.pop(self, None)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _answer(self, head: bytes) -> None:
        """head: request line and fields, without the empty line."""
        line, *fields = head.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1") or not words[1].startswith("/"):
            self._say(HTTPStatus.BAD_REQUEST)
            return
        method, target, _ = words
        page = self._front.pages.get(target.partition("?")[0])
        if page is None:
            self._say(HTTPStatus.NOT_FOUND)
        elif method not in ("GET", "HEAD"):
            self._say(HTTPStatus.METHOD_NOT_ALLOWED, more="Allow: GET, HEAD\r\n")
        else:
            accept = ",".join(
                value.strip()
                for name, _, value in (field.partition(":") for field in fields)
                if name.lower() == "accept"
            )
            self._say(HTTPStatus.OK, page(accept), has_body=method == "GET")

    def _say(
        self, status: HTTPStatus, answer: Answer | None = None, *, more: str = "", has_body: bool = True
    ) -> None:
        self._is_answered = True
        self._head = b""
        if answer is None:
            answer = Answer("text/plain; charset=utf-8", f"{status.phrase}\n".encode())
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            f"{more}Connection: close\r\n\r\n"
        )
        transport = self._transport
        if transport is None:
            return
        transport.write(head.encode("latin-1") + (answer.body if has_body else b""))
        # What the client may still send must not reset what we wrote: it closes, or the deadline does.
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
