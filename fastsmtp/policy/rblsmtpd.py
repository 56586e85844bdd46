"""RBLSMTPD of a tcpserver rule: what rblsmtpd said to a client that the operator's rule names.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, defer, reject
from fastsmtp.policy.facts import Facts


def refuse_client(facts: Facts, settings: Settings) -> Decision | None:
    """CONNECT: "-text" is 553 5.7.1, "text" 451 4.7.1, each with that text; spoken when policy.reject_at says.

    rblsmtpd said the same to every command but QUIT, without enhanced codes.
    """
    said = settings.rblsmtpd
    if not said:
        return None
    if said.startswith("-"):
        return reject(reply.by_rule(553, "5.7.1", said[1:]))
    return defer(reply.by_rule(451, "4.7.1", said))
