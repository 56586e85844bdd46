"""A round of questions on its way, and all that follow it, under the one deadline of their phase.

Whoever began it looks at `decision`: it is there at once when the answers were known already (then nothing
was scheduled), else later; wait() is for a session that can't go on without.

Rank 8.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fastsmtp import reply
from fastsmtp.policy.decision import Decision, defer
from fastsmtp.policy.runner import Round
from fastsmtp.policy.stage import Failed

if TYPE_CHECKING:
    import asyncio

    from fastsmtp.smtp.service import Service

OUR_DEFECT = defer(reply.OUR_DEFECT)
NOBODY = Failed("nobody answers such a question here")
TOO_LATE = Failed("deadline")


class Answerer(Protocol):
    """Answers questions of one kind (their class): the resolver those to the DNS, others theirs."""

    def put(
        self, questions: Any, deadline: float, answered: Callable[[tuple[Any, ...]], object], /
    ) -> tuple[Any, ...] | None:
        """The answers when all are known; else None, and answered(answers) is called once, later, never from here.

        deadline is on the service's clock; what is not known by then is stage.Failed.
        """


class Inquiry:
    """Asks round after round until there is a decision.

    decision  None until then
    """

    __slots__ = ("_deadline", "_future", "_round", "_service", "decision")

    def __init__(self, service: Service, first: Round) -> None:
        self._service = service
        self._round = first
        self._future: asyncio.Future[None] | None = None
        self._deadline = service.now() + service.questions_s
        self.decision: Decision | None = None
        self._go(first)

    def _go(self, asked: Decision | Round) -> None:
        """Ask as long as the answers are known at once; the rest comes to _answered."""
        while type(asked) is Round:
            self._round = asked
            questions = asked.questions
            answers = self._put(questions)
            if answers is None:
                return
            asked = asked.take(answers)
        self.decision = asked  # type: ignore[assignment]
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def _put(self, questions: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Answers that are known, or None: _answered is called."""
        service = self._service
        if service.now() >= self._deadline:
            return (TOO_LATE,) * len(questions)
        kind = type(questions[0])
        for question in questions:
            if type(question) is not kind:
                return self._put_mixed(questions)
        answerer = service.answerers.get(kind)
        if answerer is None:
            return (NOBODY,) * len(questions)
        return answerer.put(questions, self._deadline, self._answered)

    def _put_mixed(self, questions: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Questions of several kinds, each kind to whoever answers it; all are waited for together."""
        kinds: dict[type, list[Any]] = {}
        for question in questions:
            kinds.setdefault(type(question), []).append(question)
        found: dict[Any, Any] = {}
        waiting = 0

        def take(asked: list[Any], answers: tuple[Any, ...]) -> None:
            nonlocal waiting
            found.update(zip(asked, answers, strict=True))
            waiting -= 1
            if not waiting:
                self._answered(tuple(found[question] for question in questions))

        for kind, asked in kinds.items():
            answerer = self._service.answerers.get(kind)
            if answerer is None:
                found.update(dict.fromkeys(asked, NOBODY))
                continue
            known = answerer.put(tuple(asked), self._deadline, functools.partial(take, asked))
            if known is None:
                waiting += 1
            else:
                found.update(zip(asked, known, strict=True))
        return None if waiting else tuple(found[question] for question in questions)

    def _answered(self, answers: tuple[Any, ...]) -> None:
        try:
            self._go(self._round.take(answers))
        except Exception as error:  # noqa: BLE001 - called by the resolver, which can't help it; the client may try again
            self._service.log_failure("inquiry", error)
            self._go(OUR_DEFECT)

    async def wait(self) -> Decision:
        """The decision, when all is answered."""
        if self.decision is None:
            if self._future is None:
                self._future = self._service.loop.create_future()
            await self._future
        return self.decision  # type: ignore[return-value]
