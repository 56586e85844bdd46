"""What an operator does to a running server, and sees of it: logs, reloads, certificates, trials, who may relay."""

from __future__ import annotations

import json
import os
import pathlib
import select
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from collections import Counter

import pytest

from fastsmtp.certificate import make_certificate
from fastsmtp.cli.version import version
from tests.conftest import needs
from tests.integration.daemon import PATIENCE_S, Daemon, ran
from tests.integration.servers import ROOT, Process, until, workers_of
from tests.peers import path as program
from tests.ports import free_port

pytestmark = pytest.mark.slow

TEXT = b"Subject: hello\r\n\r\nOne\r\n"
SENDER = "a@example.net"


def connect(port: int, source: str = "127.0.0.1") -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, "client.example", PATIENCE_S, source_address=(source, 0))


def send(port: int, recipient: str = "joe@example.org", source: str = "127.0.0.1") -> None:
    with connect(port, source) as client:
        client.sendmail(SENDER, [recipient], TEXT)


# --- logs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["create", "SIGHUP"])
def test_the_log_is_rotated_and_no_line_is_lost(how: str) -> None:
    """As logrotate does it: with a new file of the workers' account, or told to open one (workers may not make it)."""
    with Daemon() as daemon:
        log, old = daemon.folder / "log", daemon.folder / "log.1"
        for number in range(5):
            send(daemon.port, f"before{number}@example.org")
        log.rename(old)
        if how == "SIGHUP":
            daemon.process.signal(signal.SIGHUP)
            daemon.wait_for_log("reload")
        else:
            fresh = daemon.folder / "fresh"
            fresh.touch()
            if os.geteuid() == 0:
                shutil.chown(fresh, "nobody")
            fresh.rename(log)

        def told() -> list[str]:
            found = daemon.log("message")
            found += [
                json.loads(line) for line in old.read_text().splitlines() if '"event":"message"' in line
            ]
            return sorted(str(line["rcpt"]) for line in found)

        for number in range(5):
            send(daemon.port, f"after{number}@example.org")
        sent = sorted(f"{when}{number}@example.org" for when in ("before", "after") for number in range(5))
        until(lambda: told() == sent, "each message has its line")
        # What comes now stands in the new one.
        send(daemon.port, "last@example.org")
        daemon.wait_for_log("message", rcpt="last@example.org")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_opens_logs_elsewhere_ends_nothing_here(number: signal.Signals) -> None:
    with Daemon() as daemon:
        daemon.process.signal(number)
        send(daemon.port, "one@example.org")
        # The signal is older than this one, and the master answers it.
        daemon.process.signal(signal.SIGHUP)
        daemon.wait_for_log("reload")
        send(daemon.port, "two@example.org")
        daemon.wait_for_log("message", rcpt="two@example.org")


@needs("smtp-source")
def test_nobody_reads_stderr() -> None:
    """A full pipe holds up no mail; who reads it at last gets what was kept."""
    daemon = Daemon(
        '[log]\nto = "stderr"\n', accept='[[accept]]\ndomain = "example.org"\ndeliver = "discard"\n'
    )
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "fastsmtp", "serve", "--config", str(daemon.file)]
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer
        )
        os.close(writer)
        assert process.stdout is not None
        try:
            ready = process.stdout.readline().decode()
            port = int(ready.split("127.0.0.1:")[1].split()[0])
            options = ["-s", "20", "-m", "1000", "-l", "100", "-f", SENDER, "-t", "joe@example.org"]
            ran(program("smtp-source"), *options, f"127.0.0.1:{port}")
            os.set_blocking(reader, False)
            got = b""
            while got.count(b"event=message ") < 1_000:
                assert select.select([reader], [], [], PATIENCE_S)[0], got[-300:]
                got += os.read(reader, 65_536)
            assert got.count(b"event=message ") == 1_000
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
            process.stdout.close()
    finally:
        os.close(reader)
        daemon.remove()


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_it_serves_whatever_its_standard_streams_are(streams: str) -> None:
    """Closed ones don't become sockets, and full ones stop nothing."""
    daemon = Daemon()
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "fastsmtp",
        "serve",
        "--config",
        str(daemon.file),
        "--listen",
        f"127.0.0.1:{port}",
    ]
    process = subprocess.Popen(["sh", "-c", f'exec "$@" {streams}', "sh", *command], cwd=ROOT)
    try:
        until(lambda: bool(daemon.log("ready")) or process.poll() is not None, "it is ready")
        assert process.poll() is None
        (start,) = daemon.log("start")
        assert (int(start["pid"]), start["version"]) == (process.pid, version())
        send(port)
        assert daemon.one("joe@example.org").text == TEXT.replace(b"\r\n", b"\n")
        for pid in (process.pid, *workers_of(process.pid)):
            for fd in range(3):
                assert not os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE_S)
        daemon.remove()


