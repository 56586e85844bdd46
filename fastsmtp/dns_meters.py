"""What the resolver counts, copied from the engine's own counts, and what is counted of DNS lists.

Rank 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsmtp.metrics import Counter, Gauge, Histogram, Sheet

if TYPE_CHECKING:
    from fastsmtp._dns import Engine, Server

QUERIES = Counter("fastsmtp_dns_queries_total", "DNS queries sent over UDP, retries included")
ANSWERS = Counter("fastsmtp_dns_answers_total", "DNS answers over UDP that were taken")
RETRIES = Counter(
    "fastsmtp_dns_retries_total", "DNS questions that were asked again, of another server or the same"
)
TIMEOUTS = Counter("fastsmtp_dns_timeouts_total", "DNS queries that nobody answered in time")
JOINED = Counter("fastsmtp_dns_joined_total", "DNS questions that waited for an equal one under way")
DROPPED = Counter(
    "fastsmtp_dns_dropped_total",
    "DNS packets that were not believed: late, duplicate, forged (answers to no question of that socket), "
    "case (the name in other letters)",
    "reason",
)
CACHE = Counter("fastsmtp_dns_cache_lookups_total", "Look-ups in the DNS cache, hit or miss", "result")
CACHE_BYTES = Gauge("fastsmtp_dns_cache_bytes", "Bytes of the DNS caches that are in use")
OPEN = Gauge("fastsmtp_dns_open", "DNS questions under way")
SERVER_QUERIES = Counter(
    "fastsmtp_dns_server_queries_total", "Queries to a name server", "server", "transport"
)
SERVER_ANSWERS = Counter("fastsmtp_dns_server_answers_total", "Its answers", "server", "transport")
SERVER_TIMEOUTS = Counter("fastsmtp_dns_server_timeouts_total", "Its silences", "server")
SERVER_SECONDS = Counter(
    "fastsmtp_dns_server_seconds_total", "Sum of the times of its answers over UDP", "server"
)
SERVER_AVOIDED = Gauge(
    "fastsmtp_dns_server_avoided",
    "Workers that prefer other name servers since this one was silent",
    "server",
)

LIST_LOOKUPS = Counter(
    "fastsmtp_dns_list_lookups_total",
    "Clients and domains that a DNS list was asked about: listed, unlisted, failed (no answer, or none that "
    "lists give)",
    "list",
    "result",
)
LIST_TESTS = Histogram(
    "fastsmtp_dns_list_test_seconds", "How long the tests of a DNS list took that it answered", "list"
)
LIST_AWAY = Gauge(
    "fastsmtp_dns_list_quarantined", "Workers that don't ask a DNS list because its tests failed", "list"
)
LIST_QUARANTINES = Counter("fastsmtp_dns_list_quarantines_total", "How often it was put away", "list")

_MICROSECONDS = 1_000_000


class ResolverMeter:
    """Copies an engine's counts, and those of its servers."""

    __slots__ = ("_cells", "_engine", "_retries", "_sheet", "_taken")

    def __init__(self, sheet: Sheet, engine: Engine) -> None:
        self._sheet = sheet
        self._engine = engine
        self._retries = RETRIES.of(sheet)
        self._cells = [
            (QUERIES.of(sheet), "queries"),
            (ANSWERS.of(sheet), "answers"),
            (TIMEOUTS.of(sheet), "timeouts"),
            (JOINED.of(sheet), "joined"),
            (DROPPED.of(sheet, "late"), "late"),
            (DROPPED.of(sheet, "duplicate"), "duplicates"),
            (DROPPED.of(sheet, "forged"), "forged"),
            (DROPPED.of(sheet, "case"), "case_misses"),
            (CACHE.of(sheet, "hit"), "cache_hits"),
            (CACHE.of(sheet, "miss"), "cache_misses"),
        ]
        self._taken = (CACHE_BYTES.of(sheet), OPEN.of(sheet))

    def publish(self, servers: list[Server], retries: int, now: float) -> None:
        engine = self._engine
        for cell, name in self._cells:
            cell.set(getattr(engine, name))
        self._retries.set(retries)
        cache_bytes, is_open = self._taken
        cache_bytes.set(engine.cache.used_bytes)
        is_open.set(len(engine))
        for server in servers:
            self._publish_server(server, now)

    def _publish_server(self, server: Server, now: float) -> None:
        sheet = self._sheet
        name = (
            f"[{server.address}]:{server.port}"
            if ":" in server.address
            else f"{server.address}:{server.port}"
        )
        SERVER_QUERIES.of(sheet, name, "udp").set(server.queries)
        SERVER_QUERIES.of(sheet, name, "tcp").set(server.tcp_queries)
        SERVER_ANSWERS.of(sheet, name, "udp").set(server.answers)
        SERVER_ANSWERS.of(sheet, name, "tcp").set(server.tcp_answers)
        SERVER_TIMEOUTS.of(sheet, name).set(server.timeouts)
        SERVER_SECONDS.of(sheet, name).set(round(server.latency_total_s * _MICROSECONDS))
        SERVER_AVOIDED.of(sheet, name).set(server.down_until > now)


class ListMeter:
    """The cells of one DNS list."""

    __slots__ = ("failed", "listed", "quarantined", "quarantines", "tests", "unlisted")

    def __init__(self, sheet: Sheet, name: str) -> None:
        self.listed = LIST_LOOKUPS.of(sheet, name, "listed")
        self.unlisted = LIST_LOOKUPS.of(sheet, name, "unlisted")
        self.failed = LIST_LOOKUPS.of(sheet, name, "failed")
        self.tests = LIST_TESTS.of(sheet, name)
        self.quarantined = LIST_AWAY.of(sheet, name)
        self.quarantines = LIST_QUARANTINES.of(sheet, name)
