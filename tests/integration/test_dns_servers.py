"""The resolver against nsd (an authority) and unbound (a resolver) of the system."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fastsmtp.dns_cares import CaresResolver
from fastsmtp.resolver import (
    AAAA,
    CNAME,
    MX,
    PTR,
    SOA,
    SRV,
    TLSA,
    TXT,
    A,
    Answer,
    Mx,
    Question,
    Resolver,
    Srv,
    Status,
)
from tests.conftest import needs
from tests.fakes.dns_server import a
from tests.fakes.real_dns import Running, authority, recursor

pytestmark = needs("nsd", "unbound")


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with authority(tmp_path_factory.mktemp("nsd")) as server:
        yield server


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory, nsd: Running) -> Iterator[Running]:
    with recursor(tmp_path_factory.mktemp("unbound"), nsd) as server:
        yield server


@pytest.fixture(params=["nsd", "unbound"])
def where(request: pytest.FixtureRequest, nsd: Running, unbound: Running) -> str:
    return (nsd if request.param == "nsd" else unbound).where


def ask(where: str | list[str], *questions: tuple[bytes, int], within_s: float = 20.0) -> tuple[Answer, ...]:
    async def main() -> tuple[Answer, ...]:
        resolver = Resolver([where] if isinstance(where, str) else where)
        try:
            return await resolver.ask(
                [Question(*question) for question in questions], time.monotonic() + within_s
            )
        finally:
            resolver.close()

    return asyncio.run(main())


def test_records_of_every_type(where: str) -> None:
    mx, text, address, six, null, tlsa, srv, raw, caa, pointer = ask(
        where,
        (b"dns.test", MX),
        (b"dns.test", TXT),
        (b"mx1.dns.test", A),
        (b"mx1.dns.test", AAAA),
        (b"null.dns.test", MX),
        (b"_25._tcp.mx1.dns.test", TLSA),
        (b"_submission._tcp.dns.test", SRV),
        (b"raw.dns.test", 65_280),
        (b"caa.dns.test", 257),
        (b"1.2.0.dns.test", PTR),
    )
    assert sorted(mx.records) == [Mx(10, b"mx1.dns.test"), Mx(20, b"mx2.dns.test")]
    assert text.records == ((b"v=spf1 ", b"-all"),)
    assert address.records == (a("192.0.2.1"),)
    assert six.records == (a("2001:db8::1"),)
    assert null.records == (Mx(0, b""),)
    assert tlsa.records == ((3, 1, 1, b"\xab" * 32),)
    assert srv.records == (Srv(0, 1, 587, b"mx1.dns.test"),)
    assert raw.records == (b"\1\2\3\4",)
    assert caa.records == (b"\0\5issueca.example",)
    assert pointer.records == (b"host.example.net",)
    assert 0 < mx.ttl <= 300


def test_nothing_and_nowhere(where: str) -> None:
    nodata, nxdomain = ask(where, (b"mx2.dns.test", AAAA), (b"nowhere.dns.test", A))
    assert (nodata.status, nxdomain.status) == (Status.NODATA, Status.NXDOMAIN)
    assert 0 < nodata.ttl <= 60
    assert 0 < nxdomain.ttl <= 60


def test_aliases(where: str) -> None:
    alias, chain, dangling, itself = ask(
        where,
        (b"alias.dns.test", A),
        (b"chain.dns.test", A),
        (b"dangling.dns.test", A),
        (b"alias.dns.test", CNAME),
    )
    assert alias.records == chain.records == (a("192.0.2.1"),)
    assert chain.canonical_name == b"mx1.dns.test"
    assert dangling.status is Status.NXDOMAIN
    assert itself.records == (b"mx1.dns.test",)


@pytest.mark.parametrize(("name", "count"), [(b"b512", 1), (b"b1232", 2), (b"b4096", 7), (b"b50000", 66)])
def test_long_answers(where: str, name: bytes, count: int) -> None:
    (answer,) = ask(where, (name + b".dns.test", TXT))
    assert answer.status is Status.NOERROR
    assert len(answer.records) == count
    assert len(set(answer.records)) == count


def test_a_lame_delegation_is_servfail_or_refused(nsd: Running, unbound: Running) -> None:
    assert ask(nsd.where, (b"www.lame.test", A))[0].status is Status.REFUSED
    (answer,) = ask(unbound.where, (b"www.lame.test", A))
    assert (answer.status, answer.is_failed) == (Status.SERVFAIL, True)
    assert ask(unbound.where, (b"x.refused.invalid", A))[0].status is Status.REFUSED


def test_a_lame_server_is_passed_over_for_one_that_knows(nsd: Running, unbound: Running) -> None:
    (answer,) = ask([unbound.where, nsd.where], (b"x.refused.invalid", A))
    assert answer.is_failed
    (answer,) = ask([nsd.where, unbound.where], (b"localhost", A))
    assert answer.records == (a("127.0.0.1"),)  # nsd refuses, unbound knows


def test_hundreds_at_once(where: str) -> None:
    questions = [(b"x%d.dns.test" % i, A) for i in range(200)] + [(b"mx1.dns.test", A), (b"dns.test", SOA)]
    answers = ask(where, *questions, within_s=60.0)
    assert {answer.status for answer in answers[:200]} == {Status.NXDOMAIN}
    assert [answer.status for answer in answers[200:]] == [Status.NOERROR] * 2


def test_a_server_that_is_stopped_is_a_timeout_and_answers_again(tmp_path: pathlib.Path) -> None:
    import os
    import signal

    with authority(tmp_path) as server:
        serving: list[int] = []
        try:
            # nsd's processes have children of their own, and one that was told to stop may answer once more.
            while left := [pid for pid in family(server.process.pid) if not is_stopped(pid)]:
                for pid in left:
                    os.kill(pid, signal.SIGSTOP)
            serving = family(server.process.pid)
            assert ask(server.where, (b"mx1.dns.test", A), within_s=0.3)[0].status is Status.TIMEOUT
        finally:
            for pid in serving:
                os.kill(pid, signal.SIGCONT)
        assert ask(server.where, (b"mx1.dns.test", A))[0].status is Status.NOERROR


def test_both_engines_say_the_same(where: str) -> None:
    questions = [
        Question(name + b".dns.test", type)
        for name in (b"mx1", b"alias", b"chain", b"null", b"nowhere", b"b512", b"b4096", b"_25._tcp.mx1")
        for type in (A, AAAA, MX, TXT, TLSA, SOA)
    ]

    async def main() -> None:
        ours, theirs = Resolver([where]), CaresResolver([where])
        try:
            deadline = time.monotonic() + 30.0
            for our, their, question in zip(
                await ours.ask(questions, deadline),
                await theirs.ask(questions, deadline),
                questions,
                strict=True,
            ):
                assert plain(our) == plain(their), question
        finally:
            ours.close()
            theirs.close()

    asyncio.run(main())


def plain(answer: Answer) -> Any:
    """What both can tell: c-ares joins the strings of a TXT record, and the order of records is free."""
    records = [b"".join(r) if isinstance(r, tuple) and type(r) is tuple else r for r in answer.records]
    return answer.status, sorted(records)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def is_stopped(pid: int) -> bool:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
