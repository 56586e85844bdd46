"""Who the client was, in the words of XCLIENT, XFORWARD and the PROXY protocol.

Rank 6: pure; may import ranks 0 to 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastsmtp.address import Address
from fastsmtp.policy.facts import Facts, Origin
from fastsmtp.queue.model import Origins, origins_of

UNAVAILABLE = b"[UNAVAILABLE]"
# RFC 5321 section 4.5.3.1.4, with CRLF; Postfix splits its XFORWARD at the same length.
COMMAND_BYTES = 512

_WORD = frozenset(range(33, 127))
_XTEXT = _WORD - set(b"+=")


class Identity:
    """The client of one transaction.

    attributes   NAME, ADDR, PORT, PROTO, HELO, SOURCE, as xtext (RFC 3461 section 4)
    helo         the client's name as we may say it for the client; b"" when it is no plain word
    proxy        the PROXY header, version 1
    """

    __slots__ = ("attributes", "helo", "proxy")

    def __init__(self, facts: Facts) -> None:
        self._know(origins_of(facts))

    @classmethod
    def of(cls, origins: Origins) -> Identity:
        """The same of a message in the queue."""
        identity = cls.__new__(cls)
        identity._know(origins)
        return identity

    def _know(self, origins: Origins) -> None:
        address = Address(origins.address)
        # LOCAL makes Postfix complete and rewrite headers: only for what comes from this very host.
        is_local = address.is_loopback and origins.origin is Origin.SOCKET
        helo = origins.helo
        self.attributes: dict[bytes, bytes] = {
            b"NAME": xtext(origins.name.encode()) or UNAVAILABLE,
            b"ADDR": (b"" if address.is_ipv4 else b"IPV6:") + address.text.encode(),
            b"PORT": b"%d" % origins.port if origins.port else UNAVAILABLE,
            b"PROTO": b"ESMTP" if origins.is_extended else b"SMTP",
            b"HELO": xtext(helo) or UNAVAILABLE,
            b"SOURCE": b"LOCAL" if is_local else b"REMOTE",
        }
        self.helo = helo if _WORD.issuperset(helo) and len(helo) <= 255 else b""
        self.proxy = proxy_header(address, origins.port, origins.local_address)


def xtext(value: bytes) -> bytes:
    """RFC 3461 section 4: everything but printable ASCII, and "+" and "=", as +XX."""
    return b"".join(bytes((byte,)) if byte in _XTEXT else b"+%02X" % byte for byte in value)


XCLIENT = (b"ADDR", b"PORT", b"NAME", b"PROTO", b"HELO")
XFORWARD = (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"SOURCE")


def xclient_command(attributes: Mapping[bytes, bytes], offered: Iterable[bytes]) -> bytes:
    """One XCLIENT command with what the next hop announced; b"" when that is nothing.

    Each one starts the session over, so there is one; a HELO name that doesn't fit is left unknown.
    """
    words = [(name, attributes[name]) for name in XCLIENT if name in set(offered)]
    if not words:
        return b""
    command = _command(b"XCLIENT", words)
    if len(command) > COMMAND_BYTES:
        command = _command(b"XCLIENT", [(n, UNAVAILABLE if n == b"HELO" else value) for n, value in words])
    return command


def xforward_commands(attributes: Mapping[bytes, bytes], offered: Iterable[bytes]) -> list[bytes]:
    """XFORWARD commands with what the next hop announced, none longer than a command may be."""
    commands: list[bytes] = []
    words: list[tuple[bytes, bytes]] = []
    for name in XFORWARD:
        if name not in set(offered):
            continue
        word = (name, attributes[name])
        if len(_command(b"XFORWARD", [word])) > COMMAND_BYTES:
            word = (name, UNAVAILABLE)
        if words and len(_command(b"XFORWARD", [*words, word])) > COMMAND_BYTES:
            commands.append(_command(b"XFORWARD", words))
            words = []
        words.append(word)
    if words:
        commands.append(_command(b"XFORWARD", words))
    return commands


def _command(verb: bytes, words: list[tuple[bytes, bytes]]) -> bytes:
    return verb + b"".join(b" %b=%b" % word for word in words) + b"\r\n"


def proxy_header(client: Address, client_port: int, local_address: str) -> bytes:
    """PROXY protocol version 1, the one that every server with the protocol reads.

    Both addresses must be of one family; where ours isn't known or is of the other, it is the
    family's unspecified address.  Our port isn't a fact, and nobody decides by it: 25.
    """
    try:
        local = Address(local_address)
    except ValueError:
        local = client
    if local.is_ipv4 != client.is_ipv4 or local is client:
        local = Address("0.0.0.0" if client.is_ipv4 else "::")  # noqa: S104 - a word in a header
    family = "TCP4" if client.is_ipv4 else "TCP6"
    return f"PROXY {family} {client.text} {local.text} {client_port} 25\r\n".encode()
