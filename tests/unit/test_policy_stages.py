"""Every stage of relay control, limits, greeting and loops: facts in, verdict out."""

from __future__ import annotations

from typing import Any

import pytest

from fastsmtp import _body, reply
from fastsmtp._parser import Path, parse_path
from fastsmtp.address import Address
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy import greeting, limits, message, relay
from fastsmtp.policy.decision import Decision, Grant, GrantPass, Route, TakeToken, Token
from fastsmtp.policy.facts import Client, Facts, Origin

BASE: dict[str, Any] = {
    "hostname": "mx.example",
    "postmaster": "postmaster@example.org",
    "accept": [
        {"domain": ["example.org"], "deliver": "maildir:/mail"},
        {"domain": [".example.net"], "deliver": "discard"},
    ],
}


def settings(**tables: Any) -> Settings:
    return load(values={**BASE, **tables}).settings[0]


def facts(address: str = "192.0.2.1", origin: Origin = Origin.SOCKET, **known: Any) -> Facts:
    found = Facts("ID", "mx", "192.0.2.25", Client(Address(address), 4321, origin))
    for name, value in known.items():
        setattr(found.client if hasattr(found.client, name) else found, name, value)
    return found


def path(text: bytes) -> Path:
    parsed = parse_path(text)
    assert not isinstance(parsed, int)
    return parsed[0]


@pytest.mark.parametrize(
    ("address", "origin", "may_relay", "skips_checks"),
    [
        ("127.0.0.1", Origin.SOCKET, True, True),
        ("::1", Origin.SOCKET, True, True),
        ("10.1.2.3", Origin.SOCKET, True, True),
        ("10.1.2.3", Origin.PROXY, True, True),
        ("10.1.2.3", Origin.XCLIENT, True, True),
        ("192.0.2.7", Origin.SOCKET, False, True),
        ("192.0.2.8", Origin.SOCKET, False, False),
        # Who may speak for others must not be able to make them ourselves.
        ("127.0.0.1", Origin.PROXY, False, False),
        ("::1", Origin.XCLIENT, False, False),
    ],
)
def test_what_a_client_is_granted(address: str, origin: Origin, may_relay: bool, skips_checks: bool) -> None:
    under = settings(
        relay={"networks": ["127.0.0.0/8", "::1/128", "10.0.0.0/8"]}, policy={"exempt": ["192.0.2.7"]}
    )
    decision = relay.know_client(facts(address, origin), under)
    grants = [e for e in decision.effects if isinstance(e, Grant)] if decision else []
    found = (grants[0].may_relay, grants[0].skips_checks) if grants else (False, False)
    assert found == (may_relay, skips_checks)


@pytest.mark.parametrize(
    ("recipient", "may_relay", "default", "deliver"),
    [
        (b"<joe@example.org>", False, "refuse", "maildir:/mail"),
        (b"<joe@EXAMPLE.ORG>", False, "refuse", "maildir:/mail"),
        (b"<joe@a.example.net>", False, "refuse", "discard"),
        (b"<joe@example.net>", False, "refuse", reply.NO_RELAYING),
        (b"<joe@other.example>", False, "discard", reply.NO_RELAYING),
        (b"<joe@other.example>", True, "discard", "discard"),
        (b"<joe@other.example>", True, "refuse", reply.NO_RELAYING),
        (b"<joe@[192.0.2.25]>", False, "refuse", reply.NO_RELAYING),
        (b"<Postmaster>", False, "refuse", "maildir:/mail"),
        (b"<-joe@example.org>", False, "refuse", "maildir:/mail"),
        # Neither a source route nor a percent sign makes a relay.
        (b"<@example.org:joe@other.example>", False, "refuse", reply.NO_RELAYING),
        (b"<joe%other.example@example.org>", False, "refuse", "maildir:/mail"),
    ],
)
def test_where_a_recipient_goes(
    recipient: bytes, may_relay: bool, default: str, deliver: str | reply.Reply
) -> None:
    known = facts(may_relay=may_relay)
    known.recipient = path(recipient)
    decision = relay.find_recipient(known, settings(deliver={"default": default}))
    assert decision is not None
    routes = [e.deliver for e in decision.effects if isinstance(e, Route)]
    assert (routes[0] if routes else decision.reply) == deliver


@pytest.mark.parametrize(
    ("recipient", "is_known"),
    [
        (b"<joe@example.org>", True),
        (b"<JOE@Example.ORG>", True),
        (b'<"joe"@example.org>', True),
        (b"<jane@example.org>", False),
        (b"<postmaster@example.org>", True),
        (b"<PostMaster@example.org>", True),
    ],
)
def test_a_file_of_recipients(recipient: bytes, is_known: bool, tmp_path: Any) -> None:
    file = tmp_path / "recipients"
    file.write_text("# ours\njoe@example.org\n")
    accept = [{"domain": ["example.org"], "deliver": "discard", "recipients": str(file)}]
    known = facts()
    known.recipient = path(recipient)
    decision = relay.find_recipient(known, settings(accept=accept))
    assert decision is not None
    assert decision.reply == (None if is_known else reply.UNKNOWN_RECIPIENT)


