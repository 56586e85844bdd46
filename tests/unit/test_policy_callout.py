"""recipients = "ask" as a table: configuration, facts and the next hop's answer in, question and verdict out."""

from __future__ import annotations

from typing import Any

import pytest

from fastsmtp._parser import Path, parse_path
from fastsmtp.address import Address
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.policy.callout import Callout, Heard, ask_next_hop
from fastsmtp.policy.decision import Decision, Verdict
from fastsmtp.policy.facts import Client, Facts
from fastsmtp.policy.rules import stages_of
from fastsmtp.policy.stage import Failed
from fastsmtp.reply import NEXT_HOP_DOWN, Reply

HOP = "lmtp://127.0.0.1:24"
NOBODY = Reply(550, "5.1.1", "No such user")
LATER = Reply(450, "4.2.0", "Greylisted")


def settings(**values: Any) -> Settings:
    accept = [{"domain": ["a.example"], **values.pop("accept", {"deliver": HOP})}]
    return load(values={"hostname": "mx.example", "accept": accept, **values}).settings[0]


def recipient(text: bytes) -> Path:
    parsed = parse_path(b"<%b>" % text, is_reverse=False, is_utf8_allowed=True)
    assert not isinstance(parsed, int)
    return parsed[0]


def facts(address: bytes) -> Facts:
    found = Facts("ID", "mx", "198.51.100.25", Client(Address("192.0.2.1")))
    found.recipient = recipient(address)
    return found


def play(settings: Settings, facts: Facts, answer: Any) -> tuple[Callout | None, Decision | None]:
    asking = ask_next_hop(facts, settings)
    if asking is None:
        return None, None
    (question,) = next(asking)
    with pytest.raises(StopIteration) as end:
        asking.send((answer,))
    assert isinstance(question, Callout)
    return question, end.value.value


@pytest.mark.parametrize(
    ("values", "address", "asked"),
    [
        ({}, b"joe@a.example", Callout(HOP, b"joe@a.example")),
        ({}, b"Joe@A.Example", Callout(HOP, b"Joe@A.Example")),
        ({}, b"joe@b.example", None),
        ({"accept": {"deliver": HOP, "recipients": "ask"}}, b"joe@a.example", Callout(HOP, b"joe@a.example")),
        ({"accept": {"deliver": HOP, "recipients": "any"}}, b"joe@a.example", None),
        ({"accept": {"deliver": HOP, "queue": False}}, b"joe@a.example", None),
        ({"deliver": {"queue": False}}, b"joe@a.example", None),
        ({"deliver": {"queue": False}, "accept": {"deliver": HOP, "queue": True}}, b"joe@a.example",
         Callout(HOP, b"joe@a.example")),
        ({"accept": {"deliver": "maildir:/m"}}, b"joe@a.example", None),
        ({"accept": {}, "deliver": {"default": "smtp://127.0.0.1:26"}}, b"joe@a.example",
         Callout("smtp://127.0.0.1:26", b"joe@a.example")),
        ({"postmaster": "postmaster@a.example"}, b"postmaster", Callout(HOP, b"postmaster@a.example")),
    ],
)  # fmt: skip
def test_who_is_asked_about_whom(values: dict[str, Any], address: bytes, asked: Callout | None) -> None:
    found = settings(**values)
    assert play(found, facts(address), Heard(None)) == (asked, None)
    if asked is not None:
        assert any(stage.name == "callout" for stage in stages_of(found))


@pytest.mark.parametrize(
    ("answer", "verdict", "reply"),
    [
        (Heard(NOBODY), Verdict.REJECT, NOBODY),
        (Heard(LATER), Verdict.DEFER, LATER),
        (Failed("deadline"), Verdict.DEFER, NEXT_HOP_DOWN),
        (Failed("nobody answers such a question here"), Verdict.DEFER, NEXT_HOP_DOWN),
    ],
)
def test_what_the_answer_means(answer: Any, verdict: Verdict, reply: Reply) -> None:
    _, decision = play(settings(), facts(b"joe@a.example"), answer)
    assert decision is not None
    assert (decision.verdict, decision.reply) == (verdict, reply)


def test_a_client_that_is_refused_anyway_costs_the_next_hop_nothing() -> None:
    found = facts(b"joe@a.example")
    found.held = (Decision(Verdict.REJECT, NOBODY, (), "dnsbl"),)
    assert play(settings(), found, Heard(None)) == (None, None)
