"""The connection: greeting delay, PROXY, XCLIENT, limits, time, flow; where time matters with a clock of the test's."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp._counters import Counters
from fastsmtp.callable_sink import CallableSink
from fastsmtp.config.load import load
from fastsmtp.log import ListLog
from fastsmtp.queue.spool import Budget
from fastsmtp.smtp.service import Service
from tests.clocked import clocked, until
from tests.wire import PATIENCE_S, Inbox, connect, run, serving

HELLO = b"EHLO client.example\r\n"
MAIL = b"MAIL FROM:<a@example.org>\r\n"
RCPT = b"RCPT TO:<b@example.org>\r\n"
OPEN = MAIL + RCPT + b"DATA\r\n"
TEXT = b"text\r\n.\r\n"
STRANGERS: dict[str, Any] = {"relay": {"networks": []}}


# --- time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "replies", "passes_s", "limits", "last"),
    [
        (b"", 0, 301, {}, b"421 4.4.2 Timed out"),
        (HELLO, 1, 301, {}, b"421 4.4.2 Timed out"),
        (HELLO + MAIL, 2, 301, {}, b"421 4.4.2 Timed out"),
        (HELLO + OPEN + b"slow", 4, 31, {}, b"421 4.4.2 You send too slowly"),
        (HELLO + MAIL + RCPT + b"BDAT 1000\r\nslow", 3, 31, {}, b"421 4.4.2 You send too slowly"),
        (HELLO + MAIL, 2, 101, {"transaction_s": 100.0}, b"421 4.4.2 The transaction"),
        (HELLO, 1, 101, {"session_s": 100.0}, b"421 4.4.2 The session"),
    ],
)
def test_who_is_silent_is_sent_away_and_told_why(
    sent: bytes, replies: int, passes_s: float, limits: dict[str, Any], last: bytes
) -> None:
    async def main() -> None:
        async with clocked(limits=limits) as server:
            wire = await server.connect()
            await wire.codes(sent, replies)
            connection = next(iter(server.service.connections))
            await until(
                lambda: (
                    connection.since_s + connection.patience_s <= 1_000.0 + passes_s
                    or connection.ends_s <= 1_000.0 + passes_s
                    or connection.is_transaction_over(1_000.0 + passes_s)
                )
            )
            server.later(passes_s)
            assert (await wire.rest()).startswith(last)
            assert server.inbox.messages == []
            assert server.log.of("timeout") or server.log.of("too_slow")
            await wire.close()

    run(main)


def test_after_a_wait_of_ours_the_client_is_timed_again() -> None:
    """CallableSink answers later: behind its answer the clock runs as it did before."""

    async def main() -> None:
        async with clocked() as server:
            wire = await server.connect()
            await wire.codes(HELLO + OPEN + TEXT, 5)
            server.later(301)
            assert (await wire.rest()).startswith(b"421 4.4.2")
            await wire.close()

    run(main)


def test_a_deadline_is_for_a_whole_line_and_not_for_a_read() -> None:
    """A client that sends a byte a minute doesn't stay for ever."""

    async def main() -> None:
        async with clocked() as server:
            wire = await server.connect()
            service = server.service
            connection = next(iter(service.connections))
            for _ in range(5):
                seen = connection.bytes_in
                await wire.send(b"N")
                await until(lambda seen=seen: connection.bytes_in > seen)
                server.later(60)
            server.later(1)
            assert (await wire.rest()).startswith(b"421 4.4.2")
            await wire.close()

    run(main)


def test_who_sends_fast_enough_may_take_its_time() -> None:
    async def main() -> None:
        async with clocked(limits={"minimum_bytes_per_s": 10}) as server:
            wire = await server.connect()
            await wire.codes(HELLO + OPEN, 4)
            connection = next(iter(server.service.connections))
            for _ in range(20):
                seen = connection.bytes_in
                await wire.send(b"x" * 400 + b"\r\n")
                await until(lambda seen=seen: connection.bytes_in >= seen + 402)
                server.later(31)
            await wire.send(b".\r\n")
            assert (await wire.reply())[0] == 250
            await wire.close()

    run(main)


