"""The rules of tcpserver in a whole server: what a client's own rule does to its session."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes.dns_server import SILENT, Zone, a, name
from tests.integration.test_policy_server import PTR, A, checking, context, say, tls
from tests.wire import Running, Wire, run

__all__ = ["tls"]

RULES = """\
127.0.0.2:allow,RELAYCLIENT=""
127.0.0.3:deny
127.0.0.4:allow,DATABYTES="100",X="y"
127.0.0.5:allow,RBLSMTPD="-Not from there"
127.0.0.6:allow,RBLSMTPD="Come back later"
127.0.0.7:allow,DENYMAIL="NOBOUNCE"
127.0.0.8:allow,RELAYCLIENT="@gate.example.org"
=good.example.net:allow,RELAYCLIENT=""
=.evil.example:deny
=:allow,DATABYTES="200"
"""
ZONE: Zone = {
    ("20.0.0.127.in-addr.arpa", PTR): [name("good.example.net")],
    ("good.example.net", A): [a("127.0.0.20")],
    ("21.0.0.127.in-addr.arpa", PTR): [name("mail.evil.example")],
    ("mail.evil.example", A): [a("127.0.0.21")],
    # It claims a name that doesn't lead back.
    ("22.0.0.127.in-addr.arpa", PTR): [name("good.example.net")],
    ("23.0.0.127.in-addr.arpa", PTR): [name("other.example.net")],
    ("other.example.net", A): [a("127.0.0.23")],
}
OFF: dict[str, Any] = {rule: {"mode": "off"} for rule in ("mfcheck", "helo", "reverse_dns")}


@asynccontextmanager
async def ruled(folder: pathlib.Path, rules: str = RULES, **config: Any) -> AsyncIterator[Running]:
    file = folder / "tcp.smtp"
    file.write_text(rules)
    config.setdefault("compatible", True)
    config.setdefault("deliver", {"default": "discard"})
    async with checking(OFF, ZONE, tcprules=str(file), **config) as (running, _):
        yield running


async def answers(running: Running, client: str, *commands: bytes) -> list[tuple[int, bytes]]:
    wire = await running.connect(client, greet=False)
    said = [await wire.reply(), *(await say(wire, *commands))]
    await wire.close()
    return said


OURS = b"RCPT TO:<b@example.org>"
POSTMASTER = b"RCPT TO:<postmaster@example.org>"
ELSEWHERE = b"RCPT TO:<b@other.example>"


@pytest.mark.parametrize(
    ("client", "commands", "codes"),
    [
        ("127.0.0.1", (b"EHLO c", b"MAIL FROM:<>", OURS, ELSEWHERE), [220, 250, 250, 250, 553]),
        ("127.0.0.2", (b"EHLO c", b"MAIL FROM:<>", OURS, ELSEWHERE), [220, 250, 250, 250, 250]),
        ("127.0.0.4", (b"EHLO c", b"MAIL FROM:<> SIZE=101", b"MAIL FROM:<> SIZE=100"), [220, 250, 552, 250]),
        ("127.0.0.5", (b"EHLO c", b"MAIL FROM:<a@b.example>", OURS), [220, 250, 250, 553]),
        ("127.0.0.5", (b"EHLO c", b"MAIL FROM:<a@b.example>", POSTMASTER), [220, 250, 250, 250]),
        ("127.0.0.6", (b"EHLO c", b"MAIL FROM:<a@b.example>", OURS), [220, 250, 250, 451]),
        ("127.0.0.7", (b"EHLO c", b"MAIL FROM:<>", OURS), [220, 250, 553, 503]),
        ("127.0.0.7", (b"EHLO c", b"MAIL FROM:<a@b.example>", OURS), [220, 250, 250, 250]),
        ("127.0.0.20", (b"EHLO c", b"MAIL FROM:<>", ELSEWHERE), [220, 250, 250, 250]),
        ("127.0.0.22", (b"EHLO c", b"MAIL FROM:<>", ELSEWHERE), [220, 250, 250, 553]),
        ("127.0.0.23", (b"EHLO c", b"MAIL FROM:<> SIZE=201"), [220, 250, 552]),
    ],
)  # fmt: skip
def test_what_a_rule_does(
    tmp_path: pathlib.Path, client: str, commands: tuple[bytes, ...], codes: list[int]
) -> None:
    async def main() -> None:
        async with ruled(tmp_path) as running:
            assert [code for code, _ in await answers(running, client, *commands)] == codes

    run(main)


def test_who_waits_for_his_name_to_be_found_is_counted(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        file = tmp_path / "tcp.smtp"
        file.write_text("=.evil.example:deny\n")
        zone: Zone = {("30.0.0.127.in-addr.arpa", PTR): SILENT}
        config: dict[str, Any] = {"tcprules": str(file), "limits": {"connections_per_client": 2}}
        async with checking(OFF, zone, timeout_s=20.0, **config) as (running, _):
            waiting = [await running.connect("127.0.0.30", greet=False) for _ in range(2)]
            third = await running.connect("127.0.0.30", greet=False)
            assert (await third.reply())[0] == 421
            for wire in (*waiting, third):
                await wire.close()

    run(main)


@pytest.mark.parametrize(("client", "who"), [("127.0.0.3", None), ("127.0.0.21", "mail.evil.example")])
def test_a_denied_client_hears_nothing(tmp_path: pathlib.Path, client: str, who: str | None) -> None:
    async def main() -> None:
        async with ruled(tmp_path) as running:
            wire = await running.connect(client, greet=False)
            assert await wire.rest() == b""
            (line,) = running.log.of("rule_denied")
            assert line["client"] == client
            assert line.get("name") == who
            assert str(line["rule"]).startswith(str(tmp_path))
            await wire.close()

    run(main)


def test_the_size_that_is_announced_is_the_rules(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with ruled(tmp_path) as running:
            ((_, said),) = (await answers(running, "127.0.0.4", b"EHLO c"))[1:]
            assert b"SIZE 100\n" in said
            ((_, said),) = (await answers(running, "127.0.0.1", b"EHLO c"))[1:]
            assert b"SIZE 52428800\n" in said

    run(main)


def test_clients_whose_rules_say_the_same_share_their_settings(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        rules = '127.0.0.2:allow,DATABYTES="9",A="1"\n127.0.0.3:allow,DATABYTES="9",A="2"\n127.0.0.4:allow,A="3"\n'
        async with ruled(tmp_path, rules) as running:
            wires = [await running.connect(f"127.0.0.{last}") for last in (2, 3, 4, 5)]
            service = running.server._service
            assert service is not None
            found = {one.conversation.facts.client.address.text: one for one in service.connections}
            two, three, four, five = (found[f"127.0.0.{last}"] for last in (2, 3, 4, 5))
            assert two.profile is three.profile
            assert four.profile is five.profile is two.profile.base
            assert [one.conversation.facts.client.environment for one in (two, three, four, five)] == [
                {"DATABYTES": "9", "A": "1"}, {"DATABYTES": "9", "A": "2"}, {"A": "3"}, {},
            ]  # fmt: skip
            for wire in wires:
                await wire.close()

    run(main)


def test_a_recipient_gets_the_value_of_relayclient(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with ruled(tmp_path) as running:
            wire = await running.connect("127.0.0.8")
            await say(
                wire, b"EHLO c", b"MAIL FROM:<a@b.example>", b"RCPT TO:<joe@Other.Example>", OURS, b"DATA"
            )
            await wire.send(b"Subject: x\r\n\r\n.\r\n")
            assert (await wire.reply())[0] == 250
            ((_, recipients, *_),) = running.inbox.messages
            assert recipients == [b"joe@Other.Example@gate.example.org", b"b@example.org@gate.example.org"]
            await wire.close()

    run(main)


@pytest.mark.parametrize("proxied", ["127.0.0.2", "::1"])
def test_a_loopback_address_that_a_proxy_claims_relays_nothing(tmp_path: pathlib.Path, proxied: str) -> None:
    async def main() -> None:
        rules = RULES + '::1:allow,RELAYCLIENT=""\n192.0.2.9:allow,RELAYCLIENT=""\n'
        async with ruled(tmp_path, rules, listener={"proxy_from": ["127.0.0.1"]}) as running:
            for client, code in ((proxied, 553), ("192.0.2.9", 250), ("192.0.2.33", 553)):
                wire = await running.connect("127.0.0.1", greet=False)
                family = b"TCP6" if ":" in client else b"TCP4"
                local = b"::2" if ":" in client else b"192.0.2.1"
                await wire.send(b"PROXY %b %b %b 1 2\r\n" % (family, client.encode(), local))
                assert (await wire.reply())[0] == 220
                said = await say(wire, b"EHLO c", b"MAIL FROM:<>", ELSEWHERE)
                assert said[-1][0] == code, client
                await wire.close()

    run(main)


def test_xclient_brings_the_rule_of_the_new_client(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        rules = RULES + '192.0.2.9:allow,RELAYCLIENT="",DATABYTES="300"\n192.0.2.10:deny\n'
        async with ruled(tmp_path, rules, listener={"xclient_from": ["127.0.0.4"]}) as running:
            wire = await running.connect("127.0.0.4")
            said = await say(
                wire, b"EHLO c", b"XCLIENT ADDR=192.0.2.9", b"EHLO c", b"MAIL FROM:<>", ELSEWHERE, b"RSET",
                b"XCLIENT ADDR=192.0.2.11", b"EHLO c", b"MAIL FROM:<>", ELSEWHERE, b"RSET",
            )  # fmt: skip
            assert [code for code, _ in said] == [250, 220, 250, 250, 250, 250, 220, 250, 250, 553, 250]
            assert b"SIZE 100\n" in said[0][1]
            assert b"SIZE 300\n" in said[2][1]
            assert b"SIZE 52428800\n" in said[7][1]
            await wire.send(b"XCLIENT ADDR=192.0.2.10\r\n")
            assert await wire.rest() == b""
            await wire.close()

    run(main)


@pytest.mark.parametrize(
    ("client", "codes"), [("127.0.0.20", [220, 250, 250, 250]), ("127.0.0.22", [220, 250, 250, 553])]
)
def test_implicit_tls_asks_for_the_name_behind_the_handshake(
    tmp_path: pathlib.Path, tls: dict[str, str], client: str, codes: list[int]
) -> None:
    async def main() -> None:
        async with ruled(tmp_path, listener={"tls": "implicit"}, tls=tls) as running:
            wire = await over_tls(running, client)
            said = [await wire.reply(), *(await say(wire, b"EHLO c", b"MAIL FROM:<>", ELSEWHERE))]
            assert [code for code, _ in said] == codes
            await wire.close()

    run(main)


def test_implicit_tls_ends_without_a_word_for_a_denied_name(
    tmp_path: pathlib.Path, tls: dict[str, str]
) -> None:
    async def main() -> None:
        async with ruled(tmp_path, listener={"tls": "implicit"}, tls=tls) as running:
            wire = await over_tls(running, "127.0.0.21")
            assert (await wire.rest()).strip(b"!") == b""
            assert [line["name"] for line in running.log.of("rule_denied")] == ["mail.evil.example"]
            await wire.close()

    run(main)


async def over_tls(running: Running, client: str) -> Wire:
    streams = await asyncio.open_connection(
        "127.0.0.1", running.server.port, local_addr=(client, 0), ssl=context()
    )
    return Wire(*streams)
