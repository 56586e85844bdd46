"""TLS towards next hops: when it is used, what must hold, and that mail which must not go in clear never does."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.delivery.outcome import Delivered, Retry
from fastsmtp.log import ListLog
from tests.authority import Authority, server_context
from tests.delivering import Stored, make, route, to
from tests.fakes.zone import MX, A, Zone
from tests.integration.test_deliverer import scenario, shown
from tests.nexthop import DROP, NextHop
from tests.ports import free_port

JOE = to(b"joe@example.org")


def zone(name: str = "mx.example.org") -> Zone:
    return {("example.org", MX): [(10, name)], (name, A): ["127.0.0.2"]}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def hop_with(context: ssl.SSLContext | None, **more: Any) -> tuple[NextHop, int]:
    port = free_port()
    return NextHop(host="127.0.0.2", port=port, tls=context, **more), port


def verbs_before_tls(hop: NextHop) -> list[bytes]:
    return hop.verbs[: hop.verbs.index(b"STARTTLS")] if b"STARTTLS" in hop.verbs else hop.verbs


@pytest.mark.parametrize(
    ("mode", "is_offered", "became", "is_secure"),
    [
        ("off", True, "D", False),
        ("off", False, "D", False),
        ("opportunistic", True, "D", True),
        ("opportunistic", False, "D", False),
        ("required", True, "D", True),
        ("required", False, "R", False),
        ("verified", True, "R", False),
        ("verified", False, "R", False),
    ],
)
def test_when_tls_is_used(
    mode: str, is_offered: bool, became: str, is_secure: bool, authority: Authority, tmp_path: Path
) -> None:
    """The certificate is for another name, by a signer that nobody trusts."""
    context = server_context(authority.sign("other.example")) if is_offered else None
    hop, port = hop_with(context)
    deliverer = make(zone(), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(2):
            (outcome,) = await deliverer.deliver(Stored(), JOE, route("mx", tls=mode))
            assert shown([outcome]) == became
            if isinstance(outcome, Delivered):
                assert outcome.hop is not None
                assert outcome.hop.tls == ("TLSv1.3" if is_secure else "")
                assert bool(outcome.hop.cipher) == is_secure
                assert not outcome.hop.is_verified
            else:
                assert hop.messages == []
                assert b"MAIL" not in hop.verbs
        if became == "D":
            assert hop.secured == [is_secure] * 2
            assert hop.connections == 1


@pytest.mark.parametrize(
    ("names", "host", "is_good"),
    [
        (("mx.example.org",), "mx.example.org", True),
        (("MX.example.ORG",), "mx.example.org", True),
        (("other.example", "mx.example.org"), "mx.example.org", True),
        (("*.example.org",), "mx.example.org", True),
        (("*.example.org",), "a.mx.example.org", False),
        (("m*.example.org",), "mx.example.org", False),
        (("*.org",), "mx.example.org", False),
        (("example.org",), "mx.example.org", False),
        # The subject's name counts for nothing.
        ((), "mx.example.org", False),
    ],
)
def test_whose_certificate_is_the_right_one(
    names: tuple[str, ...], host: str, is_good: bool, authority: Authority
) -> None:
    hop, port = hop_with(server_context(authority.sign(*names, common_name="mx.example.org")))
    deliverer = make(zone(host), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(
            Stored(), JOE, route("mx", tls="verified", ca=str(authority.file))
        )
        if is_good:
            assert isinstance(outcome, Delivered)
            assert outcome.hop is not None
            assert outcome.hop.is_verified
        else:
            assert isinstance(outcome, Retry)
            assert outcome.reply.enhanced == "4.7.5"
            assert "certificate" in outcome.reason
            assert hop.messages == []


@pytest.mark.parametrize("fault", ["expired", "other signer", "no file"])
def test_what_else_is_no_right_certificate(fault: str, authority: Authority, tmp_path: Path) -> None:
    days = -1 if fault == "expired" else 30
    hop, port = hop_with(server_context(authority.sign("mx.example.org", days=days)))
    ca = {
        "expired": authority.file,
        "other signer": Authority(tmp_path, "Somebody Else").file,
        "no file": tmp_path / "absent.pem",
    }[fault]
    deliverer = make(zone(), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), JOE, route("mx", tls="verified", ca=str(ca)))
        assert isinstance(outcome, Retry)
        assert hop.messages == []


def test_what_is_wrong_with_tls_is_said_though_another_server_is_not_there_at_all(
    authority: Authority,
) -> None:
    hop, port = hop_with(None)
    both = {**zone(), ("example.org", MX): [(10, "mx.example.org"), (20, "gone.example.org")]}
    deliverer = make({**both, ("gone.example.org", A): ["127.0.0.3"]}, port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(
            Stored(), JOE, route("mx", tls="verified", ca=str(authority.file))
        )
        assert isinstance(outcome, Retry)
        assert (outcome.reason, outcome.remote) == ("does not offer STARTTLS", "mx.example.org [127.0.0.2]")


def test_a_next_hop_by_its_address_has_a_certificate_for_that(authority: Authority) -> None:
    hop, port = hop_with(server_context(authority.sign("127.0.0.2")))
    deliverer = make()

    @scenario(deliverer, hop)
    async def _() -> None:
        verified = route(f"smtp://127.0.0.2:{port}", tls="verified", ca=str(authority.file))
        assert shown(await deliverer.deliver(Stored(), JOE, verified)) == "D"


def test_a_handshake_that_fails_is_remembered_and_said(authority: Authority) -> None:
    """Only TLS 1.2 is spoken there, and that is too old for us."""
    context = server_context(authority.sign("mx.example.org"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    hop, port = hop_with(context)
    log = ListLog()
    deliverer = make(zone(), port=port, log=log, remote={"messages_per_connection": 1, "tls_minimum": "1.3"})

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(3):
            assert shown(await deliverer.deliver(Stored(), JOE, route("mx"))) == "D"
        assert hop.secured == [False] * 3
        assert hop.verbs.count(b"STARTTLS") == 1
        assert hop.connections == 4
        ((event, fields),) = log.lines
        assert (event, fields["remote"], fields["what"]) == (
            "next_hop_tls_failed", "mx.example.org [127.0.0.2]", "in clear",
        )  # fmt: skip
        # What may not go in clear asks for TLS all the same.
        for mode in ("required", "verified"):
            assert shown(await deliverer.deliver(Stored(), JOE, route("mx", tls=mode))) == "R"
        assert len(hop.messages) == 3


def test_where_the_operator_wants_it_a_failed_handshake_defers(authority: Authority) -> None:
    context = server_context(authority.sign("mx.example.org"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    hop, port = hop_with(context)
    deliverer = make(zone(), port=port, remote={"on_tls_failure": "defer", "tls_minimum": "1.3"})

    @scenario(deliverer, hop)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), JOE, route("mx"))) == "R"
        assert hop.messages == []


@pytest.mark.parametrize(
    "said", [b"454 4.7.0 Not now", b"501 5.5.4 What", b"220 go on\r\n250 injected", DROP]
)
@pytest.mark.parametrize("mode", ["opportunistic", "required"])
def test_what_a_server_may_answer_to_starttls(said: Any, mode: str, authority: Authority) -> None:
    """A refusal leaves the session in clear, where that is allowed; what was slipped in behind 220 ends it."""
    hop, port = hop_with(server_context(authority.sign("mx.example.org")), answers={b"STARTTLS": said})
    deliverer = make(zone(), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        is_refused = isinstance(said, bytes) and not said.startswith(b"220")
        is_taken = mode == "opportunistic" and is_refused
        assert shown(await deliverer.deliver(Stored(), JOE, route("mx", tls=mode))) == (
            "D" if is_taken else "R"
        )
        assert hop.secured == ([False] if is_taken else [])


def test_half_a_reply_before_the_handshake_is_forgotten_behind_it(authority: Authority) -> None:
    hop, port = hop_with(
        server_context(authority.sign("mx.example.org")),
        answers={b"STARTTLS": b"220 go on\r\n250-SIZE 1\r\n250-X"},
    )
    deliverer = make(zone(), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        (outcome,) = await deliverer.deliver(Stored(), JOE, route("mx", tls="required"))
        if isinstance(outcome, Delivered):
            assert hop.secured == [True]


def test_the_extensions_are_those_behind_the_handshake(authority: Authority) -> None:
    hop, port = hop_with(
        server_context(authority.sign("mx.example.org")),
        answers={
            b"EHLO": [
                b"250-hop\r\n250-PIPELINING\r\n250-SIZE 10\r\n250 STARTTLS",
                b"250-hop\r\n250 SIZE 9999",
            ]
        },
    )
    deliverer = make(zone(), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), JOE, route("mx"))) == "D"
        assert hop.verbs == [b"EHLO", b"STARTTLS", b"EHLO", b"MAIL", b"RCPT", b"DATA"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_on_the_next_connection(version: ssl.TLSVersion, authority: Authority) -> None:
    context = server_context(authority.sign("mx.example.org"))
    context.minimum_version = context.maximum_version = version
    hop, port = hop_with(context)
    deliverer = make(zone(), port=port, remote={"messages_per_connection": 1})

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(3):
            verified = route("mx", tls="verified", ca=str(authority.file))
            assert shown(await deliverer.deliver(Stored(), JOE, verified)) == "D"
        assert [one.session_reused for one in hop.tls_objects] == [False, True, True]


def test_our_certificate_is_shown_to_who_asks(authority: Authority) -> None:
    ours = authority.sign("mx.home.example")
    context = server_context(authority.sign("mx.example.org"), client_ca=authority.file)
    hop, port = hop_with(context)
    deliverer = make(zone(), port=port, remote={"certificate": str(ours)})

    @scenario(deliverer, hop)
    async def _() -> None:
        assert shown(await deliverer.deliver(Stored(), JOE, route("mx", tls="required"))) == "D"
        certificate = hop.tls_objects[0].getpeercert()
        assert certificate is not None
        assert certificate["subjectAltName"] == (("DNS", "mx.home.example"),)


def test_a_host_that_must_be_verified_never_hears_mail_in_clear_though_others_do(
    authority: Authority,
) -> None:
    hop, port = hop_with(None)
    deliverer = make(zone(), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(3):
            outcomes = await asyncio.gather(
                deliverer.deliver(Stored(), JOE, route("mx")),
                deliverer.deliver(Stored(), JOE, route("mx", tls="verified")),
            )
            assert [shown(one) for one in outcomes] == ["D", "R"]
        assert len(hop.messages) == 3


def test_what_is_not_safe_enough_for_one_is_no_pause_for_others(authority: Authority) -> None:
    hop, port = hop_with(server_context(authority.sign("other.example")))
    log = ListLog()
    deliverer = make(zone(), port=port, log=log, remote={"idle_s": 0.0})

    @scenario(deliverer, hop)
    async def _() -> None:
        for _ in range(3):
            assert shown(await deliverer.deliver(Stored(), JOE, route("mx", tls="verified"))) == "R"
            assert shown(await deliverer.deliver(Stored(), JOE, route("mx"))) == "D"
        assert {event for event, _ in log.lines} == {"next_hop_tls_failed"}
        assert hop.secured == [True] * 3


def test_two_kinds_of_connections_share_the_limit_and_neither_waits_for_ever(authority: Authority) -> None:
    hop, port = hop_with(server_context(authority.sign("mx.example.org")))
    deliverer = make(zone(), port=port, remote={"connections": 1, "idle_s": 60.0})

    @scenario(deliverer, hop)
    async def _() -> None:
        work = []
        for number in range(20):
            mode = "required" if number % 2 else "off"
            work.append(deliverer.deliver(Stored(), JOE, route("mx", tls=mode)))
        assert {shown(one) for one in await asyncio.gather(*work)} == {"D"}
        assert hop.most == 1
        assert sorted(hop.secured) == [False] * 10 + [True] * 10


def test_who_is_told_may_bring_mail_of_another_kind_at_once(authority: Authority) -> None:
    hop, port = hop_with(server_context(authority.sign("mx.example.org")))
    deliverer = make(zone(), port=port)

    @scenario(deliverer, hop)
    async def _() -> None:
        heard: list[object] = []
        ended = asyncio.get_running_loop().create_future()

        def again(outcomes: Any) -> None:
            heard.extend(outcomes)
            if len(heard) == 10:
                ended.set_result(None)
            else:
                mode = "required" if len(heard) % 2 else "off"
                deliverer.put(Stored(), JOE, route("mx", tls=mode), again)

        deliverer.put(Stored(), JOE, route("mx"), again)
        await ended
        assert all(isinstance(one, Delivered) for one in heard)