def test_each_message_of_a_long_session_has_its_own_transaction_time() -> None:
    async def main() -> None:
        async with clocked(limits={"transaction_s": 100.0}) as server:
            wire = await server.connect()
            await wire.codes(HELLO + OPEN, 4)
            for _ in range(7):
                await wire.codes(TEXT + OPEN, 4)
                server.later(25)
            await wire.codes(TEXT, 1)
            assert len(server.inbox.messages) == 8
            await wire.close()

    run(main)


def test_under_stress_silent_clients_make_room_and_new_ones_get_421() -> None:
    async def main() -> None:
        async with clocked(limits={"connections": 10, "connections_per_client": 0}, **STRANGERS) as server:
            wires = [await server.connect() for _ in range(10)]
            late = await connect(server.port)
            assert (await late.rest()).startswith(b"421 4.3.2")
            server.later(5)
            assert server.service.is_stressed
            busy = wires.pop()
            await busy.ask(b"NOOP")
            server.later(6)
            for wire in wires:
                assert (await wire.rest()).startswith(b"421 4.3.2")
                await wire.close()
            assert (await busy.ask(b"NOOP"))[0] == 250
            await until(lambda: len(server.service.connections) == 1)
            server.later(1)
            assert not server.service.is_stressed
            await late.close()
            await busy.close()

    run(main)


# --- the greeting ------------------------------------------------------------------------------------


def test_an_early_talker_is_refused_and_who_waits_gets_a_pass() -> None:
    listener = {"greeting_delay_s": 0.2}

    async def main() -> None:
        async with serving(listener=listener, **STRANGERS) as running:
            early = await running.connect("127.0.0.2", greet=False)
            await early.send(HELLO)
            assert (await early.rest()).startswith(b"554 5.5.1")
            refused = running.log.of("reject")
            assert [line["stage"] for line in refused] == ["early_talker"]

            patient = await running.connect("127.0.0.3")
            await patient.codes(HELLO + OPEN + TEXT, 5)
            await patient.close()
            # The pass: its greeting comes at once, so that speaking first can't be held against it.
            again = await running.connect("127.0.0.3", greet=False)
            await again.send(HELLO)
            assert [(await again.reply())[0] for _ in range(2)] == [220, 250]
            await again.close()
            await early.close()

    run(main)


@pytest.mark.parametrize("exempt", ["relay", "policy"])
def test_relay_and_exempt_clients_are_not_held(exempt: str) -> None:
    tables: dict[str, Any] = dict(STRANGERS)
    tables[exempt] = {"networks": ["127.0.0.5"]} if exempt == "relay" else {"exempt": ["127.0.0.5"]}

    async def main() -> None:
        async with serving(listener={"greeting_delay_s": 60}, **tables) as running:
            wire = await running.connect("127.0.0.5")
            assert (await wire.ask(b"NOOP"))[0] == 250
            await wire.close()

    run(main)


def test_an_early_talker_is_only_noted_where_policy_observes() -> None:
    async def main() -> None:
        tables = {"policy": {"mode": "observe"}, "listener": {"greeting_delay_s": 0.1}, **STRANGERS}
        async with serving(**tables) as running:
            wire = await running.connect(greet=False)
            await wire.send(HELLO)
            assert [(await wire.reply())[0] for _ in range(2)] == [220, 250]
            assert [line["stage"] for line in running.log.of("observe")] == ["early_talker"]
            await wire.close()

    run(main)


