"""What a stage is.

A stage is a function of (facts, settings) that returns a Decision or None, or
a generator that yields questions, gets their answers and returns the same.  It
never awaits and never sees a socket, a clock or a file; what it needs to know
is in the facts, what it wants done is in the decision.

Rank 4: pure.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision
from fastsmtp.policy.facts import Facts, Phase
from fastsmtp.records import dataclass
from fastsmtp.typed import Any, Literal, Protocol


class Question(Protocol):
    """A question to the world; equal questions are asked once.  Asking has no effect."""

    def __hash__(self) -> int: ...


class Failed:
    """The answer to a question that could not be answered (time-out, error): a value, never an exception."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


Opinion = Decision | None
Asking = Generator[tuple[Question, ...], tuple[Any, ...], Opinion]
Function = Callable[[Facts, Settings], Opinion | Asking]
OnError = Literal["defer", "pass"]
Mode = Literal["enforce", "observe", "off"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One rule in one phase.

    name      as in logs and traces
    is_check  False for what must run for everybody (relay control, limits that protect us);
              True for what relay clients and exempt clients skip
    on_error  what a failure of the stage means: "defer" (451) or "pass"
    asks      it is of no use where nobody answers questions
    is_prompt     its refusal is spoken in its own phase, whatever policy.reject_at says
    is_classic    a check of qmail's patches: in compatible mode it is prompt
    """

    name: str
    phase: Phase
    function: Function
    is_check: bool = True
    on_error: OnError = "defer"
    mode: Mode = "enforce"
    asks: bool = False
    is_prompt: bool = False
    is_classic: bool = False