# --- reloads ------------------------------------------------------------------------------------------


def test_a_faulty_configuration_changes_nothing_and_says_why() -> None:
    with Daemon() as daemon:
        good = daemon.file.read_text()
        daemon.file.write_text(good.replace("[[accept]]", "[[accpet]]"))
        daemon.process.signal(signal.SIGHUP)
        line = daemon.wait_for_log("reload_refused")
        assert "accpet" in line["reason"]
        send(daemon.port)
        daemon.file.write_text(good + '[[accept]]\ndomain = "new.example"\ndeliver = "discard"\n')
        daemon.process.signal(signal.SIGHUP)
        daemon.wait_for_log("reload")
        send(daemon.port, "joe@new.example")


def test_addresses_come_and_go_and_each_has_its_line() -> None:
    with Daemon() as daemon:
        daemon.wait_for_log("listening", listener="mx", address=f"127.0.0.1:{daemon.port}")
        port = free_port()
        good = daemon.file.read_text()
        daemon.file.write_text(good + f'[[listen]]\nname = "second"\naddress = "127.0.0.1:{port}"\n')
        daemon.process.signal(signal.SIGHUP)
        daemon.wait_for_log("reload")
        daemon.wait_for_log("listening", listener="second", address=f"127.0.0.1:{port}")
        assert len(daemon.log("listening")) == 2
        send(port)
        send(daemon.port)
        daemon.file.write_text(good)
        daemon.process.signal(signal.SIGHUP)
        daemon.wait_for_logs("reload", 2)
        send(daemon.port)
        until(lambda: is_closed(port), "the second address is given up")


