"""The checks behind a whole server, with a name server of the test's own: what clients hear, and when."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp.certificate import self_made
from fastsmtp.policy.decision import Decision, drop
from fastsmtp.policy.facts import Facts
from fastsmtp.policy.questions import Question
from fastsmtp.resolver import Resolver
from tests.fakes.dns_server import SILENT, DnsServer, Reply, Zone, a, dns_server, mx, name, txt
from tests.wire import PATIENCE_S, Running, Wire, run, serving

A, PTR, MX, TXT = 1, 12, 15, 16
LISTED = "127.0.0.9"
CLEAN = "127.0.0.10"
SERVFAIL = Reply(rcode=2)

ZONE: dict[tuple[str, int], Any] = {
    ("example.org", MX): [mx(10, "mx.example.org")],
    ("mx.example.org", A): [a("192.0.2.1")],
    ("client.example", A): [a("192.0.2.7")],
    ("lame.example", MX): SERVFAIL,
    ("null.example", MX): [mx(0, "")],
    ("2.0.0.127.zen.example", A): [a("127.0.0.2")],
    ("9.0.0.127.zen.example", A): [a("127.0.0.10")],
    ("9.0.0.127.zen.example", TXT): [txt(b"https://zen.example/", b"9")],
    ("test.dbl.example", A): [a("127.0.1.2")],
    ("bad.example.dbl.example", A): [a("127.0.1.2")],
    ("bad.example", MX): [mx(10, "mx.example.org")],
    ("10.0.0.127.in-addr.arpa", PTR): [name("clean.example.net")],
    ("clean.example.net", A): [a(CLEAN)],
}
LISTS: dict[str, Any] = {
    "dnsbl": [{"zone": "zen.example", "reason": True}],
    "rhsbl": [{"zone": "dbl.example"}],
}


@asynccontextmanager
async def checking(
    policy: dict[str, Any],
    zone: Zone | None = None,
    *,
    tested: bool = True,
    timeout_s: float = 20.0,
    **config: Any,
) -> AsyncIterator[tuple[Running, DnsServer]]:
    """A server that knows no relay client, asks this zone, and has tested its lists."""
    async with dns_server(ZONE if zone is None else zone) as dns:
        resolver = Resolver([dns.where], timeout_s=timeout_s)
        config.setdefault("accept", [{"domain": ["example.org"], "deliver": "discard"}])
        config.setdefault("dns", {"timeout_s": timeout_s})
        async with serving(policy=policy, relay={"networks": []}, resolver=resolver, **config) as running:
            service = running.server._service
            assert service is not None
            if tested:
                await service.lists.settled()
            try:
                yield running, dns
            finally:
                resolver.close()


async def say(wire: Wire, *commands: bytes) -> list[tuple[int, bytes]]:
    return [await wire.ask(command) for command in commands]


SESSION = (b"EHLO client.example", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>")


async def send(
    wire: Wire, text: bytes = b"Subject: x\r\n\r\ntext\r\n", sender: bytes = b"a@example.org"
) -> int:
    await say(wire, b"EHLO client.example", b"MAIL FROM:<%b>" % sender, b"RCPT TO:<b@example.org>", b"DATA")
    await wire.send(text + b".\r\n")
    return (await wire.reply())[0]


@pytest.mark.parametrize(
    ("reject_at", "codes"),
    [
        ("connect", [554]),
        ("helo", [220, 550]),
        ("mail", [220, 250, 550]),
        ("rcpt", [220, 250, 250, 550]),
    ],
)
def test_a_listed_client_hears_of_it_when_the_operator_wants(reject_at: str, codes: list[int]) -> None:
    async def main() -> None:
        async with checking({**LISTS, "reject_at": reject_at}) as (running, _):
            wire = await running.connect(LISTED, greet=False)
            said = [await wire.reply(), *(await say(wire, *SESSION[: len(codes) - 1]))]
            assert [code for code, _ in said] == codes
            assert (
                b"5.7.1 Your address [127.0.0.9] is listed by zen.example: https://zen.example/9"
                in said[-1][1]
            )
            (line,) = running.log.of("reject")
            assert (line["stage"], line["client"], line["score"]) == ("dnsbl", LISTED, 10)
            if reject_at == "rcpt":
                assert (line["from"], line["rcpt"]) == (b"a@example.org", b"b@example.org")
            await wire.close()

    run(main)


def test_a_clean_client_gets_through_and_its_name_is_known() -> None:
    async def main() -> None:
        async with checking(LISTS) as (running, _):
            wire = await running.connect(CLEAN)
            assert await send(wire) == 250
            ((_, _, prefix, _),) = running.inbox.messages
            assert prefix.startswith(b"Received: from client.example (clean.example.net [127.0.0.10])\r\n")
            assert b"X-Fastsmtp-Policy" not in prefix
            assert running.log.of("message")[0]["name"] == "clean.example.net"
            await wire.close()

    run(main)


def test_the_greeting_waits_for_no_answer() -> None:
    """The name server never answers: the greeting comes all the same, and the deadline refuses nobody."""

    async def main() -> None:
        zone = {**ZONE, ("9.0.0.127.zen.example", A): SILENT, ("9.0.0.127.in-addr.arpa", PTR): SILENT}
        async with checking({**LISTS, "helo": {"mode": "off"}}, zone, timeout_s=1.0) as (running, dns):
            wire = await running.connect(LISTED)
            assert ("9.0.0.127.zen.example", A) in {
                (asked.lower(), kind) for _, asked, kind, _ in dns.queries
            }
            (connection,) = running.server._service.connections  # type: ignore[union-attr]
            assert connection.conversation.pending is not None
            assert connection.conversation.pending.decision is None
            assert await send(wire) == 250
            await wire.close()

    run(main)


@pytest.mark.parametrize(
    ("sender", "code", "text"),
    [
        (b"a@example.org", 250, b""),
        (b"", 250, b""),
        (b"a@nowhere.example", 550, b"5.1.8 "),
        (b"a@null.example", 550, b"5.7.27 "),
        (b"a@lame.example", 451, b"4.4.3 "),
        (b"a@bad.example", 550, b"5.7.1 The domain bad.example (sender) is listed by dbl.example"),
    ],
)
def test_senders(sender: bytes, code: int, text: bytes) -> None:
    async def main() -> None:
        async with checking(LISTS) as (running, _):
            wire = await running.connect(CLEAN)
            said = await say(wire, SESSION[0], b"MAIL FROM:<%b>" % sender, SESSION[2])
            assert said[1][0] == 250
            assert said[2][0] == code
            assert said[2][1].startswith(text)
            await wire.close()

    run(main)


def test_one_refused_sender_is_no_bar_to_the_next() -> None:
    async def main() -> None:
        async with checking({}) as (running, _):
            wire = await running.connect(CLEAN)
            said = await say(wire, SESSION[0], b"MAIL FROM:<a@nowhere.example>", SESSION[2], b"RSET")
            assert [code for code, _ in said] == [250, 250, 550, 250]
            assert await send(wire) == 250
            await wire.close()

    run(main)


def test_who_is_refused_can_reach_postmaster() -> None:
    async def main() -> None:
        async with checking(LISTS) as (running, _):
            wire = await running.connect(LISTED)
            said = await say(
                wire, *SESSION[:2], b"RCPT TO:<postmaster@example.org>", b"RCPT TO:<b@example.org>", b"DATA"
            )
            assert [code for code, _ in said] == [250, 250, 250, 550, 354]
            await wire.send(b"Subject: let me in\r\n\r\n.\r\n")
            assert (await wire.reply())[0] == 250
            ((_, recipients, prefix, _),) = running.inbox.messages
            assert recipients == [b"postmaster@example.org"]
            # HELO's name has no address that is the client's, and is only observed; the listing counts.
            assert b"\r\nX-Fastsmtp-Policy: score=10 dnsbl=zen.example(127.0.0.10)" in prefix
            await wire.close()

    run(main)


FOREIGN = (
    b"X-Fastsmtp-Policy: score=-100\r\nReceived: by a\r\nx-fastsmtp-policy : score=-100\r\n\tfolded\r\n"
    b"Subject: x\r\nX-FASTSMTP-POLICY: last\r\n\r\nX-Fastsmtp-Policy: in the body\r\n"
)


BIG = (b"y" * 70 + b"\r\n") * 3_000


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (FOREIGN, b"Received: by a\r\nSubject: x\r\n\r\nX-Fastsmtp-Policy: in the body\r\n"),
        (b"X-Fastsmtp-Policy: a\r\n", b""),
        (b"Subject: x\r\nX-Fastsmtp-Policy: a\r\n", b"Subject: x\r\n"),
        (b"X-Fastsmtp-Policy: a\r\n\r\n" + b"x" * 70 + b"\r\n", b"\r\n" + b"x" * 70 + b"\r\n"),
        (b"Subject: x\r\nX-Fastsmtp-Policy: a\r\n\r\n" + BIG, b"Subject: x\r\n\r\n" + BIG),
    ],
    ids=["several", "nothing else", "no body", "at the top", "spooled"],
)  # fmt: skip
def test_foreign_policy_fields_are_cut(text: bytes, left: bytes) -> None:
    async def main() -> None:
        async with checking({}) as (running, _):
            wire = await running.connect(CLEAN)
            assert await send(wire, text) == 250
            assert running.inbox.bodies == [left]
            await wire.close()

    run(main)


def test_a_relay_client_s_policy_field_stays() -> None:
    async def main() -> None:
        async with serving() as running:
            wire = await running.connect()
            assert await send(wire, FOREIGN) == 250
            assert running.inbox.bodies == [FOREIGN]
            await wire.close()

    run(main)


def test_a_header_too_long_to_be_looked_through_is_refused() -> None:
    async def main() -> None:
        async with checking({}) as (running, _):
            wire = await running.connect(CLEAN)
            text = b"X-Filler: y\r\n" * 1_200 + FOREIGN
            assert await send(wire, text) == 552
            assert running.inbox.bodies == []
            await wire.close()

    run(main)


def test_a_list_that_does_not_work_is_put_away_and_comes_back() -> None:
    async def main() -> None:
        zone = dict(ZONE)
        del zone["2.0.0.127.zen.example", A]
        async with checking({"dnsbl": LISTS["dnsbl"]}, zone) as (running, dns):
            assert running.log.of("list_quarantined")[0]["what"] == "zen.example"
            wire = await running.connect(LISTED)
            assert await send(wire) == 250
            await wire.close()
            assert not [asked for _, asked, _, _ in dns.queries if asked.lower() == "9.0.0.127.zen.example"]

    run(main)


def test_xclient_brings_another_client_with_another_standing() -> None:
    async def main() -> None:
        listener = {"xclient_from": ["127.0.0.0/8"]}
        async with checking(LISTS, listener=listener) as (running, _):
            wire = await running.connect(LISTED)
            await wire.ask(b"EHLO front.example")
            assert (await wire.ask(b"XCLIENT ADDR=127.0.0.10"))[0] == 220
            assert await send(wire) == 250
            assert running.log.of("message")[0]["name"] == "clean.example.net"
            assert (await wire.ask(b"XCLIENT ADDR=127.0.0.9"))[0] == 220
            said = await say(wire, *SESSION)
            assert said[-1][0] == 550
            await wire.close()

    run(main)


def test_a_client_that_leaves_while_its_questions_are_open() -> None:
    async def main() -> None:
        zone = {**ZONE, ("9.0.0.127.zen.example", A): SILENT}
        async with checking({**LISTS, "helo": {"mode": "off"}}, zone, timeout_s=1.0) as (running, _):
            for commands in ((), (b"EHLO client.example", b"MAIL FROM:<a@example.org>")):
                wire = await running.connect(LISTED)
                for command in commands:
                    await wire.send(command + b"\r\n")
                wire.abort()
            async with asyncio.timeout(PATIENCE_S):
                while running.server._service.connections:  # type: ignore[union-attr]
                    await asyncio.sleep(0.01)
            assert running.log.of("defect") == []

    run(main)


def test_without_a_resolver_nothing_is_asked() -> None:
    async def main() -> None:
        async with serving(relay={"networks": []}, policy=LISTS) as running:
            wire = await running.connect(LISTED)
            assert await send(wire, sender=b"a@nowhere.example") == 250
            await wire.close()

    run(main)


def test_a_pipelined_group_waits_for_its_answers_in_order() -> None:
    async def main() -> None:
        async with checking(LISTS) as (running, dns):
            dns.delay_s = lambda asked: 0.05
            wire = await running.connect(CLEAN)
            group = b"\r\n".join(
                [b"EHLO client.example", b"MAIL FROM:<a@nowhere.example>", b"RCPT TO:<b@example.org>", b"RSET",
                 b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>", b"QUIT", b""]
            )  # fmt: skip
            assert await wire.codes(group, 7) == [250, 250, 550, 250, 250, 250, 221]
            await wire.close()

    run(main)


# --- beside a handshake and a delay ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = self_made(tmp_path_factory.mktemp("tls"), "mx.example")
    folder = tmp_path_factory.mktemp("pem")
    (folder / "cert.pem").write_bytes(made.certificate)
    (folder / "key.pem").write_bytes(made.key)
    (folder / "key.pem").chmod(0o600)
    return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


@pytest.mark.parametrize(("reject_at", "codes"), [("connect", [554]), ("rcpt", [220, 250, 250, 550])])
@pytest.mark.parametrize("delay_s", [0.0, 0.3])
def test_implicit_tls_while_the_questions_are_on_their_way(
    tls: dict[str, str], reject_at: str, codes: list[int], delay_s: float
) -> None:
    async def main() -> None:
        policy = {**LISTS, "reject_at": reject_at}
        async with checking(policy, tls=tls, listener={"tls": "implicit"}) as (running, dns):
            dns.delay_s = lambda asked: delay_s if asked.startswith("9.") else 0.0
            streams = await asyncio.open_connection(
                "127.0.0.1", running.server.port, local_addr=(LISTED, 0), ssl=context()
            )
            wire = Wire(*streams)
            found = [(await wire.reply())[0]]
            found += [code for code, _ in await say(wire, *SESSION[: len(codes) - 1])]
            assert found == codes
            await wire.close()

    run(main)


def test_starttls_keeps_what_was_found_of_the_client(tls: dict[str, str]) -> None:
    async def main() -> None:
        async with checking(LISTS, tls=tls) as (running, dns):
            dns.delay_s = lambda asked: 0.3 if asked.startswith("9.") else 0.0
            wire = await running.connect(LISTED)
            await wire.ask(b"EHLO client.example")
            assert (await wire.ask(b"STARTTLS"))[0] == 220
            await wire.writer.start_tls(context())
            said = await say(wire, *SESSION)
            assert [code for code, _ in said] == [250, 250, 550]
            await wire.close()

    run(main)


@pytest.mark.parametrize(("reject_at", "codes"), [("connect", [554]), ("rcpt", [220, 250, 250, 550])])
def test_the_answers_come_while_the_greeting_is_held_back(reject_at: str, codes: list[int]) -> None:
    async def main() -> None:
        policy = {**LISTS, "reject_at": reject_at}
        async with checking(policy, listener={"greeting_delay_s": 0.3}) as (running, _):
            wire = await running.connect(LISTED, greet=False)
            found = [(await wire.reply())[0]]
            if len(codes) > 1:
                (connection,) = running.server._service.connections  # type: ignore[union-attr]
                pending = connection.conversation.pending
                assert pending is not None
                assert pending.decision is not None
            found += [code for code, _ in await say(wire, *SESSION[: len(codes) - 1])]
            assert found == codes
            await wire.close()

    run(main)


def test_limits_are_counted_for_clients_that_leave_before_an_answer() -> None:
    async def main() -> None:
        zone = {**ZONE, ("9.0.0.127.zen.example", A): SILENT}
        limits = {"connections_per_client_per_min": 2}
        async with checking(LISTS, zone, limits=limits) as (running, _):
            for _ in range(2):
                wire = await running.connect(LISTED)
                await wire.close()
            wire = await running.connect(LISTED, greet=False)
            assert (await wire.reply())[0] == 421
            await wire.close()

    run(main)


# --- a rule of one's own that drops ------------------------------------------------------------------

# Not 421, with which a session ends anyway.
DROPPED = drop(reply.Reply(554, "5.7.0", "Go away"))
COMMANDS = (*(command + b"\r\n" for command in SESSION), b"DATA\r\n", b"Subject: x\r\n\r\ntext\r\n.\r\n")


def drop_it(facts: Facts, settings: object) -> Decision:
    return DROPPED


def ask_and_drop(facts: Facts, settings: object) -> Any:
    yield (Question(b"example.org", MX),)
    return DROPPED


@pytest.mark.parametrize("at", ["helo", "mail", "rcpt", "data", "end"])
def test_who_is_dropped_hears_why_and_nothing_more(at: str) -> None:
    async def main() -> None:
        place = ["helo", "mail", "rcpt", "data", "end"].index(at)
        policy = {"mfcheck": {"mode": "off"}, "python": [{"stage": f"{__name__}:drop_it", "at": at}]}
        async with checking(policy) as (running, _):
            wire = await running.connect(CLEAN)
            for command in COMMANDS[:place]:
                await wire.codes(command, 1)
            await wire.send(COMMANDS[place] + b"NOOP\r\n")
            (last,) = (await wire.rest()).splitlines()
            assert last.startswith(b"554 5.7.0 Go away")
            await wire.close()
            assert (running.inbox.messages, running.log.of("message")) == ([], [])
            (line,) = running.log.of("reject")
            assert (line["stage"], line["code"]) == (f"{__name__}:drop_it", 554)

    run(main)


def test_who_is_dropped_by_an_answer_that_comes_later_hears_it_with_the_first_command() -> None:
    async def main() -> None:
        policy = {"python": [{"stage": f"{__name__}:ask_and_drop", "at": "connect"}]}
        async with checking(policy) as (running, _):
            wire = await running.connect(CLEAN)
            await wire.send(COMMANDS[0] + b"NOOP\r\n")
            (last,) = (await wire.rest()).splitlines()
            assert last.startswith(b"554 5.7.0 Go away")
            await wire.close()

    run(main)
