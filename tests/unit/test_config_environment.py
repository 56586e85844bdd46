"""Variables of tcpserver's rules and of a process, laid over Settings: what each says, and that nothing raises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import reply
from fastsmtp._parser import Path, parse_path
from fastsmtp.address import Address
from fastsmtp.config.environment import KNOWN, apply, number, relevant
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.policy import rblsmtpd, relay
from fastsmtp.policy.decision import Grant, Route, Verdict
from fastsmtp.policy.facts import Client, Facts, Origin
from fastsmtp.policy.rules import stages_of

BASE: dict[str, Any] = {
    "hostname": "mx.example.org",
    "accept": [{"domain": ["example.org"]}],
    "deliver": {"default": "discard"},
}


def settings(**tables: Any) -> Settings:
    return load(values={**BASE, **tables}).settings[0]


def facts(recipient: bytes = b"") -> Facts:
    found = Facts("ID", "mx", "192.0.2.25", Client(Address("192.0.2.1"), 4321))
    if recipient:
        parsed = parse_path(recipient)
        assert not isinstance(parsed, int)
        assert isinstance(parsed[0], Path)
        found.recipient = parsed[0]
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("007", 7), ("12x", 12), ("", 0), ("x", 0), (" 5", 0), ("-3", 0), ("9" * 30, 2**53), ("٣", 0)],
)
def test_a_number_is_its_leading_digits(text: str, value: int) -> None:
    assert number(text) == value


def test_no_variables_are_no_other_settings() -> None:
    base = settings()
    assert apply(base, {}) is base
    assert apply(base, {"PATH": "/bin", "TCPREMOTEIP": "192.0.2.1", "X": "y"}) is base


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"DATABYTES": "1000"}, {"limits.message_bytes": 1000}),
        ({"DATABYTES": "0"}, {"limits.message_bytes": 0}),
        ({"DATABYTES": "many"}, {"limits.message_bytes": 0}),
        ({"DENYMAIL": "NOBOUNCE,DNSCHECK"}, {"policy.denymail": ("NOBOUNCE", "DNSCHECK")}),
        ({"DENYMAIL": ""}, {"policy.denymail": ("SANITY",), "policy.denymail_tld": "modern"}),
        ({"DENYMAIL": "x", "DENYMAIL_TLD": "legacy"}, {"policy.denymail_tld": "legacy"}),
        ({"TARPITCOUNT": "50", "TARPITDELAY": "7"}, {"policy.tarpit.after_recipients": 50}),
        ({"TARPITCOUNT": "50", "TARPITDELAY": "7"}, {"policy.tarpit.delay_s": 7.0}),
        ({"TARPITCOUNT": "50", "TARPITDELAY": "9999"}, {"policy.tarpit.delay_s": 225.0}),
        ({"TARPITCOUNT": "50", "NOTARPIT": ""}, {"policy.tarpit.after_recipients": 0}),
        ({"MFCHECK": "1"}, {"policy.mfcheck.mode": "enforce"}),
        ({"MFCHECK": ""}, {"policy.mfcheck.mode": "off"}),
        ({"MFCHECK": "no"}, {"policy.mfcheck.mode": "off"}),
        ({"RELAYCLIENT": ""}, {"relay_suffix": b""}),
        ({"RELAYCLIENT": "@fix.example"}, {"relay_suffix": b"@fix.example"}),
        ({"RBLSMTPD": ""}, {"rblsmtpd": "", "lists": ()}),
        ({"RBLSMTPD": "-go"}, {"rblsmtpd": "-go", "lists": ()}),
        ({"SIGNATURES": "0"}, {"signatures": None}),
    ],
)
def test_what_a_variable_says(environment: dict[str, str], found: dict[str, object]) -> None:
    base = settings(policy={"dnsbl": [{"zone": "zen.example.org"}]})
    over = apply(base, environment)
    for name, value in found.items():
        place: Any = over
        for part in name.split("."):
            place = getattr(place, part)
        assert place == value
    assert over.hostname == base.hostname
    assert over.accept is base.accept


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(KNOWN), st.text(max_size=8)), st.text(max_size=40), max_size=len(KNOWN) + 2
    )
)
def test_whatever_variables_hold_nothing_raises(environment: dict[str, str]) -> None:
    over = apply(SOME, environment)
    assert over == apply(SOME, environment)
    assert stages_of(over)
    found = facts()
    relay.know_client(found, over)
    rblsmtpd.refuse_client(found, over)
    alike = {name: value for name, value in environment.items() if name in KNOWN}
    assert relevant(alike) == relevant(environment)
    assert apply(SOME, alike) == over


SOME = settings()


@pytest.mark.parametrize(("is_compatible", "skips"), [(False, True), (True, False)])
def test_relayclient_may_relay(is_compatible: bool, skips: bool) -> None:
    over = replace(apply(SOME, {"RELAYCLIENT": ""}), is_compatible=is_compatible)
    decision = relay.know_client(facts(), over)
    assert decision is not None
    (grant,) = decision.effects
    assert isinstance(grant, Grant)
    assert (grant.may_relay, grant.skips_checks) == (True, skips)


@pytest.mark.parametrize("value", ["", ".fix"])
def test_who_claims_to_be_ourselves_gets_nothing_from_relayclient(value: str) -> None:
    """A front that names a loopback address (PROXY, XCLIENT): granted nothing, and its mail goes nowhere else."""
    over = apply(SOME, {"RELAYCLIENT": value})
    found = facts(b"<joe@elsewhere.example>")
    found.client = Client(Address("127.0.0.1"), 0, Origin.XCLIENT)
    assert relay.know_client(found, over) is None
    decision = relay.find_recipient(found, over)
    assert decision is not None
    assert decision.reply is reply.NO_RELAYING


def test_relayclients_value_is_the_end_of_each_recipient() -> None:
    over = apply(SOME, {"RELAYCLIENT": ".fix"})
    found = facts(b"<joe@example.org>")
    found.client.may_relay = True
    decision = relay.find_recipient(found, over)
    assert decision is not None
    (route,) = decision.effects
    assert isinstance(route, Route)
    assert (route.deliver, route.suffix) == ("discard", b".fix")


@pytest.mark.parametrize(
    ("said", "code", "enhanced", "text"),
    [
        ("-Go away", 553, "5.7.1", "Go away"),
        ("Come later", 451, "4.7.1", "Come later"),
        ("-", 553, "5.7.1", "Not allowed"),
    ],
)
def test_rblsmtpd(said: str, code: int, enhanced: str, text: str) -> None:
    decision = rblsmtpd.refuse_client(facts(), apply(SOME, {"RBLSMTPD": said}))
    assert decision is not None
    assert decision.verdict is (Verdict.REJECT if code == 553 else Verdict.DEFER)
    assert decision.reply == reply.Reply(code, enhanced, text)


def test_an_empty_rblsmtpd_asks_and_refuses_nothing() -> None:
    over = apply(settings(policy={"dnsbl": [{"zone": "zen.example.org"}]}), {"RBLSMTPD": ""})
    assert rblsmtpd.refuse_client(facts(), over) is None
    assert not {"rblsmtpd", "dnsbl"} & {stage.name for stage in stages_of(over)}


@pytest.mark.parametrize(
    ("ours", "qmails"),
    [
        (reply.NO_RELAYING, (553, "5.7.1")),
        (reply.SENDER_HAS_NO_MAIL, (553, "5.7.1")),
        (reply.SENDER_UNKNOWN_YET, (451, "4.3.0")),
        (reply.signature_found("TV", 2), (552, "5.3.4")),
        (reply.UNKNOWN_RECIPIENT, (550, "5.1.1")),
        (reply.MAIL_LOOP, (554, "5.4.6")),
    ],
)
def test_the_codes_of_qmail(ours: reply.Reply, qmails: tuple[int, str]) -> None:
    twin = ours.as_qmail()
    assert (twin.code, twin.enhanced, twin.lines) == (*qmails, ours.lines)
    assert twin.as_qmail() == twin
