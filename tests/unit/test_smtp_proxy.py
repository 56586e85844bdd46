"""The PROXY header is read to its last byte and not one further, and nonsense is told from it early."""

import socket
import struct

import pytest

from fastsmtp.smtp import proxy


def v2(command: int, family: int, body: bytes) -> bytes:
    return proxy.SIGNATURE + bytes((0x20 | command, family)) + struct.pack("!H", len(body)) + body


IPV4 = struct.pack("!4s4sHH", socket.inet_aton("192.0.2.1"), socket.inet_aton("198.51.100.9"), 4321, 25)
IPV6 = struct.pack(
    "!16s16sHH",
    socket.inet_pton(socket.AF_INET6, "2001:db8::1"),
    socket.inet_pton(socket.AF_INET6, "2001:db8::2"),
    4321,
    25,
)

GOOD = [
    # header, client, port, local address
    (b"PROXY TCP4 192.0.2.1 198.51.100.9 4321 25\r\n", "192.0.2.1", 4321, "198.51.100.9"),
    (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", "1.1.1.1", 1, "1.1.1.1"),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 4321 25\r\n", "2001:db8::1", 4321, "2001:db8::2"),
    (b"PROXY TCP6 :: :: 1 1\r\n", "::", 1, "::"),
    (b"PROXY UNKNOWN\r\n", None, 0, ""),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None, 0, ""),
    (v2(1, 0x11, IPV4), "192.0.2.1", 4321, "198.51.100.9"),
    (v2(1, 0x11, IPV4 + b"\x03\x00\x04abcd"), "192.0.2.1", 4321, "198.51.100.9"),
    (v2(1, 0x21, IPV6), "2001:db8::1", 4321, "2001:db8::2"),
    (v2(0, 0x00, b""), None, 0, ""),
    (v2(1, 0x31, b"\0" * 216), None, 0, ""),
]


@pytest.mark.parametrize(("header", "client", "port", "local"), GOOD)
def test_a_header_is_read_exactly(header: bytes, client: str | None, port: int, local: str) -> None:
    stream = header + b"\x16\x03\x01ClientHello"
    received = b""
    for _ in range(len(header) + 1):
        wanted = proxy.needed(received)
        if wanted == 0:
            break
        assert wanted > 0
        received += stream[len(received) : len(received) + wanted]
    assert received == header
    told = proxy.parse(received)
    assert told is not None
    assert (told.client.text if told.client else None) == client
    assert (told.client_port, told.local) == (port, local)


@pytest.mark.parametrize("header", [header for header, *_ in GOOD])
def test_a_header_is_read_the_same_byte_by_byte(header: bytes) -> None:
    for cut in range(1, len(header)):
        assert proxy.needed(header[:cut]) > 0
    assert proxy.needed(header) == 0


@pytest.mark.parametrize(
    "start",
    [
        b"EHLO client.example\r\n",
        b"PROXX",
        b"\r\n\r\n\0\r\nQUIX",
        b"PROXY TCP4 " + b"1" * 100,
        b"PROXY TCP4 192.0.2.1 198.51.100.9 1 2\nX",
        proxy.SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_what_is_no_header_is_known_at_once(start: bytes) -> None:
    assert proxy.needed(start) == -1


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.9 4321\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.9 4321 65536\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.9 -1 25\r\n",
        b"PROXY TCP4 192.0.2.999 198.51.100.9 4321 25\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 4321 25\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 4321 25\r\n",
        b"PROXY TCP5 192.0.2.1 192.0.2.2 4321 25\r\n",
        v2(2, 0x11, IPV4),
        v2(1, 0x11, IPV4[:11]),
        v2(1, 0x21, IPV6[:35]),
        proxy.SIGNATURE + b"\x11\x11\x00\x00",
    ],
)
def test_a_malformed_header_is_refused(header: bytes) -> None:
    assert proxy.needed(header) == 0
    assert proxy.parse(header) is None
