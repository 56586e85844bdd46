"""A value of a peer can't forge a field or a line, and every line stays within its bound."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsmtp.log_format import MAX_LINE, Format, JsonLines, Logfmt

CASES = [
    # what the value is, how it stands in logfmt, what a JSON reader gets
    ("plain", "plain", "plain"),
    (b"joe@example.org", "joe@example.org", "joe@example.org"),
    (b"", '""', ""),
    ("", '""', ""),
    ("two words", '"two words"', "two words"),
    ("a=b", '"a=b"', "a=b"),
    (b'say "x"', r'"say \"x\""', 'say "x"'),
    ("back\\slash", r'"back\\slash"', "back\\slash"),
    (b"a\r\nevent=reject client=192.0.2.9", r'"a\r\nevent=reject client=192.0.2.9"', None),
    (b"\x00\x1b[2J\x7f", r'"\x00\x1b[2J\x7f"', "\x00\x1b[2J\x7f"),
    (b"\xff\xfe", r'"\xff\xfe"', r"\xff\xfe"),
    ("j\N{LATIN SMALL LETTER O WITH DIAERESIS}rg", '"j\xf6rg"', "j\xf6rg"),
    ("j\xf6rg".encode(), '"j\xf6rg"', "j\xf6rg"),
    ("\N{RIGHT-TO-LEFT OVERRIDE}", r'"\xe2\x80\xae"', "\N{RIGHT-TO-LEFT OVERRIDE}"),
    ("\N{LINE SEPARATOR}", r'"\xe2\x80\xa8"', "\N{LINE SEPARATOR}"),
    ("\x85", r'"\xc2\x85"', "\x85"),
    ("\udc80", r'"\x80"', r"\udc80"),
    ("\ud800", r'"\xed\xa0\x80"', r"\ud800"),
    (True, "true", True),
    (False, "false", False),
    (0, "0", 0),
    (-5, "-5", -5),
    (1.23456, "1.235", 1.235),
    (float("nan"), "nan", "nan"),
    ([b"a@x", "b@y"], "a@x,b@y", ["a@x", "b@y"]),
    ((b"a b", b"c"), '"a b,c"', ["a b", "c"]),
]


@pytest.mark.parametrize(("value", "logfmt", "decoded"), CASES)
@pytest.mark.parametrize("neighbours", [{}, {"client": "192.0.2.1", "took_ms": 1}])
def test_a_value_is_written_so_that_it_ends_where_it_ends(
    value: object, logfmt: str, decoded: object, neighbours: dict[str, object]
) -> None:
    line = Logfmt()(0.0, "reject", {"helo": value, **neighbours}).decode()
    before = " client=192.0.2.1" if neighbours else ""
    after = " took_ms=1" if neighbours else ""
    assert line == f"ts=1970-01-01T00:00:00.000Z event=reject{before} helo={logfmt}{after}"
    read = json.loads(JsonLines()(0.0, "reject", {"helo": value, **neighbours}))
    if decoded is not None:
        assert read["helo"] == decoded


@pytest.mark.parametrize("format_line", [Logfmt(), JsonLines()])
def test_fields_stand_in_the_order_of_the_contract_and_none_is_left_out(format_line: Format) -> None:
    line = format_line(0.0, "reject", {"helo": b"x", "code": 550, "from_": None, "client": "::1", "id": "7F"})
    assert re.findall(rb"id|client|code|helo|from", line) == [b"id", b"client", b"code", b"helo"]


def test_the_trailing_underscore_of_a_keyword_is_dropped() -> None:
    assert Logfmt()(0.0, "message", {"from_": b"a@b"}).endswith(b" from=a@b")
    assert json.loads(JsonLines()(0.0, "message", {"from_": b"a@b"}))["from"] == "a@b"


EDGES = [
    (b"x" * 1_024, b"x" * 1_024),
    (b"x" * 1_025, b"x" * 1_024 + b"..."),
    ("y" * 1_024, b"y" * 1_024),
    (2**63 - 1, b"9223372036854775807"),
    (2**63, b"9223372036854775808"),
    (0, b"0"),
    (10, b"10"),
    (-(10**30), b"-1000000000000000000000000000000"),
    *[
        (bytes([byte]), bytes([byte]))
        for byte in range(0x21, 0x7F)
        if byte not in b'"=\\'
    ],
]  # fmt: skip


@pytest.mark.parametrize(("value", "written"), EDGES)
def test_the_edges_of_what_stands_bare(value: object, written: bytes) -> None:
    line = Logfmt()(0.0, "reject", {"id": "7F", "reason": value})
    cut = b" truncated=true" if written.endswith(b"...") and len(written) > 3 else b""
    assert line == b"ts=1970-01-01T00:00:00.000Z event=reject id=7F reason=" + written + cut


@pytest.mark.parametrize("byte", [*range(0x21), *range(0x7F, 0x100), *b'"=\\'])
def test_every_other_byte_is_quoted(byte: int) -> None:
    line = Logfmt()(0.0, "reject", {"id": "7F", "reason": b"a" + bytes([byte]) + b"b"})
    assert line.startswith(b'ts=1970-01-01T00:00:00.000Z event=reject id=7F reason="a')
    assert line.endswith(b'b"')


@pytest.mark.parametrize(
    "value", [" ", "=", "Ok: queued as 1=2", "mx.example [192.0.2.1]", " x ", b"a b", "b " * 512]
)
def test_what_needs_quotes_and_no_escape_stands_between_them(value: str | bytes) -> None:
    text = value.encode() if isinstance(value, str) else value
    line = Logfmt()(0.0, "reject", {"id": "7F", "reason": value})
    assert line == b'ts=1970-01-01T00:00:00.000Z event=reject id=7F reason="' + text + b'"'


def test_a_quoted_value_has_room_for_its_quotes() -> None:
    """Around the length at which a line is full: as it is written where nothing is compiled."""
    for size in range(800, 860):
        fields: dict[str, object] = {name: b"x" * 1_000 for name in ("id", "client", "helo")}
        fields["reason"] = "a " * (size // 2) + "b" * (size % 2)
        writer = Logfmt()
        line = writer(0.0, "reject", fields)
        known = writer._shapes["reject", *fields]
        assert line == writer._slow(b"ts=1970-01-01T00:00:00.000Z", known, fields)


def test_a_line_of_bare_values_that_is_too_long_is_cut() -> None:
    fields: dict[str, object] = {name: b"x" * 1_000 for name in ("id", "client", "helo", "from_", "rcpt")}
    line = Logfmt()(0.0, "reject", fields)
    assert len(line) <= MAX_LINE + len(" truncated=true") and line.endswith(b" truncated=true")


def test_an_event_without_fields() -> None:
    assert Logfmt()(0.0, "ready", {}) == b"ts=1970-01-01T00:00:00.000Z event=ready"


@pytest.mark.parametrize(
    ("when", "stamp"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1767225599.9999, "2025-12-31T23:59:59.999Z"),
        (1767225600.25, "2026-01-01T00:00:00.250Z"),
    ],
)
def test_the_time_stamp_is_utc_with_milliseconds(when: float, stamp: str) -> None:
    assert Logfmt()(when, "ready", {}).decode() == f"ts={stamp} event=ready"


TOKEN = re.compile(rb'([a-z_]+)=("(?:[^"\\\n]|\\.)*"|[!-~]*)(?: |$)')

VALUES = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.binary(max_size=10), max_size=4),
    st.sampled_from([b"\xff" * 5_000, "\N{RIGHT-TO-LEFT OVERRIDE}" * 5_000, "\udc80" * 3_000, "\0" * 2_000]),
)


# The suite shares its machine: how long an example takes says nothing.
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(fields=st.dictionaries(st.sampled_from(["id", "client", "helo", "from_", "rcpt", "reason"]), VALUES))
def test_whatever_the_values_a_line_has_just_its_fields_and_its_bound(fields: dict[str, object]) -> None:
    line = Logfmt()(0.0, "reject", fields)
    assert b"\n" not in line and b"\r" not in line and b"\x1b" not in line
    assert len(line) <= MAX_LINE + len(" truncated=true")
    line.decode()
    names = [match.group(1).decode() for match in TOKEN.finditer(line)]
    assert b"".join(match.group() for match in TOKEN.finditer(line)) == line
    allowed = {name.removesuffix("_") for name in fields}
    rest = [name for name in names if name not in {"ts", "event", "truncated"}]
    assert len(rest) == len(set(rest)) and set(rest) <= allowed
    if "truncated" not in names:
        assert set(rest) == allowed

    as_json = JsonLines()(0.0, "reject", fields)
    assert as_json.isascii() and b"\n" not in as_json and len(as_json) <= MAX_LINE + len(',"truncated":true')
    read = json.loads(as_json)
    assert set(read) - {"ts", "event", "truncated"} <= allowed
