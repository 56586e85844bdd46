"""fastsmtp remote as qmail-rspawn runs it: arguments, message on descriptor 0, report, exit status."""

from __future__ import annotations

import asyncio
import pathlib
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.nexthop import DROP, NextHop
from tests.ports import free_port
from tests.programs import environment, install

SENDER, RECIPIENT = "joe@a.example", "ann@b.example"
MESSAGE = b"Subject: x\n\n.dot\nlast\n"
WIRE = b"Subject: x\r\n\r\n..dot\r\nlast\r\n"


class Case:
    """A qmail home whose smtproutes lead to a next hop."""

    def __init__(self, directory: pathlib.Path, hop: NextHop, **files: str) -> None:
        self.hop = hop
        self.home = directory / "qmail"
        self.control = self.home / "control"
        self.control.mkdir(parents=True)
        where = hop.dest.partition("://")[2]
        self.write(me="mx.a.example\n", smtproutes=f":{where}\n", **files)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.control / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    async def spawn(
        self,
        *recipients: str,
        message: bytes = MESSAGE,
        sender: str = SENDER,
        host: str = "b.example",
        program: tuple[str, ...] = (sys.executable, "-m", "fastsmtp", "remote"),
        is_pipe: bool = False,
        variables: dict[str, str] | None = None,
    ) -> bytes:
        """The report.  Standard error goes the same way, as qmail-rspawn has it."""
        path = self.home / "message"
        path.write_bytes(message)
        with path.open("rb") as file:
            child = await asyncio.create_subprocess_exec(
                *program, host, sender, *(recipients or (RECIPIENT,)),
                stdin=asyncio.subprocess.PIPE if is_pipe else file,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd="/",
                env=environment() | {"QMAILHOME": str(self.home)} | (variables or {}),
            )  # fmt: skip
            said, _ = await child.communicate(message if is_pipe else None)
        assert child.returncode == 0
        assert said.endswith(b"\0")
        return said


def verdict(report: bytes) -> str:
    """What qmail-rspawn makes of a report for one recipient: delivered, deferred or bounced."""
    parts = report.split(b"\0")[:-1]
    if parts[0][:1] == b"s":
        return "deferred"
    if parts[0][:1] == b"h":
        return "bounced"
    return {b"K": "delivered", b"Z": "deferred", b"D": "bounced"}[parts[-1][:1]]


def run(
    directory: pathlib.Path,
    scenario: Callable[[Case], Awaitable[None]],
    files: dict[str, str] | None = None,
    **hop: Any,
) -> None:
    async def whole() -> None:
        async with NextHop(**hop) as next_hop:
            await scenario(Case(directory, next_hop, **(files or {})))

    asyncio.run(whole())


@pytest.mark.parametrize("is_pipe", [False, True])
def test_a_message_is_delivered_and_the_report_is_qmail_remote_s(
    tmp_path: pathlib.Path, is_pipe: bool
) -> None:
    async def scenario(case: Case) -> None:
        said = await case.spawn(is_pipe=is_pipe)
        assert said == (b"r\0K[127.0.0.1] accepted message.\nRemote host said: 2.0.0 Ok: queued as 4711\n\0")
        assert verdict(said) == "delivered"
        assert case.hop.messages == [WIRE]
        assert case.hop.lines[:3] == [
            b"EHLO mx.a.example",
            b"MAIL FROM:<joe@a.example> SIZE=26",
            b"RCPT TO:<ann@b.example>",
        ]

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("answers", "start", "expected"),
    [
        ({b"RCPT": b"550 5.1.1 Nobody"}, b"h[127.0.0.1] does not like recipient.\n"
         b"Remote host said: 550 5.1.1 Nobody\n\0DGiving up on [127.0.0.1].\n\0", "bounced"),
        ({b"RCPT": b"450 4.2.1 Full"}, b"s[127.0.0.1] does not like recipient.\nRemote host said: 450 4.2.1 Full\n\0"
         b"DGiving up on [127.0.0.1].\n\0", "deferred"),
        ({b".": b"554 5.6.0 No"}, b"h", "bounced"),
        ({b".": b"451 4.3.0 Later"}, b"s", "deferred"),
        ({b".": DROP}, b"Z", "deferred"),
        ({b"": b"554 Not you"}, b"Z", "deferred"),
        ({b"": b"421 Later"}, b"Z", "deferred"),
        ({b"MAIL": b"550 5.7.1 No"}, b"h", "bounced"),
        ({b"MAIL": b"451 4.7.1 Later"}, b"s", "deferred"),
    ],
)  # fmt: skip
def test_what_the_server_says_decides(
    tmp_path: pathlib.Path, answers: dict[bytes, Any], start: bytes, expected: str
) -> None:
    async def scenario(case: Case) -> None:
        said = await case.spawn()
        assert said.startswith(start)
        assert verdict(said) == expected

    run(tmp_path, scenario, answers=answers)