# --- who the client is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 25\r\n", "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 4000 25\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x0f\xa0\x00\x19",
            "192.0.2.7",
        ),
    ],
)
@pytest.mark.parametrize("cut", [1, 3, 1_000])
def test_proxy_tells_who_the_client_is(header: bytes, client: str, cut: int) -> None:
    async def main() -> None:
        async with serving(listener={"proxy_from": ["127.0.0.0/8"]}, **STRANGERS) as running:
            wire = await running.connect(greet=False)
            stream = header + HELLO
            for at in range(0, len(stream), cut):
                await wire.send(stream[at : at + cut])
                await asyncio.sleep(0)
            assert [(await wire.reply())[0] for _ in range(2)] == [220, 250]
            await wire.codes(OPEN + TEXT, 4)
            assert running.log.of("message")[0]["client"] == client
            _, _, prefix, _ = running.inbox.messages[0]
            assert client.encode() in prefix
            await wire.close()

    run(main)


def test_a_proxy_that_sends_no_header_is_refused() -> None:
    async def main() -> None:
        async with serving(listener={"proxy_from": ["127.0.0.0/8"]}) as running:
            wire = await running.connect(greet=False)
            await wire.send(HELLO)
            assert await wire.rest() in (b"", b"!")
            await until(lambda: running.log.of("proxy_refused"))
            await wire.close()

    run(main)


def test_xclient_tells_who_the_client_is_and_everything_starts_over() -> None:
    async def main() -> None:
        accept = [{"domain": ["example.org"], "deliver": "discard"}]
        async with serving(listener={"xclient_from": ["127.0.0.1"]}, accept=accept, **STRANGERS) as running:
            wire = await running.connect()
            _, offered = await wire.ask(HELLO[:-2])
            assert b"XCLIENT NAME ADDR" in offered
            assert await wire.codes(MAIL + b"RCPT TO:<b@elsewhere.example>\r\nRSET\r\n", 3) == [250, 550, 250]
            service = running.server._service
            assert service is not None
            [connection] = service.connections
            assert connection.conversation is not None
            facts = connection.conversation.facts
            assert (facts.helo, facts.refused) == (b"client.example", 1)
            assert (await wire.ask(b"XCLIENT ADDR=192.0.2.9"))[0] == 220
            assert (facts.helo, facts.refused, facts.is_extended) == (b"", 0, False)
            code, _ = await wire.ask(b"XCLIENT NAME=mail.client.example ADDR=IPV6:2001:db8::9 PORT=77 HELO=x")
            assert code == 220
            assert facts.helo == b"x"
            assert (await wire.ask(MAIL[:-2]))[0] == 503
            await wire.codes(HELLO + OPEN + TEXT, 5)
            assert running.log.of("message")[0]["client"] == "2001:db8::9"
            _, _, prefix, _ = running.inbox.messages[0]
            assert b"(mail.client.example [IPv6:2001:db8::9])" in prefix
            assert (await wire.ask(b"XCLIENT ADDR=nonsense"))[0] == 501
            await wire.close()

    run(main)


# --- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "sent", "expected"),
    [
        (
            {"messages_per_client_per_min": 2},
            MAIL + b"RSET\r\n" + MAIL + b"RSET\r\n" + MAIL,
            [250] * 4 + [450],
        ),
        ({"recipients_per_client_per_min": 2}, MAIL + RCPT * 3, [250, 250, 250, 452]),
        ({"recipients": 2}, MAIL + RCPT * 3, [250, 250, 250, 452]),
    ],
)
def test_limits_of_a_client(limits: dict[str, int], sent: bytes, expected: list[int]) -> None:
    async def main() -> None:
        async with serving(limits=limits, **STRANGERS) as running:
            wire = await running.connect()
            await wire.ask(HELLO[:-2])
            assert await wire.codes(sent, len(expected)) == expected
            await wire.close()

    run(main)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"connections_per_client": 3}, b"421 4.7.0 Too many connections"),
        ({"connections_per_client_per_min": 3}, b"421 4.7.0 You connect too often"),
    ],
)
def test_connections_of_a_client(limits: dict[str, int], reason: bytes) -> None:
    async def main() -> None:
        async with serving(limits=limits, **STRANGERS) as running:
            wires = [await running.connect("127.0.0.2") for _ in range(3)]
            refused = await running.connect("127.0.0.2", greet=False)
            assert (await refused.rest()).startswith(reason)
            other = await running.connect("127.0.0.3")
            for wire in [*wires, refused, other]:
                await wire.close()
            if "connections_per_client" in limits:
                service = running.server._service
                assert service is not None
                await until(lambda: not service.connections)
                again = await running.connect("127.0.0.2")
                await again.close()

    run(main)


