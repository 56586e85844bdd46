"""Postfix's policy delegation: requests and the actions that come of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp._counters import Counters
from fastsmtp._dns import Question, Status
from fastsmtp.callable_sink import CallableSink
from fastsmtp.config.load import load
from fastsmtp.delegation.judge import Judge, Memory, Trouble, facts_of, path_of
from fastsmtp.delegation.request import ATTRIBUTES, REQUEST_BYTES, Broken, RequestParser
from fastsmtp.log import ListLog
from fastsmtp.policy.decision import Decision, Verdict
from fastsmtp.policy.facts import Facts, Phase
from fastsmtp.policy.stage import Stage
from fastsmtp.queue.spool import Budget
from fastsmtp.smtp.service import Service
from tests.fakes import zone as fake

A, PTR, MX = 1, 12, 15
ZONE: fake.Zone = {
    ("example.net", MX): [(10, "mx.example.net")],
    ("lame.example", MX): Status.TIMEOUT,
    ("lame.example", A): Status.TIMEOUT,
    ("mx.example.net", A): ["192.0.2.25"],
    ("2.0.0.127.zen.example", A): ["127.0.0.2"],
    ("2.0.0.127.soft.example", A): ["127.0.0.2"],
    ("9.2.0.192.zen.example", A): ["127.0.0.2"],
    ("8.2.0.192.soft.example", A): ["127.0.0.2"],
}
BASE = {
    "request": "smtpd_access_policy", "protocol_state": "RCPT", "protocol_name": "ESMTP", "instance": "1a.2b.0",
    "client_address": "192.0.2.1", "client_name": "unknown", "helo_name": "client.example",
    "sender": "ann@example.net", "recipient": "joe@example.org", "size": "1000", "a_new_one": "whatever",
}  # fmt: skip
OFF = {name: {"mode": "off"} for name in ("mfcheck", "helo", "reverse_dns")}


class FromZone:
    """Answers at once, as a cache would."""

    def put(self, questions: Sequence[Question], deadline: float, answered: Any) -> tuple[Any, ...]:
        return tuple(fake.answer(ZONE, question) for question in questions)

    async def ask(self, questions: Sequence[Question], deadline: float | None = None) -> tuple[Any, ...]:
        return tuple(fake.answer(ZONE, question) for question in questions)

    def close(self) -> None:
        """Nothing is open."""


def answers(
    requests: Sequence[Mapping[str, str]], policy: Mapping[str, Any], **config: Any
) -> tuple[list[str], list[tuple[str, Mapping[str, Any]]]]:
    """The actions of one connection's requests, laid over BASE, and what was logged."""
    values = {"hostname": "mx.example.org", "policy": {**OFF, **policy}, "relay": {"networks": []}, **config}
    loaded = load(values={**values, "deliver": {"queue": False}})
    log = ListLog()

    async def scenario() -> list[str]:
        service = Service(
            settings=loaded.settings, log=log, counters=Counters(1, 16).region(0), resolver=FromZone(),
            sink=CallableSink(lambda message: None, budget=Budget(0)),
        )  # fmt: skip
        await service.lists.settled()
        judge, memory = Judge(service, service.profile(0)), Memory()
        try:
            return [await judge.answer({**BASE, **one}, memory) for one in requests]
        finally:
            await service.close()

    return asyncio.run(scenario()), list(log.lines)


BADMAILFROM = {"badmailfrom": ["ann@example.net"]}
BADRCPTTO = {"badrcptto": ["joe@example.org"]}
ZEN = {"dnsbl": [{"zone": "zen.example", "score": 10}]}
SOFT = {"dnsbl": [{"zone": "soft.example", "score": 3}]}
MFCHECK = {"mfcheck": {"mode": "enforce"}}
REFUSED = "550 5.7.1 "
AT_CONNECT = {"client_address": "192.0.2.9", "protocol_state": "CONNECT", "sender": "", "recipient": ""}

