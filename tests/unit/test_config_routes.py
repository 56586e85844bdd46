"""[[route]] and [[source]]: which rule fits whom, and what it comes to."""

from __future__ import annotations

import json
import pathlib
import random
import re
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp._parser import parse_path
from fastsmtp.address import Address
from fastsmtp.config.dest import Dest
from fastsmtp.config.flags import Flags
from fastsmtp.config.load import load
from fastsmtp.config.routes import Route, RouteTable, Routing, Rule, domain_keys, sender_keys
from fastsmtp.config.settings import Settings
from fastsmtp.config.write import as_json, effective
from fastsmtp.message import Envelope
from fastsmtp.policy import relay
from fastsmtp.policy.decision import Route as RouteEffect
from fastsmtp.policy.facts import Client, Facts
from tests.unit.config_host import FakeHost

CONFIG: dict[str, Any] = {
    "hostname": "mx.example",
    "listen": [{"name": "mx", "address": "127.0.0.1:25"}, {"name": "submit", "address": "127.0.0.1:587"}],
    "accept": [
        {"domain": ["example.org"], "deliver": "maildir:/mail"},
        {"domain": ["away.example"], "pass_client": "xforward"},
        {"domain": ["lost.example"]},
    ],
    "source": [
        {"name": "a", "ipv4": "192.0.2.10", "ipv6": "2001:db8::10", "helo": "Out-A.example."},
        {"name": "b", "ipv4": "192.0.2.11", "on_bind_failure": "next", "connections": 3, "messages_per_s": 2},
    ],
    "route": [
        {"sender": "joe@Example.org", "destination": "bücher.example", "deliver": "smtp://joe.example"},
        {"destination": ["bücher.example", ".example.net"], "deliver": "mx", "tls": "verified"},
        {"sender": ["@news.example", "@.news.example"], "sources": {"a": 1, "b": 3}, "deliver": "mx"},
        {"sender": "<>", "listener": "submit", "deliver": "smtp://bounces.example"},
        {"destination": "away.example", "deliver": "lmtp://away.example", "tls": "off"},
        {"destination": "closed.example", "deliver": "refuse"},
        {"listener": "submit", "deliver": "smtp://hub.example:587", "tls": "required"},
    ],
}


def settings(**tables: Any) -> Settings:
    return load(values={**CONFIG, **tables}, host=FakeHost()).settings[0]


@pytest.mark.parametrize(
    ("sender", "domain", "listener", "deliver"),
    [
        (b"me@a.example", b"example.org", "mx", "maildir:/mail"),
        (b"me@a.example", b"other.example", "mx", "refuse"),
        (b"Joe@example.ORG", b"xn--bcher-kva.example", "mx", "smtp://joe.example"),
        (b"joe@example.org", "bücher.example".encode(), "mx", "smtp://joe.example"),
        (b"jo@example.org", b"xn--bcher-kva.example", "mx", "mx"),
        (b"me@a.example", b"sub.example.net", "mx", "mx"),
        (b"me@a.example", b"a.sub.example.net", "mx", "mx"),
        (b"me@a.example", b"example.net", "mx", "refuse"),
        (b"x@news.example", b"other.example", "mx", "mx"),
        (b"x@a.news.example", b"other.example", "mx", "mx"),
        (b"x@badnews.example", b"other.example", "mx", "refuse"),
        (b"", b"other.example", "mx", "refuse"),
        (b"", b"other.example", "submit", "smtp://bounces.example"),
        (b"me@a.example", b"other.example", "submit", "smtp://hub.example:587"),
        (b"me@a.example", b"away.example", "mx", "lmtp://away.example"),
        (b"me@a.example", b"lost.example", "mx", "refuse"),
        (b"me@a.example", b"closed.example", "submit", "refuse"),
    ],
)
def test_the_first_rule_that_fits_wins(sender: bytes, domain: bytes, listener: str, deliver: str) -> None:
    assert settings().routing.find(sender, domain, listener).deliver == deliver


