"""Answers without a name server: a zone as a dictionary, and a stage or a phase driven with it.

    ZONE = {("example.org", MX): [(10, "mx.example.org")], ("mx.example.org", A): ["192.0.2.1"],
            ("slow.example", MX): Status.TIMEOUT}

A name that the zone doesn't know is NXDOMAIN, a type of a name that it knows NODATA.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from types import GeneratorType
from typing import Any

from fastsmtp._dns import Answer, Mx, Question, Status, make_answer
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision
from fastsmtp.policy.facts import Facts, Phase
from fastsmtp.policy.runner import Plan, Round

A, PTR, MX, TXT, AAAA = 1, 12, 15, 16, 28
Zone = Mapping[tuple[str, int], Sequence[Any] | Status]


def answer(zone: Zone, question: Question) -> Answer:
    name = question.name.decode().lower()
    value = zone.get((name, question.type))
    if isinstance(value, Status):
        return make_answer(value)
    if value is None:
        is_known = any(known == name for known, _ in zone)
        return make_answer(Status.NODATA if is_known else Status.NXDOMAIN)
    return make_answer(Status.NOERROR, tuple(_record(question.type, one) for one in value), 300)


def _record(type: int, value: Any) -> Any:
    if type in {A, AAAA}:
        return socket.inet_pton(socket.AF_INET if type == A else socket.AF_INET6, value)
    if type == MX:
        return Mx(value[0], value[1].encode())
    return (value.encode(),) if type == TXT else value.encode()


def opinion_of(
    function: Any, facts: Facts, settings: Settings, zone: Zone
) -> tuple[Decision | None, list[str]]:
    """What a stage says, and the names that it asked for, round by round."""
    said = function(facts, settings)
    asked: list[str] = []
    if not isinstance(said, GeneratorType):
        return said, asked
    answers: Any = None
    while True:
        try:
            questions = said.send(answers)
        except StopIteration as end:
            return end.value, asked
        asked += [question.name.decode() for question in questions]
        answers = tuple(answer(zone, question) for question in questions)


def decision_of(plan: Plan, phase: Phase, facts: Facts, zone: Zone) -> Decision:
    """What a whole phase says."""
    waiting = plan.run(phase, facts)
    while isinstance(waiting, Round):
        waiting = waiting.resume({question: answer(zone, question) for question in waiting.questions})  # type: ignore[arg-type]
    return waiting
