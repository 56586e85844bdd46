"""p0f behind a server: what it knows arrives, what it does wrong hurts nobody; one of the test's own, and Debian's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import fastsmtp
from fastsmtp.address import Address
from fastsmtp.cli import check
from fastsmtp.fingerprint import Fingerprint, P0fQuestion
from fastsmtp.log import ListLog
from fastsmtp.p0f import PAUSE_MOST_S, PAUSE_S, NotKnown, P0f
from fastsmtp.policy.decision import Decision, reject
from fastsmtp.policy.facts import Facts
from fastsmtp.reply import DENIED
from tests.conftest import needs
from tests.fakes.p0f import UNKNOWN, FakeP0f, known, p0f
from tests.peers import path
from tests.programs import environment
from tests.qmailqueue import QmailQueue
from tests.wire import PATIENCE_S, Inbox, Running, Wire, run, serving

XP = known("Windows", "XP", "DSL")
LONG_S = 60.0


class Asking:
    """The client side, with a clock that the test moves."""

    def __init__(self, fake: FakeP0f) -> None:
        self.log = ListLog()
        self.now = 1_000.0
        self.fake = fake
        self.client = P0f(now=lambda: self.now, log=self.log)

    async def ask(self, *addresses: str, timeout_s: float = LONG_S) -> list[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Any, ...]] = loop.create_future()
        questions = tuple(P0fQuestion(self.fake.path, Address(text), timeout_s) for text in addresses)
        answers = self.client.put(questions, self.now + LONG_S, future.set_result)
        if answers is None:
            async with asyncio.timeout(PATIENCE_S):
                answers = await future
        return [
            answer.os
            if isinstance(answer, Fingerprint)
            else answer.reason
            if isinstance(answer, NotKnown)
            else answer
            for answer in answers
        ]

    @property
    def said(self) -> list[str]:
        return [event for event, _ in self.log.lines]


@contextlib.asynccontextmanager
async def asking(hosts: Any = None, *, is_running: bool = True) -> AsyncIterator[Asking]:
    async with p0f(hosts, is_running=is_running) as fake:
        one = Asking(fake)
        try:
            yield one
        finally:
            await one.client.close()


@pytest.mark.parametrize("with_uvloop", [False, True])
def test_any_number_of_questions_over_one_connection(with_uvloop: bool) -> None:
    async def main() -> None:
        hosts = {f"192.0.2.{n}": known("Host", str(n)) for n in range(200)}
        hosts["2001:db8::1"] = known("Six")
        async with asking(hosts) as one:
            found = await asyncio.gather(*(one.ask(f"192.0.2.{n}") for n in range(200)))
            assert found == [[f"Host {n}"] for n in range(200)]
            assert await one.ask("2001:db8::1", "192.0.2.7") == ["Six", "Host 7"]
            assert (one.fake.made, one.fake.clients) == (1, 1)
            assert one.said == []

    run(main, with_uvloop=with_uvloop)


def test_answers_may_come_in_any_pieces() -> None:
    async def main() -> None:
        async with asking() as one:
            pieces = XP + known("Linux", "3.x")
            one.fake.answer = lambda address: pieces[:100] if address == "192.0.2.1" else pieces[100:]
            found = await asyncio.gather(one.ask("192.0.2.1"), one.ask("192.0.2.2"))
            assert [*found] == [["Windows XP"], ["Linux 3.x"]]

    run(main)


def test_who_is_not_known_yet_is_asked_for_once_more() -> None:
    async def main() -> None:
        async with asking() as one:
            one.fake.answer = lambda address: XP if len(one.fake.asked) > 1 else UNKNOWN
            assert await one.ask("192.0.2.1") == ["Windows XP"]
            one.fake.answer = lambda address: UNKNOWN
            assert await one.ask("192.0.2.2") == [None]
            assert one.fake.asked == ["192.0.2.1"] * 2 + ["192.0.2.2"] * 2

    run(main)


GARBAGE = [b"HTTP/1.1 400 Bad Request\r\n" * 20, XP + XP, XP[:4] + b"\0" * 228, b"", b"x" * 232]


@pytest.mark.parametrize("said", GARBAGE, ids=["text", "twice", "refused", "closed", "x"])
def test_nonsense_ends_the_connection_and_is_told_once(said: bytes) -> None:
    async def main() -> None:
        async with asking() as one:
            one.fake.answer = lambda address: said
            found = await one.ask("192.0.2.1")
            assert found == (["Windows XP"] if said == XP + XP else ["p0f does not answer"])
            async with asyncio.timeout(PATIENCE_S):
                while one.said != ["fingerprints_down"]:
                    await asyncio.sleep(0.005)
            # For a while nobody asks, and nobody waits.
            made = one.fake.made
            assert await one.ask("192.0.2.1") == ["p0f does not answer"]
            assert one.fake.made == made
            one.fake.answer = lambda address: XP
            one.now += PAUSE_S
            assert await one.ask("192.0.2.1") == ["Windows XP"]
            assert one.said == ["fingerprints_down", "fingerprints_up"]

    run(main)


def test_a_p0f_that_hangs_is_waited_for_once() -> None:
    async def main() -> None:
        async with asking() as one:
            one.fake.answer = lambda address: None
            # The clock stands still, so the deadline is over when it has moved.
            waiting = asyncio.ensure_future(one.ask("192.0.2.1", "192.0.2.2", timeout_s=0.05))
            await asyncio.sleep(0)
            one.now += 0.05
            assert await waiting == ["p0f does not answer"] * 2
            assert await one.ask("192.0.2.3") == ["p0f does not answer"]
            assert one.log.of("fingerprints_down")[0]["reason"] == "no answer in time"

    run(main)


def test_attempts_become_rarer_while_the_socket_is_away() -> None:
    async def main() -> None:
        async with asking({"192.0.2.1": XP}, is_running=False) as one:
            assert await one.ask("192.0.2.1") == ["p0f does not answer"]
            pauses = []
            for _ in range(9):
                link = one.client._links[one.fake.path]
                pauses.append(link._retry_s - one.now)
                one.now = link._retry_s
                assert await one.ask("192.0.2.1") == ["p0f does not answer"]
            assert pauses == [1, 2, 4, 8, 16, 32, PAUSE_MOST_S, PAUSE_MOST_S, PAUSE_MOST_S]
            assert one.said == ["fingerprints_down"]
            await one.fake.start()
            one.now += PAUSE_MOST_S
            assert await one.ask("192.0.2.1") == ["Windows XP"]
            # It restarts: the next question that comes after a moment finds it.
            await one.fake.stop()
            async with asyncio.timeout(PATIENCE_S):
                while one.said[-1] != "fingerprints_down":
                    await asyncio.sleep(0.005)
            await one.fake.start()
            one.now += PAUSE_S
            assert await one.ask("192.0.2.1") == ["Windows XP"]

    run(main)


# --- behind a server ---------------------------------------------------------------------------------

SESSION = (b"EHLO client.example", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>")
MATCH = [{"os": "Windows *", "score": 3}]


@contextlib.asynccontextmanager
async def checking(rule: dict[str, Any], fake: FakeP0f, **config: Any) -> AsyncIterator[Running]:
    policy = {
        "mfcheck": {"mode": "off"}, "helo": {"mode": "off"}, "reverse_dns": {"mode": "off"},
        "p0f": {"socket": fake.path, "timeout_s": 10, **rule}, **config.pop("policy", {}),
    }  # fmt: skip
    accept = [{"domain": ["example.org"], "deliver": "discard"}]
    async with serving(policy=policy, relay={"networks": []}, accept=accept, **config) as running:
        yield running


async def send(wire: Wire, text: bytes = b"Subject: x\r\n\r\ntext\r\n") -> int:
    for command in (*SESSION, b"DATA"):
        code, _ = await wire.ask(command)
    assert code == 354
    await wire.send(text + b".\r\n")
    return (await wire.reply())[0]


def test_the_next_hop_learns_it_and_foreign_claims_are_cut() -> None:
    async def main() -> None:
        async with (
            p0f({"127.0.0.1": XP}) as fake,
            checking({"header": True, "match": MATCH}, fake) as running,
        ):
            wire = await running.connect()
            text = b"X-P0F-OS: Linux\r\nSubject: x\r\nx-p0f-link: Mars\r\nX-Fastsmtp-Policy: good\r\n\r\ntext\r\n"
            assert await send(wire, text) == 250
            ((_, _, prefix, body),) = running.inbox.messages
            assert b"X-P0F-OS: Windows XP\r\nX-P0F-Link: DSL\r\n" in prefix
            assert b"X-Fastsmtp-Policy: score=3 p0f=Windows_XP\r\n" in prefix
            assert body == b"Subject: x\r\n\r\ntext\r\n"
            # The next message of the session has them too.
            assert await send(wire) == 250
            assert b"X-P0F-OS: Windows XP\r\n" in running.inbox.messages[1][2]
            assert fake.asked == ["127.0.0.1"]
            await wire.close()

    run(main)


def test_without_the_key_nothing_is_told_and_nothing_cut() -> None:
    async def main() -> None:
        async with p0f({"127.0.0.1": XP}) as fake, checking({}, fake) as running:
            wire = await running.connect()
            assert await send(wire, b"X-P0F-OS: Linux\r\n\r\ntext\r\n") == 250
            ((_, _, prefix, body),) = running.inbox.messages
            assert b"P0F" not in prefix
            assert b"Policy" not in prefix
            assert body == b"X-P0F-OS: Linux\r\n\r\ntext\r\n"
            await wire.close()

    run(main)


def test_its_score_counts_with_others() -> None:
    async def main() -> None:
        at_three = {"reject_score": 3}
        async with (
            p0f({"127.0.0.1": XP}) as fake,
            checking({"match": MATCH}, fake, policy=at_three) as running,
        ):
            wire = await running.connect()
            assert [(await wire.ask(command))[0] for command in SESSION] == [250, 250, 550]
            assert running.log.of("reject")[0]["score"] == 3
            await wire.close()

    run(main)


@pytest.mark.parametrize(
    "answer", [None, b"", b"x" * 232, b"x"], ids=["hangs", "closes", "nonsense", "stops"]
)
def test_whatever_it_does_mail_goes_through(answer: bytes | None) -> None:
    async def main() -> None:
        async with p0f() as fake:
            fake.answer = lambda address: answer
            async with checking({"timeout_s": 0.2, "header": True, "match": MATCH}, fake) as running:
                for _ in range(2):
                    wire = await running.connect()
                    assert await send(wire) == 250
                    await wire.close()
                assert b"P0F" not in running.inbox.messages[0][2]
                assert len(running.log.of("fingerprints_down")) == 1

    run(main)


def test_behind_a_proxy_the_client_s_address_is_asked_for() -> None:
    async def main() -> None:
        listener = {"proxy_from": ["127.0.0.0/8"]}
        hosts = {"2001:db8::9": known("FreeBSD", "9.x")}
        async with p0f(hosts) as fake, checking({"header": True}, fake, listener=listener) as running:
            wire = await running.connect(greet=False)
            await wire.send(b"PROXY TCP6 2001:db8::9 2001:db8::1 4321 25\r\n")
            assert (await wire.reply())[0] == 220
            assert await send(wire) == 250
            assert b"X-P0F-OS: FreeBSD 9.x\r\n" in running.inbox.messages[0][2]
            await wire.close()

    run(main)


def no_xp(facts: Facts, settings: object) -> Decision | None:
    fingerprint = facts.client.fingerprint
    return reject(DENIED) if fingerprint is not None and fingerprint.os == "Windows XP" else None


def test_a_rule_of_one_s_own_reads_it() -> None:
    async def main() -> None:
        own = {"python": [{"stage": f"{__name__}:no_xp", "at": "rcpt"}]}
        async with p0f({"127.0.0.1": XP}) as fake, checking({}, fake, policy=own) as running:
            for local, code in (("127.0.0.1", 550), ("127.0.0.2", 250)):
                wire = await running.connect(local)
                assert [(await wire.ask(command))[0] for command in SESSION] == [250, 250, code]
                await wire.close()

    run(main)


# --- the real one ------------------------------------------------------------------------------------


@contextlib.contextmanager
def real_p0f(folder: pathlib.Path, port: int) -> Any:
    """Debian's p0f on the loopback interface; capturing needs root's rights."""
    api, log = folder / "sock", folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [path("p0f"), "-i", "lo", "-s", str(api), f"tcp port {port}"], stdout=output, stderr=output
        )
    try:
        yield api, log, process
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


@needs("p0f")
@pytest.mark.skipif(os.geteuid() != 0, reason="p0f captures packets, which only root may")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_debian_s_p0f_knows_this_machine(tmp_path: pathlib.Path, host: str) -> None:
    async def main() -> None:
        policy: dict[str, Any] = {
            "mfcheck": {"mode": "off"}, "helo": {"mode": "off"}, "reverse_dns": {"mode": "off"},
            "p0f": {
                "socket": str(tmp_path / "sock"), "timeout_s": 10, "header": True,
                "match": [{"os": "Linux *", "score": 1}, {"os": "", "score": 2}],
            },
        }  # fmt: skip
        accept = [{"domain": ["example.org"], "deliver": "discard"}]
        inbox = Inbox()
        server = fastsmtp.Server(
            inbox,
            listen=(host, 0),
            hostname="mx.example",
            policy=policy,
            relay={"networks": []},
            accept=accept,
        )
        async with server:
            with real_p0f(tmp_path, server.port) as (api, log, process):
                async with asyncio.timeout(PATIENCE_S):
                    while not (api.exists() and b"Entered main event loop" in log.read_bytes()):
                        assert process.poll() is None, log.read_text()
                        await asyncio.sleep(0.05)
                wire = Wire(*await asyncio.open_connection(host, server.port))
                assert (await wire.reply())[0] == 220
                assert await send(wire) == 250
                ((_, _, prefix, _),) = inbox.messages
                if host == "127.0.0.1":
                    assert b"X-P0F-OS: Linux " in prefix
                    assert b"p0f=Linux_" in prefix
                else:
                    # Its signatures know little of IPv6; that it has seen the host is what it can say.
                    assert b"score=" in prefix
                await wire.close()

    run(main)


def test_smtpd_asks_it_too(tmp_path: pathlib.Path) -> None:
    """One session under tcpserver: no loop runs while the client is waited for, and the answer is there still."""
    tmp_path.chmod(0o755)
    queue = QmailQueue(tmp_path / "bin")
    (tmp_path / "control").mkdir()
    for name, text in (("me", "mx.example"), ("rcpthosts", "example.org"), ("p0f", str(tmp_path / "sock"))):
        (tmp_path / "control" / name).write_text(f"{text}\n")
    config = tmp_path / "f.toml"
    config.write_text(f'qmail = "{tmp_path}"\n[policy.p0f]\nheader = true\ntimeout_s = 10\n')
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "sock"))
    listening.listen()

    def answer() -> None:
        connection, _ = listening.accept()
        with connection, listening:
            assert len(connection.recv(100)) == 21
            connection.sendall(XP)
            connection.recv(1)

    thread = threading.Thread(target=answer)
    thread.start()
    given = environment(QMAILHOME=str(tmp_path), TCPREMOTEIP="192.0.2.1", TCPLOCALIP="192.0.2.2", PROTO="TCP")
    said = (
        b"".join(command + b"\r\n" for command in SESSION)
        + b"DATA\r\nX-P0F-OS: Mars\r\n\r\ntext\r\n.\r\nQUIT\r\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "smtpd", "--config", str(config)],
        input=said, env=given, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    thread.join(PATIENCE_S)
    assert done.returncode == 0, done.stderr
    (taken,) = queue.queued()
    assert b"X-P0F-OS: Windows XP\nX-P0F-Link: DSL\n" in taken.message
    assert b"Mars" not in taken.message


@pytest.mark.parametrize(
    ("answer", "said", "status"),
    [
        (UNKNOWN, "works", 0),
        (b"x" * 232, "no answer of p0f", 1),
        (b"", "closed without an answer", 1),
        (None, "no answer in time", 1),
    ],
)
def test_check_live_asks_it(
    answer: bytes | None, said: str, status: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "f.toml"
    config.write_text(
        f'hostname = "mx.example.org"\nuser = "nobody"\n[deliver]\ndefault = "discard"\n'
        f'[policy.p0f]\nsocket = "{tmp_path}/sock"\ntimeout_s = {0.2 if answer is None else 10}\n'
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                assert len(connection.recv(100)) == 21
                if answer:
                    connection.sendall(answer)
                if answer != b"":
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        assert check.run(["--live", "--config", str(config)]) == status
        thread.join(PATIENCE_S)
    assert f"{tmp_path}/sock: {said}" in capsys.readouterr().out


def test_check_live_names_a_socket_that_is_not_there(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "f.toml"
    config.write_text(
        f'hostname = "mx.example.org"\nuser = "nobody"\n[deliver]\ndefault = "discard"\n'
        f'[policy.p0f]\nsocket = "{tmp_path}/sock"\n'
    )
    assert check.run(["--live", "--config", str(config)]) == 1
    assert f"{tmp_path}/sock: No such file or directory: nothing would be known" in capsys.readouterr().out