def test_reports_come_in_the_order_of_the_arguments(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        said = await case.spawn("no@b.example", "ann@b.example", "later@b.example")
        assert [part[:1] for part in said.split(b"\0")] == [b"h", b"r", b"s", b"K", b""]

    run(tmp_path, scenario, answers={b"RCPT TO:<no@": b"550 No", b"RCPT TO:<later@": b"450 Later"})


def test_nobody_there(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        case.write(smtproutes=f":127.0.0.1:{free_port()}\n")
        said = await case.spawn()
        assert said.startswith(b"Z")
        assert b"(#4.4.1)" in said

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("files", "variables", "peer", "helo"),
    [
        ({"outgoingip": "127.0.0.3\n"}, {}, "127.0.0.3", b"mx.a.example"),
        ({"outgoingip": "127.0.0.3\n", "helohost": "out.a.example\n"}, {}, "127.0.0.3", b"out.a.example"),
        ({"outgoingip": "0.0.0.0\n"}, {}, "127.0.0.1", b"mx.a.example"),
        ({"outgoingips": "a.example:127.0.0.4\n"}, {}, "127.0.0.4", b"a.example"),
        ({"bindroutes": "127.:127.0.0.5\n", "outgoingip": "127.0.0.3\n"}, {}, "127.0.0.5", b"mx.a.example"),
        ({"outgoingip": "127.0.0.3\n"}, {"OUTGOINGIP": "127.0.0.6"}, "127.0.0.6", b"mx.a.example"),
        ({"smtproutes.d__b.example": "relay=127.0.0.1\nport=@PORT@\noutgoingip=127.0.0.7\n"}, {}, "127.0.0.7",
         b"mx.a.example"),
    ],
)  # fmt: skip
def test_from_which_address(
    tmp_path: pathlib.Path, files: dict[str, str], variables: dict[str, str], peer: str, helo: bytes
) -> None:
    async def scenario(case: Case) -> None:
        case.write(**{name: text.replace("@PORT@", str(case.hop.port)) for name, text in files.items()})
        assert verdict(await case.spawn(variables=variables)) == "delivered"
        assert case.hop.peers == [peer]
        assert case.hop.lines[0] == b"EHLO " + helo

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"outgoingip": "nonsense\n"}, b"outgoingip:1: 'nonsense' is no IP address (#4.3.0)"),
        (
            {"outgoingips": "a.example:127.0.0.300\n"},
            b"outgoingips:1: '127.0.0.300' is no IP address (#4.3.0)",
        ),
        ({"smtproutes": ":[::1\n"}, b"no IPv6 address between the brackets (#4.3.0)"),
    ],
)
def test_what_can_t_be_used_keeps_the_message(
    tmp_path: pathlib.Path, files: dict[str, str], said: bytes
) -> None:
    async def scenario(case: Case) -> None:
        case.write(**files)
        report = await case.spawn()
        assert report.startswith(b"Z")
        assert said in report
        assert case.hop.connections == 0

    run(tmp_path, scenario)


def test_an_address_that_is_not_ours_is_never_left_out(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        case.write(outgoingip="192.0.2.77\n")
        said = await case.spawn()
        assert said.startswith(b"Z")
        assert b"192.0.2.77" in said
        assert b"(#4.4.1)" in said
        assert case.hop.connections == 0

    run(tmp_path, scenario)


def test_ipv6_from_the_route_to_the_source(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        assert "[::1]" in case.hop.dest
        case.write(outgoingip="127.0.0.3\n::1\n")
        assert verdict(await case.spawn()) == "delivered"
        assert case.hop.peers == ["::1"]

    run(tmp_path, scenario, host="::1")


def test_a_server_that_must_have_tls_gets_nothing_in_clear(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        port = case.hop.port
        case.write(smtproutes=f":localhost:{port}\n", tlshosts__localhost_pem="")
        (case.control / "tlshosts/localhost_pem").rename(case.control / "tlshosts/localhost.pem")
        said = await case.spawn()
        assert verdict(said) == "deferred"
        assert b"MAIL" not in case.hop.verbs

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ((), b"(#5.3.5)"),
        (("--qmail",), b"(#5.3.5)"),
        (("--nonsense", "x"), b"(#5.3.5)"),
    ],
)
def test_called_wrongly(tmp_path: pathlib.Path, program: tuple[str, ...], said: bytes) -> None:
    async def scenario(case: Case) -> None:
        command = (sys.executable, "-m", "fastsmtp", "remote", *program)
        child = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment()
        )
        report, _ = await child.communicate()
        assert child.returncode == 0
        assert report.startswith(b"D")
        assert said in report
        assert report.endswith(b"\0")

    run(tmp_path, scenario)


def test_a_message_without_its_last_line_end(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        said = await case.spawn(message=b"Subject: x\n\nlast")
        assert said.startswith(b"D")
        assert said.endswith(b"(#5.6.2)\n\0")

    run(tmp_path, scenario)


def test_a_home_that_is_not_there_keeps_the_message(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        said = await case.spawn(variables={"QMAILHOME": str(tmp_path / "nowhere")})
        assert said.startswith(b"Z")
        assert said.endswith(b"(#4.3.0)\n\0")

    run(tmp_path, scenario)


def test_under_its_own_name(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        script = install(tmp_path)
        folder = case.home / "bin"
        folder.mkdir()
        (folder / "qmail-remote").symlink_to(script)
        said = await case.spawn(program=(str(folder / "qmail-remote"),))
        assert verdict(said) == "delivered"

    run(tmp_path, scenario)


def test_with_a_configuration_in_the_home_s_place(tmp_path: pathlib.Path) -> None:
    async def scenario(case: Case) -> None:
        path = tmp_path / "fastsmtp.toml"
        path.write_text(f"""
hostname = "mx.a.example"
[[source]]
name = "b"
ipv4 = "127.0.0.8"
helo = "out.a.example"
[[route]]
sender  = "@a.example"
deliver = "{case.hop.dest}"
sources = {{ b = 1 }}
""")
        program = (sys.executable, "-m", "fastsmtp", "remote", f"--config={path}")
        assert verdict(await case.spawn(program=program)) == "delivered"
        assert (case.hop.peers, case.hop.lines[0]) == (["127.0.0.8"], b"EHLO out.a.example")

    run(tmp_path, scenario)
