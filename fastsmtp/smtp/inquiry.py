"""A round of questions on its way, and all that follow it, under the one deadline of their phase.

Whoever began it looks at `decision`: it is there at once when the answers were known already (then nothing
was scheduled), else later; wait() is for a session that can't go on without.

Rank 8.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastsmtp import reply
from fastsmtp._dns import Question
from fastsmtp.policy.decision import Decision, defer
from fastsmtp.policy.runner import Round
from fastsmtp.policy.stage import Failed

if TYPE_CHECKING:
    from fastsmtp.smtp.service import Service

OUR_DEFECT = defer(reply.OUR_DEFECT)
NOBODY = Failed("nobody answers such a question here")
TOO_LATE = Failed("deadline")


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
            asked = asked.resume(dict(zip(questions, answers, strict=True)))
        self.decision = asked  # type: ignore[assignment]
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def _put(self, questions: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Answers that are known, or None: _answered is called."""
        service = self._service
        resolver = service.resolver
        if resolver is None:
            return (NOBODY,) * len(questions)
        if service.now() >= self._deadline:
            return (TOO_LATE,) * len(questions)
        for question in questions:
            if type(question) is not Question:
                return self._put_some(questions)
        return resolver.put(questions, self._deadline, self._answered)

    def _put_some(self, questions: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Some questions are none for the DNS: nobody answers them yet."""
        asked = tuple(question for question in questions if type(question) is Question)

        def fill(answers: tuple[Any, ...]) -> tuple[Any, ...]:
            found = iter(answers)
            return tuple(next(found) if type(question) is Question else NOBODY for question in questions)

        known = self._service.resolver.put(  # type: ignore[union-attr]
            asked, self._deadline, lambda answers: self._answered(fill(answers))
        )
        return None if known is None else fill(known)

    def _answered(self, answers: tuple[Any, ...]) -> None:
        try:
            self._go(self._round.resume(dict(zip(self._round.questions, answers, strict=True))))
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
