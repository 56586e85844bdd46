"""`fastsmtp serve --dns` and `check --live` against unbound in front of nsd: the whole way of an answer."""

from __future__ import annotations

import pathlib
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import needs
from tests.fakes.real_dns import Running, authority, recursor
from tests.integration.daemon import Daemon
from tests.integration.servers import until

pytestmark = needs("nsd", "unbound")

RECORDS = """\
2.0.0.127.zen   A   127.0.0.2
9.0.0.127.zen   A   127.0.0.4
9.0.0.127.zen   TXT "see https://zen.dns.test/"
1.0.0.127.all   A   127.0.0.2
*.wild          A   127.0.0.2
test.dbl        A   127.0.1.2
bad.dns.test.dbl A  127.0.1.2
bad             MX  10 mx1
"""
CONFIG = """
[relay]
networks = ["127.0.0.1"]
[[policy.dnsbl]]
zone = "zen.dns.test"
answers = ["127.0.0.2-127.0.0.11"]
reason = true
[[policy.dnsbl]]
zone = "wild.dns.test"
[[policy.rhsbl]]
zone = "dbl.dns.test"
[policy.clients]
deny = ["127.0.0.66"]
[[policy.python]]
stage = "daemonsite:no_printers"
"""
RULE = """
from fastsmtp import reply
from fastsmtp.policy.decision import reject
NO = reject(reply.Reply(550, "5.7.1", "{text}"))
def no_printers(facts, settings):
    return NO if facts.helo.startswith(b"printer") else None
"""


@pytest.fixture(scope="module")
def dns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        authority(tmp_path_factory.mktemp("nsd"), RECORDS) as nsd,
        recursor(tmp_path_factory.mktemp("unbound"), nsd) as unbound,
    ):
        yield unbound


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "daemonsite.py").write_text(RULE.format(text="No printers here"))
    return folder


@pytest.fixture(scope="module")
def daemon(dns: Running, site: pathlib.Path) -> Iterator[Daemon]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        with Daemon(CONFIG, flags=("--dns", dns.where)) as running:
            # Both workers have put the list away that lists everything.
            until(
                lambda: [line["what"] for line in running.log("list_quarantined")] == ["wild.dns.test"] * 2,
                "the lists have been tested",
            )
            yield running


def said(
    daemon: Daemon, source: str, sender: str = "a@dns.test", *, helo: str = "mx1.dns.test"
) -> tuple[int, str]:
    """What RCPT was answered; a message is sent where it was 250."""
    with smtplib.SMTP(
        "127.0.0.1", daemon.port, local_hostname=helo, source_address=(source, 0), timeout=60
    ) as client:
        client.ehlo()
        assert client.mail(sender)[0] == 250
        code, text = client.rcpt("b@example.org")
        if code == 250:
            code, text = client.data(b"X-Fastsmtp-Policy: mine\r\nSubject: x\r\n\r\ntext\r\n")
        return code, text.decode()


@pytest.mark.parametrize(
    ("source", "sender", "code", "text"),
    [
        ("127.0.0.10", "a@dns.test", 250, ""),
        ("127.0.0.10", "a@mx1.dns.test", 250, ""),
        ("127.0.0.10", "", 250, ""),
        ("127.0.0.9", "a@dns.test", 550, "is listed by zen.dns.test: see https://zen.dns.test/"),
        ("127.0.0.66", "a@dns.test", 550, "5.7.1 Your address is not allowed"),
        ("127.0.0.10", "a@bad.dns.test", 550, "The domain bad.dns.test (sender) is listed by dbl.dns.test"),
        ("127.0.0.10", "a@nowhere.dns.test", 550, "5.1.8 "),
        ("127.0.0.10", "a@null.dns.test", 550, "5.7.27 "),
        ("127.0.0.10", "a@x.lame.test", 451, "4.4.3 "),
        # A relay client meets no check.
        ("127.0.0.1", "a@nowhere.dns.test", 250, ""),
    ],
)
def test_what_strangers_hear(daemon: Daemon, source: str, sender: str, code: int, text: str) -> None:
    found, words = said(daemon, source, sender)
    assert (found, text in words) == (code, True), words


def test_foreign_fields_are_cut_from_what_strangers_send(daemon: Daemon) -> None:
    said(daemon, "127.0.0.10", "cut@dns.test")
    said(daemon, "127.0.0.1", "kept@dns.test")
    texts = {letter.sender: letter.text for letter in daemon.mail("b@example.org")}
    assert b"X-Fastsmtp-Policy: mine" not in texts[b"cut@dns.test"]
    assert b"Subject: x\n\ntext\n" in texts[b"cut@dns.test"]
    assert texts[b"kept@dns.test"] == b"X-Fastsmtp-Policy: mine\nSubject: x\n\ntext\n"


def test_a_rule_of_one_s_own_and_its_reload(daemon: Daemon, site: pathlib.Path) -> None:
    code, words = said(daemon, "127.0.0.10", helo="printer.dns.test")
    assert (code, "No printers here" in words) == (550, True)
    (site / "daemonsite.py").write_text("def : a fault\n")
    daemon.process.signal(signal.SIGHUP)
    until(lambda: bool(daemon.log("reload_refused")), "the fault is refused")
    assert "daemonsite" in daemon.log("reload_refused")[0]["reason"]
    (site / "daemonsite.py").write_text(RULE.format(text="Still none"))
    daemon.process.signal(signal.SIGHUP)
    until(lambda: bool(daemon.log("reload")), "the new text is in force")
    until(lambda: "Still none" in said(daemon, "127.0.0.10", helo="printer.dns.test")[1], "new workers serve")


def test_check_live_says_which_lists_do_not_work(dns: Running, tmp_path: pathlib.Path) -> None:
    config = tmp_path / "fastsmtp.toml"
    zones = ["zen.dns.test", "all.dns.test", "wild.dns.test", "gone.dns.test", "x.lame.test"]
    tables = "".join(f'[[policy.dnsbl]]\nzone = "{zone}"\n' for zone in zones)
    config.write_text(
        f'hostname = "mx.example.org"\nuser = "nobody"\n[deliver]\ndefault = "discard"\n{tables}'
        '[[policy.rhsbl]]\nzone = "dbl.dns.test"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "check", "--live", "--config", str(config), "--dns", dns.where],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "zen.dns.test: works",
        "all.dns.test: would be quarantined: it lists everything",
        "wild.dns.test: would be quarantined: it lists everything",
        "gone.dns.test: would be quarantined: it does not list its test point (RFC 5782 section 5)",
        "x.lame.test: would be quarantined: it does not answer: servfail",
        "dbl.dns.test: works",
    ]
