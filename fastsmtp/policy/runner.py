"""Runs the stages of a phase and makes one decision of their opinions.

A Plan is the stages and the settings of one listener, put in order once; run()
is then a pure function of the facts.  Stages without questions answer at once.
Where some ask, run() returns a Round: the questions of all of them together,
to be answered as one batch, and resumed with the answers.  The world is asked
by whoever called; nothing here waits.

Of several refusals the highest verdict stands, and among equals the earlier
stage.  Effects of all stages are carried out, whichever verdict stands.
A stage that raises is never read as "no opinion": it defers, or passes where
it says on_error="pass".

Rank 4: pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from types import GeneratorType
from typing import Any, Protocol

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import PASSED, Decision, Verdict, defer
from fastsmtp.policy.facts import Facts, Phase
from fastsmtp.policy.stage import Asking, Failed, Mode, Question, Stage

# What an observer is told of every stage that ran: its opinion, or the exception that it raised.
Observer = Callable[[Facts, Phase, Stage, "Decision | Exception | None"], None]


class Report(Protocol):
    """Who hears of what a decision does not show.  Called only in these two cases, so it costs nothing else."""

    def defect(self, facts: Facts, stage: Stage, error: Exception) -> None:
        """A stage raised."""

    def observed(self, facts: Facts, stage: Stage, decision: Decision) -> None:
        """A stage in observe mode would have refused."""


_MILDNESS: dict[Mode, int] = {"off": 0, "observe": 1, "enforce": 2}


class Round:
    """The questions that stand between here and a decision.

    questions  each once, in the stages' order
    """

    __slots__ = ("_asking", "_decided", "_facts", "_phase", "_plan", "questions")

    def __init__(
        self,
        plan: Plan,
        phase: Phase,
        facts: Facts,
        decided: list[tuple[int, Decision]],
        asking: list[_Asking],
    ) -> None:
        self._plan = plan
        self._phase = phase
        self._facts = facts
        self._decided = decided
        self._asking = asking
        self.questions: tuple[Question, ...] = tuple(
            dict.fromkeys(question for waiting in asking for question in waiting.questions)
        )

    def resume(self, answers: Mapping[Question, Any]) -> Decision | Round:
        """Go on with the answers.  A question without one counts as Failed("no answer")."""
        asking: list[_Asking] = []
        for waiting in self._asking:
            values = tuple(answers.get(question, _NO_ANSWER) for question in waiting.questions)
            self._plan.step(
                self._phase, self._facts, waiting.at, waiting.generator, values, self._decided, asking
            )
        if asking:
            return Round(self._plan, self._phase, self._facts, self._decided, asking)
        return combine(self._decided)


class _Asking:
    """A stage that waits for answers."""

    __slots__ = ("at", "generator", "questions")

    def __init__(self, at: int, generator: Asking, questions: tuple[Question, ...]) -> None:
        self.at = at
        self.generator = generator
        self.questions = questions


_NO_ANSWER = Failed("no answer")


class Plan:
    """The stages that one listener's settings ask for, by phase."""

    __slots__ = ("_by_phase", "_is_soft", "_observer", "_report", "_unskippable", "settings")

    def __init__(
        self,
        stages: Iterable[Stage],
        settings: Settings,
        *,
        observer: Observer | None = None,
        report: Report | None = None,
    ) -> None:
        self.settings = settings
        self._observer = observer
        self._report = report
        self._is_soft = settings.policy.soft_reject
        active = [stage for stage in stages if effective_mode(stage, settings) != "off"]
        self._by_phase = tuple(
            tuple((stage.function, stage) for stage in active if stage.phase is phase) for phase in Phase
        )
        self._unskippable = tuple(
            tuple((stage.function, stage) for stage in active if stage.phase is phase and not stage.is_check)
            for phase in Phase
        )

    def run(self, phase: Phase, facts: Facts) -> Decision | Round:
        """Every stage of the phase once; a Decision, or the Round of questions that come first."""
        settings = self.settings
        observer = self._observer
        stages = (self._unskippable if facts.client.skips_checks else self._by_phase)[phase]
        # Mostly no stage has an opinion, or one has: neither needs a list.
        standing: Decision | None = None
        asking: list[_Asking] | None = None
        decided: list[tuple[int, Decision]] | None = None
        at = -1
        for function, stage in stages:
            at += 1
            try:
                opinion = function(facts, settings)
            except Exception as error:  # noqa: BLE001 - whatever a stage raises is a defect of ours, and defers
                opinion = self._failed(phase, facts, stage, error)
            else:
                if type(opinion) is GeneratorType:
                    if asking is None:
                        asking, decided = [], []
                    self.step(phase, facts, at, opinion, None, decided, asking)  # type: ignore[arg-type]
                    continue
                if observer is not None:
                    observer(facts, phase, stage, opinion)  # type: ignore[arg-type]
            if opinion is None:
                continue
            if opinion.verdict is not Verdict.PASS:  # type: ignore[union-attr]
                opinion = self._weighed(facts, stage, opinion)  # type: ignore[arg-type]
            if decided is not None:
                decided.append((at, opinion))  # type: ignore[arg-type]
            elif standing is None:
                standing = opinion  # type: ignore[assignment]
            else:
                standing = _both(standing, opinion)  # type: ignore[arg-type]
        if decided is None:
            return standing or PASSED
        if standing is not None:
            # What came before the first question stands before all that came after it.
            decided.append((-1, standing))
        return Round(self, phase, facts, decided, asking) if asking else combine(decided)

    def step(
        self,
        phase: Phase,
        facts: Facts,
        at: int,
        generator: Asking,
        answers: tuple[Any, ...] | None,
        decided: list[tuple[int, Decision]],
        asking: list[_Asking],
    ) -> None:
        """Drive one asking stage to its next questions or to its opinion."""
        stage = (self._unskippable if facts.client.skips_checks else self._by_phase)[phase][at][1]
        opinion: Decision | None
        try:
            questions = next(generator) if answers is None else generator.send(answers)
        except StopIteration as end:
            opinion = end.value
            if self._observer is not None:
                self._observer(facts, phase, stage, opinion)
        except Exception as error:  # noqa: BLE001 - as in run()
            opinion = self._failed(phase, facts, stage, error)
        else:
            asking.append(_Asking(at, generator, questions))
            return
        if opinion is not None:
            decided.append((at, self._weighed(facts, stage, opinion)))

    def _failed(self, phase: Phase, facts: Facts, stage: Stage, error: Exception) -> Decision | None:
        if self._observer is not None:
            self._observer(facts, phase, stage, error)
        if self._report is not None:
            self._report.defect(facts, stage, error)
        return None if stage.on_error == "pass" else defer(reply.OUR_DEFECT)

    def _weighed(self, facts: Facts, stage: Stage, opinion: Decision) -> Decision:
        """The opinion as the mode lets it count: observed refusals pass, soft ones turn into 4xx."""
        if opinion.verdict is Verdict.PASS:
            return opinion
        if stage.is_check:
            if effective_mode(stage, self.settings) == "observe":
                if self._report is not None:
                    self._report.observed(facts, stage, opinion)
                return PASSED
            if self._is_soft and opinion.reply is not None and opinion.reply.is_permanent:
                return Decision(Verdict.DEFER, opinion.reply.softened(), opinion.effects, stage.name)
        return Decision(opinion.verdict, opinion.reply, opinion.effects, stage.name)


def effective_mode(stage: Stage, settings: Settings) -> Mode:
    """The milder of the stage's own mode and policy.mode; what is no rule can't be switched off."""
    if not stage.is_check:
        return "enforce"
    overall: Mode = settings.policy.mode  # type: ignore[assignment]
    return min(stage.mode, overall, key=_MILDNESS.__getitem__)


@lru_cache(maxsize=1024)
def _both(earlier: Decision, later: Decision) -> Decision:
    """One decision of two, for the earlier stage and the later one.

    Stages give the same few decision objects over and over (a route, a token), and so does this.
    """
    standing = later if later.verdict > earlier.verdict else earlier
    return Decision(standing.verdict, standing.reply, earlier.effects + later.effects, standing.stage)


def combine(decided: list[tuple[int, Decision]]) -> Decision:
    """One decision of many opinions; see the module's text."""
    if len(decided) == 1:
        return decided[0][1]
    if not decided:
        return PASSED
    decided.sort(key=lambda entry: entry[0])
    return reduce(_both, (decision for _, decision in decided))
