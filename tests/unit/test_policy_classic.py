"""The checks of qmail's patches, with our codes and with theirs: badmailfrom, badrcptto, DENYMAIL, lists, tarpit."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fastsmtp import reply
from fastsmtp._body import HeaderScanner
from fastsmtp._dns import Status
from fastsmtp._parser import Path, parse_mailbox, parse_path
from fastsmtp.address import Address
from fastsmtp.config.denymail import denymail_of, parse_denymail
from fastsmtp.config.load import load
from fastsmtp.config.patterns import AddressPatterns, parse_pattern, parse_patterns
from fastsmtp.config.settings import Settings
from fastsmtp.fingerprint import Fingerprint, P0fQuestion
from fastsmtp.message import Envelope, Recipient
from fastsmtp.policy import badmailfrom, denymail, relay, require_tls, tarpit
from fastsmtp.policy.decision import Decision, Delay, Fingerprinted, Grant, Held, Tag, Verdict
from fastsmtp.policy.facts import CertificateFacts, Client, Facts, Phase, TlsFacts
from fastsmtp.policy.rules import stages_of
from fastsmtp.policy.runner import Plan, Round
from fastsmtp.policy.stage import Stage
from tests.fakes.zone import MX, A, Zone, answer, decision_of
from tests.settings import compatible

LISTED: dict[str, Any] = {"zone": "dbl.example", "of": ["mail"], "action": "reject"}


def settings(**policy: Any) -> Settings:
    accept = [{"domain": ["example.org"], "deliver": "discard"}]
    quiet = {"helo": {"mode": "off"}, "reverse_dns": {"mode": "off"}, "mfcheck": {"mode": "off"}}
    values = {"hostname": "mx.example", "accept": accept, "policy": {**quiet, **policy}}
    return load(values=values).settings[0]


def path(text: bytes) -> Path:
    parsed = parse_path(text, is_reverse=True, is_utf8_allowed=True)
    assert not isinstance(parsed, int)
    return parsed[0]


def facts(sender: bytes = b"<a@a.example>", recipient: bytes = b"") -> Facts:
    found = Facts("ID", "mx", "198.51.100.25", Client(Address("192.0.2.1")))
    found.sender = path(sender)
    found.recipient = path(recipient) if recipient else None
    found.envelope = Envelope(found.sender.address, found.sender.domain)
    return found


def code(opinion: Decision | None) -> tuple[int, str] | None:
    return (opinion.reply.code, opinion.reply.enhanced) if opinion is not None and opinion.reply else None


# --- patterns ----------------------------------------------------------------------------------------

PATTERNS = [
    ("spam@example.net", b"spam@example.net", True),
    ("Spam@Example.NET", b"sPaM@eXample.net", True),
    ("spam@example.net", b"ham@example.net", False),
    ("spam@example.net", b"spam@sub.example.net", False),
    ("@example.com", b"anybody@example.com", True),
    ("@example.com", b"anybody@sub.example.com", False),
    ("info@", b"info@any.example", True),
    ("info@", b"INFO@any.example", True),
    ("info@", b"info2@any.example", False),
    (".example.com", b"a@sub.example.com", True),
    ("@.example.com", b"a@deep.sub.example.com", True),
    (".example.com", b"a@example.com", False),
    (".example.com", b"a@notexample.com", False),
    ("@[192.0.2.1]", b"a@[192.0.2.1]", True),
    ('"a b"@example.com', b'"a b"@example.com', True),
    ("joe@example.com", b'"joe"@example.com', True),
    ("@bücher.example", b"a@xn--bcher-kva.example", True),
    ("@xn--bcher-kva.example", "a@bücher.example".encode(), True),
    ("a@.example.com", b"a@.example.com", None),
    ("example.com", b"", None),
    ("@", b"", None),
    ("", b"", None),
    ("a b@", b"", None),
    ("@exa mple", b"", None),
    (".", b"", None),
]


@pytest.mark.parametrize(("text", "address", "is_in"), PATTERNS)
def test_a_pattern(text: str, address: bytes, is_in: bool | None) -> None:
    faults: list[str] = []
    from_file = parse_patterns("F", f"# {text}\n\n{text}\r\n".encode(), faults)
    if is_in is None:
        with pytest.raises(ValueError):
            parse_pattern(text)
        assert (from_file, len(faults)) == (set(), 1 if text else 0)
        return
    patterns = AddressPatterns(parse_pattern(text))
    assert (path(b"<%b>" % address) in patterns) is is_in
    assert (path(b"<%b>" % address) in AddressPatterns(from_file)) is is_in
    assert faults == []


def test_neither_the_null_sender_nor_a_bare_postmaster_is_in_a_pattern_of_a_host() -> None:
    patterns = AddressPatterns([*parse_pattern("@example.com"), *parse_pattern("info@"), b"@.com"])
    assert path(b"<>") not in patterns
    assert path(b"<>") not in AddressPatterns()


TEXTS = st.text('abZ019!#+/=._-@ "\\[]é', max_size=12)


@hypothesis_settings(deadline=None, derandomize=True, database=None)
@given(TEXTS)
def test_a_line_of_a_file_means_what_the_same_text_means_in_the_configuration(text: str) -> None:
    faults: list[str] = []
    found = parse_patterns("F", text.encode(), faults)
    text = text.strip()
    if not text or text.startswith("#"):
        assert (found, faults) == (set(), [])
        return
    text = text.partition(" #")[0].rstrip()
    try:
        meant: set[bytes] = set(parse_pattern(text))
    except ValueError as error:
        assert (found, faults) == (set(), [f"F:1: {error}"])
    else:
        assert (found, faults) == (meant, [])


def test_a_hundred_thousand_lines_are_a_set(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "badmailfrom"
    file.write_bytes(b"".join(b"user%d@host%d.example\n@bad%d.example\n" % (n, n, n) for n in range(50_000)))
    under = settings(badmailfrom=str(file))
    assert len(under.badmailfrom) == 100_000
    assert code(badmailfrom.refuse_sender(facts(b"<User49999@host49999.example>"), under)) == (550, "5.7.1")
    assert code(badmailfrom.refuse_sender(facts(b"<x@bad49999.example>"), under)) == (550, "5.7.1")
    assert badmailfrom.refuse_sender(facts(b"<x@bad50000.example>"), under) is None


def test_a_bad_line_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "bad"
    file.write_text("@a.example\nnobody\n")
    with pytest.raises(Exception, match=r"bad:2: 'nobody' is none of user@host, @host, user@, \.host"):
        settings(badrcptto=[str(file)])


# --- DENYMAIL ----------------------------------------------------------------------------------------

# Sender, what the patch's own rule says (its arithmetic on the last label), and ours.
OK, NO = True, False
VECTORS = [
    (b"a@b.de", OK, OK),
    (b"a@b.com", OK, OK),
    (b"a@b.info", NO, OK),
    (b"a@b.museum", NO, OK),
    (b"a@x.xn--p1ai", NO, OK),
    ("a@x.рф".encode(), NO, OK),
    (b"a@b.c", NO, NO),
    (b"a@b.123", OK, NO),
    (b"a@b.4u", OK, OK),
    (b"a@localhost", NO, NO),
    (b"a@", NO, NO),
    (b"joe", NO, NO),
    (b"u!@x.com", NO, NO),
    (b"u!v@x.com", OK, OK),
    (b"a@b.com.", NO, NO),
    # The patch takes or refuses literals by the length of what stands behind their last dot; here a key decides.
    (b"a@[10.0.0.1]", NO, NO),
    (b"a@[10.0.0.10]", NO, NO),
    (b"a@[10.0.0.100]", NO, NO),
    (b"a@[ipv6:2001:db8::1]", NO, NO),
    # It read before its buffer here.
    (b"@x.com", NO, NO),
    # It took these.
    (b"a@.com", NO, NO),
    (b"a@x..com", NO, NO),
    (b"a@b.-x", OK, NO),
    (b"a@b." + b"x" * 64, NO, NO),
]


@pytest.mark.parametrize(("sender", "is_legacy_right", "is_right"), VECTORS)
def test_what_a_sender_must_look_like(sender: bytes, is_legacy_right: bool, is_right: bool) -> None:
    local, at, domain = sender.rpartition(b"@")
    if not at:
        local, domain = domain, b""
    assert (denymail.look_at(local, domain) == "") is is_right
    assert (denymail.look_at(local, domain, is_legacy=True) == "") is is_legacy_right
    if domain.startswith(b"["):
        assert denymail.look_at(local, domain, takes_literals=True) == ""
        assert denymail.look_at(local, domain, is_legacy=True, takes_literals=True) == ""


@pytest.mark.parametrize(("sender", "is_legacy_right", "is_right"), VECTORS)
@pytest.mark.parametrize("words", [["SANITY"], ["NOBOUNCE"], ["DNSCHECK"], ["NOBOUNCE", "DNSCHECK"]])
def test_every_value_asks_for_it(
    sender: bytes, is_legacy_right: bool, is_right: bool, words: list[str]
) -> None:
    found = parse_mailbox(sender, is_utf8_allowed=True)
    if isinstance(found, int):
        # The session refuses it before any rule: 501 5.1.7.
        assert not is_right
        return
    known = facts()
    known.sender = found
    refusal = None if is_right else (550, "5.1.7")
    assert code(denymail.refuse_sender(known, settings(denymail=words))) == refusal
    legacy = None if is_legacy_right else (550, "5.1.7")
    assert code(denymail.refuse_sender(known, settings(denymail=words, denymail_tld="legacy"))) == legacy


@pytest.mark.parametrize(
    ("words", "sender", "refusal"),
    [
        (["SPAM"], b"<>", reply.BAD_SENDER),
        (["SPAM"], b"<a@example.org>", reply.BAD_SENDER),
        (["NOBOUNCE", "SPAM"], b"<a@b>", reply.BAD_SENDER),
        (["NOBOUNCE"], b"<>", reply.NO_BOUNCES),
        (["NOBOUNCE", "DNSCHECK"], b"<>", reply.NO_BOUNCES),
        (["DNSCHECK"], b"<>", None),
        (["SANITY"], b"<>", None),
        (["NOBOUNCE"], b"<a@example.org>", None),
        (["NOBOUNCE"], b"<a@example>", reply.SENDER_NO_ADDRESS),
    ],
)
def test_the_words_of_denymail(words: list[str], sender: bytes, refusal: reply.Reply | None) -> None:
    opinion = denymail.refuse_sender(facts(sender), settings(denymail=words))
    assert (opinion.reply if opinion else None) == refusal


def test_a_literal_is_let_in_by_its_key() -> None:
    known = facts(b"<a@[192.0.2.1]>")
    assert code(denymail.refuse_sender(known, settings(denymail=["SANITY"]))) == (550, "5.1.7")
    assert denymail.refuse_sender(known, settings(denymail=["SANITY"], denymail_literals=True)) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("SPAM", ("SPAM",)),
        ("NOBOUNCE", ("NOBOUNCE",)),
        ("DNSCHECK", ("DNSCHECK",)),
        ("NOBOUNCE,DNSCHECK", ("NOBOUNCE", "DNSCHECK")),
        ("NOBOUNCE, DNSCHECK", ("NOBOUNCE", "DNSCHECK")),
        ("NOBOUNCE,x", ("NOBOUNCE",)),
        # Compared with their case; but whatever it is set to, the sanity rules hold.
        ("nobounce", ("SANITY",)),
        ("x", ("SANITY",)),
        ("1", ("SANITY",)),
        ("", ("SANITY",)),
    ],
)
def test_the_variable_denymail(value: str, words: tuple[str, ...]) -> None:
    assert parse_denymail(value) == words
    assert denymail_of({"DENYMAIL": value}) == (words, "modern")
    assert denymail_of({"DENYMAIL": value, "DENYMAIL_TLD": "legacy"}) == (words, "legacy")


def test_without_the_variable_nothing_is_changed() -> None:
    assert denymail_of({"DENYMAIL_TLD": "legacy"}) is None


# --- all of them, at their places --------------------------------------------------------------------

ZONE: Zone = {
    ("good.example", MX): [(10, "mx.good.example")],
    ("mx.good.example", A): ["192.0.2.1"],
    ("listed.example", MX): [(10, "mx.good.example")],
    ("listed.example.dbl.example", A): ["127.0.0.2"],
    ("unsure.example", MX): [(10, "mx.good.example")],
    ("unsure.example.dbl.example", A): Status.SERVFAIL,
    ("slow.example", MX): Status.TIMEOUT,
    ("null.example", MX): [(0, "")],
}
RULES: dict[str, Any] = {
    "badmailfrom": ["bad@good.example", "@bad.example", "info@"],
    "badrcptto": ["bad@example.org", "closed@", "@elsewhere.example"],
    "denymail": ["NOBOUNCE", "DNSCHECK"],
    "mfcheck": {"mode": "enforce"},
    "rhsbl": [LISTED],
}


class Session:
    """MAIL and RCPT of one client; what is held at MAIL is kept for RCPT, as the connection does."""

    def __init__(self, under: Settings, *, may_relay: bool = False) -> None:
        self.observed_stages: list[str] = []
        self.plan = Plan(stages_of(under), under, report=self)
        self.facts = facts()
        address = "127.0.0.1" if may_relay else "192.0.2.1"
        self.facts.client = Client(Address(address))
        granted = relay.know_client(self.facts, under)
        for effect in granted.effects if granted else ():
            assert isinstance(effect, Grant)
            self.facts.client.may_relay = effect.may_relay
            self.facts.client.skips_checks = effect.skips_checks

    def defect(self, facts: Facts, stage: Stage, error: Exception) -> None:
        raise error

    def observed(self, facts: Facts, stage: Stage, decision: Decision) -> None:
        self.observed_stages.append(stage.name)

    def judged(self, name: str, verdict: Verdict) -> None:
        """Seen in the reply."""

    def say(self, sender: bytes, recipient: bytes = b"<b@example.org>") -> tuple[str, int, str, str]:
        """Where the session ends: the phase, the codes, and the stage; ("", 0, "", "") when it does not."""
        facts = self.facts
        facts.forget(Phase.MAIL)
        facts.sender = path(sender)
        facts.envelope = None
        for phase in (Phase.MAIL, Phase.RCPT):
            facts.recipient = path(recipient) if phase is Phase.RCPT else None
            decision = decision_of(self.plan, phase, facts, ZONE)
            for effect in decision.effects:
                if isinstance(effect, Held | Tag):
                    facts.note(phase, effect)
            if decision.reply is not None:
                return phase.name, decision.reply.code, decision.reply.enhanced, decision.stage
            facts.envelope = Envelope(facts.sender.address, facts.sender.domain)
        return "", 0, "", ""


# Sender, recipient, then how it ends: ours, compatible.
ENDS = [
    (b"<a@good.example>", b"<b@example.org>", ("", 0, "", ""), ("", 0, "", "")),
    (b"<bad@good.example>", b"<b@example.org>",
     ("RCPT", 550, "5.7.1", "badmailfrom"), ("MAIL", 553, "5.7.1", "badmailfrom")),
    (b"<a@BAD.example>", b"<b@example.org>",
     ("RCPT", 550, "5.7.1", "badmailfrom"), ("MAIL", 553, "5.7.1", "badmailfrom")),
    (b"<info@good.example>", b"<b@example.org>",
     ("RCPT", 550, "5.7.1", "badmailfrom"), ("MAIL", 553, "5.7.1", "badmailfrom")),
    (b"<>", b"<b@example.org>", ("RCPT", 550, "5.7.1", "denymail"), ("MAIL", 553, "5.7.1", "denymail")),
    (b"<a@here>", b"<b@example.org>", ("RCPT", 550, "5.1.7", "denymail"), ("MAIL", 553, "5.7.1", "denymail")),
    (b"<a@nowhere.example>", b"<b@example.org>",
     ("RCPT", 550, "5.1.8", "denymail"), ("MAIL", 553, "5.7.1", "denymail")),
    (b"<a@null.example>", b"<b@example.org>",
     ("RCPT", 550, "5.7.27", "denymail"), ("MAIL", 553, "5.7.1", "denymail")),
    (b"<a@slow.example>", b"<b@example.org>",
     ("RCPT", 451, "4.4.3", "denymail"), ("MAIL", 451, "4.3.0", "denymail")),
    (b"<a@listed.example>", b"<b@example.org>",
     ("RCPT", 550, "5.7.1", "rhsbl"), ("MAIL", 553, "5.7.1", "rhsbl")),
    # A list that doesn't answer counts for nothing; when compatible it defers, as all that asks the DNS there.
    (b"<a@unsure.example>", b"<b@example.org>", ("", 0, "", ""), ("MAIL", 451, "4.3.0", "rhsbl")),
    (b"<a@good.example>", b"<bad@example.org>",
     ("RCPT", 550, "5.1.1", "badrcptto"), ("RCPT", 553, "5.7.1", "badrcptto")),
    (b"<a@good.example>", b"<Closed@example.org>",
     ("RCPT", 550, "5.1.1", "badrcptto"), ("RCPT", 553, "5.7.1", "badrcptto")),
    # A probe hears of relaying, whether the recipient is listed or not.
    (b"<a@good.example>", b"<a@elsewhere.example>",
     ("RCPT", 550, "5.7.1", "recipient"), ("RCPT", 553, "5.7.1", "recipient")),
    (b"<a@good.example>", b"<a@other.example>",
     ("RCPT", 550, "5.7.1", "recipient"), ("RCPT", 553, "5.7.1", "recipient")),
]  # fmt: skip


@pytest.mark.parametrize(("sender", "recipient", "ours", "theirs"), ENDS)
def test_where_and_how_a_client_hears_of_it(
    sender: bytes, recipient: bytes, ours: tuple[str, int, str, str], theirs: tuple[str, int, str, str]
) -> None:
    under = settings(**RULES)
    assert Session(under).say(sender, recipient) == ours
    assert Session(compatible(under)).say(sender, recipient) == theirs


def test_a_later_mail_starts_clean() -> None:
    for under in (settings(**RULES), compatible(settings(**RULES))):
        session = Session(under)
        assert session.say(b"<bad@good.example>")[1] >= 550
        assert session.say(b"<a@good.example>") == ("", 0, "", "")


@pytest.mark.parametrize(("sender", "recipient", "ours", "theirs"), ENDS)
def test_a_relay_client_meets_no_check_but_those_of_the_patches_when_compatible(
    sender: bytes, recipient: bytes, ours: Any, theirs: tuple[str, int, str, str]
) -> None:
    under = settings(**RULES)
    is_ours = not recipient.endswith((b"@elsewhere.example>", b"@other.example>"))
    passes = ("", 0, "", "") if is_ours else ("RCPT", 550, "5.7.1", "recipient")
    assert Session(under, may_relay=True).say(sender, recipient) == passes
    # RELAYCLIENT exempts from badrcptto and the lists of domains, and from nothing else.
    expected = ("", 0, "", "") if theirs[3] in ("badrcptto", "rhsbl") else theirs
    assert Session(compatible(under), may_relay=True).say(sender, recipient) == expected


def test_a_certificate_or_relayclient_takes_no_exemption_away() -> None:
    under = replace(compatible(settings(exempt=["192.0.2.0/24"])), relay_suffix=b"")
    known = facts()
    granted = relay.know_client(known, under)
    assert granted is not None
    (grant,) = granted.effects
    assert isinstance(grant, Grant)
    assert (grant.may_relay, grant.skips_checks) == (True, True)
    known.client.skips_checks = True
    under = replace(under, relay_suffix=None, certificates=frozenset({b"joe@example.org"}))
    known.tls = TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", 128)
    known.tls.certificate = CertificateFacts("", "sha256:00", (b"joe@example.org",))
    granted = relay.know_certificate(known, under)
    assert granted is not None
    (grant,) = granted.effects
    assert isinstance(grant, Grant)
    assert (grant.may_relay, grant.skips_checks) == (True, True)


def test_who_is_exempt_stays_exempt_when_compatible() -> None:
    under = compatible(settings(**RULES, exempt=["127.0.0.0/8", "192.0.2.0/24"]))
    for may_relay in (False, True):
        assert Session(under, may_relay=may_relay).say(b"<bad@good.example>") == ("", 0, "", "")


@pytest.mark.parametrize(("sender", "recipient", "ours", "theirs"), ENDS)
def test_observed_they_say_what_they_would_do_and_do_nothing(
    sender: bytes, recipient: bytes, ours: tuple[str, int, str, str], theirs: Any
) -> None:
    rules = {
        **RULES,
        "badmailfrom_mode": "observe", "badrcptto_mode": "observe", "denymail_mode": "observe",
        "mfcheck": {"mode": "observe"}, "rhsbl": [{**LISTED, "mode": "observe"}],
    }  # fmt: skip
    for under in (settings(**rules), settings(**{**RULES, "mode": "observe"})):
        session = Session(under)
        passes = ours if ours[3] == "recipient" else ("", 0, "", "")
        assert session.say(sender, recipient) == passes
        is_told_by_tag = ours[3] == "rhsbl"
        if ours[1] and ours[3] != "recipient" and not is_told_by_tag:
            assert ours[3] in session.observed_stages


def test_what_refuses_here_and_now_asks_nobody() -> None:
    under = compatible(settings(**RULES))
    known = facts(b"<bad@good.example>")
    known.envelope = None
    decision = Plan(stages_of(under), under).run(Phase.MAIL, known)
    assert isinstance(decision, Decision)
    assert decision.stage == "badmailfrom"


@pytest.mark.parametrize(
    ("action", "score", "verdict", "codes"),
    [
        ("score", 10, Verdict.REJECT, (550, "5.7.1")),
        ("score", 5, Verdict.PASS, None),
        ("reject", 1, Verdict.REJECT, (550, "5.7.1")),
        ("defer", 10, Verdict.DEFER, (450, "4.7.1")),
        ("tag", 10, Verdict.PASS, None),
    ],
)
def test_what_a_listing_does(action: str, score: int, verdict: Verdict, codes: Any) -> None:
    from fastsmtp.policy import dnsbl, rhsbl
    from tests.fakes.zone import opinion_of

    of_domain = settings(rhsbl=[{"zone": "dbl.example", "action": action, "score": score}])
    opinion, _ = opinion_of(rhsbl.ask_of_sender, facts(b"<a@listed.example>"), of_domain, ZONE)
    assert opinion is not None
    assert (opinion.verdict, code(opinion)) == (verdict, codes)
    counted = [effect.score for effect in opinion.effects if isinstance(effect, Tag)]
    assert counted == [score if action == "score" else 0]
    of_address = settings(dnsbl=[{"zone": "ip.example", "action": action, "score": score}])
    zone: Zone = {("1.2.0.192.ip.example", A): ["127.0.0.2"]}
    opinion, _ = opinion_of(dnsbl.ask_lists, facts(), of_address, zone)
    assert opinion is not None
    assert (opinion.verdict, code(opinion)) == (verdict, codes)


def test_of_several_listings_the_one_that_rejects_is_named() -> None:
    from fastsmtp.policy import dnsbl
    from tests.fakes.zone import opinion_of

    zones: list[dict[str, Any]] = [
        {"zone": "defers.example", "action": "defer"},
        {"zone": "tells.example", "action": "tag", "score": 100},
        {"zone": "rejects.example", "action": "reject", "score": 1},
    ]
    zone: Zone = {(f"1.2.0.192.{one['zone']}", A): ["127.0.0.2"] for one in zones}
    opinion, _ = opinion_of(dnsbl.ask_lists, facts(), settings(dnsbl=zones), zone)
    assert opinion is not None
    assert opinion.reply == reply.client_listed("[192.0.2.1]", "rejects.example")


# --- TLS by sender -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "has_tls", "is_refused"),
    [
        (b"<a@bank.example>", False, True),
        (b"<a@BANK.example>", False, True),
        (b"<a@bank.example>", True, False),
        (b"<a@www.bank.example>", False, False),
        (b"<a@www.trust.example>", False, True),
        (b"<a@trust.example>", False, False),
        (b"<chief@other.example>", False, True),
        (b"<>", False, False),
    ],
)
def test_some_senders_need_tls(sender: bytes, has_tls: bool, is_refused: bool) -> None:
    under = settings(require_tls=[{"sender": "@bank.example"}, {"sender": ["@.trust.example", "chief@"]}])
    known = facts(sender)
    known.tls = TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", 128) if has_tls else None
    assert code(require_tls.check_tls(known, under)) == ((530, "5.7.0") if is_refused else None)
    # Spoken at MAIL whatever reject_at says: the client can mend it there and then.
    decision = decision_of(Plan(stages_of(under), under), Phase.MAIL, known, {})
    assert code(decision) == ((530, "5.7.0") if is_refused else None)


def test_a_rule_about_tls_that_observes() -> None:
    rules = [{"sender": "@bank.example", "mode": "observe"}, {"sender": "@trust.example", "mode": "off"}]
    session = Session(settings(require_tls=rules))
    assert session.say(b"<a@bank.example>")[0] == ""
    assert session.say(b"<a@trust.example>")[0] == ""
    assert session.observed_stages == ["require_tls"]


# --- tarpit ------------------------------------------------------------------------------------------


def delays(rule: dict[str, Any], *, accepted: int, refused: int = 0, may_relay: bool = False) -> Any:
    known = facts(recipient=b"<b@example.org>")
    known.envelope.recipients = [Recipient(b"b@example.org", b"example.org")] * accepted  # type: ignore[union-attr]
    known.refused = refused
    known.client.may_relay = may_relay
    opinion = tarpit.slow_recipient(known, settings(tarpit=rule))
    if opinion is None:
        return None
    assert opinion.verdict is Verdict.PASS
    (delay,) = [effect for effect in opinion.effects if isinstance(effect, Delay)]
    return delay.seconds


@pytest.mark.parametrize(
    ("rule", "known", "delay_s"),
    [
        ({}, {"accepted": 500}, None),
        ({"after_recipients": 0}, {"accepted": 500}, None),
        ({"after_recipients": 50}, {"accepted": 48}, None),
        # The 50th itself is slow, not only what comes after it.
        ({"after_recipients": 50}, {"accepted": 49}, 5.0),
        ({"after_recipients": 50}, {"accepted": 500}, 5.0),
        ({"after_recipients": 1}, {"accepted": 0}, 5.0),
        ({"after_recipients": 50, "delay_s": 1}, {"accepted": 99}, 1.0),
        ({"after_recipients": 50, "delay_s": 1, "step_s": 0.5}, {"accepted": 49}, 1.0),
        ({"after_recipients": 50, "delay_s": 1, "step_s": 0.5}, {"accepted": 59}, 6.0),
        # Never so long that the client gives up.
        ({"after_recipients": 1, "delay_s": 1, "step_s": 10}, {"accepted": 900}, 225.0),
        ({"after_recipients": 50, "delay_s": 0}, {"accepted": 99}, None),
        ({"after_recipients": 50}, {"accepted": 99, "may_relay": True}, None),
        ({"after_recipients": 50}, {"accepted": 40, "refused": 9}, 5.0),
        ({"after_recipients": 50, "count_rejected": False}, {"accepted": 40, "refused": 90}, None),
        ({"after_recipients": 50, "count_rejected": False}, {"accepted": 49}, 5.0),
    ],
)
def test_which_recipients_are_slow(
    rule: dict[str, Any], known: dict[str, Any], delay_s: float | None
) -> None:
    assert delays(rule, **known) == delay_s


def test_a_tarpit_that_observes_delays_nothing_and_is_told_once() -> None:
    under = settings(tarpit={"after_recipients": 2, "mode": "observe"})
    session = Session(under)
    plan = session.plan
    known = facts(recipient=b"<b@example.org>")
    told = []
    for _ in range(5):
        decision = decision_of(plan, Phase.RCPT, known, {})
        assert not any(isinstance(effect, Delay) for effect in decision.effects)
        told += [(effect.name, effect.value) for effect in decision.effects if isinstance(effect, Tag)]
        known.envelope.recipients.append(Recipient(b"b@example.org", b"example.org"))  # type: ignore[union-attr]
    assert told == [("tarpit", "2")]
    assert session.observed_stages == ["tarpit"]


# --- judged again ------------------------------------------------------------------------------------

EVERY_RULE: dict[str, Any] = {
    **RULES,
    "require_tls": [{"sender": "@bank.example"}],
    "tarpit": {"after_recipients": 2, "step_s": 1},
    "p0f": {"socket": "/run/p0f", "header": True, "match": [{"os": "Windows *", "score": 2, "delay_s": 3}]},
    "header": "X-P",
}
XP = Fingerprint("Windows XP", "DSL")


def judged(under: Settings, sender: bytes, record: dict[Any, Any], *, is_again: bool) -> bytes:
    """A whole session's decisions and effects as text; is_again: nothing may be asked that is not recorded."""
    plan = Plan(stages_of(under), under)
    known = facts(sender)
    known.header = HeaderScanner().finish()
    said = []
    for phase in (
        Phase.CLIENT,
        Phase.CONNECT,
        Phase.HELO,
        Phase.MAIL,
        Phase.RCPT,
        Phase.RCPT,
        Phase.RCPT,
        Phase.END,
    ):
        known.recipient = path(b"<b@example.org>") if phase >= Phase.RCPT else None
        decided = plan.run(phase, known)
        while isinstance(decided, Round):
            for question in decided.questions:
                assert not is_again or question in record
                if question not in record:
                    record[question] = XP if isinstance(question, P0fQuestion) else answer(ZONE, question)  # type: ignore[arg-type]
            decided = decided.resume(record)
        for effect in decided.effects:
            if isinstance(effect, Fingerprinted):
                known.client.fingerprint = effect.fingerprint
            elif isinstance(effect, Held | Tag):
                known.note(phase, effect)
            elif isinstance(effect, Grant):
                known.client.may_relay, known.client.skips_checks = effect.may_relay, effect.skips_checks
            slots: tuple[str, ...] = type(effect).__slots__
            values = [f"{slot}={getattr(effect, slot)!r}" for slot in slots if slot != "fingerprint"]
            said.append(f"{phase.name} {type(effect).__name__} {' '.join(values)}")
        said.append(f"{phase.name} {decided!r} {known.score} {dict(known.tags)}")
        if decided.reply is None and phase is Phase.RCPT:
            known.envelope.recipients.append(Recipient(b"b@example.org", b"example.org"))  # type: ignore[union-attr]
    return "\n".join(said).encode()


@pytest.mark.parametrize(
    "sender",
    [
        b"<a@good.example>", b"<bad@good.example>", b"<>", b"<a@here>", b"<a@nowhere.example>", b"<a@slow.example>",
        b"<a@listed.example>", b"<a@unsure.example>", b"<a@bank.example>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("is_compatible", [False, True])
def test_a_session_is_judged_the_same_again(sender: bytes, mode: str, is_compatible: bool) -> None:
    under = settings(**{**EVERY_RULE, "mode": mode})
    if is_compatible:
        under = compatible(under)
    record: dict[Any, Any] = {}
    first = judged(under, sender, record, is_again=False)
    assert len(record) >= 1
    for _ in range(2):
        assert judged(under, sender, dict(record), is_again=True) == first
    assert (b"Delay" in first) is (mode == "enforce" and b"RCPT Decision(PASS" in first)
