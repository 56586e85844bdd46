"""Client certificates in policy: who is asked, who is granted what, and what the others are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastsmtp._parser import parse_path
from fastsmtp.address import Address
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Grant
from fastsmtp.policy.facts import CertificateFacts, Client, Facts, Origin, Phase, TlsFacts
from fastsmtp.policy.relay import asks_certificate, find_recipient, know_certificate
from fastsmtp.policy.rules import stages_of
from fastsmtp.policy.runner import Plan
from fastsmtp.smtp.received import ReceivedWriter

FINGERPRINT = f"sha256:{'0a' * 32}"
OTHER = f"sha256:{'0b' * 32}"
RELAY: dict[str, Any] = {
    "networks": ["192.0.2.250"],
    "certificates": ["joe@example.org", FINGERPRINT],
    "certificates_from": ["192.0.2.0/24", "2001:db8::/32"],
}


def settings(relay: dict[str, Any] | None = None, **tables: Any) -> Settings:
    values = {
        "hostname": "mx.example",
        "accept": [{"domain": ["example.org"], "deliver": "discard"}],
        "deliver": {"default": "discard"},
        "relay": RELAY | (relay or {}),
        **tables,
    }
    return load(values=values).settings[0]


def facts(
    certificate: CertificateFacts | None = None,
    *,
    address: str = "192.0.2.1",
    origin: Origin = Origin.SOCKET,
    is_asked: bool = True,
    recipient: bytes = b"<b@elsewhere.example>",
) -> Facts:
    known = Facts("ID", "mx", "198.51.100.25", Client(Address(address), 0, origin))
    known.tls = TlsFacts("TLSv1.3", "TLS_X", 256, is_asked=is_asked, certificate=certificate)
    parsed = parse_path(recipient, is_reverse=False)
    assert not isinstance(parsed, int)
    known.recipient = parsed[0]
    return known


@pytest.mark.parametrize(
    ("address", "origin", "relay", "is_asked"),
    [
        ("192.0.2.1", Origin.SOCKET, {}, True),
        ("192.0.2.1", Origin.PROXY, {}, True),
        # The handshake would be the front's.
        ("192.0.2.1", Origin.XCLIENT, {}, False),
        ("2001:db8::1", Origin.SOCKET, {}, True),
        ("198.51.100.1", Origin.SOCKET, {}, False),
        ("198.51.100.1", Origin.SOCKET, {"certificates_from": ["0.0.0.0/0"]}, True),
        ("192.0.2.1", Origin.SOCKET, {"certificates": []}, False),
        ("192.0.2.1", Origin.SOCKET, {"certificates_from": []}, False),
    ],
)
def test_who_is_asked(address: str, origin: Origin, relay: dict[str, Any], is_asked: bool) -> None:
    assert asks_certificate(facts(address=address, origin=origin), settings(relay)) is is_asked


def test_who_may_relay_already_is_not_asked() -> None:
    known = facts()
    known.client.may_relay = True
    assert not asks_certificate(known, settings())


HOLDS = CertificateFacts("", OTHER, (b"ann@example.org", b"joe@example.org"))
BY_FINGERPRINT = CertificateFacts("", FINGERPRINT)
EXPIRED = CertificateFacts("has expired", FINGERPRINT)
NOBODY = CertificateFacts("", OTHER, (b"eve@example.org",))


@pytest.mark.parametrize(
    ("certificate", "known", "relay", "granted"),
    [
        (HOLDS, {}, {}, "joe@example.org"),
        (BY_FINGERPRINT, {}, {}, FINGERPRINT),
        # A fingerprint names a certificate; it doesn't make it hold.
        (EXPIRED, {}, {}, ""),
        (NOBODY, {}, {}, ""),
        (None, {}, {}, ""),
        (HOLDS, {"origin": Origin.PROXY}, {}, "joe@example.org"),
        (HOLDS, {"origin": Origin.XCLIENT}, {}, ""),
        (HOLDS, {}, {"certificates": []}, ""),
    ],
)
def test_what_is_granted(
    certificate: CertificateFacts | None, known: dict[str, Any], relay: dict[str, Any], granted: str
) -> None:
    decision = know_certificate(facts(certificate, **known), settings(relay))
    if not granted:
        assert decision is None
        return
    assert decision is not None
    (grant,) = decision.effects
    assert isinstance(grant, Grant)
    assert (grant.may_relay, grant.skips_checks, grant.certificate) == (True, True, granted)


def test_whom_the_operator_denies_is_not_let_in() -> None:
    denying = settings(policy={"clients": {"deny": ["192.0.2.1"]}})
    assert know_certificate(facts(HOLDS), denying) is None
    assert know_certificate(facts(HOLDS, address="192.0.2.2"), denying) is not None


def test_where_qmail_s_ways_are_kept_it_exempts_from_no_check() -> None:
    decision = know_certificate(facts(HOLDS), replace(settings(), is_compatible=True))
    assert decision is not None
    (grant,) = decision.effects
    assert isinstance(grant, Grant)
    assert (grant.may_relay, grant.skips_checks) == (True, False)


def test_in_clear_nothing_is_known_of_certificates() -> None:
    known = facts()
    known.tls = None
    assert know_certificate(known, settings()) is None
    decision = find_recipient(known, settings())
    assert decision is not None and decision.reply is not None
    assert decision.reply.lines == ("Relaying denied",)


@pytest.mark.parametrize(
    ("certificate", "is_asked", "text"),
    [
        (None, False, "Relaying denied"),
        (None, True, "Relaying denied: you have shown no certificate"),
        (EXPIRED, True, "Relaying denied: your certificate has expired"),
        (NOBODY, True, "Relaying denied: your certificate gives no right to it"),
    ],
)
def test_what_the_others_are_told(certificate: CertificateFacts | None, is_asked: bool, text: str) -> None:
    decision = find_recipient(facts(certificate, is_asked=is_asked), settings())
    assert decision is not None and decision.reply is not None
    assert (decision.reply.code, decision.reply.enhanced, decision.reply.lines) == (550, "5.7.1", (text,))


def test_the_same_reason_is_the_same_decision() -> None:
    """Made once: strangers who try are many."""
    first, second = (find_recipient(facts(EXPIRED), settings()) for _ in range(2))
    assert first is second


def test_a_granted_client_meets_no_check_behind_helo() -> None:
    """As a client of relay.networks: what lists said of the address of a dial-up is forgotten."""
    under = settings(policy={"mfcheck": {"mode": "off"}, "helo": {"mode": "enforce"}})
    plan = Plan(stages_of(under), under)
    known = facts(HOLDS)
    known.helo = b"joes-laptop"
    decision = plan.run(Phase.HELO, known)
    assert [type(effect).__name__ for effect in decision.effects] == ["Grant", "Tag", "Held"]  # type: ignore[union-attr]
    known.client.may_relay = known.client.skips_checks = True
    decision = plan.run(Phase.RCPT, known)
    assert decision.verdict.name == "PASS"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("granted", "said"),
    [
        ("", b"ESMTPS (TLSv1.3 TLS_X) id ID"),
        ("joe@example.org", b"ESMTPS (TLSv1.3 TLS_X)\r\n\t(cert joe@example.org) id ID"),
        (FINGERPRINT, f"ESMTPS (TLSv1.3 TLS_X)\r\n\t(cert {FINGERPRINT}) id ID".encode()),
        ("a(b)\\@example.org", b"ESMTPS (TLSv1.3 TLS_X)\r\n\t(cert a?b??@example.org) id ID"),
    ],
)
def test_what_received_says_of_it(granted: str, said: bytes) -> None:
    known = facts(HOLDS)
    known.helo, known.is_extended = b"laptop", True
    known.client.certificate = granted
    writer = ReceivedWriter("mx.example", lambda: 0.0)
    field = writer.field(writer.head(known), known, "ID")
    assert said in field
