"""The PROXY protocol, versions 1 and 2: who the client behind a proxy is.

Sans-IO and exact: needed() says how many bytes the header still wants, so that
the connection reads not one byte more.  What follows the header may be a TLS
ClientHello, and bytes that were read can't be given back to a handshake.

Source: HAProxy's doc/proxy-protocol.txt, 2020-03-05.
"""

from __future__ import annotations

import socket
import struct

from fastsmtp.address import Address

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# "PROXY UNKNOWN" with the longest addresses and CRLF (section 2.1).
V1_BYTES = 107
# Version 2 has a 16-bit length; TLVs beyond 4 kB are nothing that a proxy sends.
V2_BYTES = 4096
_V2_HEAD = 16
# The two versions differ in the first byte, and no header is shorter than this.
_FIRST = 12
# What a version 1 header has at least, by the first byte of its family word: "UNKNOWN", "TCP4", "TCP6".
_SHORTEST = {b"PROXY U": 15, b"PROXY TCP4": 32, b"PROXY TCP6": 22}


class ProxyHeader:
    """What the header says.  client is None for LOCAL and UNKNOWN: the proxy speaks for itself."""

    __slots__ = ("client", "client_port", "local", "local_port")

    def __init__(
        self, client: Address | None = None, client_port: int = 0, local: str = "", local_port: int = 0
    ) -> None:
        self.client = client
        self.client_port = client_port
        self.local = local
        self.local_port = local_port


def needed(received: bytes) -> int:
    """Bytes that can be read without going past the header's end; 0: complete, -1: this is no header."""
    size = len(received)
    if not size:
        return _FIRST
    if received.startswith(SIGNATURE[:size]) if size < len(SIGNATURE) else received.startswith(SIGNATURE):
        if size < _V2_HEAD:
            return _V2_HEAD - size
        total = _V2_HEAD + int.from_bytes(received[14:16])
        return -1 if total > V2_BYTES else total - size
    if not (b"PROXY ".startswith(received) if size < 6 else received.startswith(b"PROXY ")):
        return -1
    if received.endswith(b"\r\n"):
        return 0
    if size >= V1_BYTES or b"\n" in received:
        return -1
    if received.endswith(b"\r"):
        return 1
    for start, shortest in _SHORTEST.items():
        if received.startswith(start) and size < shortest:
            return shortest - size
    return min(2, V1_BYTES - size)


def parse(received: bytes) -> ProxyHeader | None:
    """A complete header, or None when it is malformed."""
    return _parse_v2(received) if received.startswith(SIGNATURE) else _parse_v1(received)


def _parse_v1(received: bytes) -> ProxyHeader | None:
    words = received[:-2].split(b" ")
    if len(words) >= 2 and words[1] == b"UNKNOWN":
        return ProxyHeader()
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        return None
    try:
        client, local = Address(words[2].decode("ascii")), Address(words[3].decode("ascii"))
    except ValueError:
        return None
    if (b":" in words[2]) is not (words[1] == b"TCP6") or (b":" in words[3]) is not (words[1] == b"TCP6"):
        return None
    ports = words[4:6]
    if not all(port.isdigit() and len(port) <= 5 and int(port) <= 65535 for port in ports):
        return None
    return ProxyHeader(client, int(ports[0]), local.text, int(ports[1]))


def _parse_v2(received: bytes) -> ProxyHeader | None:
    version, command = received[12] >> 4, received[12] & 15
    if version != 2 or command > 1:
        return None
    if command == 0:
        return ProxyHeader()
    family, body = received[13], received[_V2_HEAD:]
    if family == 0x11 and len(body) >= 12:
        source, target, source_port, target_port = struct.unpack_from("!4s4sHH", body)
        which = socket.AF_INET
    elif family == 0x21 and len(body) >= 36:
        source, target, source_port, target_port = struct.unpack_from("!16s16sHH", body)
        which = socket.AF_INET6
    elif family >> 4 in (0, 3):
        # AF_UNSPEC and AF_UNIX: a valid header that names no IP client.
        return ProxyHeader()
    else:
        return None
    client = Address(socket.inet_ntop(which, source))
    return ProxyHeader(client, source_port, Address(socket.inet_ntop(which, target)).text, target_port)
