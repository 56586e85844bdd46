"""The checks of qmail's patches behind a whole server: what a client reads, here and when compatible."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fastsmtp.resolver import Resolver
from tests.fakes.dns_server import DnsServer, Reply, Zone, a, dns_server, mx
from tests.wire import Running, Wire, run, serving

A, MX = 1, 15
ZONE: dict[tuple[str, int], Any] = {
    ("good.example", MX): [mx(10, "mx.good.example")],
    ("mx.good.example", A): [a("192.0.2.1")],
    ("listed.example", MX): [mx(10, "mx.good.example")],
    ("listed.example.dbl.example", A): [a("127.0.1.2")],
    ("unsure.example", MX): [mx(10, "mx.good.example")],
    ("unsure.example.dbl.example", A): Reply(rcode=2),
    ("lame.example", MX): Reply(rcode=2),
    ("null.example", MX): [mx(0, "")],
}
POLICY: dict[str, Any] = {
    "helo": {"mode": "off"}, "reverse_dns": {"mode": "off"},
    "badmailfrom": ["bad@good.example", "@bad.example", "info@"],
    "badrcptto": ["closed@example.org"],
    "denymail": ["NOBOUNCE", "DNSCHECK"],
    "rhsbl": [{"zone": "dbl.example", "of": ["mail"], "action": "reject", "tested": False}],
}  # fmt: skip


@contextlib.asynccontextmanager
async def checking(
    *,
    compatible: bool,
    policy: dict[str, Any] | None = None,
    relay: list[str] | None = None,
    zone: Zone = ZONE,
) -> AsyncIterator[tuple[Running, DnsServer]]:
    async with dns_server(zone) as dns:
        resolver = Resolver([dns.where], timeout_s=20.0)
        config: dict[str, Any] = {
            "policy": {**POLICY, **(policy or {})}, "relay": {"networks": relay or []}, "compatible": compatible,
            "accept": [{"domain": ["example.org"], "deliver": "discard"}], "dns": {"timeout_s": 20.0},
        }  # fmt: skip
        async with serving(resolver=resolver, **config) as running:
            service = running.server._service
            assert service is not None
            await service.lists.settled()
            try:
                yield running, dns
            finally:
                resolver.close()


async def dialogue(wire: Wire, *lines: bytes) -> list[bytes]:
    """What is answered to each line: the codes, without text."""
    answers = []
    for line in lines:
        code, text = await wire.ask(line)
        answers.append(b"%d %b" % (code, text.split(b" ")[0]))
    return answers


HELO = b"EHLO client.example"
GOOD = b"MAIL FROM:<a@good.example>"
RCPT = b"RCPT TO:<b@example.org>"

# Sender; what MAIL and RCPT are answered: ours, and compatible.
SENDERS = [
    (b"bad@good.example", [b"250 2.1.0", b"550 5.7.1"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"x@BAD.example", [b"250 2.1.0", b"550 5.7.1"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"INFO@good.example", [b"250 2.1.0", b"550 5.7.1"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"", [b"250 2.1.0", b"550 5.7.1"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"a@localhost", [b"250 2.1.0", b"550 5.1.7"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"a@[192.0.2.1]", [b"250 2.1.0", b"550 5.1.7"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"a@nowhere.example", [b"250 2.1.0", b"550 5.1.8"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"a@null.example", [b"250 2.1.0", b"550 5.7.27"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"a@lame.example", [b"250 2.1.0", b"451 4.4.3"], [b"451 4.3.0", b"503 5.5.1"]),
    (b"a@listed.example", [b"250 2.1.0", b"550 5.7.1"], [b"553 5.7.1", b"503 5.5.1"]),
    (b"a@unsure.example", [b"250 2.1.0", b"250 2.1.5"], [b"451 4.3.0", b"503 5.5.1"]),
    (b"a@good.example", [b"250 2.1.0", b"250 2.1.5"], [b"250 2.1.0", b"250 2.1.5"]),
]


@pytest.mark.parametrize("is_compatible", [False, True])
def test_each_sender_hears_where_and_what_it_should(is_compatible: bool) -> None:
    async def main() -> None:
        async with checking(compatible=is_compatible) as (running, _):
            for sender, ours, theirs in SENDERS:
                wire = await running.connect()
                await wire.ask(HELO)
                said = await dialogue(wire, b"MAIL FROM:<%b>" % sender, RCPT)
                assert said == (theirs if is_compatible else ours), sender
                # What was refused has left nothing: the next one is taken.
                assert await dialogue(wire, b"RSET", GOOD, RCPT) == [b"250 2.0.0", b"250 2.1.0", b"250 2.1.5"]
                await wire.close()

    run(main)


def test_a_refused_mail_leaves_no_transaction_even_where_one_was_open() -> None:
    """The patches left the older one open; the next RCPT went into it."""

    async def main() -> None:
        async with checking(compatible=True) as (running, _):
            wire = await running.connect()
            said = await dialogue(wire, HELO, GOOD, RCPT, b"MAIL FROM:<bad@good.example>", RCPT, b"DATA")
            assert said[1:] == [b"250 2.1.0", b"250 2.1.5", b"553 5.7.1", b"503 5.5.1", b"503 5.5.1"]
            assert await dialogue(wire, GOOD, RCPT) == [b"250 2.1.0", b"250 2.1.5"]
            await wire.close()

    run(main)


@pytest.mark.parametrize("is_compatible", [False, True])
def test_a_probe_can_t_tell_a_listed_recipient_from_any_other(is_compatible: bool) -> None:
    async def main() -> None:
        policy = {"badrcptto": ["closed@example.org", "@elsewhere.example", "nobody@elsewhere.example"]}
        async with checking(compatible=is_compatible, policy=policy) as (running, _):
            wire = await running.connect()
            probes = [
                b"RCPT TO:<nobody@elsewhere.example>",
                b"RCPT TO:<x@elsewhere.example>",
                b"RCPT TO:<x@a.example>",
            ]
            await dialogue(wire, HELO, GOOD)
            texts = {(await wire.ask(probe))[1].rpartition(b" (id")[0] for probe in probes}
            assert len(texts) == 1
            expected = b"553 5.7.1" if is_compatible else b"550 5.1.1"
            assert await dialogue(wire, b"RCPT TO:<Closed@Example.org>") == [expected]
            await wire.close()

    run(main)


def test_the_sender_of_double_bounces_is_as_null_as_the_null_sender() -> None:
    async def main() -> None:
        for denymail, expected in (
            ([], b"250 2.1.0"),
            (["DNSCHECK"], b"250 2.1.0"),
            (["NOBOUNCE"], b"553 5.7.1"),
        ):
            policy: dict[str, Any] = {"denymail": denymail, "mfcheck": {"mode": "enforce"}}
            async with checking(compatible=True, policy=policy) as (running, _):
                wire = await running.connect()
                assert (await dialogue(wire, HELO, b"MAIL FROM:<#@[]>"))[1] == expected
                await wire.close()

    run(main)


def test_a_relay_client_meets_the_sender_s_checks_when_compatible_and_not_those_it_is_exempt_from() -> None:
    async def main() -> None:
        local = ["127.0.0.0/8"]
        async with checking(compatible=True, relay=local, policy={"tarpit": {"after_recipients": 1}}) as (
            running,
            _,
        ):
            wire = await running.connect()
            closed = b"RCPT TO:<closed@example.org>"
            said = await dialogue(
                wire, HELO, b"MAIL FROM:<bad@good.example>", b"MAIL FROM:<a@listed.example>", closed
            )
            assert said[1:] == [b"553 5.7.1", b"250 2.1.0", b"250 2.1.5"]
            await wire.close()
        async with checking(compatible=False, relay=local) as (running, _):
            wire = await running.connect()
            said = await dialogue(wire, HELO, b"MAIL FROM:<bad@good.example>", closed)
            assert said[1:] == [b"250 2.1.0", b"250 2.1.5"]
            await wire.close()

    run(main)


def test_signatures_hold_for_relay_clients_too_when_compatible(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "signatures"
    file.write_text("TVqQAAMAA\n")

    async def main() -> None:
        for is_compatible, expected in ((True, b"552 5.3.4"), (False, b"250 2.0.0")):
            config: dict[str, Any] = {"policy": {"signatures": {"file": str(file)}}, "relay": ["127.0.0.0/8"]}
            async with checking(compatible=is_compatible, **config) as (running, _):
                wire = await running.connect()
                await dialogue(wire, HELO, GOOD, RCPT, b"DATA")
                assert await dialogue(wire, b"Subject: x\r\n\r\nTVqQAAMAAAAA\r\n.") == [expected]
                await wire.close()

    run(main)


def test_what_is_refused_at_mail_asks_the_dns_nothing() -> None:
    async def main() -> None:
        async with checking(compatible=True) as (running, dns):
            wire = await running.connect()
            await wire.ask(HELO)
            before = len(dns.queries)
            assert await dialogue(wire, b"MAIL FROM:<bad@good.example>") == [b"553 5.7.1"]
            assert len(dns.queries) == before
            await wire.close()

    run(main)


def test_observed_all_of_it_is_logged_and_nothing_refused() -> None:
    async def main() -> None:
        async with checking(compatible=False, policy={"mode": "observe"}) as (running, _):
            wire = await running.connect()
            await wire.ask(HELO)
            for sender in (b"bad@good.example", b"", b"a@localhost", b"a@nowhere.example"):
                said = await dialogue(
                    wire, b"MAIL FROM:<%b>" % sender, b"RCPT TO:<closed@example.org>", b"RSET"
                )
                assert said == [b"250 2.1.0", b"250 2.1.5", b"250 2.0.0"]
            stages = {line["stage"] for line in running.log.of("observe")}
            assert stages == {"badmailfrom", "denymail", "badrcptto"}
            await wire.close()

    run(main)
