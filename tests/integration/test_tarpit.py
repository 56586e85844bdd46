"""Replies that are held back: which, how long, and that nothing else is; with a clock of the test's."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp.certificate import make_certificate
from fastsmtp.config.rules import DELAY_MOST_S
from fastsmtp.policy.decision import Decision, Delay, passed, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.smtp.service import COMMAND_WINDOW_BYTES
from fastsmtp.tls import Credentials, ServerTls
from tests.clocked import Clocked, clocked, until
from tests.wire import PATIENCE_S, Wire, run

HELLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.org>\r\n"
NOBODY = b"RCPT TO:<nobody@elsewhere.example>\r\n"
TEXT = b"text\r\n.\r\n"
STRANGERS: dict[str, Any] = {
    "relay": {"networks": []},
    "accept": [{"domain": ["example.org"], "deliver": "discard"}],
    "policy": {"mfcheck": {"mode": "off"}},
}


def tarpit(**rule: Any) -> dict[str, Any]:
    return {**STRANGERS, "policy": {**STRANGERS["policy"], "tarpit": rule}}


async def held(server: Clocked) -> None:
    """Until a reply is held back."""
    await until(lambda: any(connection.is_held_back for connection in server.service.connections))


async def replies_after(server: Clocked, wire: Wire, delays_s: list[float]) -> list[int]:
    """The codes of so many replies, each of which comes when its delay is over, and not a moment before."""
    codes = []
    for delay_s in delays_s:
        await held(server)
        server.later(delay_s - 0.25)
        (connection,) = server.service.connections
        assert connection.is_held_back
        server.later(0.25)
        codes.append((await wire.reply())[0])
    return codes


@pytest.mark.parametrize("with_uvloop", [False, True])
def test_the_nth_recipient_itself_is_slow_and_what_was_answered_before_is_not(with_uvloop: bool) -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=3)) as server:
            wire = await server.connect()
            await wire.send(HELLO + MAIL + RCPT * 4 + b"DATA\r\n")
            assert [(await wire.reply())[0] for _ in range(4)] == [250] * 4
            assert await replies_after(server, wire, [5.0, 5.0]) == [250, 250]
            assert (await wire.reply())[0] == 354
            assert await wire.codes(TEXT, 1) == [250]
            assert len(server.inbox.messages[0][1]) == 4
            (line,) = server.log.of("held_back")
            assert (line["rcpts"], line["delay_s"], line["from"]) == (2, 5.0, b"a@example.org")
            # The next message begins at one.
            assert await wire.codes(MAIL + RCPT * 2, 3) == [250] * 3
            await wire.close()

    run(main, with_uvloop=with_uvloop)


def test_it_can_grow_with_each_recipient() -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=1, delay_s=1, step_s=2)) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL, 2)
            await wire.send(RCPT * 3)
            assert await replies_after(server, wire, [1.0, 3.0, 5.0]) == [250] * 3
            await wire.close()

    run(main)


def test_refused_recipients_count_and_are_slow() -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=3)) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL + NOBODY * 2, 4)
            await wire.send(NOBODY + RCPT)
            assert await replies_after(server, wire, [5.0, 5.0]) == [550, 250]
            # They are the session's, until a message is accepted: a new MAIL doesn't wash them off.
            await wire.codes(b"RSET\r\n" + MAIL, 2)
            await wire.send(RCPT)
            assert await replies_after(server, wire, [5.0]) == [250]
            await wire.codes(b"DATA\r\n" + TEXT + MAIL + RCPT * 2, 5)
            await wire.close()

    run(main)


def test_refused_recipients_need_not_count() -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=2, count_rejected=False)) as server:
            wire = await server.connect()
            assert await wire.codes(HELLO + MAIL + NOBODY * 3 + RCPT + NOBODY, 7) == [
                250, 250, 550, 550, 550, 250, 550
            ]  # fmt: skip
            await wire.send(RCPT)
            assert await replies_after(server, wire, [5.0]) == [250]
            # Number three would be slow, if it were accepted.
            assert await wire.codes(NOBODY, 1) == [550]
            await wire.close()

    run(main)


def test_relay_clients_are_never_slow() -> None:
    async def main() -> None:
        config = {**tarpit(after_recipients=1), "relay": {"networks": ["127.0.0.0/8"]}}
        async with clocked(**config) as server:
            wire = await server.connect()
            assert await wire.codes(HELLO + MAIL + RCPT * 5, 7) == [250] * 7
            await wire.close()

    run(main)


def test_observed_it_is_told_to_the_next_hop_and_delays_nobody() -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=2, mode="observe")) as server:
            wire = await server.connect()
            assert await wire.codes(HELLO + MAIL + RCPT * 3 + b"DATA\r\n" + TEXT, 7) == [250] * 5 + [354, 250]
            ((_, _, prefix, _),) = server.inbox.messages
            assert b"X-Fastsmtp-Policy: score=0 tarpit=2\r\n" in prefix
            (line,) = server.log.of("observe")
            assert (line["stage"], line["delay_s"]) == ("tarpit", 5.0)
            await wire.close()

    run(main)


# --- what ends a delay before its time ---------------------------------------------------------------


def test_under_stress_and_while_the_server_drains_nobody_is_held_back() -> None:
    async def main() -> None:
        for end in ("is_stressed", "is_draining"):
            async with clocked(**tarpit(after_recipients=1, delay_s=200)) as server:
                wire = await server.connect()
                await wire.codes(HELLO + MAIL, 2)
                await wire.send(RCPT)
                await held(server)
                if end == "is_stressed":
                    server.service._connections_max = 1
                else:
                    server.service.is_draining = True
                server.later(0.5)
                assert (await wire.reply())[0] == 250
                server.service.is_draining = False
                await wire.close()

    run(main)


@pytest.mark.parametrize(
    ("limits", "last"),
    [
        ({"session_s": 100.0}, b"421 4.4.2 The session"),
        ({"transaction_s": 100.0}, b"421 4.4.2 The transaction"),
    ],
)
def test_sessions_and_transactions_end_in_a_delay_too(limits: dict[str, float], last: bytes) -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=1, delay_s=200), limits=limits) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL, 2)
            await wire.send(RCPT)
            await held(server)
            server.later(101)
            assert (await wire.rest()).startswith(last)
            await wire.close()

    run(main)


def test_a_client_that_goes_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=1, delay_s=200)) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL, 2)
            await wire.send(RCPT)
            await held(server)
            wire.abort()
            # It may only have shut its side: nobody can tell before it is spoken to.
            server.later(200)
            await until(lambda: not server.service.connections)
            assert server.log.of("defect") == []

    run(main)


def test_a_client_that_has_shut_its_side_hears_the_end() -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=1)) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL, 2)
            await wire.send(RCPT)
            await held(server)
            wire.writer.write_eof()
            await asyncio.sleep(0)
            server.later(5)
            assert await wire.rest() == b"250 2.1.5 Ok\r\n"
            await wire.close()

    run(main)


# --- what a slow client costs ------------------------------------------------------------------------


def test_a_client_that_keeps_sending_is_held_by_the_kernel() -> None:
    async def main() -> None:
        async with clocked(**tarpit(after_recipients=1)) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL, 2)
            await wire.send(RCPT)
            await held(server)
            (connection,) = server.service.connections
            before = connection.bytes_in
            sending = asyncio.ensure_future(wire.send(NOBODY * 500_000))
            await until(lambda: connection.bytes_in > before)
            await asyncio.sleep(0.05)
            assert connection.bytes_in - before <= 2 * COMMAND_WINDOW_BYTES
            assert not sending.done()
            sending.cancel()
            wire.abort()

    run(main)


@pytest.fixture(scope="module")
def server_tls() -> ServerTls:
    certificate, key = make_certificate(["mx.example"], days=2)
    return ServerTls(Credentials(certificate, key, "test"))


@pytest.mark.parametrize("with_uvloop", [False, True])
def test_so_it_is_under_tls(server_tls: ServerTls, with_uvloop: bool) -> None:
    async def main() -> None:
        async with clocked(tls=server_tls, **tarpit(after_recipients=1)) as server:
            wire = await server.connect()
            await wire.codes(HELLO + b"STARTTLS\r\n", 2)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            async with asyncio.timeout(PATIENCE_S):
                await wire.writer.start_tls(context)
            await wire.codes(HELLO + MAIL, 2)
            await wire.send(RCPT)
            await held(server)
            (connection,) = server.service.connections
            before = connection.bytes_in
            sending = asyncio.ensure_future(wire.send(NOBODY * 100_000))
            await asyncio.sleep(0.1)
            # The TLS layer gives us one window, and reads no more itself (bench/load measures what that costs).
            assert connection.bytes_in - before <= 2 * COMMAND_WINDOW_BYTES
            server.later(5)
            assert (await wire.reply())[0] == 250
            sending.cancel()
            wire.abort()

    run(main, with_uvloop=with_uvloop)


# --- delays of a rule of one's own -------------------------------------------------------------------

SLOW = passed(Delay(7.0))
SLOW_NO = reject(reply.DENIED, Delay(7.0))


def slow(facts: Facts, settings: object) -> Decision:
    return SLOW


def slow_no(facts: Facts, settings: object) -> Decision:
    return SLOW_NO


def far_too_slow(facts: Facts, settings: object) -> Decision:
    return passed(Delay(10_000.0))


COMMANDS = [HELLO, MAIL, RCPT, b"DATA\r\n", TEXT]


@pytest.mark.parametrize("at", ["helo", "mail", "rcpt", "data", "end"])
@pytest.mark.parametrize("rule", ["slow", "slow_no"])
def test_every_reply_can_be_held_back(at: str, rule: str) -> None:
    async def main() -> None:
        place = ["helo", "mail", "rcpt", "data", "end"].index(at)
        policy = {
            "mfcheck": {"mode": "off"},
            "reject_at": "helo",
            "python": [{"stage": f"{__name__}:{rule}", "at": at}],
        }
        async with clocked(**{**STRANGERS, "policy": policy}) as server:
            wire = await server.connect()
            for command in COMMANDS[:place]:
                await wire.codes(command, 1)
            await wire.send(COMMANDS[place])
            expected = 550 if rule == "slow_no" else 354 if at == "data" else 250
            assert await replies_after(server, wire, [7.0]) == [expected]
            if rule == "slow_no":
                (line,) = server.log.of("reject")
                assert line.get("from") == (None if at == "helo" else b"a@example.org")
            if at == "end":
                assert len(server.inbox.messages) == (rule == "slow")
                assert len(server.log.of("message")) == (rule == "slow")
            await wire.close()

    run(main)


def test_no_reply_waits_longer_than_a_client_does() -> None:
    async def main() -> None:
        policy = {"mfcheck": {"mode": "off"}, "python": [{"stage": f"{__name__}:far_too_slow", "at": "rcpt"}]}
        async with clocked(**{**STRANGERS, "policy": policy}) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL, 2)
            await wire.send(RCPT)
            assert await replies_after(server, wire, [DELAY_MOST_S]) == [250]
            await wire.close()

    run(main)


def test_an_accepted_message_is_logged_even_if_nobody_waits_for_the_reply() -> None:
    async def main() -> None:
        policy = {"mfcheck": {"mode": "off"}, "python": [{"stage": f"{__name__}:slow", "at": "end"}]}
        async with clocked(**{**STRANGERS, "policy": policy}) as server:
            wire = await server.connect()
            await wire.codes(HELLO + MAIL + RCPT + b"DATA\r\n", 4)
            await wire.send(TEXT)
            await held(server)
            wire.abort()
            assert len(server.log.of("message")) == len(server.inbox.messages) == 1

    run(main)
