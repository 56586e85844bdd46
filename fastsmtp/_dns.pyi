"""The DNS batch engine: open questions, matching, cache, counts; resolver.py owns sockets, servers and time.

now and deadlines are seconds on the monotonic clock.
"""

from collections.abc import Callable, Iterable
from socket import socket as Socket
from typing import Final, final

from fastsmtp._dnscache import Cache
from fastsmtp._dnscodec import Answer as Answer
from fastsmtp._dnscodec import Mx as Mx
from fastsmtp._dnscodec import Question as Question
from fastsmtp._dnscodec import Soa as Soa
from fastsmtp._dnscodec import Srv as Srv
from fastsmtp._dnscodec import Status as Status
from fastsmtp._dnscodec import Tlsa as Tlsa
from fastsmtp._dnscodec import decode as decode
from fastsmtp._dnscodec import encode_query as encode_query
from fastsmtp._dnscodec import make_answer as make_answer

TRUNCATED: Final[int]  # verdicts: why a question is handed back
CASE: Final[int]
NO_EDNS: Final[int]
FAILED: Final[int]
NOBODY: Final[int]
TIMED_OUT: Final[int]
PORT_AGE_S: Final[float]

@final
class Server:
    """One name server and how it does; plain attributes.

    mixes_case, has_edns, trusts_ad   how it is asked, and whether its AD bit counts
    queries, answers, timeouts        over UDP
    failures                          silences and refusals since its last answer
    latency_s, latency_total_s        smoothed, and the sum over all answers over UDP
    down_until, backoff_s             on the monotonic clock, 0.0 while it is thought well
    """

    address: Final[str]
    port: Final[int]
    mixes_case: bool
    has_edns: bool
    trusts_ad: bool
    queries: int
    answers: int
    timeouts: int
    failures: int
    tcp_queries: int
    tcp_answers: int
    case_matches: int
    case_misses: int
    edns_answers: int
    edns_refusals: int
    latency_s: float
    latency_total_s: float
    down_until: float
    backoff_s: float
    ports: list[Port | None]
    def __init__(
        self, address: str, port: int = 53, *, trusts_ad: bool = False, mixes_case: bool = True
    ) -> None: ...

@final
class Port:
    """One connected UDP socket of the pool; the caller owns the socket and closes it."""

    server: Final[Server]
    socket: Final[Socket]
    queries: Final[int]
    open: Final[int]
    def __init__(self, server: Server, socket: Socket, now: float) -> None: ...
    def is_spent(self, now: float) -> bool: ...

@final
class Open:
    """A question on its way: times sent, a bit for each server tried, and why it came back."""

    question: Final[Question]
    port: Final[Port | None]
    server: Final[Server | None]  # that was asked last
    verdict: int
    is_awaited: Final[bool]
    failure: Answer | None
    attempts: int
    tried: int
    has_edns: bool
    due: float

@final
class Batch:
    """What one ask() waits for."""

    missing: Final[int]
    fresh: Final[list[Open] | None]
    callback: Callable[[tuple[Answer, ...]], object] | None
    def done(self) -> tuple[Answer, ...]: ...

@final
class Engine:
    """The open questions and the cache of one worker; see _dns.pyx."""

    cache: Final[Cache]
    max_open: Final[int]
    queries: Final[int]
    answers: Final[int]
    timeouts: Final[int]
    late: Final[int]
    duplicates: Final[int]
    forged: Final[int]
    joined: Final[int]
    cache_hits: Final[int]
    cache_misses: Final[int]
    case_misses: Final[int]
    def __init__(
        self,
        random: Callable[[int], bytes],
        *,
        cache_bytes: int = 16_777_216,
        one_by_one: bool = False,
        max_open: int = 20_000,
    ) -> None: ...
    def __len__(self) -> int: ...
    def ask(
        self,
        questions: Iterable[Question],
        deadline: float,
        now: float,
        callback: Callable[[tuple[Answer, ...]], object] | None,
    ) -> Batch: ...
    def peek(self, question: Question, now: float) -> Answer | None: ...
    def know(self, questions: tuple[object, ...], now: float) -> tuple[Answer, ...] | None: ...
    def send(
        self, port: Port, opens: list[Open], now: float, wait_s: float, server_bit: int = 0
    ) -> int: ...
    def encode(self, open: Open, server: Server, id: int, now: float, wait_s: float) -> bytes: ...
    def receive(self, port: Port, now: float) -> list[Open] | None: ...
    def answer(self, open: Open, message: bytes, now: float) -> int: ...
    def opens(self) -> list[Open]: ...
    def settle(self, open: Open, now: float, status: int = ...) -> None: ...
    def tick(self, now: float) -> list[Open]: ...
    def draw(self, n: int) -> int: ...
