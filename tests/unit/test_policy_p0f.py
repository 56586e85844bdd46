"""p0f's packets to the byte, and what is made of what it knows: facts, scores, delays, fields."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fastsmtp.address import Address
from fastsmtp.config.load import load
from fastsmtp.config.rules import P0fMatch
from fastsmtp.config.settings import Settings
from fastsmtp.config.systems import Systems
from fastsmtp.fingerprint import (
    ANSWER_BYTES,
    QUERY_BYTES,
    Fingerprint,
    P0fQuestion,
    decode_answer,
    encode_query,
)
from fastsmtp.policy import p0f
from fastsmtp.policy.decision import AddHeader, Decision, Delay, Fingerprinted, Tag
from fastsmtp.policy.facts import Client, Facts, Origin, Phase
from fastsmtp.policy.rules import stages_of
from fastsmtp.policy.runner import Plan, Round
from fastsmtp.policy.stage import Failed
from tests.fakes.p0f import BAD_QUERY, UNKNOWN, known

SOCKET = "/run/p0f.sock"


@pytest.mark.parametrize(
    ("address", "octets"),
    [
        ("192.0.2.1", b"\x04\xc0\x00\x02\x01" + b"\0" * 12),
        ("::ffff:192.0.2.1", b"\x04\xc0\x00\x02\x01" + b"\0" * 12),
        ("2001:db8::1", b"\x06\x20\x01\x0d\xb8" + b"\0" * 11 + b"\x01"),
    ],
)
def test_a_question_is_21_octets(address: str, octets: bytes) -> None:
    query = encode_query(Address(address))
    assert len(query) == QUERY_BYTES == 21
    assert query == struct.pack("=I", 0x50304601) + octets


def test_an_answer_is_232_octets() -> None:
    answer = known(
        "Windows", "7 or 8", "DSL", distance=-1, uptime_min=90, connections=4, last_nat=7, quality=1
    )
    assert len(answer) == ANSWER_BYTES == 232
    found = decode_answer(answer)
    assert found is not None
    assert (found.os, found.link, found.distance, found.quality) == ("Windows 7 or 8", "DSL", -1, "fuzzy")
    assert (found.uptime_min, found.connections, found.is_behind_nat) == (90, 4, True)
    assert decode_answer(UNKNOWN) is None
    assert decode_answer(known("")).os == ""  # type: ignore[union-attr]
    # What its signatures' author wrote can't become a header of its own.
    assert decode_answer(known("a\r\nX-Spam: no", "\xe9\x7f")).os == "a??X-Spam: no ??"  # type: ignore[union-attr]


@pytest.mark.parametrize("data", [BAD_QUERY, b"\0" * 232, b"HTTP/1.1 400 ".ljust(232), UNKNOWN[::-1]])
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_answer(data)


@hypothesis_settings(deadline=None, derandomize=True, database=None)
@given(st.binary(min_size=224, max_size=224))
def test_whatever_an_answer_holds_nothing_breaks(rest: bytes) -> None:
    found = decode_answer(struct.pack("=II", 0x50304602, 0x10) + rest)
    assert found is not None
    assert (found.os + found.link).isascii()
    assert not set(found.os + found.link) & {"\r", "\n", "\0"}


@pytest.mark.parametrize(
    ("patterns", "name", "score"),
    [
        (["Windows *"], "Windows XP", 0),
        (["Windows *"], "windows 7 or 8", 0),
        (["Windows *"], "Windows", 0),
        (["Windows *"], "Linux 3.x", None),
        (["Windows XP", "Windows *"], "Windows 7", 1),
        (["Linux 2.?.x", "*"], "Linux 2.6.x", 0),
        (["Linux 2.?.x", "*"], "", 1),
        (["Windows *", ""], "", 1),
        (["Windows *"], "", None),
    ],
)
def test_the_first_pattern_that_fits(patterns: list[str], name: str, score: int | None) -> None:
    systems = Systems(P0fMatch(os=pattern, score=at) for at, pattern in enumerate(patterns))
    for _ in range(2):
        found = systems.find(name)
        assert (found.score if found else None) == score


# --- stages ------------------------------------------------------------------------------------------


def settings(**rule: Any) -> Settings:
    quiet = {"helo": {"mode": "off"}, "reverse_dns": {"mode": "off"}, "mfcheck": {"mode": "off"}}
    accept = [{"domain": ["example.org"], "deliver": "discard"}]
    policy = {**quiet, "p0f": {"socket": SOCKET, **rule}}
    return load(values={"hostname": "mx.example", "accept": accept, "policy": policy}).settings[0]


def facts(address: str = "192.0.2.1", origin: Origin = Origin.SOCKET) -> Facts:
    return Facts("ID", "mx", "198.51.100.25", Client(Address(address), 4321, origin))


def connected(under: Settings, known_facts: Facts, answer: Any) -> Decision:
    """CONNECT with this answer of p0f's."""
    waiting = Plan(stages_of(under, has_answers=False), under).run(Phase.CONNECT, known_facts)
    assert isinstance(waiting, Round)
    assert waiting.questions == (P0fQuestion(SOCKET, known_facts.client.address, 0.5),)
    decision = waiting.resume({waiting.questions[0]: answer})
    assert isinstance(decision, Decision)
    return decision


