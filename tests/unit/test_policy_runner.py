"""The runner: one decision of many opinions, rounds of questions, failures that are never "no opinion"."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp.address import Address
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import PASSED, Decision, Tag, Verdict, defer, drop, passed, reject
from fastsmtp.policy.facts import Client, Facts, Phase
from fastsmtp.policy.runner import Plan, Round
from fastsmtp.policy.stage import Failed, Mode, OnError, Stage

DENIED = reject(reply.DENIED)
BUSY = defer(reply.OVERLOADED)


def settings(**policy: Any) -> Settings:
    """Refusals are spoken in their own phase, unless the test says otherwise."""
    values = {"hostname": "mx.example", "accept": [{"domain": ["*"], "deliver": "discard"}]}
    return load(values={**values, "policy": {"reject_at": "connect", **policy}}).settings[0]


def facts(*, skips_checks: bool = False) -> Facts:
    client = Client(Address("192.0.2.1"))
    client.skips_checks = skips_checks
    return Facts("ID", "mx", "192.0.2.25", client)


def says(
    name: str,
    opinion: Decision | None,
    *,
    mode: Mode = "enforce",
    is_check: bool = True,
    on_error: OnError = "defer",
) -> Stage:
    return Stage(name, Phase.MAIL, lambda facts, settings: opinion, is_check, on_error, mode)


def raises(name: str, on_error: OnError) -> Stage:
    def broken(facts: Facts, settings: Settings) -> Decision | None:
        raise KeyError("a defect")

    return Stage(name, Phase.MAIL, broken, True, on_error)


def asks(name: str, *questions: str, rounds: int = 1) -> Stage:
    """Refuses when an answer is "bad", in each of so many rounds."""

    def function(
        facts: Facts, settings: Settings
    ) -> Generator[tuple[str, ...], tuple[Any, ...], Decision | None]:
        for at in range(rounds):
            answers = yield tuple(f"{question}{at or ''}" for question in questions)
            if "bad" in answers:
                return DENIED
            if any(isinstance(answer, Failed) for answer in answers):
                return BUSY
        return None

    return Stage(name, Phase.MAIL, function)


def decided(*stages: Stage, of: Facts | None = None, under: Settings | None = None) -> Decision:
    outcome = Plan(stages, under or settings()).run(Phase.MAIL, of or facts())
    assert isinstance(outcome, Decision)
    return outcome


@pytest.mark.parametrize(
    ("stages", "verdict", "stage"),
    [
        ([], Verdict.PASS, ""),
        ([says("a", None), says("b", None)], Verdict.PASS, ""),
        ([says("a", None), says("b", DENIED)], Verdict.REJECT, "b"),
        ([says("a", BUSY), says("b", DENIED)], Verdict.REJECT, "b"),
        ([says("a", DENIED), says("b", BUSY)], Verdict.REJECT, "a"),
        ([says("a", DENIED), says("b", reject(reply.NO_RELAYING))], Verdict.REJECT, "a"),
        ([says("a", DENIED), says("b", drop(reply.EARLY_TALKER))], Verdict.DROP, "b"),
        ([says("a", passed()), says("b", DENIED)], Verdict.REJECT, "b"),
        ([raises("a", "defer")], Verdict.DEFER, ""),
        ([raises("a", "defer"), says("b", DENIED)], Verdict.REJECT, "b"),
        ([raises("a", "pass")], Verdict.PASS, ""),
        ([says("a", DENIED, mode="observe")], Verdict.PASS, ""),
        ([says("a", DENIED, mode="off"), says("b", BUSY)], Verdict.DEFER, "b"),
    ],
)
def test_which_opinion_stands(stages: list[Stage], verdict: Verdict, stage: str) -> None:
    decision = decided(*stages)
    assert decision.verdict is verdict
    if stage:
        assert decision.stage == stage


def test_nothing_said_costs_no_decision() -> None:
    assert decided(says("a", None)) is PASSED


def test_a_defect_defers_with_our_own_reply() -> None:
    assert decided(raises("a", "defer")).reply == reply.OUR_DEFECT


def test_effects_of_all_stages_are_kept() -> None:
    decision = decided(says("a", passed(Tag("one"))), says("b", DENIED), says("c", passed(Tag("two"))))
    assert decision.verdict is Verdict.REJECT
    assert [effect.name for effect in decision.effects if isinstance(effect, Tag)] == ["one", "two"]


def test_a_client_that_skips_checks_meets_only_what_is_no_check() -> None:
    stages = says("rule", DENIED), says("limit", BUSY, is_check=False)
    assert decided(*stages, of=facts(skips_checks=True)).stage == "limit"
    assert decided(*stages).stage == "rule"


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_the_mode_for_all_rules_never_touches_what_is_no_rule(mode: str) -> None:
    under = settings(mode=mode)
    assert decided(says("rule", DENIED), under=under) is PASSED
    assert decided(says("limit", BUSY, is_check=False), under=under).verdict is Verdict.DEFER


def test_soft_reject_turns_a_rule_into_4xx_and_leaves_relay_control_alone() -> None:
    under = settings(soft_reject=True)
    soft = decided(says("rule", DENIED), under=under)
    assert (soft.verdict, soft.reply.code, soft.reply.enhanced) == (Verdict.DEFER, 450, "4.7.1")  # type: ignore[union-attr]
    assert decided(says("relay", DENIED, is_check=False), under=under).verdict is Verdict.REJECT


def test_questions_of_all_stages_come_as_one_batch_each_once() -> None:
    plan = Plan([asks("a", "x", "y"), says("b", None), asks("c", "y", "z")], settings())
    waiting = plan.run(Phase.MAIL, facts())
    assert isinstance(waiting, Round)
    assert waiting.questions == ("x", "y", "z")
    assert waiting.resume({"x": "good", "y": "good", "z": "good"}) is PASSED


def test_an_answer_decides_and_the_earlier_stage_wins() -> None:
    plan = Plan([asks("a", "x"), asks("b", "y"), says("c", BUSY)], settings())
    waiting = plan.run(Phase.MAIL, facts())
    assert isinstance(waiting, Round)
    decision = waiting.resume({"x": "bad", "y": "bad"})
    assert isinstance(decision, Decision)
    assert (decision.verdict, decision.stage) == (Verdict.REJECT, "a")


def test_rounds_go_on_until_every_stage_is_content() -> None:
    plan = Plan([asks("a", "x", rounds=3), asks("b", "y")], settings())
    waiting = plan.run(Phase.MAIL, facts())
    asked = []
    while isinstance(waiting, Round):
        asked.append(waiting.questions)
        waiting = waiting.resume(dict.fromkeys(waiting.questions, "good"))
    assert asked == [("x", "y"), ("x1",), ("x2",)]
    assert waiting is PASSED


def test_a_question_without_an_answer_has_failed() -> None:
    waiting = Plan([asks("a", "x")], settings()).run(Phase.MAIL, facts())
    assert isinstance(waiting, Round)
    decision = waiting.resume({})
    assert isinstance(decision, Decision)
    assert decision.verdict is Verdict.DEFER


def test_the_observer_hears_of_every_stage_and_the_report_of_what_does_not_show() -> None:
    traced: list[tuple[str, str]] = []
    told: list[tuple[str, str]] = []

    class Report:
        def defect(self, facts: Facts, stage: Stage, error: Exception) -> None:
            told.append(("defect", stage.name))

        def observed(self, facts: Facts, stage: Stage, decision: Decision) -> None:
            told.append(("observed", stage.name))

        def judged(self, name: str, verdict: Verdict) -> None:
            told.append((verdict.name, name))

    plan = Plan(
        [says("a", None), raises("b", "pass"), says("c", DENIED, mode="observe"), asks("d", "x")],
        settings(),
        observer=lambda facts, phase, stage, opinion: traced.append((stage.name, type(opinion).__name__)),
        report=Report(),
    )
    waiting = plan.run(Phase.MAIL, facts())
    assert isinstance(waiting, Round)
    waiting.resume({"x": "good"})
    assert traced == [("a", "NoneType"), ("b", "KeyError"), ("c", "Decision"), ("d", "NoneType")]
    assert told == [("defect", "b"), ("observed", "c")]
    refusing = Plan([says("a", DENIED)], settings(), report=Report())
    assert isinstance(refusing.run(Phase.MAIL, facts()), Decision)
    assert told[2:] == [("REJECT", "a")]


def test_the_same_facts_give_the_same_decision() -> None:
    plan = Plan([asks("a", "x"), says("b", BUSY)], settings())
    outcomes = []
    for _ in range(2):
        waiting = plan.run(Phase.MAIL, facts())
        assert isinstance(waiting, Round)
        outcomes.append(repr(waiting.resume({"x": "bad"})))
    assert outcomes[0] == outcomes[1]
