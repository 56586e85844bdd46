"""What a stage may answer: a closed set of verdicts and effects.

A stage returns a Decision, or None for "no opinion".  Effects change the
world and are carried out by the connection after the decision stands; asking
a question never does.

Rank 4: pure.
"""

from __future__ import annotations

from enum import IntEnum

from fastsmtp.config.rules import DELAY_MOST_S
from fastsmtp.fingerprint import Fingerprint
from fastsmtp.reply import Reply


class Verdict(IntEnum):
    """In rising order: of two opinions in one phase the higher one stands; among equals the earlier stage."""

    PASS = 0
    DEFER = 1  # 4xx: try again
    REJECT = 2  # 5xx
    DROP = 3  # the reply, then the connection is closed


class Token(IntEnum):
    """What the shared per-client counters count (fastsmtp._counters has the same numbers)."""

    CONNECTIONS = 0
    MESSAGES = 1
    RECIPIENTS = 2
    HANDSHAKES = 3


class Effect:
    """Root of the closed set below."""

    __slots__ = ()


class AddHeader(Effect):
    """One header field for the prefix block; name and value are str without line ends."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.value = value


class Delay(Effect):
    """Hold the reply back for so long (tarpit), at most model.DELAY_MOST_S.

    is_for_refused  False: a refusal is spoken at once
    """

    __slots__ = ("is_for_refused", "seconds")

    def __init__(self, seconds: float, *, is_for_refused: bool = True) -> None:
        self.seconds = seconds
        self.is_for_refused = is_for_refused


class TakeToken(Effect):
    """Count one event against the client's minute."""

    __slots__ = ("token",)

    def __init__(self, token: Token) -> None:
        self.token = token


class GrantPass(Effect):
    """The client waited and delivered: no greeting delay for so long."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Route(Effect):
    """Where the recipient under decision is delivered (a DEST), and how that place learns who the client was.

    suffix     is appended to its address (RELAYCLIENT)
    is_queued  it goes through the queue; False: handed over before the 250
    """

    __slots__ = ("deliver", "is_queued", "pass_client", "suffix")

    def __init__(
        self, deliver: str, pass_client: str = "none", suffix: bytes = b"", *, is_queued: bool = True
    ) -> None:
        self.is_queued = is_queued
        self.deliver = deliver
        self.pass_client = pass_client
        self.suffix = suffix


class Grant(Effect):
    """What the client may do: relay anywhere, skip checks (connect phase; HELO).

    certificate  what of the client's certificate gives it that right; "" where it has another
    """

    __slots__ = ("certificate", "may_relay", "skips_checks")

    def __init__(self, *, may_relay: bool, skips_checks: bool, certificate: str = "") -> None:
        self.may_relay = may_relay
        self.skips_checks = skips_checks
        self.certificate = certificate


class Tag(Effect):
    """A word for later stages and for the next hop's header; score adds to the session's.

    zone         the list that said so, for its hits; "" for none
    is_observed  of a rule that only observes: the score is kept apart and refuses nothing
    """

    __slots__ = ("is_observed", "name", "score", "value", "zone")

    def __init__(
        self, name: str, value: str = "", score: int = 0, *, zone: str = "", is_observed: bool = False
    ) -> None:
        self.name = name
        self.value = value
        self.score = score
        self.zone = zone
        self.is_observed = is_observed


class Name(Effect):
    """The client's reverse name, which leads back to its address."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Fingerprinted(Effect):
    """What p0f knows of the client."""

    __slots__ = ("fingerprint",)

    def __init__(self, fingerprint: Fingerprint) -> None:
        self.fingerprint = fingerprint


class Asked(Effect):
    """Lists were asked, all of the settings that are not in quarantine; what: as in Listings."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what


class ListFailed(Effect):
    """A list gave no answer, or one that lists don't give: it should be tested."""

    __slots__ = ("zone",)

    def __init__(self, zone: str) -> None:
        self.zone = zone


class Decision:
    """A verdict, the reply that goes with it, and effects.

    reply is None exactly when the verdict is PASS.  stage is filled in by the runner.
    """

    __slots__ = ("effects", "reply", "stage", "verdict")

    def __init__(
        self, verdict: Verdict, reply: Reply | None = None, effects: tuple[Effect, ...] = (), stage: str = ""
    ) -> None:
        if (reply is None) != (verdict is Verdict.PASS):
            raise ValueError("a reply goes with every verdict but PASS")
        self.verdict = verdict
        self.reply = reply
        self.effects = effects
        self.stage = stage

    def __repr__(self) -> str:
        return f"Decision({self.verdict.name}, {self.reply!r}, stage={self.stage!r})"


class Held(Effect):
    """A refusal that is known but not spoken yet (policy.reject_at)."""

    __slots__ = ("decision",)

    def __init__(self, decision: Decision) -> None:
        self.decision = decision


PASSED = Decision(Verdict.PASS)


def passed(*effects: Effect) -> Decision:
    return Decision(Verdict.PASS, None, effects)


def defer(reply: Reply, *effects: Effect) -> Decision:
    return Decision(Verdict.DEFER, reply, effects)


def reject(reply: Reply, *effects: Effect) -> Decision:
    return Decision(Verdict.REJECT, reply, effects)


def drop(reply: Reply, *effects: Effect) -> Decision:
    return Decision(Verdict.DROP, reply, effects)


def held_back_s(effects: tuple[Effect, ...], *, is_refused: bool) -> float:
    """For how many seconds a reply is held back; a refusal only by those Delays that say so."""
    return max(
        (
            min(effect.seconds, DELAY_MOST_S)
            for effect in effects
            if type(effect) is Delay and (effect.is_for_refused or not is_refused)
        ),
        default=0.0,
    )