XP = Fingerprint("Windows XP", "DSL")
MATCHES = [
    {"os": "Windows XP", "score": 3, "delay_s": 4},
    {"os": "Windows *", "score": 2},
    {"os": "", "score": 1},
]


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("origin", [Origin.SOCKET, Origin.PROXY])
@pytest.mark.parametrize(
    ("answer", "tag"),
    [
        (XP, ("Windows_XP", 3)),
        (Fingerprint("Windows 7 or 8"), ("Windows_7_or_8", 2)),
        (Fingerprint(""), ("", 1)),
        (Fingerprint("Linux 3.x"), None),
        (None, None),
        (Failed("deadline"), None),
        (object(), None),
    ],
)
def test_what_p0f_knows_is_a_fact_and_perhaps_a_score(
    address: str, origin: Origin, answer: Any, tag: tuple[str, int] | None
) -> None:
    decision = connected(settings(match=MATCHES), facts(address, origin), answer)
    assert decision.reply is None
    told = [effect.fingerprint for effect in decision.effects if isinstance(effect, Fingerprinted)]
    assert told == ([answer] if isinstance(answer, Fingerprint) else [])
    tags = [(effect.value, effect.score) for effect in decision.effects if isinstance(effect, Tag)]
    assert tags == ([tag] if tag else [])


def test_nobody_is_asked_about_a_client_that_xclient_names() -> None:
    under = settings()
    plan = Plan(stages_of(under), under)
    assert isinstance(plan.run(Phase.CONNECT, facts(origin=Origin.XCLIENT)), Decision)


@pytest.mark.parametrize(
    ("fingerprint", "may_relay", "delay_s"),
    [(XP, False, 4.0), (XP, True, None), (Fingerprint("Windows 7"), False, None), (None, False, None)],
)
def test_some_systems_are_answered_slowly(
    fingerprint: Fingerprint | None, may_relay: bool, delay_s: float | None
) -> None:
    known_facts = facts()
    known_facts.client.fingerprint = fingerprint
    known_facts.client.may_relay = may_relay
    opinion = p0f.slow_recipient(known_facts, settings(match=MATCHES))
    delays = [effect.seconds for effect in opinion.effects if isinstance(effect, Delay)] if opinion else []
    assert delays == ([delay_s] if delay_s else [])


@pytest.mark.parametrize(
    "rule", [{"match": [{**MATCHES[0], "mode": "observe"}]}, {"match": MATCHES, "mode": "observe"}]
)
def test_observed_it_scores_apart_and_delays_nobody(rule: dict[str, Any]) -> None:
    under = settings(**rule)
    known_facts = facts()
    decision = connected(under, known_facts, XP)
    (tag,) = [effect for effect in decision.effects if isinstance(effect, Tag)]
    assert (tag.score, tag.is_observed) == (3, True)
    (told,) = [effect for effect in decision.effects if isinstance(effect, Fingerprinted)]
    known_facts.client.fingerprint = told.fingerprint
    slow = [stage for stage in stages_of(under) if stage.function is p0f.slow_recipient]
    decision_at_rcpt = Plan(slow, under).run(Phase.RCPT, known_facts)
    assert isinstance(decision_at_rcpt, Decision)
    assert decision_at_rcpt.effects == ()


def test_fields_for_the_next_hop() -> None:
    known_facts = facts()
    under = settings(header=True, mode="observe")
    fields = Plan([s for s in stages_of(under) if s.name == "p0f"], under)
    assert fields.run(Phase.END, known_facts).effects == ()  # type: ignore[union-attr]
    known_facts.client.fingerprint = XP
    found = fields.run(Phase.END, known_facts).effects  # type: ignore[union-attr]
    assert [(e.name, e.value) for e in found if isinstance(e, AddHeader)] == [
        ("X-P0F-OS", "Windows XP"), ("X-P0F-Link", "DSL")
    ]  # fmt: skip
    known_facts.client.fingerprint = Fingerprint("")
    assert fields.run(Phase.END, known_facts).effects == ()  # type: ignore[union-attr]