def test_a_route_brings_its_sources_and_its_tls() -> None:
    routing = settings().routing
    route = routing.find(b"x@news.example", b"other.example", "mx")
    assert route.dest == Dest("mx")
    assert route.tls == "opportunistic"
    (a, a_weight), (b, b_weight) = route.sources
    assert (a.name, a.ipv4, a.ipv6, a.helo, a_weight) == (
        "a", "192.0.2.10", "2001:db8::10", "out-a.example", 1,
    )  # fmt: skip
    assert (b.helo, b.connections, b.messages_per_s, b.may_pass_on, b_weight) == (
        "mx.example",
        3,
        2.0,
        True,
        3,
    )
    assert not a.may_pass_on
    assert routing.find(b"", b"a.example.net", "mx").tls == "verified"


def test_an_accept_without_its_own_place_keeps_what_its_next_hop_is_told() -> None:
    routing = settings().routing
    route = routing.find(b"", b"away.example", "mx")
    assert (route.deliver, route.tls, route.pass_client) == ("lmtp://away.example", "off", "xforward")
    assert routing.find(b"", b"away.example", "mx") is route


def test_mail_that_has_no_way_any_more_goes_where_it_was_to_go() -> None:
    route = settings().routing.find(b"", b"gone.example", "mx", "smtp://old.example")
    assert (route.deliver, route.dest.host) == ("smtp://old.example", "old.example")


def test_lists_may_be_files() -> None:
    host = FakeHost({"/senders": "@a.example # them\njoe@b.example\n<>\n", "/domains": ".example.net\n"})
    route = {"sender": "/senders", "destination": ["/domains"], "deliver": "mx"}
    routing = load(values={**CONFIG, "accept": [], "route": [route]}, host=host).settings[0].routing
    for sender, domain, deliver in (
        (b"x@a.example", b"x.example.net", "mx"),
        (b"JOE@b.example", b"x.example.net", "mx"),
        (b"", b"x.example.net", "mx"),
        (b"jim@b.example", b"x.example.net", "refuse"),
        (b"x@a.example", b"example.net", "refuse"),
    ):
        assert routing.find(sender, domain, "mx").deliver == deliver


def test_without_rules_it_is_the_default() -> None:
    values = {"deliver": {"default": "smtp://hub.example"}}
    routing = load(values=values, host=FakeHost()).settings[0].routing
    assert routing.find(b"a@b.example", b"c.example", "listen1").deliver == "smtp://hub.example"
    assert RouteTable().find(b"", b"c.example", "mx").dest.kind == "refuse"


def first_fit(rules: list[Rule], sender: bytes, domain: bytes, listener: str) -> Route | None:
    """What must be found, the slow and obvious way."""
    for rule in rules:
        if (
            (rule.listeners is None or listener in rule.listeners)
            and (rule.senders is None or not rule.senders.isdisjoint(sender_keys(sender.lower())))
            and (rule.destinations is None or not rule.destinations.isdisjoint(domain_keys(domain)))
        ):
            return rule.route
    return None


def test_the_table_finds_what_a_walk_would_find() -> None:
    pick = random.Random(5)
    domains = [b"a.example", b"b.example", b".example", b".a.example", b"c.d.example", b".org"]
    senders = [b"", b"x@a.example", b"@a.example", b"@.example", b"@.a.example", b"@b.example"]
    for _ in range(300):
        rules = [
            Rule(
                Route(str(number), Dest("discard")),
                frozenset(pick.sample(senders, 2)) if pick.random() < 0.5 else None,
                frozenset(pick.sample(domains, 2)) if pick.random() < 0.5 else None,
                frozenset({pick.choice("mn")}) if pick.random() < 0.3 else None,
            )
            for number in range(pick.randrange(8))
        ]
        table = RouteTable(rules)
        for _ in range(20):
            sender = pick.choice([b"", b"X@a.example", b"y@a.example", b"y@s.a.example", b"z@b.example"])
            domain = pick.choice([b"a.example", b"s.a.example", b"c.d.example", b"b.org", b"example"])
            listener = pick.choice("mn")
            assert table.find(sender, domain, listener) == (
                first_fit(rules, sender, domain, listener) or table.default
            )


