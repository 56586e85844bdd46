"""Mail out of the queue to servers that others wrote: smtp-sink with each of its errors, Postfix, zones of nsd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsmtp.config.outgoing import Remote
from fastsmtp.config.routes import Source
from fastsmtp.delivery.deliverer import Deliverer
from fastsmtp.delivery.ourselves import Ours
from fastsmtp.delivery.outcome import Delivered, Failed, Retry
from fastsmtp.resolver import Resolver
from tests.authority import Authority
from tests.conftest import needs
from tests.delivering import Stored, make, route, to
from tests.fakes.real_dns import Running, authority, recursor
from tests.integration.postfix import Postfix, needs_postfix
from tests.integration.smtp_sink import SmtpSink
from tests.integration.test_deliverer import scenario, shown
from tests.mails import MAILS
from tests.nexthop import NextHop
from tests.ports import free_port

JOE = to(b"joe@example.org")


@pytest.fixture
def sink(request: pytest.FixtureRequest) -> Iterator[SmtpSink]:
    one = SmtpSink(*getattr(request, "param", ()))
    yield one
    one.stop()


@needs("smtp-sink")
@pytest.mark.parametrize(
    "sink",
    [
        (),
        ("-L",),
        ("-p",),
        ("-e",),
        ("-P",),
        ("-p", "-E", "-N", "-C", "-F"),
        ("-L", "-p"),
        ("-8",),
    ],
    ids=" ".join,
    indirect=True,
)
def test_mail_reaches_smtp_sink_as_it_was_sent(sink: SmtpSink) -> None:
    deliverer = make()

    @scenario(deliverer)
    async def _() -> None:
        mails = [
            Stored(mail, prefix=b"X-Number: %d\r\n" % at, in_file=at % 2 == 1)
            for at, mail in enumerate(MAILS.values())
        ]
        work = [deliverer.deliver(mail, JOE, sink.dest) for mail in mails]
        assert {shown(one) for one in await asyncio.gather(*work)} == {"D"}
        wanted = []
        for mail in mails:
            text = mail.whole.replace(b"\r\n", b"\n")
            wanted.append(text if text.endswith(b"\n") else text + b"\n")
        assert sorted(sink.new()) == sorted(wanted)


@needs("smtp-sink")
@pytest.mark.parametrize("sink", [("-H", "1"), ("-w", "1")], ids=" ".join, indirect=True)
def test_a_slow_server_is_waited_for(sink: SmtpSink) -> None:
    deliverer = make()

    @scenario(deliverer)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), JOE, sink.dest)) == "D"


ERRORS = [
    # options; what becomes of the message; whether it may be there
    (("-Q", "CONNECT"), Retry, False),
    (("-Q", "EHLO"), Retry, False),
    (("-Q", "MAIL"), Retry, False),
    (("-Q", "RCPT"), Retry, False),
    (("-Q", "DATA"), Retry, False),
    (("-Q", "."), Retry, False),
    (("-q", "CONNECT"), Retry, False),
    (("-q", "EHLO"), Retry, False),
    (("-q", "MAIL"), Retry, False),
    (("-q", "RCPT"), Retry, False),
    (("-q", "DATA"), Retry, False),
    (("-q", "."), Retry, True),
    (("-r", "MAIL"), Retry, False),
    (("-r", "RCPT"), Retry, False),
    (("-r", "DATA"), Retry, False),
    (("-r", "."), Retry, False),
    (("-r", "CONNECT"), Retry, False),
    (("-f", "CONNECT"), Retry, False),
    (("-f", "MAIL"), Failed, False),
    (("-f", "RCPT"), Failed, False),
    (("-f", "DATA"), Failed, False),
    (("-f", "."), Failed, False),
    (("-A", "0"), Failed, False),
    (("-B", "554 5.7.1 No", "-f", "."), Failed, False),
]


@needs("smtp-sink")
@pytest.mark.parametrize(("sink", "kind", "is_doubtful"), ERRORS, ids=str, indirect=["sink"])
def test_each_error_of_smtp_sink_is_what_it_is(sink: SmtpSink, kind: type, is_doubtful: bool) -> None:
    deliverer = make()

    @scenario(deliverer)
    async def _() -> None:
        for _ in range(2):
            for outcome in await deliverer.deliver(Stored(), to(b"a@x.example", b"b@x.example"), sink.dest):
                assert type(outcome) is kind
                if isinstance(outcome, Retry):
                    assert outcome.may_have_arrived == is_doubtful


@needs("smtp-sink")
def test_ehlo_refused_is_helo() -> None:
    sink = SmtpSink("-f", "EHLO")
    deliverer = make()

    @scenario(deliverer)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), JOE, sink.dest)) == "D"

    sink.stop()


@needs("smtp-sink")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_address_is_bound_as_smtp_sink_sees_it(host: str) -> None:
    sink = SmtpSink(host=host)
    deliverer = make()
    sources = [Source("two", "127.0.0.2", "::1"), Source("three", "127.0.0.3", "::1")]

    @scenario(deliverer)
    async def _() -> None:
        for source in sources:
            assert shown(await deliverer.deliver(Stored(), JOE, route(sink.dest, source))) == "D"
        seen = [b"ipv6:::1"] * 2 if host == "::1" else [b"127.0.0.2", b"127.0.0.3"]
        assert sorted(sink.clients()) == seen

    sink.stop()


@needs_postfix
def test_postfix_gets_it_by_chunks_and_verified_tls_from_our_address(tmp_path: Path) -> None:
    authority_ = Authority(tmp_path)
    certificate = authority_.sign("postfix.example", "127.0.0.1")
    settings = {
        "smtpd_tls_security_level": "encrypt",
        "smtpd_tls_cert_file": "", "smtpd_tls_key_file": "",
        "smtpd_tls_chain_files": "{chain}",
        "smtpd_tls_received_header": "yes",
    }  # fmt: skip
    with Postfix(mailboxes=("joe@example.org", "ann@example.org")) as plain:
        deliverer = make()

        @scenario(deliverer)
        async def _() -> None:
            dest = f"smtp://127.0.0.1:{plain.port}"
            via = route(dest, Source("three", "127.0.0.3", helo="three.home.example"))
            outcomes = await deliverer.deliver(
                Stored(b"Subject: x\r\n\r\n.dot\r\nText\r\n"),
                to(b"joe@example.org", b"nobody@example.org", b"ann@example.org", b"x@elsewhere.example"),
                via,
            )
            assert shown(outcomes) == "DFDF"
            assert isinstance(outcomes[1], Failed)
            assert outcomes[1].reply.enhanced == "5.1.1"
            big = Stored(
                b"Subject: big\r\n\r\n" + b"0123456789abcdef\r\n" * 60_000, in_file=True, piece_bytes=65_536
            )
            assert shown(await deliverer.deliver(big, JOE, via)) == "D"
            assert b"ann@example.org" in plain.wait_for_mail("ann@example.org")[0]
            small, large = sorted(plain.wait_for_mail(count=2), key=len)
            assert small.endswith(b"\n\n.dot\nText\n")
            assert large.endswith(b"0123456789abcdef\n" * 60_000)
            assert b"from three.home.example" in small
            assert "connect from unknown[127.0.0.3]" in plain.log()

    chain = Path(plain.directory.parent) / f"{plain.directory.name}-chain.pem"
    chain.write_bytes(certificate.read_bytes())
    settings = {name: value.format(chain=chain) for name, value in settings.items() if value}
    try:
        # Postfix wants the key first.
        pem = chain.read_bytes()
        at = pem.index(b"-----BEGIN PRIVATE")
        chain.write_bytes(pem[at:] + pem[:at])
        chain.chmod(0o600)
        with Postfix(settings) as safe:
            deliverer = make()

            @scenario(deliverer)
            async def __() -> None:
                dest = f"smtp://127.0.0.1:{safe.port}"
                verified = route(dest, tls="verified", ca=str(authority_.file))
                for mode in (route(dest), verified):
                    (outcome,) = await deliverer.deliver(Stored(), JOE, mode)
                    assert isinstance(outcome, Delivered)
                    assert outcome.hop is not None
                    assert outcome.hop.tls == "TLSv1.3"
                    assert outcome.hop.is_verified == (mode is verified)
                assert b"TLSv1.3" in safe.wait_for_mail(count=2)[0]
                (outcome,) = await deliverer.deliver(Stored(), JOE, route(dest, tls="off"))
                assert isinstance(outcome, Failed)
    finally:
        chain.unlink()


# --- zones ---------------------------------------------------------------------------------------------


def zone_text() -> str:
    lines = [
        "two MX 10 dead.two\ntwo MX 20 alive.two\ndead.two A 127.0.0.8\nalive.two A 127.0.0.9\nalive.two AAAA ::1",
        "implicit A 127.0.0.9",
        "known CNAME two",
        "loop MX 10 us\nloop MX 20 alive.two\nus A 127.0.0.7",
        "second MX 10 alive.two\nsecond MX 20 us\nsecond MX 30 dead.two",
        "homeless MX 10 nowhere",
    ]
    for name, count in (("mx512", 40), ("mx4096", 300)):
        lines.append(f"{name} MX 1 alive.two")
        lines += [f"{name} MX {10 + at} a-rather-long-name-of-a-server-{at}.{name}" for at in range(count)]
        lines += [f"a-rather-long-name-of-a-server-{at}.{name} A 127.0.0.8" for at in range(count)]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with authority(tmp_path_factory.mktemp("nsd"), zone_text()) as server:
        yield server


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory, nsd: Running) -> Iterator[Running]:
    with recursor(tmp_path_factory.mktemp("unbound"), nsd) as server:
        yield server


@needs("nsd", "unbound")
@pytest.mark.parametrize(
    ("domain", "became", "words"),
    [
        ("two", "D", ""),
        ("implicit", "D", ""),
        ("known", "D", ""),
        ("mx512", "D", ""),
        ("mx4096", "D", ""),
        ("second", "D", ""),
        ("loop", "F", "5.4.6"),
        ("null", "F", "5.1.10"),
        ("dangling", "F", "5.1.2"),
        ("nosuch", "F", "5.1.2"),
        ("homeless", "F", "5.4.4"),
        ("b512", "F", "5.4.4"),
        ("lame.test", "R", "4.4.3"),
    ],
)
def test_servers_are_found_in_real_zones(domain: str, became: str, words: str, unbound: Running) -> None:
    port = free_port()
    hops = [NextHop(host=host, port=port) for host in ("127.0.0.9", "::1")]

    async def test() -> None:
        resolver = Resolver([unbound.where])
        deliverer = Deliverer(
            remote=Remote(), hostname="mx.home.example", resolver=resolver, port=port,
            is_us=Ours("mx.home.example", [("127.0.0.7", port)], port=port),
        )  # fmt: skip
        try:
            name = domain if "." in domain else f"{domain}.dns.test"
            (outcome,) = await deliverer.deliver(Stored(), to(f"joe@{name}".encode()), route("mx"))
            assert shown([outcome]) == became, outcome
            if isinstance(outcome, Delivered):
                assert sum(len(hop.messages) for hop in hops) == 1
            else:
                assert outcome.reply.enhanced == words
        finally:
            await deliverer.close()
            resolver.close()

    class Nothing:
        async def close(self) -> None:
            """What is open is closed in the test itself."""

    scenario(Nothing(), *hops)(test)  # type: ignore[arg-type]
