"""[policy.signatures] in a whole server: who is scanned, what is answered and logged, and a file that changes."""

from __future__ import annotations

import pathlib
import smtplib
import sys
from typing import Any

import pytest

from fastsmtp.config.load import load
from fastsmtp.errors import ConfigError
from tests.integration.daemon import NOBODY
from tests.integration.servers import Process, until
from tests.wire import Wire, run, serving

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SAMPLE = ROOT / "contrib" / "signatures"
STRANGERS: dict[str, Any] = {"relay": {"networks": []}}

HEADER = b'Subject: x\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\nhello\r\n'
PROGRAM = (
    HEADER + b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\nTVqQAAMAAAAEAAAA//8AALgAAAA=\r\n--b--\r\n"
)
ESCAPED = (
    HEADER
    + b"--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nMZ=90=00=03=00=00=00=04=00\r\n--b--\r\n"
)
DOCUMENT = HEADER + b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\nUEsDBBQAAAAIAAAAIQ==\r\n--b--\r\n"


async def send(wire: Wire, body: bytes) -> tuple[int, bytes]:
    """The reply to a message with this body."""
    assert await wire.codes(b"MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\n", 2) == [250, 250]
    assert (await wire.ask(b"DATA"))[0] == 354
    await wire.send(body + b".\r\n")
    return await wire.reply()


def rule(file: pathlib.Path = SAMPLE, **more: Any) -> dict[str, Any]:
    return {"policy": {"mfcheck": {"mode": "off"}, "signatures": {"file": str(file), **more}}}


def test_a_message_with_a_signature_is_refused_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with serving(**STRANGERS, **rule()) as running:
            wire = await running.connect()
            assert (await wire.ask(b"EHLO x"))[0] == 250
            code, text = await send(wire, PROGRAM)
            assert code == 554
            assert text.startswith(
                b"5.7.1 Part 3 of the message begins with TVqQAAMAA, which is not accepted here"
            )
            assert (await send(wire, DOCUMENT))[0] == 250, "the lines for ZIP files are commented out"
            assert (await send(wire, ESCAPED))[0] == 250
            await wire.close()
        assert running.inbox.bodies == [DOCUMENT, ESCAPED]
        (line,) = running.log.of("reject")
        assert (line["stage"], line["code"], line["enhanced"]) == ("signatures", 554, "5.7.1")
        assert str(line["reason"]).startswith("Part 3 of the message begins with TVqQAAMAA")

    run(main)


def test_bdat_is_scanned_too_and_decoding_sees_through_the_encoding() -> None:
    async def main() -> None:
        async with serving(**STRANGERS, **rule(decoded=True)) as running:
            wire = await running.connect()
            await wire.ask(b"EHLO x")
            for body in (ESCAPED, PROGRAM):
                await wire.codes(b"MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\n", 2)
                half = len(body) // 2
                await wire.send(b"BDAT %d\r\n%s" % (half, body[:half]))
                assert (await wire.reply())[0] == 250
                await wire.send(b"BDAT %d LAST\r\n%s" % (len(body) - half, body[half:]))
                assert (await wire.reply())[0] == 554
            await wire.close()
        assert running.inbox.bodies == []

    run(main)


@pytest.mark.parametrize(
    ("config", "event"),
    [
        (rule(), ""),  # clients of a test relay: they are ours
        ({**STRANGERS, "policy": {**rule()["policy"], "exempt": ["127.0.0.1"]}}, ""),
        ({**STRANGERS, **rule(mode="off")}, ""),
        ({**STRANGERS, **rule(mode="observe")}, "observe"),
        ({**STRANGERS, "policy": {**rule()["policy"], "mode": "observe"}}, "observe"),
        ({**STRANGERS, "policy": {**rule()["policy"], "soft_reject": True}}, "defer"),
    ],
    ids=["relay", "exempt", "off", "observe", "observe all", "soft"],
)
def test_for_whom_and_how_it_holds(config: dict[str, Any], event: str) -> None:
    async def main() -> None:
        async with serving(**config) as running:
            wire = await running.connect()
            await wire.ask(b"EHLO x")
            code, _ = await send(wire, PROGRAM)
            assert code == (450 if event == "defer" else 250)
            await wire.close()
        found = [name for name, line in running.log.lines if line.get("stage") == "signatures"]
        assert found == ([event] if event else [])

    run(main)


