"""A name server for tests: a zone as a dictionary, on UDP and TCP of one loopback port, in the test's own loop.

    async with dns_server({("example.org", MX): [mx(10, "mx.example.org")]}) as server:
        resolver = Resolver([server.where])

Names that the zone doesn't know are NXDOMAIN, types NODATA, both with an SOA.
A value may also be a Reply (an rcode, records as they are) or SILENT.  What
goes over the wire can be changed by server.mangle(query, answer), which gives
the packets to send.  It writes packets by its own few lines, none of ours.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, TLSA = 1, 2, 5, 6, 12, 15, 16, 28, 33, 52
TTL_S = 300


@dataclass(frozen=True)
class Reply:
    """An answer with this rcode; records are (owner, type, ttl, rdata)."""

    rcode: int = 0
    records: tuple[tuple[str, int, int, bytes], ...] = ()
    is_authentic: bool = False
    has_question: bool = True


SILENT = Reply(rcode=-1)
Value = Sequence[bytes] | Reply
Zone = Mapping[tuple[str, int], Value]


def name(text: str) -> bytes:
    """A name on the wire, uncompressed."""
    labels = [label.encode("latin-1") for label in text.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def a(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def mx(preference: int, exchange: str) -> bytes:
    return struct.pack("!H", preference) + name(exchange)


def txt(*strings: bytes) -> bytes:
    return b"".join(bytes([len(string)]) + string for string in strings)


def soa(minimum: int = 60) -> bytes:
    return name("ns.example") + name("hostmaster.example") + struct.pack("!5I", 1, 2, 3, 4, minimum)


def record(owner: bytes, type: int, ttl: int, rdata: bytes) -> bytes:
    return owner + struct.pack("!HHIH", type, 1, ttl, len(rdata)) + rdata


def packet(
    query: bytes,
    answers: Sequence[bytes] = (),
    authority: Sequence[bytes] = (),
    additional: Sequence[bytes] = (),
    *,
    rcode: int = 0,
    flags: int = 0x8180,
    question: bytes | None = None,
) -> bytes:
    """A response to a query, its question echoed as it came."""
    question = query[12 : end_of_question(query)] if question is None else question
    counts = (1 if question else 0, len(answers), len(authority), len(additional))
    head = query[:2] + struct.pack("!H4H", flags | rcode, *counts)
    return head + question + b"".join((*answers, *authority, *additional))


def end_of_question(query: bytes) -> int:
    at = 12
    while query[at]:
        at += query[at] + 1
    return at + 5


def question_of(query: bytes) -> tuple[str, int]:
    """Name, in the letters of the query, and type."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
        at += query[at] + 1
    return ".".join(labels), int.from_bytes(query[at + 1 : at + 3])


class DnsServer:
    """where: "127.0.0.1:port"; queries: (transport, name as it was sent, type, source port) in order of arrival."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.where = ""
        self.queries: list[tuple[str, str, int, int]] = []
        self.packets: list[bytes] = []
        self.mangle: Callable[[bytes, bytes], Sequence[bytes]] = lambda query, answer: [answer]
        self.delay_s: Callable[[str], float] = lambda asked: 0.0
        self.has_tcp = True
        self.peers: list[tuple[str, int]] = []
        self.udp: asyncio.DatagramTransport | None = None

    def answer(self, query: bytes, limit: int) -> bytes | None:
        asked, type = question_of(query)
        key = asked.lower()
        value = self.zone.get((key, type))
        if value is SILENT:
            return None
        if isinstance(value, Reply):
            records = [record(name(owner), kind, ttl, rdata) for owner, kind, ttl, rdata in value.records]
            flags = 0x81A0 if value.is_authentic else 0x8180
            question = None if value.has_question else b""
            made = packet(query, records, rcode=value.rcode, flags=flags, question=question)
        elif value is not None:
            made = packet(query, [record(b"\xc0\x0c", type, TTL_S, rdata) for rdata in value])
        else:
            is_known = any(known == key for known, _ in self.zone)
            made = packet(query, (), [record(b"\0", SOA, 120, soa())], rcode=0 if is_known else 3)
        if len(made) > limit:
            made = packet(query, flags=0x8380)
        return made

    def take(self, transport: str, query: bytes, source_port: int, limit: int) -> Sequence[bytes]:
        self.queries.append((transport, *question_of(query), source_port))
        self.packets.append(query)
        answer = self.answer(query, limit)
        return () if answer is None else self.mangle(query, answer)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.server.udp = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        limit = int.from_bytes(data[-8:-6]) if data[10:12] != b"\0\0" else 512
        self.server.peers.append(addr)
        packets = self.server.take("udp", data, addr[1], limit)
        delay_s = self.server.delay_s(question_of(data)[0].lower())
        for packet in packets:
            if delay_s:
                asyncio.get_running_loop().call_later(delay_s, self.send, packet, addr)
            else:
                self.send(packet, addr)

    def send(self, packet: bytes, addr: tuple[str, int]) -> None:
        if self.server.udp is not None and not self.server.udp.is_closing():
            self.server.udp.sendto(packet, addr)


class _Tcp(asyncio.Protocol):
    def __init__(self, server: DnsServer) -> None:
        self.server = server
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if not self.server.has_tcp:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 2 and len(self.buffer) >= 2 + int.from_bytes(self.buffer[:2]):
            stop = 2 + int.from_bytes(self.buffer[:2])
            query, self.buffer = self.buffer[2:stop], self.buffer[stop:]
            port = self.transport.get_extra_info("peername")[1]
            for answer in self.server.take("tcp", query, port, 65_535):
                self.transport.write(len(answer).to_bytes(2) + answer)


@asynccontextmanager
async def dns_server(zone: Zone | None = None, host: str = "127.0.0.1") -> AsyncIterator[DnsServer]:
    loop = asyncio.get_running_loop()
    server = DnsServer(zone or {})
    for attempt in range(20):
        tcp = await loop.create_server(lambda: _Tcp(server), host, 0)
        port = tcp.sockets[0].getsockname()[1]
        try:
            await loop.create_datagram_endpoint(lambda: _Udp(server), local_addr=(host, port))
            break
        except OSError:
            tcp.close()
            if attempt == 19:
                raise
    server.where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        yield server
    finally:
        tcp.close()
        assert server.udp is not None
        server.udp.close()
        await asyncio.sleep(0.001)  # the transports close in the loop's next rounds