def tokens(decision: Decision | None) -> list[Token]:
    return [e.token for e in decision.effects if isinstance(e, TakeToken)] if decision else []


@pytest.mark.parametrize(
    ("table", "known", "expected", "taken"),
    [
        ({}, {"connections": 1}, None, []),
        ({"connections": 10}, {}, None, []),
        ({"connections_per_client": 2}, {"connections": 2}, None, []),
        ({"connections_per_client": 2}, {"connections": 3}, reply.TOO_MANY_CONNECTIONS, []),
        ({"connections_per_client": 2}, {"connections": 3, "may_relay": True}, None, []),
        ({"connections_per_client": 0}, {"connections": 10_000}, None, []),
        ({"connections_per_client_per_min": 2}, {"rates": [1, 0, 0, 0]}, None, [Token.CONNECTIONS]),
        (
            {"connections_per_client_per_min": 2},
            {"rates": [2, 0, 0, 0]},
            reply.CONNECTION_RATE,
            [Token.CONNECTIONS],
        ),
    ],
)
def test_connections(
    table: dict[str, int], known: dict[str, Any], expected: reply.Reply | None, taken: list[Token]
) -> None:
    decision = limits.count_connections(facts(**known), settings(limits=table))
    assert (decision.reply if decision else None) == expected
    assert tokens(decision) == taken


def test_connections_in_all_hold_for_relay_clients_too() -> None:
    known = facts(may_relay=True)
    known.connections = 11
    decision = limits.count_connections(known, settings(limits={"connections": 10}))
    assert decision is not None
    assert decision.reply == reply.OVERLOADED


@pytest.mark.parametrize(
    ("stage", "key", "token", "refusal"),
    [
        (limits.count_handshakes, "handshakes_per_client_per_min", Token.HANDSHAKES, reply.HANDSHAKE_RATE),
        (limits.count_messages, "messages_per_client_per_min", Token.MESSAGES, reply.MESSAGE_RATE),
        (limits.count_recipients, "recipients_per_client_per_min", Token.RECIPIENTS, reply.RECIPIENT_RATE),
    ],
)
def test_rates(stage: Any, key: str, token: Token, refusal: reply.Reply) -> None:
    under = settings(limits={key: 5})
    rates = [0, 0, 0, 0]
    rates[token] = 4
    allowed = stage(facts(rates=rates), under)
    assert (allowed.reply, tokens(allowed)) == (None, [token])
    rates[token] = 5
    assert stage(facts(rates=rates), under).reply == refusal
    assert stage(facts(rates=rates, may_relay=True), under) is None
    assert stage(facts(rates=rates), settings()) is None


def test_recipients_of_a_message() -> None:
    known = facts(may_relay=True)
    known.envelope = Envelope(b"a@example.org", b"example.org")
    known.envelope.recipients = [Recipient(b"b@example.org", b"example.org")] * 3
    assert limits.count_recipients(known, settings(limits={"recipients": 4})) is None
    decision = limits.count_recipients(known, settings(limits={"recipients": 3}))
    assert decision is not None
    assert decision.reply == reply.TOO_MANY_RECIPIENTS


def test_early_talkers_and_the_pass() -> None:
    under = settings(listen=[{"greeting_pass_h": 2.0}])
    assert greeting.refuse_early_talker(facts(), under) is None
    refused = greeting.refuse_early_talker(facts(is_early=True), under)
    assert refused is not None
    assert refused.reply == reply.EARLY_TALKER
    assert greeting.grant_pass(facts(), under) is None
    assert greeting.grant_pass(facts(has_waited=True, is_early=True), under) is None
    granted = greeting.grant_pass(facts(has_waited=True), under)
    assert granted is not None
    assert [e.seconds for e in granted.effects if isinstance(e, GrantPass)] == [7200.0]
    assert greeting.grant_pass(facts(has_waited=True), settings(listen=[{"greeting_pass_h": 0}])) is None


@pytest.mark.parametrize(
    ("declared", "allowed", "is_refused"),
    [(0, 1000, False), (1000, 1000, False), (1001, 1000, True), (10**12, 0, False)],
)
def test_declared_size(declared: int, allowed: int, is_refused: bool) -> None:
    known = facts()
    known.declared_bytes = declared
    decision = message.check_declared_size(known, settings(limits={"message_bytes": allowed}))
    assert (decision is not None) is is_refused


@pytest.mark.parametrize(("hops", "is_refused"), [(0, False), (100, False), (101, True)])
def test_a_loop_is_stopped(hops: int, is_refused: bool) -> None:
    scanner = _body.HeaderScanner()
    scanner.feed(
        b"Received: from somewhere\r\n\tby another place\r\n" * hops
        + b"Subject: x\r\n\r\nReceived: in the body\r\n"
    )
    known = facts()
    known.header = scanner.finish()
    decision = message.stop_loop(known, settings())
    assert (decision.reply if decision else None) == (reply.MAIL_LOOP if is_refused else None)
