"""GET /metrics of a real server: what it counts, and that nothing goes back when a worker dies or is replaced."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import urllib.request

import pytest

from tests.integration.daemon import Daemon
from tests.integration.servers import until

pytestmark = pytest.mark.slow

CONFIG = '[metrics]\nlisten = "127.0.0.1:0"\n'


def address(daemon: Daemon) -> str:
    return str(daemon.wait_for_log("listening", listener="metrics")["address"])


def numbers(where: str) -> dict[str, float]:
    """Every sample by its name and labels as they are written."""
    with urllib.request.urlopen(f"http://{where}/metrics", timeout=60) as page:
        assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = page.read().decode().splitlines()
    found = (re.fullmatch(r"(\S+(?:\{.*\})?) (\S+)", line) for line in lines if not line.startswith("#"))
    return {sample[1]: float(sample[2]) for sample in found if sample}


def shown(where: str, name: str, value: float) -> dict[str, float]:
    """The page when this number stands there: a page may be half a second old."""
    pages: list[dict[str, float]] = []

    def is_there() -> bool:
        pages.append(numbers(where))
        return pages[-1].get(name) == value

    until(is_there, f"{name} is {value}")
    return pages[-1]


def send(port: int, recipient: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=60) as client:
        client.sendmail("a@b.example", [recipient], "Subject: x\r\n\r\nx\r\n")


def test_counts_survive_the_death_and_the_replacement_of_workers() -> None:
    accepted = 'fastsmtp_messages_total{listener="mx",outcome="accepted"}'
    rejected = 'fastsmtp_verdicts_total{listener="mx",mode="enforce",stage="recipient",verdict="reject"}'
    with Daemon(CONFIG) as daemon:
        where = address(daemon)
        for _ in range(6):
            send(daemon.port, "joe@example.org")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(daemon.port, "joe@elsewhere.example")
        before = shown(where, rejected, 1)
        assert before[accepted] == 6
        assert before['fastsmtp_connections_total{listener="mx"}'] == 7
        assert before['fastsmtp_handed_over_total{outcome="delivered",transport="maildir"}'] == 6
        assert before['fastsmtp_message_seconds_count{listener="mx"}'] == 6
        assert before['fastsmtp_processes{process="worker"}'] == 2
        for line in daemon.log("worker_ready"):
            os.kill(line["pid"], signal.SIGKILL)
        daemon.wait_for_logs("worker_ready", 4)
        died = shown(where, 'fastsmtp_process_exits_total{how="died",process="worker"}', 2)
        assert died[accepted] == 6
        assert died['fastsmtp_connections_open{listener="mx"}'] == 0
        daemon.process.signal(signal.SIGHUP)
        daemon.wait_for_log("reload")
        until(lambda: len(daemon.log("worker_exit")) == 4, "the old ones go")
        send(daemon.port, "joe@example.org")
        after = shown(where, accepted, 7)
        counters = [name for name in before if re.match(r"\w+_total(\{|$)", name)]
        assert [name for name in counters if after.get(name, 0) < before[name]] == []
        assert after['fastsmtp_reloads_total{outcome="accepted"}'] == 1


def test_the_process_that_answers_is_replaced_and_its_port_stays() -> None:
    with Daemon(CONFIG) as daemon:
        where = address(daemon)
        os.kill(daemon.wait_for_log("aside_ready", what="metrics")["pid"], signal.SIGKILL)
        # The socket is the master's: who asks now waits for the next process.
        assert numbers(where)['fastsmtp_process_starts_total{process="metrics"}'] == 2
        with urllib.request.urlopen(f"http://{where}/healthz", timeout=60) as page:
            assert page.read() == b"ok\n"
