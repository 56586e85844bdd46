"""What p0f knows of a host: the question, its 21 octets, and the 232 of the answer (p0f 3, README section 4).

Integers are in the byte order of this machine: p0f is asked over a UNIX socket.

Rank 1: pure.
"""

from __future__ import annotations

import struct

from fastsmtp.address import Address
from fastsmtp.records import dataclass

QUERY_BYTES = 21
ANSWER_BYTES = 232

_QUERY_MAGIC = 0x50304601
_ANSWER_MAGIC = 0x50304602
_OK, _NO_MATCH = 0x10, 0x20
# magic, status; first_seen, last_seen, total_conn, uptime_min, up_mod_days, last_nat, last_chg; distance; bad_sw,
# os_match_q; os_name, os_flavor, http_name, http_flavor, link_type, language.
_ANSWER = struct.Struct("=II7IhBB32s32s32s32s32s32s")
_QUERY = struct.Struct("=IB16s")


@dataclass(frozen=True, slots=True)
class P0fQuestion:
    """Who is behind this address?  socket: path of p0f's;  timeout_s: how long its answer may take."""

    socket: str
    address: Address
    timeout_s: float


class Fingerprint:
    """What p0f has seen of a host.

    os            "Windows XP", "Linux 3.11 and newer"; "" when the packets fit no signature
    link          "Ethernet or modem", "DSL", "generic tunnel or VPN" ...; "" when not known
    distance      routers between us, -1 when not known
    quality       how sure os is: "normal", "fuzzy" (a detail differs), "generic" (a signature of many), "both"
    uptime_min    minutes since its start, 0 when not known
    connections   seen from it
    is_behind_nat p0f has seen two systems behind the address, in the time that it remembers
    """

    __slots__ = ("connections", "distance", "is_behind_nat", "link", "os", "quality", "uptime_min")

    def __init__(
        self,
        os: str,
        link: str = "",
        distance: int = -1,
        quality: str = "normal",
        uptime_min: int = 0,
        connections: int = 0,
        *,
        is_behind_nat: bool = False,
    ) -> None:
        self.os = os
        self.link = link
        self.distance = distance
        self.quality = quality
        self.uptime_min = uptime_min
        self.connections = connections
        self.is_behind_nat = is_behind_nat

    def __repr__(self) -> str:
        return f"Fingerprint({self.os!r}, {self.link!r}, {self.distance})"


QUALITIES = ("normal", "fuzzy", "generic", "both")


def encode_query(address: Address) -> bytes:
    """The question, 21 octets; an IPv4 address stands at the left of its 16."""
    if address.is_ipv4:
        return _QUERY.pack(_QUERY_MAGIC, 4, address.packed[12:])
    return _QUERY.pack(_QUERY_MAGIC, 6, address.packed)


def decode_answer(data: bytes) -> Fingerprint | None:
    """The 232 octets of an answer; None when p0f knows nothing of the host.

    ValueError for what is no answer, or says that the question was none.
    """
    magic, status, _, _, connections, uptime_min, _, last_nat, _, distance, _, quality, *texts = (
        _ANSWER.unpack(data)
    )
    if magic != _ANSWER_MAGIC:
        raise ValueError(f"no answer of p0f: it begins with {magic:#x}")
    if status == _NO_MATCH:
        return None
    if status != _OK:
        raise ValueError(f"p0f says {status:#x}")
    name, flavor, _, _, link, _ = (_text(text) for text in texts)
    return Fingerprint(
        f"{name} {flavor}".strip(),
        link,
        distance,
        QUALITIES[quality & 3],
        uptime_min,
        connections,
        is_behind_nat=last_nat != 0,
    )


def _text(field: bytes) -> str:
    """A field up to its NUL; what could not stand in a header becomes "?"."""
    text = field.partition(b"\0")[0].decode("ascii", "replace").strip()
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)