ACTIONS: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
    ("nothing is configured", {}, {}, "DUNNO"),
    ("badmailfrom", BADMAILFROM, {}, REFUSED),
    ("badmailfrom, and another sender", BADMAILFROM, {"sender": "bob@example.net"}, "DUNNO"),
    ("badmailfrom before MAIL", BADMAILFROM, {"protocol_state": "HELO", "sender": ""}, "DUNNO"),
    ("badmailfrom at MAIL waits for RCPT", BADMAILFROM, {"protocol_state": "MAIL", "recipient": ""}, "DUNNO"),
    ("badmailfrom at MAIL", {**BADMAILFROM, "reject_at": "mail"}, {"protocol_state": "MAIL", "recipient": ""}, REFUSED),
    ("badmailfrom at DATA with many recipients", BADMAILFROM, {"protocol_state": "DATA", "recipient": ""}, REFUSED),
    ("badmailfrom at the end", BADMAILFROM, {"protocol_state": "END-OF-MESSAGE", "recipient": ""}, REFUSED),
    ("badmailfrom, soft_reject", {**BADMAILFROM, "soft_reject": True}, {}, "DEFER_IF_PERMIT 4.7.1 "),
    ("badmailfrom, observed", {**BADMAILFROM, "mode": "observe"}, {}, "DUNNO"),
    ("badmailfrom, and a client that sends by SASL", BADMAILFROM, {"sasl_username": "ann"}, "DUNNO"),
    ("badrcptto", BADRCPTTO, {}, "55"),
    ("badrcptto, and another recipient", BADRCPTTO, {"recipient": "ann@example.org"}, "DUNNO"),
    ("badrcptto before RCPT", BADRCPTTO, {"protocol_state": "MAIL", "recipient": ""}, "DUNNO"),
    ("DENYMAIL NOBOUNCE", {"denymail": ["NOBOUNCE"]}, {"sender": ""}, REFUSED),
    ("DENYMAIL sanity", {"denymail": ["NOBOUNCE"]}, {"sender": "ann@localhost"}, "550 5.1.7 "),
    ("DENYMAIL", {"denymail": ["NOBOUNCE"]}, {}, "DUNNO"),
    ("a sender that exists", MFCHECK, {}, "DUNNO"),
    ("a sender that doesn't", MFCHECK, {"sender": "a@none.example"}, "550 5.1.8 "),
    ("a sender that nobody can tell of", MFCHECK, {"sender": "a@lame.example"}, "DEFER_IF_PERMIT 4.4.3 "),
    ("the null sender", MFCHECK, {"sender": ""}, "DUNNO"),
    ("a client that a list has", ZEN, {"client_address": "192.0.2.9"}, REFUSED),
    ("the same at CONNECT", ZEN, AT_CONNECT, "DUNNO"),
    ("the same at CONNECT with reject_at", {**ZEN, "reject_at": "connect"}, AT_CONNECT, REFUSED),
    ("a client that a list marks", SOFT, {"client_address": "192.0.2.8"}, "PREPEND X-Fastsmtp-Policy: score=3"),
    ("the same at the end", SOFT, {"client_address": "192.0.2.8", "protocol_state": "END-OF-MESSAGE"}, "DUNNO"),
    ("the same without a header", {**SOFT, "header": ""}, {"client_address": "192.0.2.8"}, "DUNNO"),
    ("a denied client", {"clients": {"deny": ["192.0.2.0/24"]}}, {}, "550 5.7.1 "),
    ("an IPv6 client", {"clients": {"deny": ["2001:db8::/32"]}}, {"client_address": "2001:db8::1"}, "550 5.7.1 "),
    ("a state that asks for nothing", BADMAILFROM, {"protocol_state": "VRFY"}, "DUNNO"),
    ("a state that we don't know", BADMAILFROM, {"protocol_state": "LATER"}, "DUNNO"),
    ("mail of this host's own", BADMAILFROM, {"client_address": ""}, "DUNNO"),
    ("a sender in need of quotes", {"badmailfrom": ['"a b"@example.net']}, {"sender": "a b@example.net"}, REFUSED),
    ("a sender that is no address", BADMAILFROM, {"sender": "@@@"}, "DUNNO"),
    ("a recipient that is no address", BADRCPTTO, {"recipient": "postmaster"}, "DUNNO"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "request_", "action"), [case[1:] for case in ACTIONS], ids=[case[0] for case in ACTIONS]
)
def test_action(policy: dict[str, Any], request_: dict[str, str], action: str) -> None:
    [found], _ = answers([request_], policy)
    assert found.startswith(action)
    assert found == action or action not in ("DUNNO",)
    assert "\n" not in found


def test_what_is_observed_is_logged() -> None:
    found, lines = answers([{}], {**BADMAILFROM, "mode": "observe"})
    assert found == ["DUNNO"]
    assert [(event, fields["stage"]) for event, fields in lines] == [("observe", "badmailfrom")]


def test_a_refusal_is_logged() -> None:
    _, lines = answers([{"queue_id": "4XYZ"}], BADMAILFROM)
    [(event, fields)] = lines
    assert (event, fields["id"], fields["listener"], fields["rcpt"]) == (
        "reject",
        "4XYZ",
        "policy",
        b"joe@example.org",
    )


def test_each_recipient_is_judged_and_the_header_is_given_once() -> None:
    client = {"client_address": "192.0.2.8"}
    found, _ = answers(
        [client, {**client, "recipient": "ann@example.org"}, {**client, "instance": "next"}],
        {**SOFT, "badrcptto": ["ann@example.org"]},
    )
    assert [action.split()[0] for action in found] == ["PREPEND", "550", "PREPEND"]


