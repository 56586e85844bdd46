"""Runs the stages of a phase and makes one decision of their opinions.

A Plan is the stages and the settings of one listener, put in order once; run()
is then a pure function of the facts.  Stages without questions answer at once.
Where some ask, run() returns a Round: the questions of all of them together,
to be answered as one batch, and resumed with the answers.  The world is asked
by whoever called; nothing here waits.

Of several refusals the highest verdict stands, and among equals the earlier
stage.  Effects of all stages are carried out, whichever verdict stands.
A stage that raises is never read as "no opinion": it defers, or passes where
it says on_error="pass".  Where something that is no rule refuses (a limit), or a
rule rejects here and now, nothing is asked any more.

A rule's refusal in a phase before policy.reject_at is held: the decision passes
and carries it as an effect, and the stage "held" speaks it later.

Rank 4: pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from types import GeneratorType

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import (
    PASSED,
    Asked,
    Decision,
    Delay,
    Effect,
    Fingerprinted,
    Held,
    ListFailed,
    Name,
    Tag,
    Verdict,
    defer,
)
from fastsmtp.policy.facts import Facts, Phase
from fastsmtp.policy.stage import Asking, Failed, Mode, Question, Stage
from fastsmtp.typed import Any, Protocol, cast

# What an observer is told of every stage that ran: its opinion, or the exception that it raised.
Observer = Callable[[Facts, Phase, Stage, "Decision | Exception | None"], None]


class Report(Protocol):
    """Who hears of what stages say, but for "pass": that costs nothing."""

    def defect(self, facts: Facts, stage: Stage, error: Exception) -> None:
        """A stage raised."""

    def observed(self, facts: Facts, stage: Stage, decision: Decision) -> None:
        """A stage in observe mode would have refused, or begun to answer slowly."""

    def judged(self, name: str, verdict: Verdict) -> None:
        """A stage refused; one whose refusal is held for later, when it was found."""


HELD = "held"
"""The stage that speaks refusals of earlier phases."""

# A stage that asks for ever would hold its client for ever; the deadline would make each round shorter only.
MAX_ROUNDS = 8
# Phases whose refusals can wait for policy.reject_at.
_HELD_PHASES = frozenset({Phase.CONNECT, Phase.HELO, Phase.MAIL})

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
        asked = asking[0].questions
        for waiting in asking[1:]:
            asked += waiting.questions
        self.questions: tuple[Question, ...] = tuple(dict.fromkeys(asked))

    def resume(self, answers: Mapping[Question, Any]) -> Decision | Round:
        """Go on with the answers.  A question without one counts as Failed("no answer")."""
        asking: list[_Asking] = []
        for waiting in self._asking:
            values = tuple(answers.get(question, _NO_ANSWER) for question in waiting.questions)
            self._plan.step(self._phase, self._facts, waiting, values, self._decided, asking)
        if asking:
            return Round(self._plan, self._phase, self._facts, self._decided, asking)
        return combine(self._decided)

    def take(self, answers: tuple[Any, ...]) -> Decision | Round:
        """The same with the answers in the order of the questions."""
        asking = self._asking
        if len(asking) > 1 or len(asking[0].questions) != len(answers):
            return self.resume(dict(zip(self.questions, answers, strict=True)))
        again: list[_Asking] = []
        self._plan.step(self._phase, self._facts, asking[0], answers, self._decided, again)
        if again:
            return Round(self._plan, self._phase, self._facts, self._decided, again)
        return combine(self._decided)

    def take_effects(self) -> tuple[Effect, ...]:
        """The effects of the stages that have decided, for a session that goes on while the others wait."""
        effects: list[Effect] = []
        for index, (at, decision) in enumerate(self._decided):
            effects += decision.effects
            self._decided[index] = (at, Decision(decision.verdict, decision.reply, (), decision.stage))
        return tuple(effects)


class _Asking:
    """A stage that waits for answers; at is its place in the phase."""

    __slots__ = ("at", "generator", "questions", "rounds", "stage")

    def __init__(
        self, at: int, stage: Stage, generator: Asking, questions: tuple[Question, ...], rounds: int
    ) -> None:
        self.at = at
        self.stage = stage
        self.generator = generator
        self.questions = questions
        self.rounds = rounds


_NO_ANSWER = Failed("no answer")


# The answers to all these questions, if they are known already; else None.
Know = Callable[[tuple[Question, ...]], tuple[Any, ...] | None]


class Plan:
    """The stages that one listener's settings ask for, by phase.

    know       answers what is in the cache, so that nothing has to be waited for or scheduled; None: nothing is
    speaks_at  the phase of policy.reject_at
    """

    __slots__ = (
        "_by_phase",
        "_is_compatible",
        "_is_soft",
        "_observer",
        "_report",
        "_unskippable",
        "know",
        "settings",
        "speaks_at",
    )

    def __init__(
        self,
        stages: Iterable[Stage],
        settings: Settings,
        *,
        observer: Observer | None = None,
        report: Report | None = None,
        know: Know | None = None,
    ) -> None:
        self.settings = settings
        self.know = know
        self._observer = observer
        self._report = report
        self._is_soft = settings.policy.soft_reject
        self._is_compatible = settings.is_compatible
        self.speaks_at = Phase[settings.policy.reject_at.upper()]
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
        is_final = False
        at = -1
        for function, stage in stages:
            at += 1
            try:
                opinion = function(facts, settings)
            except Exception as error:  # noqa: BLE001 - whatever a stage raises is a defect of ours, and defers
                opinion = self._failed(phase, facts, stage, error)
            else:
                if type(opinion) is GeneratorType:
                    waiting = self._begin(phase, facts, at, stage, opinion)
                    if type(waiting) is _Asking:
                        if asking is None:
                            asking, decided = [], []
                        asking.append(waiting)
                        continue
                    opinion = waiting  # type: ignore[assignment]
                elif observer is not None:
                    observer(facts, phase, stage, opinion)  # type: ignore[arg-type]
            if opinion is None:
                continue
            if opinion.verdict is not Verdict.PASS:  # type: ignore[union-attr]
                opinion = self._weighed(phase, facts, stage, opinion)  # type: ignore[arg-type]
                is_final = is_final or not stage.is_check or opinion.verdict >= Verdict.REJECT
            elif stage.is_check and opinion.effects:  # type: ignore[union-attr]
                opinion = self._weighed(phase, facts, stage, opinion)  # type: ignore[arg-type]
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
        if asking and is_final:
            # Whatever the answers were, the client is refused: don't ask.
            for waiting in asking:
                waiting.generator.close()
            asking = None
        return Round(self, phase, facts, decided, asking) if asking else combine(decided)

    def _begin(
        self, phase: Phase, facts: Facts, at: int, stage: Stage, generator: Asking
    ) -> Decision | _Asking | None:
        """An asking stage's opinion, when all that it asks is known at once; else what it waits for."""
        know = self.know
        rounds = 0
        answers: Any = None
        try:
            while True:
                questions = generator.send(answers)
                rounds += 1
                answers = None if know is None or rounds > MAX_ROUNDS else know(questions)
                if answers is None:
                    return _Asking(at, stage, generator, questions, rounds)
        except StopIteration as end:
            opinion: Decision | None = end.value
        except Exception as error:  # noqa: BLE001 - as in run()
            return self._failed(phase, facts, stage, error)
        if self._observer is not None:
            self._observer(facts, phase, stage, opinion)
        return opinion

    def step(
        self,
        phase: Phase,
        facts: Facts,
        waiting: _Asking,
        answers: tuple[Any, ...],
        decided: list[tuple[int, Decision]],
        asking: list[_Asking],
    ) -> None:
        """Drive one asking stage with its answers to its next questions or to its opinion."""
        stage = waiting.stage
        generator = waiting.generator
        opinion: Decision | None
        try:
            if waiting.rounds > MAX_ROUNDS:
                generator.close()
                raise RecursionError(f"more than {MAX_ROUNDS} rounds of questions")
            questions = generator.send(answers)
        except StopIteration as end:
            opinion = end.value
            if self._observer is not None:
                self._observer(facts, phase, stage, opinion)
        except Exception as error:  # noqa: BLE001 - as in run()
            opinion = self._failed(phase, facts, stage, error)
        else:
            waiting.questions = questions
            waiting.rounds += 1
            asking.append(waiting)
            return
        if opinion is not None:
            decided.append((waiting.at, self._weighed(phase, facts, stage, opinion)))

    def _failed(self, phase: Phase, facts: Facts, stage: Stage, error: Exception) -> Decision | None:
        if self._observer is not None:
            self._observer(facts, phase, stage, error)
        if self._report is not None:
            self._report.defect(facts, stage, error)
        return None if stage.on_error == "pass" else defer(reply.OUR_DEFECT)

    def _weighed(self, phase: Phase, facts: Facts, stage: Stage, opinion: Decision) -> Decision:
        """The opinion as the mode lets it count: what is only observed changes nothing, soft refusals turn into 4xx.

        An observed rule's tags are told to later stages and to the next hop; its scores are kept apart.
        """
        verdict = opinion.verdict
        name = opinion.stage or stage.name
        if self._is_compatible and opinion.reply is not None:
            opinion = Decision(verdict, opinion.reply.as_qmail(), opinion.effects, name)
        if stage.is_check:
            if stage.mode == "observe" or self.settings.policy.mode == "observe":
                if self._report is not None and (verdict is not Verdict.PASS or _is_first_delay(opinion)):
                    self._report.observed(facts, stage, opinion)
                tags = tuple(_observed(effect) for effect in opinion.effects if type(effect) in _HARMLESS)
                return Decision(Verdict.PASS, None, tags) if tags else PASSED
            if verdict is Verdict.PASS:
                return opinion
            answer = opinion.reply
            if self._is_soft and answer is not None and answer.is_permanent:
                verdict, answer = Verdict.DEFER, answer.softened()
            if self._report is not None and stage.name != HELD:
                self._report.judged(name, verdict)
            is_prompt = stage.is_prompt or (stage.is_classic and self._is_compatible)
            is_held = phase < self.speaks_at and phase in _HELD_PHASES and not is_prompt
            if is_held and verdict is not Verdict.DROP:
                held = Held(Decision(verdict, answer, (), name))
                return Decision(Verdict.PASS, None, (*opinion.effects, held))
            return Decision(verdict, answer, opinion.effects, name)
        if verdict is Verdict.PASS:
            return opinion
        if self._report is not None:
            self._report.judged(name, verdict)
        return Decision(verdict, opinion.reply, opinion.effects, name)


# What an observed rule may still have: words, names and what is told about lists.
_HARMLESS = frozenset({Tag, Name, Fingerprinted, Asked, ListFailed})


def _is_first_delay(opinion: Decision) -> bool:
    """A delay that has a word to say besides: a tarpit's first one of a message."""
    kinds = {type(effect) for effect in opinion.effects}
    return Delay in kinds and Tag in kinds


def _observed(effect: Effect) -> Effect:
    if type(effect) is Tag and not effect.is_observed:
        return Tag(effect.name, effect.value, effect.score, zone=effect.zone, is_observed=True)
    return effect


def effective_mode(stage: Stage, settings: Settings) -> Mode:
    """The milder of the stage's own mode and policy.mode; what is no rule can't be switched off."""
    if not stage.is_check:
        return "enforce"
    return min(stage.mode, cast(Mode, settings.policy.mode), key=_MILDNESS.__getitem__)


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