def is_closed(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_a_tls_session_outlives_its_certificate() -> None:
    config = '[tls]\ncertificate = "{folder}/both.pem"\n[[listen]]\nname = "mx"\n'
    daemon = Daemon(config)
    path = daemon.folder / "both.pem"

    def renew() -> bytes:
        certificate, key = make_certificate(["mx.example.org"], days=2)
        fresh = daemon.folder / "fresh.pem"
        fresh.touch(0o600)
        fresh.write_bytes(certificate + key)
        fresh.replace(path)
        return certificate

    old = renew()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def shown(client: smtplib.SMTP) -> bytes:
        assert isinstance(client.sock, ssl.SSLSocket)
        found = client.sock.getpeercert(binary_form=True)
        assert found
        return ssl.DER_cert_to_PEM_cert(found).encode()

    def raised() -> smtplib.SMTP:
        client = connect(daemon.port)
        client.starttls(context=context)
        return client

    def serves(certificate: bytes) -> bool:
        clients = [raised() for _ in range(6)]
        found = {shown(client) for client in clients}
        for client in clients:
            client.quit()
        return found == {certificate}

    with daemon:
        stays = raised()
        assert shown(stays) == old
        new = renew()
        until(lambda: serves(new), "the new one is served, by both workers")
        stays.sendmail(SENDER, ["joe@example.org"], TEXT)
        assert stays.quit()[0] == 221
        assert daemon.wait_for_log("cert_reloaded")
        # Damage changes nothing.
        path.write_bytes(new)
        daemon.wait_for_log("cert_refused")
        assert serves(new)


# --- destinations and who may relay ---------------------------------------------------------------------


def test_print_shows_envelope_and_message(tmp_path: pathlib.Path) -> None:
    server = Process(
        [sys.executable, "-m", "fastsmtp", "serve", "--listen", "127.0.0.1:0", "--workers", "2", "--user", "nobody",
         "--deliver", "print", "--accept", "example.org", "--no-queue", "--hostname", "mx.example.org",
         "--state", str(tmp_path / "state")],
        has_errors_apart=True,
    )  # fmt: skip
    try:
        port = int(server.wait_for(r" ready: 127\.0\.0\.1:(\d+) ")[1])
        with connect(port) as client:
            client.sendmail(SENDER, ["joe@example.org", "sue@example.org"], TEXT + b"\x1b[31mred\x07\r\n")
        server.wait_for("END MESSAGE")
        at = server.lines.index("---------- MESSAGE FOLLOWS ----------")
        assert server.lines[at + 1 : at + 4] == [
            "MAIL FROM:<a@example.net>", "RCPT TO:<joe@example.org>", "RCPT TO:<sue@example.org>",
        ]  # fmt: skip
        end = server.lines.index("------------ END MESSAGE ------------")
        assert server.lines[end - 4 : end] == ["Subject: hello", "", "One", r"\x1b[31mred\x07"]
        until(lambda: "event=message" in server.errors(), "its log is elsewhere")
        assert "queue" not in server.errors(), "--no-queue: nothing is to be said of the queue"
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    finally:
        server.close()


RELAY = """
[relay]
networks = ["127.0.0.5"]
[deliver]
default = "maildir:{folder}/mail/elsewhere"
queue = false
"""


def test_who_may_relay() -> None:
    with Daemon(RELAY) as daemon:
        send(daemon.port, "joe@elsewhere.example", "127.0.0.5")
        assert len(list((daemon.mailboxes / "elsewhere" / "new").iterdir())) == 1
        with connect(daemon.port, "127.0.0.6") as stranger:
            stranger.ehlo()
            stranger.mail(SENDER)
            for foreign in (
                "joe@elsewhere.example",
                "joe%elsewhere.example@other.example",
                '"x@y"@elsewhere.example',
            ):
                code, text = stranger.rcpt(foreign)
                assert (code, text[:5]) == (550, b"5.7.1"), foreign
            assert stranger.rcpt("joe@example.org")[0] == 250
            assert stranger.rcpt("joe@deep.below.example.org")[0] == 250
            assert stranger.rcpt("JOE@EXAMPLE.ORG")[0] == 250
            # A source route says nothing about who is meant (RFC 5321 appendix C); its last part does.
            assert stranger.docmd("RCPT", "TO:<@elsewhere.example:joe@example.org>")[0] == 250
            assert stranger.docmd("RCPT", "TO:<@example.org:joe@elsewhere.example>")[0] == 550
        line = daemon.wait_for_log("reject", client="127.0.0.6")
        assert (line["stage"], line["code"], line["enhanced"]) == ("recipient", 550, "5.7.1")


LIMITS = """
[relay]
networks = []
[limits]
connections_per_client = 6
messages_per_client_per_min = 10
recipients_per_client_per_min = 30
"""


def test_limits_of_a_client_hold_across_the_workers() -> None:
    with Daemon(LIMITS) as daemon:
        held = [connect(daemon.port, "127.0.0.6") for _ in range(6)]
        for _ in range(4):
            with pytest.raises(smtplib.SMTPConnectError) as refused:
                connect(daemon.port, "127.0.0.6")
            assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (421, b"4.7.0")
        connect(daemon.port, "127.0.0.7").quit()
        for client in held:
            client.quit()
        # One message a connection: whichever worker takes it.  The window slides, so a minute that ends now lets
        # one or two more through.
        for _ in range(10):
            send(daemon.port, "joe@example.org", "127.0.0.8")
        with pytest.raises(smtplib.SMTPSenderRefused) as too_many:
            for _ in range(10):
                send(daemon.port, "joe@example.org", "127.0.0.8")
        assert (too_many.value.smtp_code, too_many.value.smtp_error[:5]) == (450, b"4.7.1")
        codes: Counter[int] = Counter()
        for _ in range(5):
            with connect(daemon.port, "127.0.0.9") as client:
                client.ehlo()
                client.mail(SENDER)
                codes.update(client.rcpt(f"joe{number}@example.org")[0] for number in range(8))
        assert codes.keys() == {250, 452}
        assert 30 <= codes[250] <= 35


def test_sigterm_lets_transactions_finish_and_sends_the_idle_away() -> None:
    with Daemon() as daemon:
        idle, in_data, in_rcpt = [connect(daemon.port) for _ in range(3)]
        for client in (in_data, in_rcpt):
            client.ehlo()
            client.mail(SENDER)
        in_data.rcpt("data@example.org")
        assert in_data.docmd("DATA")[0] == 354
        daemon.process.signal(signal.SIGTERM)
        code, text = idle.getreply()
        assert (code, text[:5]) == (421, b"4.3.2")
        in_data.send(TEXT + b".\r\n")
        assert in_data.getreply()[0] == 250
        assert in_rcpt.rcpt("rcpt@example.org")[0] == 250
        assert in_rcpt.data(TEXT)[0] == 250
        for client in (in_data, in_rcpt):
            code, text = client.getreply()
            assert (code, text[:5]) == (421, b"4.3.2")
        with pytest.raises(ConnectionRefusedError):
            connect(daemon.port)
        for client in (idle, in_data, in_rcpt):
            client.close()
        assert daemon.process.end() == 0
        for box in ("data", "rcpt"):
            assert daemon.one(f"{box}@example.org").text == TEXT.replace(b"\r\n", b"\n")