def test_a_message_counts_once_and_each_recipient() -> None:
    limits = {"messages_per_client_per_min": 1, "recipients_per_client_per_min": 3}
    found, _ = answers(
        [{}, {}, {}, {}, {"instance": "another"}, {"client_address": "192.0.2.77"}], {}, limits=limits
    )
    assert found[:3] == ["DUNNO"] * 3
    assert found[3].startswith("452 4.7.1 ")
    assert found[4].startswith("450 4.7.1 ")
    assert found[5] == "DUNNO"


def test_a_refused_message_stays_refused() -> None:
    policy = {**BADMAILFROM, "reject_at": "mail"}
    states = [{"protocol_state": "MAIL", "recipient": ""}, {}, {"recipient": "ann@example.org"}]
    found, _ = answers(states, policy)
    assert all(action.startswith("550 ") for action in found)


def test_without_instances_nothing_is_remembered() -> None:
    found, _ = answers([{"instance": ""}, {"instance": "", "sender": "bob@example.net"}], BADMAILFROM)
    assert [action.split()[0] for action in found] == ["550", "DUNNO"]


def test_a_stage_that_breaks_is_trouble_and_no_answer() -> None:
    def broken(facts: Facts, settings: Any) -> Decision | None:
        raise ZeroDivisionError

    async def scenario() -> None:
        loaded = load(values={"hostname": "mx.example.org", "policy": OFF, "deliver": {"queue": False}})
        service = Service(
            settings=loaded.settings, log=ListLog(), counters=Counters(1, 16).region(0),
            sink=CallableSink(lambda message: None, budget=Budget(0)),
        )  # fmt: skip
        judge = Judge(service, service.profile(0))
        judge._plan._by_phase = tuple(((broken, Stage("x", Phase.MAIL, broken)),) for _ in Phase)
        with pytest.raises(Trouble):
            await judge.answer(BASE, Memory())
        await service.close()

    asyncio.run(scenario())
    assert Decision(Verdict.DEFER, reply.OUR_DEFECT).reply is reply.OUR_DEFECT


# --- facts -------------------------------------------------------------------------------------------


def test_attributes_become_facts() -> None:
    facts = facts_of({
        **BASE, "client_port": "4711", "client_name": "mx.client.example", "server_address": "192.0.2.25",
        "encryption_protocol": "TLSv1.3", "encryption_cipher": "TLS_AES_256_GCM_SHA384", "encryption_keysize": "256",
    })  # fmt: skip
    assert facts is not None
    assert (facts.client.address.text, facts.client.port, facts.client.name) == (
        "192.0.2.1",
        4711,
        "mx.client.example",
    )
    assert (facts.helo, facts.is_extended, facts.local_address) == (b"client.example", True, "192.0.2.25")
    assert facts.tls is not None and (facts.tls.protocol, facts.tls.bits) == ("TLSv1.3", 256)
    assert facts.declared_bytes == 1000
    assert facts.sender is not None and facts.sender.key == b"ann@example.net"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Joe@Example.org", b"joe@example.org"),
        ("", b""),
        ("a b@example.org", b"a b@example.org"),
        ('a"b\\c@example.org', b'a"b\\c@example.org'),
        ("jo\u00e9@example.org", "jo\u00e9@example.org".encode()),
        ("\udcff@example.org", None),
        ("nobody", None),
        ("a@b@c", b"a@b@c"),
    ],
)
def test_addresses(text: str, key: bytes | None) -> None:
    found = path_of(text)
    assert (None if found is None else found.key) == key


# --- requests ----------------------------------------------------------------------------------------

REQUEST = b"request=smtpd_access_policy\nsender=a=b\n\n"


def test_requests_come_out_however_they_are_cut() -> None:
    for size in (1, 2, 7, 1000):
        parser = RequestParser()
        data = REQUEST * 3
        for at in range(0, len(data), size):
            parser.feed(data[at : at + size])
        assert parser.take() == [{"request": "smtpd_access_policy", "sender": "a=b"}] * 3
        assert parser.take() == []
        assert not parser.is_within


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"nonsense\n",
        b"=x\n",
        b"request=junk\n\n",
        b"sender=a\n\n",
        b"request=smtpd_access_policy\nrequest=smtpd_access_policy\n\n",
        b"request=smtpd_access_policy\na=\0\n\n",
        b"a=" + b"x" * REQUEST_BYTES,
        b"a" * (REQUEST_BYTES + 1),
        b"".join(b"a%d=1\n" % at for at in range(ATTRIBUTES + 1)),
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_no_request_is_broken_and_what_came_before_it_is_not(data: bytes) -> None:
    parser = RequestParser()
    with pytest.raises(Broken):
        parser.feed(REQUEST + data)
    assert len(parser.take()) == 1