def test_the_size_limit_and_a_loop_come_first() -> None:
    async def main() -> None:
        async with serving(**STRANGERS, **rule()) as running:
            wire = await running.connect()
            await wire.ask(b"EHLO x")
            code, text = await send(wire, b"Received: x\r\n" * 101 + PROGRAM)
            assert (code, text[:5]) == (554, b"5.4.6")
            await wire.close()

    run(main)


def test_a_file_that_changes_is_read_again(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "signatures"
    file.write_bytes(b"# none yet\n")
    config = tmp_path / "fastsmtp.toml"
    config.write_text(
        f'state = "{tmp_path}/state"\nworkers = 1\nhostname = "mx.example.org"\n[relay]\nnetworks = []\n'
        f'[deliver]\nqueue = false\n[[accept]]\ndomain = "example.org"\ndeliver = "discard"\n'
        f'[dns]\nservers = ["{NOBODY}"]\n[policy.mfcheck]\nmode = "off"\n[policy.helo]\nmode = "off"\n'
        f'[policy.reverse_dns]\nmode = "off"\n[policy.signatures]\nfile = "{file}"\n'
        f'[[listen]]\naddress = ["127.0.0.1:0"]\ntls = "off"\n[log]\nto = "{tmp_path}/log"\n'
    )
    server = Process([sys.executable, "-m", "fastsmtp", "serve", "--config", str(config)])
    try:
        port = int(server.wait_for(r"^fastsmtp \S+ ready: 127\.0\.0\.1:(\d+) ")[1])

        def code() -> int:
            with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=60) as client:
                try:
                    client.sendmail("a@example.net", "b@example.org", PROGRAM)
                except smtplib.SMTPDataError as error:
                    return error.smtp_code
                return 250

        assert code() == 250
        replace(file, b"TVqQ\n")
        until(lambda: code() == 554, "the new signature is known")
        replace(file, b"TVqQ\r\n")
        until(lambda: "event=lists_refused" in (tmp_path / "log").read_text(), "the bad file is told")
        assert f"{file}:1: ends with a CR" in (tmp_path / "log").read_text()
        assert code() == 554
    finally:
        server.close()


def replace(path: pathlib.Path, contents: bytes) -> None:
    """As editors do it: a new file under the old name."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(contents)
    fresh.rename(path)


def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "signatures"
    file.write_bytes(b"# x\n\nTVqQ \t\n" + b"x" * 1_025 + b"\nTVpA\r\n #no comment\n")
    with pytest.raises(ConfigError) as raised:
        load(values=rule(file))
    assert raised.value.faults == (
        f"{file}:4: longer than 1024 octets",
        f"{file}:5: ends with a CR: no line of a mail would ever match",
    )
    file.unlink()
    with pytest.raises(ConfigError) as raised:
        load(values=rule(file))
    assert raised.value.faults == (f"policy.signatures.file: {file}: No such file or directory",)


def test_the_sample_is_a_file_to_begin_with() -> None:
    (settings,) = load(values=rule()).settings
    signatures = settings.signatures
    assert signatures is not None
    assert len(signatures) == 11
    assert signatures.find(b"TVqQAAMAAAAE") == b"TVqQAAMAA"
    assert signatures.find(b"UEsDBBQAAAAI") is None
    assert b"\n#UEsDBBQAA\n" in SAMPLE.read_bytes()


def test_comments_and_blanks_count_as_qmail_has_them(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "signatures"
    file.write_bytes(b" #no comment\nTVqQ # part of it\nTVpA \t\n#comment\n\n\xff\n")
    (settings,) = load(values=rule(file)).settings
    signatures = settings.signatures
    assert signatures is not None
    assert len(signatures) == 4
    for line in (b" #no comment", b"TVqQ # part of it", b"TVpAx", b"\xff"):
        assert signatures.find(line) is not None
