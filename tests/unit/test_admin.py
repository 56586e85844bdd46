"""What shows the metrics: its pages, and what hostile clients cost it."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
import stat
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fastsmtp.admin import http
from fastsmtp.admin.exposition import Exposition, MetricsPage, bound, healthy
from fastsmtp.admin.http import Answer, Front
from fastsmtp.dns_meters import SERVER_SECONDS
from fastsmtp.errors import ConfigError
from fastsmtp.log import ListLog
from fastsmtp.metrics import Board
from fastsmtp.smtp.meters import HANDSHAKES, MESSAGE_SECONDS, OPEN

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


def filled() -> Board:
    board = Board(2)
    for number in (0, 1):
        sheet = board.sheet(number)
        OPEN.of(sheet, 'a "quoted" \\ name\n').set(2)
        HANDSHAKES.of(sheet, "mx", "ok", "TLSv1.3").inc()
        MESSAGE_SECONDS.of(sheet, "mx").observe(0.2)
        MESSAGE_SECONDS.of(sheet, "mx").observe(99.0)
        SERVER_SECONDS.of(sheet, "127.0.0.1:53").add(1_500_000)
    return board


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_a_page_is_what_others_read(accept: str, parse: Callable[[str], object]) -> None:
    answer = MetricsPage(filled(), lambda: 0.0).answer(accept)
    assert ("openmetrics" in answer.content_type) is bool(accept)
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(answer.body.decode())  # type: ignore[attr-defined]
        for sample in family.samples
    }
    assert samples["fastsmtp_connections_open", ("listener", 'a "quoted" \\ name\n')] == 4
    assert (
        samples[
            "fastsmtp_tls_handshakes_total", ("listener", "mx"), ("outcome", "ok"), ("protocol", "TLSv1.3")
        ]
        == 2
    )
    assert samples["fastsmtp_message_seconds_count", ("listener", "mx")] == 4
    assert samples["fastsmtp_message_seconds_bucket", ("le", "0.25"), ("listener", "mx")] == 2
    assert samples["fastsmtp_message_seconds_bucket", ("le", "30.0"), ("listener", "mx")] == 2
    assert samples["fastsmtp_message_seconds_sum", ("listener", "mx")] == pytest.approx(198.4)
    assert samples["fastsmtp_dns_server_seconds_total", ("server", "127.0.0.1:53")] == 3.0


def test_a_page_is_made_at_most_twice_a_second_whatever_accept_says() -> None:
    board, now = filled(), [0.0]
    page = MetricsPage(board, lambda: now[0])
    first = page.answer("")
    OPEN.of(board.sheet(0), "new")
    assert page.answer("") is first
    assert page.answer("text/html") is first
    now[0] = 0.5
    assert page.answer("").body != first.body


async def ended(server: asyncio.AbstractServer, front: Front) -> None:
    """Close all; the loop closes sockets in its next turns."""
    server.close()
    front.close()
    for _ in range(5):
        await asyncio.sleep(0)


async def said(front: Front, data: bytes, *, is_closing: bool = False) -> bytes:
    """All that a client gets to read."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(front.connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        writer.write(data)
        if is_closing:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(-1), 60)
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()
        await ended(server, front)


