"""What a delivery process counts: attempts and what was said, connections, TLS, sources, sites.

No label comes from mail: kinds of destinations, names of our sources, closed sets of words.  A recipient
costs a look-up and two numbers; what others keep count of is copied with the tick.

Rank 6.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from fastsmtp import errors
from fastsmtp.delivery.job import Damaged
from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry
from fastsmtp.delivery.source import SourceState
from fastsmtp.metrics import Cell, Counter, Gauge, Histogram, Sheet, Spread

# From a next hop beside us to what is given up after days.
BOUNDS_S = (
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 259200.0,
)  # fmt: skip

ATTEMPTS = Counter(
    "fastsmtp_delivery_attempts_total",
    "Recipients at the end of an attempt, by the kind of destination that they were accepted for: delivered, deferred, "
    "failed, damaged (the message can't be read); said is the class and subject of the answer (RFC 3463), as in 4.2",
    "destination",
    "outcome",
    "said",
)
SECONDS = Histogram(
    "fastsmtp_delivery_seconds",
    "From the 250 that we gave to the delivery, a recipient",
    "destination",
    bounds_s=BOUNDS_S,
)
IN_FLIGHT = Gauge(
    "fastsmtp_delivery_in_flight", "Messages that delivery processes have in work, a destination each"
)
OPENED = Counter("fastsmtp_delivery_connections_total", "Connections that were greeted, by source", "source")
CARRIED = Counter(
    "fastsmtp_delivery_transactions_total",
    "Transactions on connections that have ended: first, or reused for a connection's later ones",
    "source",
    "which",
)
OPEN = Gauge(
    "fastsmtp_delivery_connections_open", "Connections to other servers, those being made included", "source"
)
FAILURES = Counter(
    "fastsmtp_delivery_connection_failures_total",
    "Connections that came to nothing: refused, unreachable, timeout (before the greeting or in it), tls, "
    "protocol (what was said is none), source (our address can't be used), closed, or system",
    "source",
    "reason",
)
TLS = Counter(
    "fastsmtp_delivery_tls_total",
    "TLS of connections that were greeted, by protocol; clear without; failed for handshakes that did",
    "protocol",
)
SITES = Gauge(
    "fastsmtp_delivery_sites",
    "Sites that are known: active, or paused since none of their servers takes mail",
    "state",
)
UNUSABLE = Gauge(
    "fastsmtp_delivery_source_unusable", "Delivery processes that leave a source alone for now", "source"
)
SOURCE_FAILURES = Counter(
    "fastsmtp_delivery_source_failures_total", "How often a source was put away", "source"
)
MX_FAILURES = Counter(
    "fastsmtp_delivery_mx_failures_total",
    "Domains without servers at a look-up: deferred (no answer), failed (there are none)",
    "outcome",
)

_SUBJECTS = frozenset("01234567")
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


class DeliveryMeter:
    """The cells of a delivery process; made with names as they are met."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet
        self._taken: dict[str, tuple[Cell, Spread]] = {}
        self._others: dict[tuple[str, str, str], Cell] = {}
        self._in_flight = IN_FLIGHT.of(sheet)
        self._active = SITES.of(sheet, "active")
        self._paused = SITES.of(sheet, "paused")

    # --- attempts -----------------------------------------------------------------------------------

    def attempted(self, deliver: str, outcomes: Sequence[Outcome | Damaged], age_s: float) -> None:
        """A job is over.  deliver: its DEST; age_s: since the message was accepted, for what is delivered."""
        for outcome in outcomes:
            if type(outcome) is Delivered:
                taken = self._taken.get(deliver)
                if taken is None:
                    taken = self._take(deliver)
                taken[0].inc()
                taken[1].observe(age_s)
            else:
                self._other(deliver, outcome)

    def _take(self, deliver: str) -> tuple[Cell, Spread]:
        """DESTs come from the configuration, but a queue outlives many: the memory of them is bounded."""
        kind = deliver.partition(":")[0]
        if len(self._taken) >= 1_000:
            self._taken.clear()
        found = ATTEMPTS.of(self._sheet, kind, "delivered", "2"), SECONDS.of(self._sheet, kind)
        self._taken[deliver] = found
        return found

    def _other(self, deliver: str, outcome: Outcome | Damaged) -> None:
        word, said = "damaged", ""
        if isinstance(outcome, Retry | Failed):
            word = "deferred" if isinstance(outcome, Retry) else "failed"
            said = said_class(outcome.reply.code, outcome.reply.enhanced)
        key = deliver.partition(":")[0], word, said
        cell = self._others.get(key)
        if cell is None:
            cell = self._others[key] = ATTEMPTS.of(self._sheet, *key)
        cell.inc()

    # --- connections --------------------------------------------------------------------------------

    def opened(self, source: str, protocol: str) -> None:
        """protocol: "" in clear."""
        OPENED.of(self._sheet, source).inc()
        TLS.of(self._sheet, protocol or "clear").inc()

    def ended(self, source: str, served: int) -> None:
        """A connection, after so many transactions."""
        if served:
            CARRIED.of(self._sheet, source, "first").inc()
            CARRIED.of(self._sheet, source, "reused").add(served - 1)

    def not_opened(self, source: str, error: Exception) -> None:
        FAILURES.of(self._sheet, source, reason_of(error)).inc()

    def tls_failed(self) -> None:
        TLS.of(self._sheet, "failed").inc()

    def source_failed(self, source: str) -> None:
        SOURCE_FAILURES.of(self._sheet, source).inc()

    def no_servers(self, outcome: Outcome) -> None:
        MX_FAILURES.of(self._sheet, "deferred" if isinstance(outcome, Retry) else "failed").inc()

    # --- with the tick ------------------------------------------------------------------------------

    def publish_jobs(self, jobs: int) -> None:
        self._in_flight.set(jobs)

    def publish_sites(self, known: int, paused: int) -> None:
        self._active.set(known - paused)
        self._paused.set(paused)

    def publish_source(self, source: SourceState, now: float) -> None:
        OPEN.of(self._sheet, source.name).set(source.open_count)
        if source.source is not None:
            UNUSABLE.of(self._sheet, source.name).set(source.bad_until_s > now)


def said_class(code: int, enhanced: str) -> str:
    """Class and subject, "5.1"; both are from small sets, whatever the next hop makes of its digits."""
    first = "5" if code >= 500 else "4"
    _, _, rest = enhanced.partition(".")
    subject = rest.partition(".")[0]
    return f"{first}.{subject if subject in _SUBJECTS else '0'}"


def reason_of(error: BaseException) -> str:
    """Why there is no connection, in a word of FAILURES."""
    cause = error.__cause__ or error.__context__
    if isinstance(error, errors.SourceUnusable):
        return "source"
    if isinstance(error, errors.NextHopInsecure):
        return "tls"
    if isinstance(error, errors.NextHopGarbled):
        return "protocol"
    if isinstance(cause, TimeoutError):
        return "timeout"
    if isinstance(cause, ConnectionRefusedError):
        return "refused"
    if isinstance(cause, OSError):
        return "unreachable" if cause.errno in _UNREACHABLE else "system"
    return "closed"
