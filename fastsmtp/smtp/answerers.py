"""Who answers the questions of policy that the DNS can't: one of each kind that the settings ask for, a worker.

Rank 8.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from fastsmtp.config.settings import Settings
from fastsmtp.fingerprint import P0fQuestion
from fastsmtp.log import Log
from fastsmtp.p0f import P0f
from fastsmtp.policy.callout import Callout
from fastsmtp.smtp.inquiry import Answerer


class ClosableAnswerer(Answerer, Protocol):
    """An Answerer that has connections of its own."""

    async def close(self) -> Any:
        """Give them back; what is open stays unanswered."""


def answerers_of(settings: Sequence[Settings], log: Log) -> dict[type, ClosableAnswerer]:
    """By the class of the question; on the running loop."""
    # A connection is made with the first question.
    found: dict[type, ClosableAnswerer] = {P0fQuestion: P0f(now=time.monotonic, log=log)}
    if any(one.accept.asks for one in settings):
        from fastsmtp.delivery.callout import make_callouts

        found[Callout] = make_callouts(settings[0].hostname, now=time.monotonic, log=log)
    return found
