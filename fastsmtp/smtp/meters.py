"""What serving SMTP counts: of one listener, and of the worker as a whole.

A meter is the cells of fastsmtp.metrics with the labels filled in, made once with a Profile; those that
depend on what happens (a stage's name) are made when it first happens.

Rank 8.
"""

from __future__ import annotations

from collections.abc import Callable

from fastsmtp.metrics import Cell, Counter, Gauge, Histogram, Sheet
from fastsmtp.typed import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from fastsmtp._counters import Region

CONNECTIONS = Counter("fastsmtp_connections_total", "Connections that were accepted", "listener")
OPEN = Gauge("fastsmtp_connections_open", "Connections that are open", "listener")
REFUSED = Counter(
    "fastsmtp_connections_refused_total",
    "Connections that were refused before the first command, by the stage that did",
    "listener",
    "stage",
)
SESSIONS = Counter("fastsmtp_sessions_total", "Connections that were greeted with 220", "listener")
MESSAGES = Counter(
    "fastsmtp_messages_total",
    "Messages at their end: accepted (250), refused (5xx), deferred (4xx)",
    "listener",
    "outcome",
)
MESSAGE_BYTES = Counter(
    "fastsmtp_message_bytes_total", "Bytes of the bodies of accepted messages", "listener"
)
MESSAGE_SECONDS = Histogram(
    "fastsmtp_message_seconds", "From MAIL to the 250 of an accepted message", "listener"
)
MESSAGE_RECIPIENTS = Counter(
    "fastsmtp_message_recipients_total", "Recipients of accepted messages", "listener"
)
RECIPIENTS = Counter(
    "fastsmtp_recipients_refused_total",
    "RCPT commands that got 5xx (refused) or 4xx (deferred)",
    "listener",
    "outcome",
)
VERDICTS = Counter(
    "fastsmtp_verdicts_total",
    "What stages of policy said but pass: defer, reject, drop, or error for one that failed; "
    "mode observe is what a rule would have said",
    "listener",
    "stage",
    "verdict",
    "mode",
)
HELD_BACK = Counter(
    "fastsmtp_replies_held_back_total", "Replies that a tarpit or a rule of one's own held back", "listener"
)
VIOLATIONS = Counter(
    "fastsmtp_violations_total", "Breaches of the protocol, by their word in the log", "listener", "violation"
)
TIMEOUTS = Counter(
    "fastsmtp_timeouts_total", "Sessions that were ended for being slow, by limit", "listener", "limit"
)
HANDSHAKES = Counter(
    "fastsmtp_tls_handshakes_total",
    "TLS handshakes: ok with the protocol that was agreed on, failed without one",
    "listener",
    "outcome",
    "protocol",
)
LOG_DROPPED = Counter("fastsmtp_log_lines_dropped_total", "Log lines that the reader did not take in time")
OVERFLOWS = Counter(
    "fastsmtp_client_table_overflows_total", "Clients that found no place in the table of rates and passes"
)
LOST_SERIES = Gauge("fastsmtp_metrics_lost_series", "Series of these metrics that found no place")

_OUTCOMES = ("accepted", "refused", "deferred")


class ListenerMeter:
    """One listener's cells; see the declarations."""

    __slots__ = (
        "_name", "_sheet", "_verdicts", "accepted", "bytes", "connections", "deferred", "held_back", "open",
        "rcpt_deferred", "rcpt_refused", "recipients", "refused", "seconds", "sessions",
    )  # fmt: skip

    def __init__(self, sheet: Sheet, listener: str) -> None:
        self._sheet = sheet
        self._name = listener
        self._verdicts: dict[tuple[str, int, bool], Cell] = {}
        self.connections = CONNECTIONS.of(sheet, listener)
        self.open = OPEN.of(sheet, listener)
        self.sessions = SESSIONS.of(sheet, listener)
        self.accepted, self.refused, self.deferred = (
            MESSAGES.of(sheet, listener, outcome) for outcome in _OUTCOMES
        )
        self.bytes = MESSAGE_BYTES.of(sheet, listener)
        self.seconds = MESSAGE_SECONDS.of(sheet, listener)
        self.recipients = MESSAGE_RECIPIENTS.of(sheet, listener)
        self.rcpt_refused = RECIPIENTS.of(sheet, listener, "refused")
        self.held_back = HELD_BACK.of(sheet, listener)
        self.rcpt_deferred = RECIPIENTS.of(sheet, listener, "deferred")

    def verdict(self, stage: str, verdict: int, *, is_observed: bool) -> None:
        """A stage of policy decided; verdict is a Verdict but PASS, or 0 when the stage failed."""
        key = (stage, verdict, is_observed)
        cell = self._verdicts.get(key)
        if cell is None:
            word = ("error", "defer", "reject", "drop")[verdict]
            mode = "observe" if is_observed else "enforce"
            self._verdicts[key] = cell = VERDICTS.of(self._sheet, self._name, stage, word, mode)
        cell.inc()

    def connection_refused(self, stage: str) -> None:
        REFUSED.of(self._sheet, self._name, stage).inc()

    def violation(self, word: str) -> None:
        VIOLATIONS.of(self._sheet, self._name, word).inc()

    def timed_out(self, limit: str) -> None:
        TIMEOUTS.of(self._sheet, self._name, limit).inc()

    def handshake(self, protocol: str) -> None:
        """protocol: "" when there was none."""
        HANDSHAKES.of(self._sheet, self._name, "ok" if protocol else "failed", protocol).inc()


class Measured(Protocol):
    """What keeps counts of its own, and copies them into cells when asked."""

    def measure(self, sheet: Sheet) -> None: ...
    def publish(self) -> None: ...


class WorkerMeter:
    """What a worker copies into its sheet with every tick: counts that others keep."""

    __slots__ = ("_dropped", "_log", "_lost", "_overflows", "_publishers", "_region", "_sheet")

    def __init__(self, sheet: Sheet, log: object, region: Region) -> None:
        self._sheet = sheet
        self._log = log
        self._region = region
        self._dropped = LOG_DROPPED.of(sheet)
        self._overflows = OVERFLOWS.of(sheet)
        self._lost = LOST_SERIES.of(sheet)
        self._publishers: list[Callable[[], None]] = []

    def add(self, source: object) -> None:
        """Ask this one too, if it keeps counts."""
        if hasattr(source, "measure") and hasattr(source, "publish"):
            measured: Measured = cast("Measured", source)
            measured.measure(self._sheet)
            self._publishers.append(measured.publish)

    def publish(self) -> None:
        self._dropped.set(getattr(self._log, "dropped", 0))
        self._overflows.set(self._region.overflows)
        self._lost.set(self._sheet.lost)
        for publish in self._publishers:
            publish()