@pytest.mark.parametrize(
    ("sender", "recipient", "deliver"),
    [
        (b"<x@news.example>", b"<a@other.example>", "mx"),
        (b"<Joe@example.org>", b"<a@xn--bcher-kva.example>", "smtp://joe.example"),
        (b"<>", b"<a@other.example>", None),
        (b"<x@news.example>", b"<a@lost.example>", "mx"),
        (b"<x@a.example>", b"<a@lost.example>", None),
        (b"<x@a.example>", b"<a@closed.example>", None),
    ],
)
def test_rcpt_asks_the_routes(sender: bytes, recipient: bytes, deliver: str | None) -> None:
    facts = Facts("ID", "mx", "192.0.2.25", Client(Address("127.0.0.1"), 4321))
    facts.client.may_relay = True
    for name, text in (("sender", sender), ("recipient", recipient)):
        parsed = parse_path(text, is_reverse=name == "sender")
        assert not isinstance(parsed, int)
        setattr(facts, name, parsed[0])
    facts.envelope = Envelope(b"", b"")
    decision = relay.find_recipient(facts, settings())
    assert decision is not None
    if deliver is None:
        assert decision.reply == reply.NO_RELAYING
    else:
        (effect,) = decision.effects
        assert isinstance(effect, RouteEffect)
        assert effect.deliver == deliver


def test_the_configuration_in_effect_shows_routes_that_can_be_read_again() -> None:
    loaded = load(values=CONFIG, host=FakeHost())
    text = effective(loaded.config, loaded.provenance)
    assert "sources = { a = 1, b = 3 }" in text
    again = load(None, values=None, host=FakeHost({"/etc/fastsmtp/fastsmtp.toml": text}))
    assert again.config.route == loaded.config.route
    assert again.config.source == loaded.config.source
    shown = json.loads(json.dumps(as_json(loaded.config, loaded.provenance)))
    assert shown["route[2].sources"]["value"] == {"a": 1, "b": 3}


def test_a_rule_that_hides_those_behind_it_is_named() -> None:
    values = {**CONFIG, "accept": [], "route": [{"deliver": "mx"}, {"sender": "@a.example", "deliver": "mx"}]}
    warnings = load(values=values, host=FakeHost()).warnings
    assert any("fits all mail" in warning for warning in warnings)


def test_deliver_is_where_everything_goes() -> None:
    text = '[[listen]]\nname = "mx"\n[[route]]\nsender = "@a.example"\ndeliver = "mx"\n'
    loaded = load(Flags(config="/f.toml", deliver="discard"), host=FakeHost({"/f.toml": text}))
    assert loaded.settings[0].routing.find(b"x@a.example", b"b.example", "mx").deliver == "discard"


def test_the_example_of_the_documents_is_one() -> None:
    page = (pathlib.Path(__file__).parent.parent.parent / "docs/routes.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    listen = '[[listen]]\nname = "submission"\naddress = "127.0.0.1:587"\n'
    settings = load(Flags(config="/f.toml"), host=FakeHost({"/f.toml": example + listen})).settings[0]
    for sender, domain, deliver, tls, sources in (
        (b"a@x.example", b"bank.example", "mx", "verified", []),
        (b"a@x.news.example.org", b"x.example", "mx", "opportunistic", ["bulk"]),
        (b"a@x.example", b"a.branch.example.org", "smtp://10.1.0.25", "off", []),
        (b"a@x.example", b"x.example", "mx", "opportunistic", []),
    ):
        route = settings.routing.find(sender, domain, "listen9")
        assert (route.deliver, route.tls, [one.name for one, _ in route.sources]) == (deliver, tls, sources)
    assert len(settings.routing.find(b"a@x.example", b"x.example", "submission").sources) == 2


def test_routing_of_an_own_place_is_made_once() -> None:
    routing = settings().routing
    assert isinstance(routing, Routing)
    assert routing.own("discard") is routing.own("discard")
