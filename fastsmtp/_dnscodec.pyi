"""The DNS wire codec: questions to packets, packets to answers (RFC 1035, 2308, 6891).  Pure."""

from enum import IntEnum
from typing import Any, Final, NamedTuple, final

class Status(IntEnum):
    """How a question ended: an rcode, or one of ours from 32 on."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    YXDOMAIN = 6
    YXRRSET = 7
    NXRRSET = 8
    NOTAUTH = 9
    NOTZONE = 10
    BADVERS = 16
    NODATA = 32
    TIMEOUT = 33
    BROKEN = 34
    UNREACHABLE = 35
    BADNAME = 36
    BUSY = 37
    OTHER = 38

class Mx(NamedTuple):
    preference: int
    exchange: bytes  # b"": the null MX of RFC 7505

class Srv(NamedTuple):
    priority: int
    weight: int
    port: int
    target: bytes

class Soa(NamedTuple):
    mname: bytes
    rname: bytes
    serial: int
    refresh: int
    retry: int
    expire: int
    minimum: int

class Tlsa(NamedTuple):
    usage: int
    selector: int
    matching_type: int
    data: bytes

@final
class Question:
    """A name and a type; equal ones are asked once.

    name  text in lower case without the last dot; "\\." and "\\255" as in RFC 1035 section 5.1.  Any text
          is taken: what can be no domain name is answered BADNAME.
    """

    name: Final[bytes]
    type: Final[int]
    def __new__(cls, name: bytes, type: int, /) -> Question:
        """Raises ValueError when type is no 16-bit number."""
    def __hash__(self) -> int: ...

@final
class Answer:
    """What became of a question.

    status          Status
    rcode           the server's number, with the bits of the OPT record; 0 where no server spoke
    records         of the asked type in the order of the answer.  A, AAAA: packed bytes.  PTR, CNAME, NS: a
                    name.  TXT: a tuple of strings.  MX, SRV, SOA, TLSA: named tuples.  Others: raw bytes
    ttl             seconds as received, capped at a day; of the whole chain; negative answers by RFC 2308
    canonical_name  where the CNAMEs led; None where there was none
    is_authentic    the AD bit, of a server that is trusted with it
    is_failed       nothing is known, neither records nor that there are none
    reason          the status in a word
    """

    status: Final[Status]
    rcode: Final[int]
    records: Final[tuple[Any, ...]]
    ttl: Final[int]
    canonical_name: Final[bytes | None]
    is_authentic: Final[bool]
    is_failed: Final[bool]
    @property
    def reason(self) -> str: ...
    def __hash__(self) -> int: ...

def make_answer(
    status: int,
    records: tuple[Any, ...] = (),
    ttl: int = 0,
    is_authentic: bool = False,
    canonical_name: bytes | None = None,
    rcode: int = 0,
) -> Answer:
    """An answer out of its parts: for other engines, recordings and tests."""

def encode_query(question: Question, id: int, /, *, has_edns: bool = True, wants_ad: bool = False) -> bytes:
    """The query as a packet.  Raises ValueError when no such name can exist."""

def decode(packet: bytes, question: Question, /, *, trusts_ad: bool = False) -> Answer | None:
    """The answer in a packet, or None when it is none to this question; the name's case is not compared."""