def test_a_thousand_connections_leave_no_count_behind() -> None:
    async def main() -> None:
        async with serving(**STRANGERS) as running:
            service = running.server._service
            assert service is not None
            for _ in range(20):
                wires = [await running.connect() for _ in range(50)]
                for at, wire in enumerate(wires):
                    wire.abort() if at % 2 else await wire.close()
                await until(lambda: not service.connections)
            assert service.counters.connections() == 0
            wire = await running.connect()
            await wire.close()

    run(main)


# --- flow and memory ---------------------------------------------------------------------------------


def test_a_group_of_commands_gets_its_replies_in_one_write() -> None:
    async def main() -> None:
        async with serving() as running:
            wire = await running.connect()
            await wire.ask(HELLO[:-2])
            await wire.send(MAIL + RCPT * 50 + b"NOOP\r\n")
            first = await wire.reader.read(65_536)
            assert first.count(b"\r\n") == 52
            await wire.close()

    run(main)


def test_a_sink_that_is_slow_holds_the_client_back() -> None:
    """Back-pressure from the sink reaches the kernel: the client can't push a big message into our memory."""

    async def main() -> None:
        gate = asyncio.Event()
        taken = 0

        class Transaction:
            def add(self, recipient: Any) -> None:
                return None

            def begin(self, facts: Any) -> None:
                return None

            def write(self, chunk: bytes) -> Any:
                nonlocal taken
                taken += len(chunk)
                return gate.wait()

            def commit(self, prefix: bytes) -> Any:
                return reply.accepted("X")

            def abort(self) -> None:
                return None

        class Slow:
            def open(self, envelope: Any, facts: Any) -> Transaction:
                return Transaction()

            async def close(self) -> None:
                return None

        async with serving(Slow()) as running:
            wire = await running.connect()
            await wire.codes(HELLO + OPEN, 4)
            sent = 8_000_000
            wire.writer.write((b"x" * 78 + b"\r\n") * (sent // 80) + b".\r\n")
            service = running.server._service
            assert service is not None
            connection = next(iter(service.connections))
            await until(lambda: taken > 0)
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert connection.bytes_in < 400_000
            gate.set()
            assert (await wire.reply())[0] == 250
            assert taken == sent
            await wire.close()

    run(main)


def test_a_connection_that_ends_does_not_take_back_what_the_sink_has() -> None:
    """It may be durable already; its answer is waited for, and logged."""

    async def main() -> None:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        calls: list[str] = []

        class Transaction:
            def add(self, recipient: Any) -> None:
                return None

            def begin(self, facts: Any) -> None:
                return None

            def write(self, chunk: bytes) -> None:
                return None

            def commit(self, prefix: bytes) -> Any:
                calls.append("commit")
                return answer

            def abort(self) -> None:
                calls.append("abort")

        class Slow:
            def open(self, envelope: Any, facts: Any) -> Transaction:
                return Transaction()

            async def close(self) -> None:
                return None

        async with serving(Slow()) as running:
            service = running.server._service
            assert service is not None
            wire = await running.connect()
            await wire.codes(HELLO + OPEN, 4)
            await wire.send(TEXT)
            await until(lambda: bool(calls))
            [connection] = service.connections
            assert connection.raw is not None
            connection.raw.abort()
            await until(lambda: connection not in service.connections)
            answer.set_result(reply.accepted("X"))
            await until(lambda: bool(running.log.of("message")))
            assert calls == ["commit"]
            await wire.close()

    run(main)


def test_hundreds_of_half_sent_messages_stay_within_the_budget() -> None:
    """Each client has sent 20 kB of a message that never ends; bodies in memory stay below their bound."""

    async def main() -> None:
        budget = Budget(1_000_000)
        inbox = Inbox()
        async with serving(
            CallableSink(inbox, budget=budget), limits={"connections_per_client": 0}
        ) as running:
            half = (b"x" * 78 + b"\r\n") * 250
            wires = []
            service = running.server._service
            assert service is not None
            for _ in range(500):
                wire = await running.connect()
                await wire.codes(HELLO + OPEN, 4)
                await wire.send(half)
                wires.append(wire)
            await until(lambda: sum(c.bytes_in for c in service.connections) >= 500 * len(half))
            assert budget.used_bytes <= 1_000_000
            # One of them finishes all the same.
            await wires[0].send(b"end\r\n.\r\n")
            assert (await wires[0].reply())[0] == 250
            assert inbox.bodies == [half + b"end\r\n"]
            for wire in wires:
                wire.abort()
            await until(lambda: not service.connections)
            assert budget.used_bytes == 0

    run(main)


def test_out_of_descriptors_the_listener_pauses_and_goes_on() -> None:
    async def main() -> None:
        settings = load(
            values={"hostname": "mx.example", "accept": [{"domain": ["*"], "deliver": "discard"}]}
        ).settings
        log = ListLog()
        service = Service(
            settings=settings,
            log=log,
            counters=Counters(1, 1_024).region(0),
            sink=CallableSink(Inbox(), budget=Budget(1 << 20)),
            descriptors=64 + 20,
        )
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        await service.listen(0, sock)
        wires = [await connect(port) for _ in range(20)]
        for wire in wires:
            assert (await wire.reply())[0] == 220
        # The next one waits in the kernel's queue: no reset, no spinning, no greeting yet.
        waiting = await connect(port)
        assert log.of("overload")
        for wire in wires[:5]:
            await wire.close()
        await until(lambda: len(service.connections) == 15)
        service.tick()
        assert (await waiting.reply())[0] == 220
        for wire in [*wires[5:], waiting]:
            await wire.close()
        await service.close()

    run(main)


def test_who_connected_in_the_moment_of_a_reload_is_served() -> None:
    async def main() -> None:
        async with clocked() as server:
            old = await server.connect()
            server.later(10)
            fresh = await server.connect()
            draining = asyncio.ensure_future(server.service.drain(PATIENCE_S, fresh_s=5.0))
            assert (await old.rest()).startswith(b"421 4.3.2")
            await fresh.codes(HELLO + OPEN + TEXT, 5)
            server.later(1)
            assert (await fresh.rest()).startswith(b"421 4.3.2")
            await old.close()
            await fresh.close()
            await draining
            assert len(server.inbox.messages) == 1

    run(main)


def test_draining_tells_those_who_wait_for_the_greeting() -> None:
    async def main() -> None:
        async with clocked(listen=[{"greeting_delay_s": 50.0}], **STRANGERS) as server:
            waiting = await connect(server.port)
            await until(lambda: server.service.connections)
            draining = asyncio.ensure_future(server.service.drain(PATIENCE_S))
            assert (await waiting.rest()).startswith(b"421 4.3.2")
            await waiting.close()
            await draining

    run(main)


def test_draining_finishes_what_is_open_and_sends_the_idle_away() -> None:
    async def main() -> None:
        async with clocked() as server:
            idle = await server.connect()
            await idle.ask(HELLO[:-2])
            busy = await server.connect()
            await busy.codes(HELLO + OPEN, 4)
            draining = asyncio.ensure_future(server.service.drain(PATIENCE_S))
            assert (await idle.rest()).startswith(b"421 4.3.2")
            await busy.send(TEXT)
            assert (await busy.reply())[0] == 250
            server.service.tick()
            assert (await busy.ask(b"NOOP"))[0] == 250, "its QUIT may be on the way"
            server.later(1)
            assert (await busy.rest()).startswith(b"421 4.3.2")
            await idle.close()
            await busy.close()
            await draining
            assert len(server.inbox.messages) == 1

    run(main)
