"""Thousands of generated answers, read by our codec and by c-ares: what both can tell must be the same."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from typing import Any

from fastsmtp._dns import Answer, Question, Status
from fastsmtp.dns_cares import CaresResolver
from fastsmtp.resolver import Resolver
from tests.fakes.dns_server import (
    AAAA,
    CNAME,
    MX,
    NS,
    PTR,
    SOA,
    SRV,
    TLSA,
    TXT,
    A,
    DnsServer,
    dns_server,
    name,
    packet,
    question_of,
    record,
    txt,
)

ANSWERS = 3_000
TYPES = (A, AAAA, MX, TXT, PTR, NS, CNAME, SOA, SRV, TLSA)


class Author:
    """Writes one answer, the same each time for the same seed, compressed wherever a name has occurred before."""

    def __init__(self, seed: int, query: bytes) -> None:
        self.dice = random.Random(seed)
        self.query = query
        self.packet = bytearray(packet(query))
        self.known: dict[bytes, int] = {}
        asked, _ = question_of(query)
        self.remember(name(asked), 12)

    def remember(self, wire: bytes, at: int) -> None:
        while wire != b"\0":
            self.known.setdefault(wire.lower(), at)
            at += wire[0] + 1
            wire = wire[wire[0] + 1 :]

    def put_name(self, text: str, at: int) -> bytes:
        """The name as it may stand at this offset: whole, or with any of its known ends as a pointer."""
        wire, out = name(text), b""
        rest = wire
        while rest != b"\0":
            offset = self.known.get(rest.lower())
            if offset is not None and offset < 0x4000 and self.dice.random() < 0.8:
                self.remember_head(wire, out, at)
                return out + struct.pack("!H", 0xC000 | offset)
            out += rest[: rest[0] + 1]
            rest = rest[rest[0] + 1 :]
        self.remember(wire, at)
        return out + b"\0"

    def remember_head(self, wire: bytes, head: bytes, at: int) -> None:
        done = 0
        while done < len(head):
            self.known.setdefault(wire[done:].lower(), at + done)
            done += wire[done] + 1

    def rdata(self, type: int, at: int) -> bytes:
        dice = self.dice
        if type == A:
            return dice.randbytes(4)
        if type == AAAA:
            return dice.randbytes(16)
        if type == MX:
            head = struct.pack("!H", dice.randrange(65_536))
            return head + self.put_name(self.host(), at + 2)
        if type == TXT:
            return txt(*(dice.randbytes(dice.randrange(60)) for _ in range(dice.randint(1, 4))))
        if type in (PTR, NS, CNAME):
            return self.put_name(self.host(), at)
        if type == SRV:
            return dice.randbytes(6) + self.put_name(self.host(), at + 6)
        if type == TLSA:
            return dice.randbytes(3 + dice.choice((20, 32, 64)))
        first = self.put_name(self.host(), at)
        return first + self.put_name(self.host(), at + len(first)) + dice.randbytes(20)

    def host(self) -> str:
        labels = [self.dice.choice(("mx", "Mail", "a", "xn--e1a", "host-7", "EXAMPLE")) for _ in range(2)]
        return ".".join([*labels, self.dice.choice(("example.org", "Example.NET", "test"))])

    def add(self, owner: str, type: int, *, to: str = "") -> None:
        at = len(self.packet)
        wire = self.put_name(owner, at)
        ttl = self.dice.choice((0, 1, 60, 300, 86_400))
        data_at = at + len(wire) + 10
        data = self.put_name(to, data_at) if to else self.rdata(type, data_at)
        self.packet += record(wire, type, ttl, data)

    def answer(self) -> bytes:
        asked, type = question_of(self.query)
        dice = self.dice
        rcode = dice.choice((0, 0, 0, 0, 0, 0, 3, 2))
        owner, count = asked, 0
        if type != CNAME:
            for _ in range(dice.choice((0, 0, 0, 1, 2, 4))):
                to = f"c{count}.{self.host()}"
                self.add(owner, CNAME, to=to)
                owner, count = to, count + 1
        if rcode == 0:
            records = 1 if type in (SOA, CNAME) else dice.choice((0, 1, 1, 2, 3, 8))
            for _ in range(records):
                self.add(owner, type)
                count += 1
            if dice.random() < 0.2:
                self.add(f"stranger.{self.host()}", dice.choice((A, MX, TXT)))
                count += 1
        authority = 0
        if rcode == 3 or not count:
            self.add("test", SOA)
            authority = 1
        self.packet[3] = 0x80 | rcode
        self.packet[6:10] = struct.pack("!HH", count, authority)
        return bytes(self.packet)


def test_both_read_the_same() -> None:
    async def main() -> None:
        async with dns_server() as server:
            seen = await compare(server)
        # The generator must reach all of it, or the test says little.
        assert {Status.NOERROR, Status.NODATA, Status.NXDOMAIN, Status.SERVFAIL} <= seen

    asyncio.run(main())


async def compare(server: DnsServer) -> set[Status]:
    def mangle(query: bytes, answer: bytes) -> list[bytes]:
        asked, type = question_of(query)
        return [Author(int(asked.split(".")[0][1:]) * 100 + type, query).answer()]

    server.mangle = mangle
    ours, theirs = Resolver([server.where]), CaresResolver([server.where])
    dice, seen = random.Random(3), set()
    try:
        for start in range(0, ANSWERS, 50):
            questions = [Question(b"q%d.test" % i, dice.choice(TYPES)) for i in range(start, start + 50)]
            deadline = time.monotonic() + 60.0
            our = await ours.ask(questions, deadline)
            their = await theirs.ask(questions, deadline)
            for question, one, other in zip(questions, our, their, strict=True):
                assert plain(one) == plain(other), question
                seen.add(one.status)
    finally:
        ours.close()
        theirs.close()
    return seen


def plain(answer: Answer) -> Any:
    """What both can tell: c-ares joins the strings of a TXT record and tells no ttl of what is not there."""
    records = tuple(b"".join(r) if type(r) is tuple else r for r in answer.records)
    is_there = answer.status is Status.NOERROR
    return answer.status, records, is_there and answer.ttl, is_there and answer.canonical_name
