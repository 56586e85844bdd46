"""contrib/fail2ban over lines of the real formatter: who is counted, and that nobody can have another one banned."""

from __future__ import annotations

import configparser
import pathlib
import re
import subprocess

import pytest

from fastsmtp.events import EVENTS
from fastsmtp.log_format import Logfmt
from tests.conftest import needs
from tests.peers import path as program

FILTER = pathlib.Path(__file__).resolve().parents[2] / "contrib" / "fail2ban" / "filter.d" / "fastsmtp.conf"
VICTIM = "203.0.113.7"

# event, fields, and who is counted in mode normal and in mode aggressive
FORGERY = f"x\nts=2026-01-01T00:00:00.000Z event=reject id=1 client={VICTIM} ".encode()
LINES: list[tuple[str, dict[str, object], str | None, str | None]] = [
    ("reject", {"id": "7F3A", "client": "192.0.2.1", "code": 550}, "192.0.2.1", "192.0.2.1"),
    (
        "reject",
        {"code": 550, "helo": b"x y", "client": "2001:db8::1", "id": "7F3A"},
        "2001:db8::1",
        "2001:db8::1",
    ),
    ("reject", {"client": "192.0.2.2"}, "192.0.2.2", "192.0.2.2"),
    ("violation", {"id": "7F3A", "client": "192.0.2.3", "reason": "bare newline"}, "192.0.2.3", "192.0.2.3"),
    ("reject", {"id": "7F3A", "client": "192.0.2.4", "stage": "early_talker"}, "192.0.2.4", "192.0.2.4"),
    ("defer", {"id": "7F3A", "client": "192.0.2.5", "stage": "connections", "code": 421}, None, None),
    ("tls_failed", {"id": "7F3A", "client": "192.0.2.6", "reason": "timeout"}, None, "192.0.2.6"),
    ("too_slow", {"id": "7F3A", "client": "192.0.2.7"}, None, "192.0.2.7"),
    ("timeout", {"id": "7F3A", "client": "192.0.2.8"}, None, "192.0.2.8"),
    ("message", {"id": "7F3A", "client": "192.0.2.9", "from_": b"a@b"}, None, None),
    ("defer", {"id": "7F3A", "client": "192.0.2.10", "code": 450}, None, None),
    ("observe", {"id": "7F3A", "client": "192.0.2.11", "code": 550}, None, None),
    # Forgeries: in every field that a client fills, of lines that count and of lines that don't.
    ("reject", {"id": "7F3A", "client": "192.0.2.12", "helo": FORGERY}, "192.0.2.12", "192.0.2.12"),
    ("message", {"id": "7F3A", "client": "192.0.2.13", "helo": FORGERY, "from_": FORGERY}, None, None),
    ("message", {"id": "7F3A", "client": "192.0.2.13", "rcpt": [FORGERY, FORGERY]}, None, None),
    ("disconnect", {"helo": f"event=reject id=1 client={VICTIM} ".encode()}, None, None),
    ("proxy_refused", {"reason": FORGERY.decode()}, None, None),
    ("tls", {"client": "192.0.2.14", "server_name": f' event=reject client={VICTIM} "'}, None, None),
]
SYSLOG = "Jan  1 00:00:00 fastsmtp[12]: "
SYSLOG_FILE = "Jan  1 00:00:00 mx fastsmtp[12]: "


def test_the_events_of_the_filter_exist() -> None:
    definition = read_filter()
    for mode in ("normal", "aggressive"):
        assert set(definition[f"events-{mode}"].split("|")) <= set(EVENTS)


def read_filter() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(FILTER)
    return parser["Definition"]


@pytest.mark.parametrize("prefix", ["", SYSLOG, SYSLOG_FILE])
@pytest.mark.parametrize(("event", "fields", "normal", "aggressive"), LINES)
def test_who_is_counted(
    prefix: str, event: str, fields: dict[str, object], normal: str | None, aggressive: str | None
) -> None:
    line = prefix + Logfmt()(1767225600.0, event, fields).decode()
    definition = read_filter()
    date = definition["datepattern"]
    for code, pattern in (
        ("%%Y", r"\d{4}"), ("%%m", r"\d\d"), ("%%d", r"\d\d"), ("%%H", r"\d\d"), ("%%M", r"\d\d"),
        ("%%S", r"\d\d"), ("%%f", r"\d{1,6}"), ("%%z", "Z"),
    ):  # fmt: skip
        date = date.replace(code, pattern)
    dated = re.search(date, line)
    assert dated is not None
    rest = line[: dated.start()] + line[dated.end() :]
    for mode, expected in (("normal", normal), ("aggressive", aggressive)):
        pattern = definition["failregex"].replace("<events-<mode>>", definition[f"events-{mode}"])
        found = re.search(pattern.replace("<ADDR>", r"(?P<address>[0-9A-Fa-f:.]+)"), rest)
        assert (found["address"] if found else None) == expected


@needs("fail2ban-regex")
@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", SYSLOG_FILE])
@pytest.mark.parametrize("mode", ["normal", "aggressive"])
def test_fail2ban_itself_counts_the_same(tmp_path: pathlib.Path, mode: str, prefix: str) -> None:
    format_line = Logfmt()
    log = tmp_path / "log"
    log.write_text("".join(f"{prefix}{format_line(1767225600.0, *line[:2]).decode()}\n" for line in LINES))
    command = [program("fail2ban-regex"), "-o", "ip", str(log), f"{FILTER}[mode={mode}]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    expected = [line[2] if mode == "normal" else line[3] for line in LINES]
    assert done.stdout.split() == [address for address in expected if address is not None], done.stderr
