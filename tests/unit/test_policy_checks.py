"""Every stage that asks the DNS, as tables: facts and answers in, verdict out.  No loop, no mock."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp._dns import Status
from fastsmtp._parser import Path, parse_path
from fastsmtp.address import Address
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.config.write import SECTIONS
from fastsmtp.policy import clients, dnsbl, helo, mfcheck, reverse_dns, rhsbl
from fastsmtp.policy.decision import Asked, Decision, Grant, ListFailed, Name, Tag, Verdict
from fastsmtp.policy.facts import Client, Facts
from tests.fakes.zone import AAAA, MX, PTR, TXT, A, Zone, opinion_of

SLOW = Status.TIMEOUT
LAME = Status.SERVFAIL


def settings(**policy: Any) -> Settings:
    accept = [{"domain": ["*"], "deliver": "discard"}]
    return load(values={"hostname": "mx.example", "accept": accept, "policy": policy}).settings[0]


def facts(address: str = "192.0.2.1", *, name: bytes = b"", sender: bytes = b"") -> Facts:
    found = Facts("ID", "mx", "198.51.100.25", Client(Address(address)))
    found.helo = name
    found.sender = path(sender) if sender else None
    return found


def path(text: bytes) -> Path:
    parsed = parse_path(text, is_reverse=True, is_utf8_allowed=True)
    assert not isinstance(parsed, int)
    return parsed[0]


def tags(opinion: Decision | None) -> list[tuple[str, str, int]]:
    effects = opinion.effects if opinion else ()
    return [(effect.name, effect.value, effect.score) for effect in effects if isinstance(effect, Tag)]


# --- the envelope sender -----------------------------------------------------------------------------

SENDERS: Zone = {
    ("example.org", MX): [(10, "mx.example.org"), (20, "b.example.org")],
    ("mx.example.org", A): ["192.0.2.1"],
    ("six.example", MX): [(10, "mx.six.example")],
    ("mx.six.example", AAAA): ["2001:db8::1"],
    ("host.example", A): ["192.0.2.2"],
    ("host6.example", AAAA): ["2001:db8::2"],
    ("null.example", MX): [(0, "")],
    ("half.example", MX): [(0, ""), (10, "mx.example.org")],
    ("text.example", TXT): ["no mail here"],
    ("dead.example", MX): [(10, "gone.example")],
    ("slow.example", MX): SLOW,
    ("lame.example", MX): LAME,
    ("slowmx.example", MX): [(10, "slow1.example"), (20, "gone.example")],
    ("slow1.example", A): SLOW,
    ("slow1.example", AAAA): SLOW,
    ("lucky.example", MX): [(10, "slow1.example"), (20, "mx.example.org")],
    ("slowa.example", TXT): ["x"],
    ("slowa.example", A): SLOW,
    ("many.example", MX): [(n, f"gone{n}.example") for n in range(9)],
    ("xn--bcher-kva.example", MX): [(10, "mx.example.org")],
}


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        (b"<>", None),
        (b"<a@[192.0.2.9]>", None),
        (b"<a@example.org>", None),
        (b"<a@EXAMPLE.ORG>", None),
        (b"<a@six.example>", None),
        # No MX: the address is the exchange (RFC 5321 section 5.1).
        (b"<a@host.example>", None),
        (b"<a@host6.example>", None),
        ("<a@bücher.example>".encode(), None),
        (b"<a@null.example>", reply.SENDER_NULL_MX),
        # A null MX beside others is none (RFC 7505 section 3).
        (b"<a@half.example>", None),
        (b"<a@nowhere.example>", reply.SENDER_HAS_NO_MAIL),
        (b"<a@text.example>", reply.SENDER_HAS_NO_MAIL),
        (b"<a@dead.example>", reply.SENDER_HAS_NO_MAIL),
        # A resolver that fails refuses nobody for good.
        (b"<a@slow.example>", reply.SENDER_UNKNOWN_YET),
        (b"<a@lame.example>", reply.SENDER_UNKNOWN_YET),
        (b"<a@slowmx.example>", reply.SENDER_UNKNOWN_YET),
        (b"<a@slowa.example>", reply.SENDER_UNKNOWN_YET),
        (b"<a@lucky.example>", None),
        # More exchanges than we look at: one of the others may be there.
        (b"<a@many.example>", reply.SENDER_UNKNOWN_YET),
    ],
)
def test_mfcheck(sender: bytes, expected: reply.Reply | None) -> None:
    opinion, _ = opinion_of(mfcheck.check_sender, facts(sender=sender), settings(), SENDERS)
    assert (opinion.reply if opinion else None) == expected


def test_mfcheck_asks_no_more_than_it_needs() -> None:
    assert opinion_of(mfcheck.check_sender, facts(sender=b"<>"), settings(), SENDERS)[1] == []
    assert opinion_of(mfcheck.check_sender, facts(sender=b"<a@nowhere.example>"), settings(), SENDERS)[1] == [
        "nowhere.example"
    ]
    asked = opinion_of(mfcheck.check_sender, facts(sender=b"<a@many.example>"), settings(), SENDERS)[1]
    assert len(asked) == 1 + 2 * mfcheck.EXCHANGES_MAX


# --- lists of addresses ------------------------------------------------------------------------------

LISTS: dict[str, Any] = {
    "dnsbl": [
        {"zone": "zen.example", "answers": ["127.0.0.2-127.0.0.11"], "score": 6, "reason": True},
        {"zone": "bits.example", "answers": ["&0.0.0.4"], "score": 4},
        {"zone": "watched.example", "score": 9, "mode": "observe"},
        {"zone": "off.example", "mode": "off"},
    ],
    "dnswl": [{"zone": "good.example"}, {"zone": "best.example", "skip": True}],
}


def listed(address: str, **answers: Any) -> Zone:
    labels = ".".join(reversed(address.split(".")))
    zone: dict[tuple[str, int], Any] = {}
    for name, value in answers.items():
        zone[f"{labels}.{name}.example", A] = value
    return zone


@pytest.mark.parametrize(
    ("answers", "verdict", "score", "said"),
    [
        ({}, Verdict.PASS, 0, []),
        ({"zen": ["127.0.0.2"]}, Verdict.PASS, 6, ["zen.example(127.0.0.2)"]),
        ({"zen": ["127.0.0.11"]}, Verdict.PASS, 6, ["zen.example(127.0.0.11)"]),
        # Outside the range that is asked for.
        ({"zen": ["127.0.0.12"]}, Verdict.PASS, 0, []),
        ({"zen": ["127.0.0.12", "127.0.0.4"]}, Verdict.PASS, 6, ["zen.example(127.0.0.4)"]),
        ({"bits": ["127.0.0.6"]}, Verdict.PASS, 4, ["bits.example(127.0.0.6)"]),
        ({"bits": ["127.0.0.2"]}, Verdict.PASS, 0, []),
        ({"zen": ["127.0.0.2"], "bits": ["127.0.0.4"]}, Verdict.REJECT, 10,
         ["zen.example(127.0.0.2)", "bits.example(127.0.0.4)"]),
        ({"zen": ["127.0.0.2"], "bits": ["127.0.0.4"], "good": ["127.0.5.1"]}, Verdict.PASS, 5,
         ["good.example(127.0.5.1)", "zen.example(127.0.0.2)", "bits.example(127.0.0.4)"]),
        ({"zen": ["127.0.0.2"], "bits": ["127.0.0.4"], "best": ["127.0.5.1"]}, Verdict.PASS, -5,
         ["best.example(127.0.5.1)"]),
        # Only observed: said, and counted apart.
        ({"zen": ["127.0.0.2"], "watched": ["127.0.0.2"]}, Verdict.PASS, 6,
         ["zen.example(127.0.0.2)", "watched.example(127.0.0.2)"]),
        # Never a listing: refused questions, and what a sold domain answers.
        ({"zen": ["127.255.255.254"]}, Verdict.PASS, 0, []),
        ({"watched": ["127.255.255.255"]}, Verdict.PASS, 0, []),
        ({"bits": ["203.0.113.4"]}, Verdict.PASS, 0, []),
        ({"zen": SLOW, "bits": LAME}, Verdict.PASS, 0, []),
        ({"zen": SLOW, "bits": ["127.0.0.4"]}, Verdict.PASS, 4, ["bits.example(127.0.0.4)"]),
        ({"off": ["127.0.0.2"]}, Verdict.PASS, 0, []),
    ],
)  # fmt: skip
def test_lists_of_addresses(answers: dict[str, Any], verdict: Verdict, score: int, said: list[str]) -> None:
    opinion, _ = opinion_of(dnsbl.ask_lists, facts(), settings(**LISTS), listed("192.0.2.1", **answers))
    assert opinion is not None
    assert opinion.verdict is verdict
    effects = opinion.effects
    assert answers.keys() & {"best"} or [effect.what for effect in effects if isinstance(effect, Asked)] == [
        ""
    ]
    found = [effect for effect in effects if isinstance(effect, Tag)]
    assert [effect.value for effect in found] == said
    assert sum(effect.score for effect in found if not effect.is_observed) == score
    assert any(isinstance(effect, Grant) for effect in effects) is ("best" in answers)


def test_a_listing_names_list_and_reason() -> None:
    zone: Zone = {
        **listed("192.0.2.1", zen=["127.0.0.2"], bits=["127.0.0.4"]),
        ("1.2.0.192.zen.example", TXT): ["see\x00 https://zen.example/"],
    }
    opinion, asked = opinion_of(dnsbl.ask_lists, facts(), settings(**LISTS), zone)
    assert opinion is not None
    assert opinion.reply == reply.Reply(
        550, "5.7.1", "Your address [192.0.2.1] is listed by zen.example: see? https://zen.example/"
    )
    assert asked[-1] == "1.2.0.192.zen.example"


def test_a_reason_that_does_not_come_changes_nothing() -> None:
    zone = {
        **listed("192.0.2.1", zen=["127.0.0.2"], bits=["127.0.0.4"]),
        ("1.2.0.192.zen.example", TXT): SLOW,
    }
    opinion, _ = opinion_of(dnsbl.ask_lists, facts(), settings(**LISTS), zone)
    assert opinion is not None
    assert opinion.reply == reply.Reply(550, "5.7.1", "Your address [192.0.2.1] is listed by zen.example")


def test_what_fails_is_told_to_who_looks_after_the_lists() -> None:
    zone = listed("192.0.2.1", zen=SLOW, bits=["10.0.0.1"], watched=["127.255.255.252"])
    opinion, _ = opinion_of(dnsbl.ask_lists, facts(), settings(**LISTS), zone)
    assert opinion is not None
    failed = [effect.zone for effect in opinion.effects if isinstance(effect, ListFailed)]
    assert failed == ["zen.example", "bits.example", "watched.example"]


def test_a_list_in_quarantine_is_not_asked() -> None:
    known = facts()
    known.bad_lists = frozenset({b"zen.example", b"good.example", b"best.example", b"watched.example"})
    _, asked = opinion_of(dnsbl.ask_lists, known, settings(**LISTS), {})
    assert asked == ["1.2.0.192.bits.example"]
    known.bad_lists |= {b"bits.example"}
    assert opinion_of(dnsbl.ask_lists, known, settings(**LISTS), {}) == (None, [])


def test_the_score_so_far_counts() -> None:
    known = facts()
    known.score = 2
    zone = listed("192.0.2.1", zen=["127.0.0.2"])
    opinion, _ = opinion_of(dnsbl.ask_lists, known, settings(**LISTS), zone)
    assert opinion is not None
    assert opinion.verdict is Verdict.REJECT


def test_ipv6_goes_by_nibbles() -> None:
    """RFC 5782 section 2.4."""
    _, asked = opinion_of(
        dnsbl.ask_lists, facts("2001:db8:1:2:3:4:567:89ab"), settings(dnsbl=[{"zone": "zen.example"}]), {}
    )
    assert asked == ["b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.zen.example"]


# --- lists of domains --------------------------------------------------------------------------------

DOMAINS = {"rhsbl": [{"zone": "dbl.example", "answers": ["127.0.1.2-127.0.1.6"], "score": 10}]}
NAMED: Zone = {
    ("bad.example.dbl.example", A): ["127.0.1.2"],
    ("phish.example.dbl.example", A): ["127.0.1.102"],
    ("refused.example.dbl.example", A): ["127.255.255.254"],
    ("slow.example.dbl.example", A): SLOW,
    ("1.2.0.192.in-addr.arpa", PTR): ["bad.example"],
    ("bad.example", A): ["192.0.2.1"],
    ("2.2.0.192.in-addr.arpa", PTR): ["bad.example"],
}


@pytest.mark.parametrize(
    ("stage", "known", "expected"),
    [
        (rhsbl.ask_of_sender, facts(sender=b"<a@bad.example>"), "sender"),
        (rhsbl.ask_of_sender, facts(sender=b"<a@BAD.example>"), "sender"),
        (rhsbl.ask_of_sender, facts(sender=b"<a@good.example>"), ""),
        (rhsbl.ask_of_sender, facts(sender=b"<a@phish.example>"), ""),
        (rhsbl.ask_of_sender, facts(sender=b"<a@refused.example>"), ""),
        (rhsbl.ask_of_sender, facts(sender=b"<a@slow.example>"), ""),
        (rhsbl.ask_of_sender, facts(sender=b"<>"), ""),
        (rhsbl.ask_of_sender, facts(sender=b"<a@[192.0.2.1]>"), ""),
        (rhsbl.ask_of_helo, facts(name=b"bad.example"), "HELO"),
        (rhsbl.ask_of_helo, facts(name=b"[192.0.2.1]"), ""),
        (rhsbl.ask_of_helo, facts(name=b"192.0.2.1"), ""),
        (rhsbl.ask_of_helo, facts(name=b"bad"), ""),
        (rhsbl.ask_of_reverse_name, facts("192.0.2.1"), "reverse name"),
        # It does not lead back: not its name.
        (rhsbl.ask_of_reverse_name, facts("192.0.2.2"), ""),
        (rhsbl.ask_of_reverse_name, facts("192.0.2.3"), ""),
    ],
)
def test_lists_of_domains(stage: Any, known: Facts, expected: str) -> None:
    opinion, asked = opinion_of(stage, known, settings(**DOMAINS), NAMED)
    refusal = opinion.reply if opinion else None
    assert refusal == (reply.domain_listed(expected, "bad.example", "dbl.example") if expected else None)
    assert not any(name[0].isdigit() and name.endswith("dbl.example") for name in asked), (
        "an address was asked for"
    )


# --- the reverse name --------------------------------------------------------------------------------

REVERSE: Zone = {
    ("1.2.0.192.in-addr.arpa", PTR): ["Mail.Example.ORG"],
    ("mail.example.org", A): ["192.0.2.9", "192.0.2.1"],
    ("2.2.0.192.in-addr.arpa", PTR): ["liar.example.org"],
    ("liar.example.org", A): ["198.51.100.1"],
    ("3.2.0.192.in-addr.arpa", PTR): SLOW,
    ("4.2.0.192.in-addr.arpa", PTR): ["slow.example.org"],
    ("slow.example.org", A): SLOW,
    ("5.2.0.192.in-addr.arpa", PTR): ["192-0-2-5.dsl.example.net"],
    ("192-0-2-5.dsl.example.net", A): ["192.0.2.5"],
    ("6.2.0.192.in-addr.arpa", PTR): ["evil\r\nname.example", "x y.example"],
    ("7.2.0.192.in-addr.arpa", PTR): ["liar.example.org", "mail.example.org", "seven.example.org"],
    ("seven.example.org", A): ["192.0.2.7"],
    ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", PTR): ["six.example.org"],
    ("six.example.org", AAAA): ["2001:db8::1"],
}


@pytest.mark.parametrize(
    ("address", "refuse", "expected", "name", "said"),
    [
        ("192.0.2.1", ["none", "unconfirmed"], None, "mail.example.org", []),
        ("2001:db8::1", ["none", "unconfirmed"], None, "six.example.org", []),
        ("192.0.2.7", ["none", "unconfirmed"], None, "seven.example.org", []),
        ("192.0.2.200", ["none"], reply.NO_REVERSE_NAME, "", [("rdns", "none", 0)]),
        ("192.0.2.200", [], None, "", [("rdns", "none", 3)]),
        ("192.0.2.2", ["unconfirmed"], reply.REVERSE_UNCONFIRMED, "", [("rdns", "unconfirmed", 0)]),
        ("192.0.2.2", ["none"], None, "", [("rdns", "unconfirmed", 3)]),
        (
            "192.0.2.5",
            ["generic"],
            reply.REVERSE_GENERIC,
            "192-0-2-5.dsl.example.net",
            [("rdns", "generic", 0)],
        ),
        ("192.0.2.5", ["none"], None, "192-0-2-5.dsl.example.net", [("rdns", "generic", 3)]),
        # What can't be a host name gets into no header and no log.
        ("192.0.2.6", ["unconfirmed"], reply.REVERSE_UNCONFIRMED, "", [("rdns", "unconfirmed", 0)]),
        # Nothing is known, nothing is said.
        ("192.0.2.3", ["none", "unconfirmed"], None, "", []),
        ("192.0.2.4", ["none", "unconfirmed"], None, "", []),
    ],
)
def test_reverse_dns(
    address: str, refuse: list[str], expected: reply.Reply | None, name: str, said: list[Any]
) -> None:
    under = settings(reverse_dns={"mode": "enforce", "refuse": refuse, "score": 3})
    opinion, _ = opinion_of(reverse_dns.check_reverse_name, facts(address), under, REVERSE)
    assert (opinion.reply if opinion else None) == expected
    names = [effect.name for effect in opinion.effects if isinstance(effect, Name)] if opinion else []
    assert names == ([name] if name else [])
    assert tags(opinion) == said


@pytest.mark.parametrize(
    ("name", "is_generic"),
    [
        ("mail.example.org", False), ("mx1.example.org", False), ("mail-192.example.org", False),
        ("a2.example.org", False), ("192-0-2-51.example.net", True), ("51.2.0.192.example.net", True),
        ("c0000233.example.net", True), ("host192000002051.example.net", True), ("pool-7.example.net", True),
        ("p5.dip.example.net", True), ("dsl.example.net", False), ("static.example.net", False),
        ("out-0-2.example.net", False), ("mail2.cust.example.net", True),
    ],
)  # fmt: skip
def test_names_that_machines_make(name: str, is_generic: bool) -> None:
    assert reverse_dns.is_generic(name.encode(), Address("192.0.2.51")) is is_generic


def test_names_that_machines_make_of_ipv6() -> None:
    address = Address("2001:db8:1:2:3:4:567:89ab")
    assert reverse_dns.is_generic(b"2001-0db8-0001-0002-0003-0004-0567-89ab.example.net", address)
    assert not reverse_dns.is_generic(b"mail.example.net", address)


# --- HELO --------------------------------------------------------------------------------------------

HOSTS: Zone = {
    ("a.example.org", A): ["192.0.2.77"],
    ("six.example.org", AAAA): ["2001:db8::1"],
    ("mail.example.org", MX): [(1, "a.example.org")],
    ("slow.example.org", A): SLOW,
    ("slow2.example.org", MX): SLOW,
    ("empty.example.org", TXT): ["x"],
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a.example.org", ""),
        (b"a.example.org.", ""),
        (b"six.example.org", ""),
        (b"mail.example.org", ""),
        (b"with_underscore.example.org", "unresolvable"),
        (b"gone.example.org", "unresolvable"),
        (b"empty.example.org", "unresolvable"),
        (b"slow.example.org", ""),
        (b"slow2.example.org", ""),
        (b"friend", "bare"),
        (b"localhost", "bare"),
        (b"mx.example", "ours"),
        (b"[198.51.100.25]", "ours"),
        (b"[192.0.2.1]", ""),
        (b"[ipv6:2001:db8::1]", "literal"),
        (b"[192.0.2.2]", "literal"),
        (b"[192.0.2]", "syntax"),
        (b"[192.0.2.1", "syntax"),
        (b"[2001:db8::1]", "syntax"),
        (b"192.0.2.1", "syntax"),
        (b"-.example.org", "syntax"),
        (b"a..example.org", "syntax"),
        (b"(none)", "syntax"),
        (b"", "syntax"),
        ("bücher.example".encode(), "syntax"),
    ],
)
def test_helo(name: bytes, expected: str) -> None:
    under = settings(helo={"mode": "enforce"})
    found = []
    for stage in (helo.check_name, helo.check_existence):
        opinion, _ = opinion_of(stage, facts(name=name), under, HOSTS)
        if opinion is not None:
            assert opinion.verdict is Verdict.REJECT
            found += [value for _, value, _ in tags(opinion)]
    assert found == ([expected] if expected else [])


def test_helo_of_an_ipv6_client() -> None:
    known = facts("2001:db8::1", name=b"[ipv6:2001:db8:0:0::1]")
    assert opinion_of(helo.check_name, known, settings(), {}) == (None, [])


def test_a_finding_that_does_not_refuse_is_a_tag_with_a_score() -> None:
    under = settings(helo={"mode": "enforce", "refuse": ["syntax"], "score": 2})
    opinion, _ = opinion_of(helo.check_name, facts(name=b"friend"), under, {})
    assert opinion is not None
    assert (opinion.verdict, tags(opinion)) == (Verdict.PASS, [("helo", "bare", 2)])


# --- clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "is_denied"), [("192.0.2.1", False), ("198.51.100.7", True), ("2001:db8::7", True)]
)
def test_denied_clients(address: str, is_denied: bool, tmp_path: Any) -> None:
    file = tmp_path / "deny"
    file.write_text("# bad\n198.51.100.0/24\n")
    under = settings(clients={"deny": [str(file), "2001:db8::/32"]})
    opinion = clients.deny_client(facts(address), under)
    assert (opinion.reply if opinion else None) == (reply.CLIENT_DENIED if is_denied else None)


def test_allowed_clients_are_exempt(tmp_path: Any) -> None:
    file = tmp_path / "allow"
    file.write_text("198.51.100.0/24\n")
    under = settings(clients={"allow": [str(file)]}, exempt=["192.0.2.7"])
    assert Address("198.51.100.7") in under.exempt
    assert Address("192.0.2.7") in under.exempt
    assert Address("192.0.2.8") not in under.exempt


# --- the page ----------------------------------------------------------------------------------------


def test_the_page_names_every_reply_and_every_table() -> None:
    page = (pathlib.Path(__file__).parent.parent.parent / "docs/checks.md").read_text()
    said = [
        reply.CLIENT_DENIED, reply.SCORE, reply.SENDER_HAS_NO_MAIL, reply.SENDER_NULL_MX, reply.SENDER_UNKNOWN_YET,
        *helo._REPLIES.values(), *reverse_dns._REPLIES.values(), reply.HEADER_TOO_LONG, reply.EARLY_TALKER,
    ]  # fmt: skip
    assert [one for one in said if f"{one.code} {one.enhanced}" not in page] == []
    findings = {*helo._REPLIES, *reverse_dns._REPLIES}
    assert [word for word in findings if f"`{word}`" not in page] == []
    tables = [title for title, _, _ in SECTIONS if title.strip("[").startswith("policy.")]
    ours = [title for title in tables if title.strip("[]").partition(".")[2] in OURS]
    assert [title for title in ours if f"`{title}`" not in page] == []


OURS = {"dnsbl", "dnswl", "rhsbl", "mfcheck", "helo", "reverse_dns", "python"}
