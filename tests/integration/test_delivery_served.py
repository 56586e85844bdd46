"""The whole way: in by SMTP, through the queue, and out by [[route]] and [[source]] of a real server."""

from __future__ import annotations

import os
import signal
import smtplib
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.conftest import needs
from tests.fakes.real_dns import authority
from tests.integration.daemon import Daemon
from tests.integration.servers import until
from tests.integration.smtp_sink import SmtpSink

pytestmark = [pytest.mark.slow, needs("smtp-sink", "nsd")]

SOURCES = """
[[source]]
name = "two"
ipv4 = "127.0.0.2"
helo = "two.example.org"
[[source]]
name = "three"
ipv4 = "127.0.0.3"
helo = "three.example.org"
[[source]]
name = "gone"
ipv4 = "192.0.2.99"
"""


def send(port: int, sender: str, *recipients: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=60) as client:
        client.sendmail(sender, recipients, f"Subject: from {sender}\r\n\r\nText\r\n")


def routes(dest: str) -> str:
    return f"""
[[route]]
sender = "@two.example"
sources = {{ two = 1 }}
deliver = "{dest}"
[[route]]
destination = ".three.example"
sources = {{ three = 1 }}
deliver = "{dest}"
[[route]]
sender = "@gone.example"
sources = {{ gone = 1 }}
deliver = "{dest}"
[[route]]
sender = "@safe.example"
deliver = "{dest}"
tls = "verified"
[[route]]
destination = [".dns.test", "dns.test"]
deliver = "mx"
[deliver]
default = "{dest}"
"""


def test_mail_leaves_as_its_route_says(tmp_path: Path) -> None:
    sink = SmtpSink()
    try:
        with (
            authority(tmp_path) as nsd,
            Daemon(SOURCES + routes(sink.dest) + f'[dns]\nservers = ["{nsd.where}"]\n', accept="") as daemon,
        ):
            port = daemon.port
            send(port, "a@two.example", "x@far.example")
            send(port, "a@any.example", "x@a.three.example", "y@far.example")
            delivered = daemon.wait_for_logs("delivered", 3)
            assert {(line["rcpt"], line.get("source")) for line in delivered} == {
                ("x@far.example", "two"),
                ("x@a.three.example", "three"),
                ("y@far.example", None),
            }
            assert sorted(sink.clients()) == [b"127.0.0.1", b"127.0.0.2", b"127.0.0.3"]

            send(port, "a@gone.example", "x@far.example")
            send(port, "a@safe.example", "x@far.example")
            lines = {line["from"]: line for line in daemon.wait_for_logs("deferred", 2)}
            assert lines["a@gone.example"]["source"] == "gone"
            assert "Cannot assign" in lines["a@gone.example"]["reason"]
            assert lines["a@safe.example"]["enhanced"] == "4.7.4"
            assert daemon.log("source_failed")

            send(port, "a@any.example", "x@null.dns.test", "x@nosuch.dns.test")
            lines = {line["rcpt"]: line for line in daemon.wait_for_logs("bounced", 2)}
            assert lines["x@null.dns.test"]["enhanced"] == "5.1.10"
            assert lines["x@nosuch.dns.test"]["enhanced"] == "5.1.2"
            # Bounces go the way of everything that no route fits.
            assert "source" not in daemon.wait_for_log("delivered", **{"from": ""})
            assert sorted(sink.clients()).count(b"127.0.0.2") == 1
    finally:
        sink.stop()


def test_a_changed_route_moves_mail_that_waits(tmp_path: Path) -> None:
    sink = SmtpSink()
    queue = "[queue]\nretry_min_s = 1\nretry_max_s = 1\n"
    try:
        config = SOURCES + '[[route]]\nsources = { gone = 1 }\ndeliver = "' + sink.dest + '"\n' + queue
        with Daemon(config + "[deliver]\nqueue = true\n", accept="") as daemon:
            send(daemon.port, "a@any.example", "x@far.example")
            daemon.wait_for_log("deferred")
            daemon.write(config.replace("gone = 1", "three = 1") + "[deliver]\nqueue = true\n")
            daemon.process.signal(signal.SIGHUP)
            assert daemon.wait_for_log("delivered")["source"] == "three"
            assert sink.clients() == [b"127.0.0.3"]
    finally:
        sink.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its account")
def test_a_key_that_only_root_can_read_is_shown(tmp_path: Path) -> None:
    """[remote] certificate is loaded before the process becomes queue_user."""
    ours = Authority(tmp_path).sign("mx.example.org")
    sink = SmtpSink()
    try:
        daemon = Daemon(
            f'[remote]\ncertificate = "{{folder}}/client.pem"\n[deliver]\ndefault = "{sink.dest}"\n',
            accept="",
        )
        key = daemon.folder / "client.pem"
        key.write_bytes(ours.read_bytes())
        key.chmod(0o600)
        with daemon:
            send(daemon.port, "a@any.example", "x@far.example")
            daemon.wait_for_log("delivered")
            until(lambda: len(sink.clients()) == 1, "one message")
    finally:
        sink.stop()
