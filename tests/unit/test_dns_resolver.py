"""The resolver against a name server of ours on loopback: batches, cache, retries, fail-over, TCP, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pathlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from fastsmtp._dns import Engine, Port, Server
from fastsmtp.dns_servers import Options, options_of, servers_of, split_server, system_servers
from fastsmtp.errors import ConfigError
from fastsmtp.resolver import (
    MX,
    TXT,
    A,
    Answers,
    Mx,
    Question,
    Resolver,
    Status,
    make_resolver,
)
from tests.fakes.dns_server import (
    CNAME,
    SILENT,
    SOA,
    DnsServer,
    Reply,
    Zone,
    a,
    dns_server,
    mx,
    name,
    soa,
    txt,
)

ZONE: Zone = {
    ("example.org", MX): [mx(10, "mx.example.org")],
    ("mx.example.org", A): [a("192.0.2.1")],
    ("two.example.org", A): [a("192.0.2.1"), a("192.0.2.2")],
    ("silent.example.org", A): SILENT,
    ("failing.example.org", A): Reply(rcode=2),
    ("refused.example.org", A): Reply(rcode=5),
    ("brief.example.org", A): Reply(records=(("brief.example.org", A, 0, a("192.0.2.3")),)),
    ("alias.example.org", A): Reply(
        records=(
            ("alias.example.org", CNAME, 60, name("two.example.org")),
            ("two.example.org", A, 60, a("192.0.2.2")),
        )
    ),
    ("authentic.example.org", A): Reply(
        records=(("authentic.example.org", A, 60, a("192.0.2.4")),), is_authentic=True
    ),
    ("big.example.org", TXT): [txt(*[bytes([65 + i]) * 250] * 4) for i in range(12)],
    ("huge.example.org", TXT): [txt(*[bytes([65 + i]) * 250] * 10) for i in range(24)],
}
MX_QUESTION = Question(b"example.org", MX)
A_QUESTION = Question(b"mx.example.org", A)

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(main: Main) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        gc.collect()  # what was left open complains now

    return run


@asynccontextmanager
async def asking(zone: Zone = ZONE, **settings: Any) -> AsyncIterator[tuple[Resolver, DnsServer]]:
    async with dns_server(zone) as server:
        resolver = Resolver([server.where], **settings)
        try:
            yield resolver, server
        finally:
            resolver.close()


async def one(resolver: Resolver, text: bytes, type: int = A, within_s: float = 20.0) -> Any:
    return (await resolver.ask((Question(text, type),), time.monotonic() + within_s))[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed at once: for tests that are about what comes after it."""
    monkeypatch.setattr("fastsmtp.resolver.WAITS_S", (0.05, 0.05, 0.1))
    monkeypatch.setattr("fastsmtp.resolver.TICK_S", 0.01)


