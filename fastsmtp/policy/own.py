"""Stages of the operator's own: [[policy.python]] stage = "mysite.rules:no_printers".

Loaded by the master at start, by `check`, and anew on reload; docs/stages.md is the manual.  What they return
is looked at before the runner sees it, so that a mistake defers and never passes for an opinion.

Rank 4: imports what the configuration names, and nothing of it is pure by force.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from types import GeneratorType
from typing import Any

from fastsmtp.config.model import Config
from fastsmtp.config.rules import Policy, PythonStage
from fastsmtp.errors import ConfigError
from fastsmtp.policy.decision import Decision
from fastsmtp.policy.facts import Phase
from fastsmtp.policy.stage import Asking, Function, Opinion, Stage


def load_stages(
    policies: Iterable[Policy], *, fresh: bool = False, places: Mapping[PythonStage, str] | None = None
) -> dict[PythonStage, Stage]:
    """Every [[policy.python]] of these tables as a Stage.  ConfigError names everything that is wrong.

    fresh   import the modules anew, as a reload must
    places  where each was written, as places_of() has it
    """
    rules = dict.fromkeys(rule for policy in policies for rule in policy.python if rule.mode != "off")
    if fresh:
        for module in {rule.stage.partition(":")[0] for rule in rules}:
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
    found: dict[PythonStage, Stage] = {}
    faults: dict[str, None] = {}
    for rule in rules:
        try:
            found[rule] = load_stage(rule)
        except ValueError as error:
            place = (places or {}).get(rule)
            key = f"{place}: policy.python.stage" if place else "policy.python"
            faults[f"{key}: {rule.stage}: {error}"] = None
    if faults:
        raise ConfigError(*faults)
    return found


def places_of(config: Config, provenance: Mapping[str, str]) -> dict[PythonStage, str]:
    """FILE:LINE of each [[policy.python]], the listeners' own included; provenance as Loaded has it."""
    tables = [("", config.policy)]
    for at, listen in enumerate(config.listen):
        if listen.policy is not None:
            tables.append((f"listen[{at}].", listen.policy))
    found: dict[PythonStage, str] = {}
    for before, policy in tables:
        for at, rule in enumerate(policy.python):
            origin = provenance.get(f"{before}policy.python[{at}].stage")
            if origin:
                found.setdefault(rule, origin)
    return found


def load_stage(rule: PythonStage) -> Stage:
    """ValueError with one clause: it can't be imported, isn't there, or doesn't take (facts, settings)."""
    module_name, _, name = rule.stage.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a module of the operator's may do anything
        raise ValueError(f"cannot be imported: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(f"there is no {name} in {module_name}")
    if not callable(function):
        raise ValueError("is no function")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError("is async; a stage yields its questions and never awaits")
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        raise ValueError("does not take (facts, settings)") from None
    return Stage(
        rule.stage,
        Phase[rule.at.upper()],
        _guarded(function),
        on_error="pass" if rule.on_error == "pass" else "defer",
        mode="observe" if rule.mode == "observe" else "enforce",
    )


def _guarded(function: Callable[..., Any]) -> Function:
    def run(facts: Any, settings: Any) -> Opinion | Asking:
        opinion = function(facts, settings)
        if type(opinion) is GeneratorType:
            return _watched(opinion)
        if opinion is not None and type(opinion) is not Decision:
            raise TypeError(f"a stage returns a Decision or None, not {opinion!r}")
        return opinion

    return run


def _watched(generator: Asking) -> Asking:
    """The same generator, whose questions and opinion are looked at."""
    answers: Any = None
    while True:
        try:
            questions = generator.send(answers)
        except StopIteration as end:
            opinion = end.value
            break
        if type(questions) is not tuple or not questions:
            generator.close()
            raise TypeError(f"a stage yields a tuple of questions, not {questions!r}")
        answers = yield questions
    if opinion is not None and type(opinion) is not Decision:
        raise TypeError(f"a stage returns a Decision or None, not {opinion!r}")
    return opinion