def pages() -> Front:
    return Front({"/metrics": lambda accept: Answer("text/x", f"[{accept}]".encode()), "/healthz": healthy})


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nACCEPT: a/b \r\n\r\n", b"200 OK", b"[a/b]"),
        (b"GET /metrics HTTP/1.0\r\nAccept: a\r\nAccept: b\r\n\r\n", b"200 OK", b"[a,b]"),
        (b"GET /metrics?name=x HTTP/1.1\r\n\r\n", b"200 OK", b"[]"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"200 OK", b"ok\n"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found", b"Not Found\n"),
        (b"GET /metrics/x HTTP/1.1\r\n\r\n", b"404 Not Found", b"Not Found\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\nhello", b"405 Method Not Allowed", b"Method Not Allowed\n"),
        (b"get /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", b"Method Not Allowed\n"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
        (b"\x16\x03\x01 \xff\0\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
        (b"EHLO x\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9_000, b"431 Request Header Fields Too Large", None),
    ],
)  # fmt: skip
def test_an_answer(request_: bytes, status: bytes, body: bytes | None) -> None:
    answer = asyncio.run(said(pages(), request_))
    head, _, found = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert b"\r\nConnection: close" in head
    assert (b"Allow: GET, HEAD" in head) is (b"405" in status)
    if body is not None:
        assert found == body
        assert b"HEAD" in request_[:4] or b"Content-Length: %d\r\n" % len(body) in head


def test_who_closes_its_side_after_asking_is_answered() -> None:
    answer = asyncio.run(said(pages(), b"GET /healthz HTTP/1.1\r\n\r\n", is_closing=True))
    assert answer.endswith(b"ok\n")


def test_who_closes_in_the_middle_is_gone() -> None:
    assert asyncio.run(said(pages(), b"GET /heal", is_closing=True)) in (b"", b"reset")


def run_against(front: Front, attack: Callable[[tuple[str, int]], Awaitable[None]]) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(front.connection, "127.0.0.1", 0)
        try:
            await attack(server.sockets[0].getsockname())
        finally:
            await ended(server, front)

    asyncio.run(main())


def test_a_newer_client_takes_the_place_of_the_oldest() -> None:
    front = pages()

    async def attack(address: tuple[str, int]) -> None:
        held = [await asyncio.open_connection(*address) for _ in range(http.MOST_CONNECTIONS + 5)]
        held[-1][1].write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await held[-1][0].read(-1)).endswith(b"ok\n")
        assert len(front.connections) <= http.MOST_CONNECTIONS
        for reader, _ in held[:5]:
            assert await reader.read(1) == b""
        for _, writer in held:
            writer.close()

    run_against(front, attack)


def test_who_is_slow_is_ended_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 0.05)
    front = pages()

    async def attack(address: tuple[str, int]) -> None:
        for request in (b"", b"GET /metr", b"GET /healthz HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(request)
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(-1), 60)
            while front.connections:
                await asyncio.sleep(0.01)
            writer.close()

    run_against(front, attack)


def test_who_goes_on_sending_is_ended() -> None:
    front = pages()

    async def attack(address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.read(-1)).endswith(b"ok\n")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x" * 65_536)
                await asyncio.wait_for(writer.drain(), 60)
                await asyncio.sleep(0)
        writer.close()

    run_against(front, attack)


# --- where it listens ---------------------------------------------------------------------------------


def test_it_binds_as_it_is_told_and_lets_go_for_good(tmp_path: pathlib.Path) -> None:
    log = ListLog()
    path = tmp_path / "metrics"
    aside = Exposition(f"unix:{path}", "fastsmtp", log)
    assert aside.descriptors == []
    aside.own(None)
    aside.own(None)
    assert log.of("listening") == [{"listener": "metrics", "address": str(path)}]
    assert len(aside.descriptors) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    aside.release()
    aside.release()
    assert not path.exists()


def test_a_socket_that_a_killed_server_left_is_taken_and_a_living_ones_is_not(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics"
    first = bound(f"unix:{path}")
    with pytest.raises(ConfigError, match="something else listens"):
        bound(f"unix:{path}")
    first.close()
    bound(f"unix:{path}").close()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_a_port_that_is_taken_is_told(listen: str) -> None:
    try:
        first = bound(listen)
    except ConfigError:
        pytest.skip("no IPv6 here")
    host, port = first.getsockname()[:2]
    with pytest.raises(ConfigError, match=r"^metrics\.listen: cannot listen on .*in use"):
        bound(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    first.close()


@pytest.mark.parametrize(
    ("listen", "user", "is_same"),
    [("127.0.0.1:1", "a", True), ("127.0.0.1:2", "a", False), ("127.0.0.1:1", "b", False)],
)
def test_a_reload_replaces_it_when_something_of_it_changed(listen: str, user: str, is_same: bool) -> None:
    running = Exposition("127.0.0.1:1", "a", ListLog())
    assert running.is_same(Exposition(listen, user, ListLog())) is is_same


def test_a_socket_pair_is_no_address() -> None:
    with pytest.raises(ConfigError):
        bound("127.0.0.1:65535" if not socket.has_ipv6 else "[::ffff:ffff:ffff:ffff:1]:1")