def test_a_batch_is_answered_in_its_order(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            answers = await resolver.ask(
                (MX_QUESTION, A_QUESTION, Question(b"no.example.org", A), MX_QUESTION)
            )
            assert [answer.status for answer in answers] == [
                Status.NOERROR, Status.NOERROR, Status.NXDOMAIN, Status.NOERROR,
            ]  # fmt: skip
            assert answers[0].records == (Mx(10, b"mx.example.org"),)
            assert answers[1].records == (a("192.0.2.1"),)
            assert answers[3] is answers[0]
            assert len(server.queries) == 3
            assert len({port for *_, port in server.queries}) == 1  # one socket a batch
            assert await resolver.ask(()) == ()

    run(main)


def test_the_cache_answers_the_second_time_and_nodata_too() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            questions = (MX_QUESTION, Question(b"no.example.org", A), Question(b"example.org", TXT))
            first = await resolver.ask(questions)
            assert resolver.put(questions, 0.0, lambda answers: None) == first
            assert first[2].status is Status.NODATA
            assert len(server.queries) == 3
            assert (resolver.engine.cache_hits, resolver.engine.cache_misses) == (3, 3)
            assert resolver.peek(MX_QUESTION) == first[0]
            assert resolver.peek(Question(b"other.example.org", A)) is None

    asyncio.run(main())


def test_an_answer_lives_for_its_ttl_only() -> None:
    now = 1_000.0

    async def main() -> None:
        nonlocal now
        async with asking(clock=lambda: now) as (resolver, server):
            assert (await one(resolver, b"mx.example.org", within_s=1e9)).ttl == 300
            now += 299.0
            assert resolver.peek(A_QUESTION) is not None
            now += 2.0
            assert resolver.peek(A_QUESTION) is None
            await one(resolver, b"mx.example.org", within_s=1e9)
            assert len(server.queries) == 2
            assert len(resolver.engine.cache) == 1
            await one(resolver, b"no.example.org", within_s=1e9)  # an SOA of 60 s
            now += 61.0
            assert resolver.peek(Question(b"no.example.org", A)) is None
            await one(resolver, b"brief.example.org", within_s=1e9)
            assert resolver.peek(Question(b"brief.example.org", A)) is None

    asyncio.run(main())


def test_a_question_on_its_way_is_joined(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            both = await asyncio.gather(
                *(resolver.ask((A_QUESTION, Question(b"two.example.org", A))) for _ in range(20))
            )
            assert len(server.queries) == 2
            assert all(answers == both[0] for answers in both)
            assert resolver.engine.joined == 38

    run(main)


def test_put_calls_back_once_and_never_from_within() -> None:
    async def main() -> None:
        async with asking() as (resolver, _):
            called: list[Answers] = []
            done = asyncio.Event()

            def answered(answers: Answers) -> None:
                called.append(answers)
                # The next questions may come from within the answer to the last.
                if len(called) == 1:
                    assert resolver.put((MX_QUESTION,), time.monotonic() + 20.0, answered) is None
                else:
                    done.set()

            assert resolver.put((A_QUESTION,), time.monotonic() + 20.0, answered) is None
            assert not called
            await done.wait()
            assert len(called) == 2

    asyncio.run(main())


def test_a_thousand_questions_in_one_batch(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with asking({("n.example", A): []}) as (resolver, server):
            questions = tuple(Question(b"x%d.example" % i, A) for i in range(1_000))
            answers = await resolver.ask(questions, time.monotonic() + 60.0)
            assert {answer.status for answer in answers} == {Status.NXDOMAIN}
            assert {text.lower() for _, text, *_ in server.queries} == {f"x{i}.example" for i in range(1_000)}

    run(main)


def test_one_packet_a_call_works_as_well() -> None:
    async def main() -> None:
        async with asking(one_by_one=True) as (resolver, _):
            answers = await resolver.ask(tuple(Question(b"x%d.example" % i, A) for i in range(100)))
            assert {answer.status for answer in answers} == {Status.NXDOMAIN}
            assert resolver.engine.answers == 100

    asyncio.run(main())


# ------------------------------------------------------------- failures


def test_the_deadline_is_an_answer(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            questions = (A_QUESTION, Question(b"silent.example.org", A))
            answers = await resolver.ask(questions, time.monotonic() + 0.15)
            assert [answer.status for answer in answers] == [Status.NOERROR, Status.TIMEOUT]
            assert answers[1].is_failed
            assert answers[1].reason == "timeout"
            assert await resolver.ask((questions[1],), time.monotonic() - 1.0) == (answers[1],)
            assert server.queries

    run(main)


@pytest.mark.usefixtures("impatient")
def test_silence_is_asked_again_from_another_id_and_in_the_end_a_timeout() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            assert (await one(resolver, b"silent.example.org")).status is Status.TIMEOUT
            assert len(server.queries) == 3
            assert len({packet[:2] for packet in server.packets}) == 3
            assert resolver.name_servers[0].timeouts == resolver.engine.timeouts == 3
            assert len(resolver.engine) == 0

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_a_lost_packet_costs_a_retry_only() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            server.mangle = lambda query, answer: [answer] if len(server.queries) > 1 else []
            assert (await one(resolver, b"mx.example.org")).records == (a("192.0.2.1"),)
            assert len(server.queries) == 2

    asyncio.run(main())


def test_what_says_nothing_of_the_name_is_shown_and_kept_for_five_seconds() -> None:
    now = 1_000.0

    async def main() -> None:
        nonlocal now
        async with asking(clock=lambda: now) as (resolver, server):
            for text, status in (
                (b"failing.example.org", Status.SERVFAIL),
                (b"refused.example.org", Status.REFUSED),
            ):
                asked = len(server.queries)
                answer = await one(resolver, text, within_s=1e9)
                assert (answer.status, answer.is_failed) == (status, True)
                assert (await one(resolver, text, within_s=1e9)).status is status
                assert len(server.queries) == asked + 1
                now += 6.0
                await one(resolver, text, within_s=1e9)
                assert len(server.queries) == asked + 2

    asyncio.run(main())


def test_a_name_that_can_not_exist_is_an_answer_too() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            answers = await resolver.ask((Question(b"a..b", A), Question(b"x" * 64, A), A_QUESTION))
            assert [answer.status for answer in answers] == [Status.BADNAME, Status.BADNAME, Status.NOERROR]
            assert len(server.queries) == 1

    asyncio.run(main())


def test_too_many_open_questions_are_turned_away() -> None:
    async def main() -> None:
        async with asking() as (resolver, _):
            questions = tuple(Question(b"x%d.silent.example" % i, A) for i in range(20_010))
            answers: list[Answers] = []
            resolver.put(questions, time.monotonic() + 0.01, answers.append)
            assert len(resolver.engine) == 20_000
            assert resolver.put((Question(b"one.more.example", A),), 1e9, answers.append) is not None

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_nobody_there_is_known_soon(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with dns_server() as server:
            where = server.where
        resolver = Resolver([where])
        answer = await one(resolver, b"mx.example.org")
        assert answer.status in (Status.UNREACHABLE, Status.TIMEOUT)
        assert len(resolver.engine) == 0
        resolver.close()

    run(main)


@pytest.mark.usefixtures("impatient")
def test_the_next_server_answers_for_one_that_is_silent_or_gone() -> None:
    async def main() -> None:
        async with dns_server() as gone:
            where = gone.where
        async with dns_server(ZONE) as silent, dns_server(ZONE, host="::1") as well:
            silent.mangle = lambda query, answer: []
            resolver = Resolver([where, silent.where, well.where])
            for i in range(6):
                answer = await one(resolver, b"x%d.example" % i)
                assert answer.status is Status.NXDOMAIN
            first, second, third = resolver.name_servers
            assert first.down_until > 0.0
            assert second.down_until > 0.0
            assert third.failures == 0
            assert third.latency_s > 0.0
            # Once both are known to be down, the third is asked at once.
            assert len(silent.queries) < len(well.queries) == 6
            resolver.close()

    asyncio.run(main())


def test_a_server_that_was_down_is_taken_back() -> None:
    now = 1_000.0

    async def main() -> None:
        nonlocal now
        async with dns_server(ZONE) as first, dns_server(ZONE) as second:
            resolver = Resolver([first.where, second.where], clock=lambda: now)
            await one(resolver, b"x.example", within_s=1e9)
            server = resolver.name_servers[0]
            server.failures, server.down_until, server.backoff_s = 3, now + 5.0, 5.0
            await one(resolver, b"y.example", within_s=1e9)
            assert (len(first.queries), len(second.queries)) == (1, 1)
            now += 6.0
            await one(resolver, b"z.example", within_s=1e9)
            assert (len(first.queries), server.failures, server.down_until) == (2, 0, 0.0)
            resolver.close()

    asyncio.run(main())


@pytest.mark.parametrize("rcode", [2, 4, 5])
def test_a_lame_server_is_passed_over(rcode: int) -> None:
    async def main() -> None:
        lame: Zone = {("mx.example.org", A): Reply(rcode=rcode)}
        async with dns_server(lame) as first, dns_server(ZONE) as second:
            resolver = Resolver([first.where, second.where])
            assert (await one(resolver, b"mx.example.org")).records == (a("192.0.2.1"),)
            assert second.queries
            resolver.close()

    asyncio.run(main())


# ------------------------------------------------------------- TCP, EDNS


def test_what_does_not_fit_comes_over_tcp(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            big, huge, again = await resolver.ask(
                (Question(b"big.example.org", TXT), Question(b"huge.example.org", TXT), MX_QUESTION),
                time.monotonic() + 20.0,
            )
            assert (len(big.records), len(huge.records), again.status) == (12, 24, Status.NOERROR)
            assert sum(map(len, huge.records[0])) == 2_500
            tcp = [query for query in server.queries if query[0] == "tcp"]
            assert len(tcp) == 2
            assert len({port for *_, port in tcp}) == 1  # one connection, pipelined
            assert resolver.name_servers[0].tcp_answers == 2
            await one(resolver, b"huge.example.org", TXT)
            assert len(server.queries) == 5

    run(main)


@pytest.mark.usefixtures("impatient")
def test_without_tcp_a_truncated_answer_fails_and_the_rest_goes_on() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            server.has_tcp = False
            big, small = await resolver.ask(
                (Question(b"big.example.org", TXT), A_QUESTION), time.monotonic() + 20.0
            )
            assert big.is_failed
            assert small.status is Status.NOERROR

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_a_tcp_answer_to_another_question_ends_the_connection() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            other = name("other.example.org")

            def mangle(query: bytes, answer: bytes) -> list[bytes]:
                if server.queries[-1][0] == "udp":
                    return [answer]
                return [answer[:12] + other + answer[12 + len(name("big.example.org")) :]]

            server.mangle = mangle
            assert (await one(resolver, b"big.example.org", TXT)).is_failed

    asyncio.run(main())


def test_a_server_without_edns_is_asked_without() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):

            def mangle(query: bytes, answer: bytes) -> list[bytes]:
                return [answer if query[10:12] == b"\0\0" else query[:2] + b"\x81\x81" + b"\0" * 8]

            server.mangle = mangle
            for i in range(5):
                assert (await one(resolver, b"x%d.example" % i)).status is Status.NXDOMAIN
            assert not resolver.name_servers[0].has_edns
            assert len(server.queries) == 3 * 2 + 2

    asyncio.run(main())


# ------------------------------------------------------------- spoofing


def test_ids_and_letters_differ_from_query_to_query() -> None:
    async def main() -> None:
        async with asking({}) as (resolver, server):
            await resolver.ask([Question(b"abcdefghijklmnop.q%d.example" % i, A) for i in range(200)])
            ids: dict[int, list[bytes]] = {}
            for (*_, port), packet in zip(server.queries, server.packets, strict=True):
                ids.setdefault(port, []).append(packet[:2])
            assert all(len(set(drawn)) == len(drawn) for drawn in ids.values())
            assert len({text[:16] for _, text, *_ in server.queries}) > 190

    asyncio.run(main())


def test_a_socket_is_retired_by_age_and_the_pool_has_several() -> None:
    now = 1_000.0

    async def main() -> None:
        nonlocal now
        async with asking(clock=lambda: now) as (resolver, server):
            for i in range(60):
                await one(resolver, b"x%d.example" % i, within_s=1e9)
            old = [port for port in resolver.name_servers[0].ports if port is not None]
            assert {port for *_, port in server.queries} == {port.socket.getsockname()[1] for port in old}
            assert 2 <= len(old) <= 8
            now += 61.0
            assert all(port.is_spent(now) for port in old)
            sent = sum(port.queries for port in old)
            for i in range(20):
                await one(resolver, b"y%d.example" % i, within_s=1e9)
            assert sum(port.queries for port in old) == sent  # none of them was used again

    asyncio.run(main())


def test_a_socket_is_retired_after_10_000_queries() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sink, socket.socket(type=socket.SOCK_DGRAM) as source:
        sink.bind(("127.0.0.1", 0))
        source.connect(sink.getsockname())
        engine = Engine(os.urandom)
        port = Port(Server("127.0.0.1"), source, 0.0)
        for block in range(10):
            questions = [Question(b"x%d.b%d.example" % (i, block), A) for i in range(1_000)]
            batch = engine.ask(questions, 1.0, 0.0, lambda answers: None)
            assert batch.fresh is not None
            assert not port.is_spent(0.0)
            engine.send(port, batch.fresh, 0.0, 1.0)
            # Silence: all ids are free to be forgotten, but none is used a second time.
            assert engine.tick(2.0) == []
        assert port.queries == 10_000
        assert port.open == len(engine) == 0
        assert port.is_spent(0.0)


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        (lambda p: bytes([p[0] ^ 0x55]) + p[1:], "forged"),  # another id
        (lambda p: p[:12] + name("forged.example") + p[12 + len(name("mx.example.org")) :], "forged"),
        (lambda p: p[:12] + p[12:].replace(b"\0\1\0\1", b"\0\x0f\0\1", 1), "forged"),  # another type
        (lambda p: p[:12] + p[12:].replace(b"\0\1\0\1", b"\0\1\0\3", 1), "forged"),  # another class
        (lambda p: p[:4] + b"\0\0" + p[6:], "forged"),  # no question
        (lambda p: p[:2] + bytes([p[2] & 0x7F]) + p[3:], "forged"),  # a query
        (lambda p: p[:11], "forged"),
    ],
)
def test_a_forged_answer_is_counted_and_the_true_one_taken(
    change: Callable[[bytes], bytes], counted: str
) -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            poison = a("203.0.113.66")
            server.mangle = lambda query, answer: [change(answer.replace(a("192.0.2.1"), poison)), answer]
            assert (await one(resolver, b"mx.example.org")).records == (a("192.0.2.1"),)
            assert getattr(resolver.engine, counted) == 1

    asyncio.run(main())


def test_an_answer_from_another_address_or_port_is_not_heard() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with asking() as (resolver, server):
            attackers = [
                (await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(host, 0)))[0]
                for host in ("127.0.0.1", "127.0.0.2")
            ]

            def mangle(query: bytes, answer: bytes) -> list[bytes]:
                for attacker in attackers:
                    attacker.sendto(answer.replace(a("192.0.2.1"), a("203.0.113.66")), server.peers[-1])
                return [answer]

            server.mangle = mangle
            assert (await one(resolver, b"mx.example.org")).records == (a("192.0.2.1"),)
            assert resolver.engine.answers == 1
            for attacker in attackers:
                attacker.close()

    asyncio.run(main())


def test_duplicates_and_late_answers_are_counted_and_dropped() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            server.mangle = lambda query, answer: [answer, answer, answer]
            await one(resolver, b"mx.example.org")
            while resolver.engine.duplicates < 2:
                await asyncio.sleep(0)
            assert (resolver.engine.late, resolver.engine.forged) == (0, 0)

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_a_late_answer_is_no_forgery() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            kept: list[bytes] = []

            def mangle(query: bytes, answer: bytes) -> list[bytes]:
                kept.append(answer)
                return (
                    []
                    if len(kept) == 1
                    else [kept[0], answer]
                    if server.peers[-1] == server.peers[0]
                    else [answer]
                )

            server.mangle = mangle
            asked = 0
            while not resolver.engine.late and asked < 50:  # until the retry takes the same socket
                kept.clear()
                server.peers.clear()
                asked += 1
                assert (await one(resolver, b"x%d.example" % asked)).status is Status.NXDOMAIN
            assert resolver.engine.late
            assert resolver.engine.forged == 0

    asyncio.run(main())


def folded(query: bytes, answer: bytes) -> list[bytes]:
    """As a server answers that keeps names in small letters."""
    end = answer.index(b"\0", 12)
    return [answer[:12] + answer[12:end].lower() + answer[end:]]


def test_other_letters_are_checked_over_tcp_where_nobody_can_forge() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            await one(resolver, b"two.example.org")
            poison = a("203.0.113.66")

            def mangle(query: bytes, answer: bytes) -> list[bytes]:
                is_udp = server.queries[-1][0] == "udp"
                return folded(query, answer.replace(a("192.0.2.1"), poison)) if is_udp else [answer]

            server.mangle = mangle
            assert (await one(resolver, b"mx.example.org")).records == (a("192.0.2.1"),)
            assert resolver.engine.case_misses == 1
            assert resolver.name_servers[0].mixes_case  # TCP shows that the server keeps the case

    asyncio.run(main())


def test_a_server_that_breaks_the_case_is_found_out_and_asked_in_small_letters() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            server.mangle = folded
            assert (await one(resolver, b"mx.example.org")).records == (a("192.0.2.1"),)
            assert not resolver.name_servers[0].mixes_case
            server.queries.clear()
            await one(resolver, b"two.example.org")
            assert server.queries[0][:3] == ("udp", "two.example.org", A)
            assert len(server.queries) == 1

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_it_is_found_out_without_tcp_as_well() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            server.mangle = folded
            server.has_tcp = False
            for i in range(6):
                answer = await one(resolver, b"somebody.x%d.example" % i)
            assert answer.status is Status.NXDOMAIN
            assert not resolver.name_servers[0].mixes_case

    asyncio.run(main())


# ------------------------------------------------------------- settings


def test_the_ad_bit_is_believed_from_loopback() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            assert (await one(resolver, b"authentic.example.org")).is_authentic
            assert not (await one(resolver, b"two.example.org")).is_authentic
            assert server.packets[0][3] == 0x20

    asyncio.run(main())


def test_whose_ad_bit_counts() -> None:
    near, far = servers_of(("127.0.0.1", "192.0.2.1"))
    assert (near.trusts_ad, far.trusts_ad) == (True, False)
    assert servers_of(("192.0.2.1",), trusts_ad=True)[0].trusts_ad


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_how_a_server_is_written(text: str, expected: tuple[str, int]) -> None:
    assert split_server(text) == expected


@pytest.mark.parametrize(
    "text", ["", "ns.example.org", "192.0.2.1:", "192.0.2.1:0", "[::1", "[::1]x", "192.0.2.1:65536"]
)
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(ConfigError):
        split_server(text)


def test_resolv_conf() -> None:
    texts, options = system_servers()
    assert texts
    assert all(split_server(text) for text in texts)
    with contextlib.suppress(OSError):
        assert options == options_of(pathlib.Path("/etc/resolv.conf").read_text())
    assert options_of("search example.org\noptions ndots:2\noptions trust-ad timeout:2\n") == Options(
        timeout_s=2.0, trusts_ad=True
    )
    assert options_of("") == Options()
    assert options_of("options rotate use-vc attempts:9 timeout:x ndots:3") == Options(
        attempts=5, is_rotated=True, uses_tcp=True
    )


def test_resolv_conf_serves_a_resolver_that_names_no_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with dns_server(ZONE) as server:
            monkeypatch.setattr(
                "fastsmtp.resolver.system_servers",
                lambda: ((server.where,), Options(uses_tcp=True, is_rotated=True, timeout_s=1.0)),
            )
            resolver = Resolver()
            assert (await one(resolver, b"mx.example.org")).records == (a("192.0.2.1"),)
            assert [query[0] for query in server.queries] == ["tcp"]
            resolver.close()

    asyncio.run(main())


def test_the_cache_is_bounded_in_bytes_and_shared_out() -> None:
    async def main() -> None:
        async with asking({}, cache_bytes=262_144, workers=4) as (resolver, _):
            cache = resolver.engine.cache
            assert cache.capacity_bytes <= 65_536
            for block in range(4):
                await resolver.ask(tuple(Question(b"x%d.b%d.example" % (i, block), A) for i in range(500)))
                assert cache.used_bytes <= cache.capacity_bytes
            assert cache.evicted > 500
            assert len(cache) + cache.evicted == 2_000
            assert resolver.peek(Question(b"x499.b3.example", A)) is not None
            assert resolver.peek(Question(b"x0.b0.example", A)) is None

    asyncio.run(main())


def test_close_answers_what_is_open() -> None:
    async def main() -> None:
        async with asking() as (resolver, _):
            waiting = asyncio.ensure_future(one(resolver, b"silent.example.org"))
            await asyncio.sleep(0)
            resolver.close()
            assert (await waiting).status is Status.TIMEOUT
            assert (await one(resolver, b"mx.example.org")).status is Status.UNREACHABLE

    asyncio.run(main())


def test_a_cancelled_question_harms_nobody() -> None:
    async def main() -> None:
        async with asking() as (resolver, server):
            server.delay_s = lambda asked: 0.05
            first = asyncio.ensure_future(one(resolver, b"mx.example.org"))
            second = asyncio.ensure_future(one(resolver, b"mx.example.org"))
            await asyncio.sleep(0)
            first.cancel()
            assert (await second).records == (a("192.0.2.1"),)
            assert first.cancelled()

    asyncio.run(main())


def test_the_second_engine_stands_in_where_the_loop_knows_no_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        asker = await asyncio.sleep(0, make_resolver(["127.0.0.1"]))
        assert isinstance(asker, Resolver)
        asker.close()

        def refuse(*arguments: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
        other = make_resolver(["127.0.0.1"], timeout_s=1.0)
        assert type(other).__name__ == "CaresResolver"
        other.close()

    asyncio.run(main())


def test_it_remembers_a_soa_question(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        async with asking({("example.org", SOA): [soa(9)]}) as (resolver, _):
            (record,) = (await one(resolver, b"example.org", SOA)).records
            assert record.minimum == 9

    run(main)
