"""The second engine: the same questions and answers through c-ares.

It stands in where raw UDP sockets can't be used, and it is the oracle of the
differential test.  What c-ares does not tell is missing from its answers: the
AD bit (never authentic), types that it does not know (NOTIMP), the SOA of a
negative answer (its ttl is 0).  It keeps its own cache.  Rank 3.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fastsmtp._dns import Answer, Mx, Question, Soa, Srv, Status, Tlsa, make_answer
from fastsmtp.cares import LoopChannel

if TYPE_CHECKING:
    from pycares import DNSResult

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, TLSA = 1, 2, 5, 6, 12, 15, 16, 28, 33, 52
_CHAIN = 8

Answers = tuple[Answer, ...]


class CaresResolver:
    """Resolver's interface on one c-ares channel; servers as there."""

    def __init__(self, servers: Iterable[str] = (), *, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self._channel = LoopChannel(servers=servers)
        self._is_closed = False

    async def ask(self, questions: Sequence[Question], deadline: float | None = None) -> Answers:
        """As Resolver.ask."""
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()

        def answered(answers: Answers) -> None:
            if not future.done():
                future.set_result(answers)

        if deadline is None:
            deadline = time.monotonic() + self.timeout_s
        known = self.put(questions, deadline, answered)
        return known if known is not None else await future

    def put(
        self, questions: Sequence[Question], deadline: float, callback: Callable[[Answers], object]
    ) -> Answers | None:
        """As Resolver.put."""
        if not questions or self._is_closed:
            return tuple(make_answer(Status.UNREACHABLE) for _ in questions)
        gathering = _Gathering(len(questions), callback)
        left_s = max(0.0, deadline - time.monotonic())
        gathering.timer = asyncio.get_running_loop().call_later(left_s, gathering.give_up)
        for index, question in enumerate(questions):
            self._query(question, gathering, index)
        self._channel.keep_time()
        return None

    def close(self) -> None:
        """Open questions are answered TIMEOUT."""
        self._is_closed = True
        self._channel.close()

    def _query(self, question: Question, gathering: _Gathering, index: int) -> None:
        import pycares

        def answered(result: DNSResult | None, error: int | None) -> None:
            loop.call_soon(gathering.answer, index, answer_of(question, result, error))

        loop = asyncio.get_running_loop()
        try:
            # The last dot keeps c-ares from anything clever with short names.
            self._channel.channel().query(
                question.name.decode("ascii") + ".", question.type, callback=answered
            )
        except ValueError:
            loop.call_soon(gathering.answer, index, make_answer(Status.NOTIMP))
        except pycares.AresError:
            loop.call_soon(gathering.answer, index, make_answer(Status.BADNAME))


class _Gathering:
    """The answers of one put() as they come."""

    def __init__(self, count: int, callback: Callable[[Answers], object]) -> None:
        self._answers: list[Answer | None] = [None] * count
        self._missing = count
        self._callback: Callable[[Answers], object] | None = callback
        self.timer: asyncio.TimerHandle | None = None

    def answer(self, index: int, answer: Answer) -> None:
        if self._callback is None or self._answers[index] is not None:
            return
        self._answers[index] = answer
        self._missing -= 1
        if self._missing == 0:
            self.give_up()

    def give_up(self) -> None:
        callback, self._callback = self._callback, None
        if self.timer is not None:
            self.timer.cancel()
        if callback is not None:
            timeout = make_answer(Status.TIMEOUT)
            callback(tuple(answer or timeout for answer in self._answers))


def answer_of(question: Question, result: DNSResult | None, error: int | None) -> Answer:
    """c-ares' result or error as one of our answers; names in lower case, aliases followed."""
    from pycares import errno

    if result is None:
        status = {
            errno.ARES_ENODATA: Status.NODATA,
            errno.ARES_ENOTFOUND: Status.NXDOMAIN,
            errno.ARES_ESERVFAIL: Status.SERVFAIL,
            errno.ARES_EREFUSED: Status.REFUSED,
            errno.ARES_ENOTIMP: Status.NOTIMP,
            errno.ARES_EFORMERR: Status.FORMERR,
            errno.ARES_EBADRESP: Status.BROKEN,
            errno.ARES_EBADNAME: Status.BADNAME,
            errno.ARES_ECONNREFUSED: Status.UNREACHABLE,
        }.get(error or 0, Status.TIMEOUT)
        return make_answer(status)
    target, ttl, hops = question.name, 86_400, 0
    while True:
        mine = [r for r in result.answer if r.record_class == 1 and _lower(r.name) == target]
        records = [r for r in mine if r.type == question.type]
        if records:
            values = tuple(value_of(r.data, r.type) for r in records)
            ttl = min(ttl, *(r.ttl for r in records))
            return make_answer(Status.NOERROR, values, ttl, canonical_name=target if hops else None)
        aliases = [r for r in mine if r.type == CNAME]
        if not aliases:
            return make_answer(Status.NODATA, canonical_name=target if hops else None)
        hops += 1
        if hops > _CHAIN:
            return make_answer(Status.BROKEN)
        ttl = min(ttl, aliases[-1].ttl)
        target = value_of(aliases[-1].data, CNAME)


def value_of(data: Any, type: int) -> Any:
    """One record of c-ares as the value that ours has; TXT is one string, since c-ares joins them."""
    if type == A:
        return socket.inet_pton(socket.AF_INET, data.addr)
    if type == AAAA:
        return socket.inet_pton(socket.AF_INET6, data.addr)
    if type == MX:
        return Mx(data.priority, _lower(data.exchange))
    if type == TXT:
        return (data.data,)
    if type in (PTR, NS, CNAME):
        return _lower(getattr(data, _FIELD[type]))
    if type == SRV:
        return Srv(data.priority, data.weight, data.port, _lower(data.target))
    if type == SOA:
        numbers = (data.serial, data.refresh, data.retry, data.expire, data.minimum)
        return Soa(_lower(data.mname), _lower(data.rname), *numbers)
    if type == TLSA:
        return Tlsa(data.cert_usage, data.selector, data.matching_type, data.cert_association_data)
    return data


_FIELD = {PTR: "dname", NS: "nsdname", CNAME: "cname"}


def _lower(name: str | bytes) -> bytes:
    return (name.encode("ascii") if isinstance(name, str) else name).lower().removesuffix(b".")
