"""What the log says of one session: a function an event, so that each event's fields stand in one place.

Every line has the session's id, its client and its listener.  Nothing is decided or counted here.

Rank 8.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.policy.decision import held_back_s
from fastsmtp.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsmtp.errors import TemporaryError
    from fastsmtp.log import Log
    from fastsmtp.policy.decision import Decision
    from fastsmtp.policy.facts import Facts
    from fastsmtp.reply import Reply
    from fastsmtp.tls import Handshake


def message(log: Log, facts: Facts, code: int, took_s: float) -> None:
    """A message was accepted; took_s: since its MAIL."""
    client = facts.client
    envelope = facts.envelope
    recipients = envelope.recipients  # type: ignore[union-attr]  # a message has one
    log.line(
        "message",
        id=facts.session_id,
        client=client.address.text,
        listener=facts.listener,
        helo=facts.helo,
        from_=envelope.sender,  # type: ignore[union-attr]
        rcpt=recipients[0].address if len(recipients) == 1 else [r.address for r in recipients],
        rcpts=len(recipients),
        size=facts.size_bytes,
        hops=facts.header.hops,  # type: ignore[union-attr]
        tls="off" if facts.tls is None else facts.tls.protocol,
        code=code,
        took_ms=int(took_s * 1000.0),
        name=client.name or None,
        score=facts.score or None,
        relay_cert=client.certificate or None,
    )


def refusal(log: Log, facts: Facts, refused: Reply, stage: str) -> None:
    """A 4xx or 5xx of policy or the sink, whoever hears it: the client, or the Postfix that asked for it."""
    log.line(
        "reject" if refused.is_permanent else "defer",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        helo=facts.helo,
        name=facts.client.name or None,
        score=facts.score or None,
        from_=None if facts.sender is None else facts.sender.address,
        rcpt=None if facts.recipient is None else facts.recipient.address,
        stage=stage,
        code=refused.code,
        enhanced=refused.enhanced,
        reason=refused.lines[-1],
    )


def observed(log: Log, facts: Facts, stage: str, decision: Decision) -> None:
    """What a stage in mode observe would have done."""
    refused = decision.reply
    delay_s = held_back_s(decision.effects, is_refused=refused is not None)
    log.line(
        "observe",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        helo=facts.helo,
        from_=None if facts.sender is None else facts.sender.address,
        rcpt=None if facts.recipient is None else facts.recipient.address,
        score=facts.score + facts.observed_score or None,
        stage=stage,
        code=None if refused is None else refused.code,
        enhanced=None if refused is None else refused.enhanced,
        reason=None if refused is None else refused.lines[-1],
        name=facts.client.name or None,
        delay_s=delay_s or None,
    )


def held_back(log: Log, facts: Facts, delay_s: float) -> None:
    envelope = facts.envelope
    log.line(
        "held_back",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        helo=facts.helo,
        name=facts.client.name or None,
        from_=None if facts.sender is None else facts.sender.address,
        rcpt=None if facts.recipient is None else facts.recipient.address,
        rcpts=None if envelope is None else len(envelope.recipients),
        delay_s=delay_s,
    )


def violation(log: Log, facts: Facts, answer: Reply, reason: str) -> None:
    log.line(
        "violation",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        code=answer.code,
        enhanced=answer.enhanced,
        reason=reason,
        helo=facts.helo,
    )


def timed_out(log: Log, facts: Facts, last: Reply, limit: str) -> None:
    """The client was silent, or too slow, for longer than `limit` gives it; it gets `last`."""
    log.line(
        "too_slow" if last is reply.TOO_SLOW else "timeout",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        code=last.code,
        enhanced=last.enhanced,
        limit=limit,
        helo=facts.helo,
    )


def tls(log: Log, facts: Facts, agreed: Handshake) -> None:
    shown = agreed.certificate
    log.line(
        "tls",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        tls=agreed.protocol,
        cipher=agreed.cipher,
        server_name=agreed.server_name or None,
        is_resumed=agreed.is_resumed,
        cert=None if shown is None else shown.fingerprint,
        cert_fault=None if shown is None else shown.reason or None,
    )


def tls_failed(log: Log, facts: Facts, reason: str) -> None:
    log.line(
        "tls_failed",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        reason=reason,
    )


def disconnect(log: Log, facts: Facts, commands: int, bytes_in: int) -> None:
    """The end of a session of which no other line has told."""
    log.line(
        "disconnect",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        helo=facts.helo,
        commands=commands,
        bytes_in=bytes_in,
    )


def sink_failed(log: Log, facts: Facts, error: TemporaryError) -> None:
    """The world outside kept the sink from taking a message."""
    log.line(
        "sink_failed",
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        reason=f"{type(error).__name__}: {error}",
    )


def defect(log: Log, facts: Facts, error: BaseException, stage: str = "") -> None:
    """An exception of ours."""
    from fastsmtp.log import log_defect

    log_defect(
        log,
        error,
        id=facts.session_id,
        client=facts.client.address.text,
        listener=facts.listener,
        stage=stage,
    )
