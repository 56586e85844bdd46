"""Mail out of the queue of a real server into other mail servers, and from them into it, over IPv4 and IPv6."""

from __future__ import annotations

import smtplib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.conftest import needs
from tests.integration.chasquid import Chasquid
from tests.integration.daemon import Daemon
from tests.integration.postfix import Postfix, needs_postfix

pytestmark = pytest.mark.slow

CONFIG = """
[queue]
free_bytes = 0

[[source]]
name = "two"
ipv4 = "127.0.0.2"
ipv6 = "::1"
helo = "two.example.net"

[[route]]
deliver = "{dest}"
sources = { two = 1 }
tls = "verified"
ca = "{ca}"

[[accept]]
domain = "example.org"
recipients = "any"

[deliver]
queue = true
"""

# chasquid looks for the SPF of who sends; of all names, those below onion are asked of no name server (RFC 7686).
SENDER = "a@example.onion"
MESSAGE = b"From: a@example.net\r\nSubject: hello\r\n\r\n.a dot\r\n..two\r\nJos\xc3\xa9\r\n"


def serving(dest: str, ca: Path) -> Daemon:
    config = CONFIG.replace("{dest}", dest).replace("{ca}", str(ca))
    return Daemon(config, accept="", workers=1)


def send(
    daemon: Daemon,
    *recipients: str,
    sender: str = SENDER,
    content: bytes = MESSAGE,
    options: Sequence[str] = ("BODY=8BITMIME",),
) -> None:
    with smtplib.SMTP("127.0.0.1", daemon.port, "client.example.net", timeout=60) as client:
        assert client.sendmail(sender, list(recipients), content, options) == {}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@needs("chasquid")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_chasquid_gets_it_as_it_was_over_verified_tls_and_says_who_is_not_there(
    host: str, authority: Authority
) -> None:
    certificate = authority.sign(host).read_bytes()
    with (
        Chasquid(host, certificate) as chasquid,
        serving(chasquid.dest, authority.file) as daemon,
    ):
        send(daemon, "joe@example.org", "ann@example.org", "nobody@example.org")
        big = MESSAGE + b"0123456789abcdef\r\n" * 40_000
        send(daemon, "joe@example.org", content=big)
        small, large = sorted(chasquid.wait_for_mail("joe", 2), key=len)
        for found, content in ((small, MESSAGE), (large, big)):
            assert found.replace(b"\r\n", b"\n").endswith(content.replace(b"\r\n", b"\n"))
        assert b"two.example.net" in small
        chasquid.wait_for_mail("ann", 1)
        delivered = daemon.wait_for_logs("delivered", 3)
        assert {line["tls"] for line in delivered} == {"TLSv1.3"}
        assert {line["source"] for line in delivered} == {"two"}
        assert daemon.wait_for_log("bounced", rcpt="nobody@example.org")["code"] == 550
        # What it has is what was sent: one message, one copy.
        assert len(chasquid.mail("joe")) == 2
        assert len(chasquid.mail("ann")) == 1


@needs("chasquid")
@needs_postfix
def test_postfix_sends_through_us_to_chasquid(authority: Authority) -> None:
    with (
        Chasquid("::1", authority.sign("::1").read_bytes()) as chasquid,
        serving(chasquid.dest, authority.file) as daemon,
        Postfix({"relayhost": f"[127.0.0.1]:{daemon.port}"}, mailboxes=("joe@other.example",)) as postfix,
    ):
        for number in range(5):
            postfix.send(SENDER, ("joe@example.org", "ann@example.org"), b"Subject: %d\n\nHello.\n" % number)
        for user in ("joe", "ann"):
            found = chasquid.wait_for_mail(user, 5)
            assert sorted(
                line for one in found for line in one.splitlines() if line.startswith(b"Subject: ")
            ) == [b"Subject: %d" % number for number in range(5)]
        postfix.wait(lambda: "Mail queue is empty" in postfix.queue())
