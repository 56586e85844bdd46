"""Files with one entry a line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp._parser import Path, parse_mailbox
from fastsmtp.config.lists import entries, parse_recipients

LINES = [
    (b"", [], []),
    (b"a@example.org", [b"a@example.org"], []),
    (b"A.B+c@Example.ORG\r\n\r\nd@e.example\r\n", [b"a.b+c@example.org", b"d@e.example"], []),
    (b"  a@example.org\t \n", [b"a@example.org"], []),
    (b"# a@example.org\n#b@example.org\n \t\n", [], []),
    (b"a@example.org # and why\n", [b"a@example.org"], []),
    (b"a#b@example.org\n", [b"a#b@example.org"], []),
    (b'"a b"@example.org\n', [b"a b@example.org"], []),
    (b'"A"@example.org\n', [b"a@example.org"], []),
    (b"a@[192.0.2.1]\n", [b"a@[192.0.2.1]"], []),
    ("Jörg@example.org\n".encode(), ["jörg@example.org".encode()], []),
    ("a@bücher.example\n".encode(), [b"a@xn--bcher-kva.example", "a@bücher.example".encode()], []),
    (b"a@xn--bcher-kva.example\n", [b"a@xn--bcher-kva.example", "a@bücher.example".encode()], []),
    (b"x" * 64 + b"@example.org\n", [b"x" * 64 + b"@example.org"], []),
    (b"a@example.org\na@EXAMPLE.org\n", [b"a@example.org"], []),
    (b"postmaster\n", [], ["F:1: 'postmaster' has no domain"]),
    (b"a@example.org\n@example.org\n", [b"a@example.org"], ["F:2: '@example.org' is no address (syntax)"]),
    (b"x" * 65 + b"@example.org\n", [], [f"F:1: '{'x' * 56}... is no address (local_too_long)"]),
    (b"a@-b.example\n", [], ["F:1: 'a@-b.example' is no address (syntax)"]),
    (b"<a@example.org>\n", [], ["F:1: '<a@example.org>' is no address (syntax)"]),
    (b"a@example.org b@example.org\n", [], ["F:1: 'a@example.org b@example.org' is no address (syntax)"]),
    (b"a@\xff.example\n", [], ["F:1: 'a@\\\\xff.example' is no address (bad_utf8)"]),
]


@pytest.mark.parametrize(("data", "keys", "faults"), LINES)
def test_a_recipient_file_becomes_keys_and_faults(data: bytes, keys: list[bytes], faults: list[str]) -> None:
    found: list[str] = []
    assert parse_recipients("F", data, found) == set(keys)
    assert found == faults


def test_a_bad_line_among_many_is_found_by_its_number() -> None:
    lines = [b"user%d@example.org" % number for number in range(5_000)]
    lines[3_210] = b"nobody"
    faults: list[str] = []
    assert len(parse_recipients("/list", b"\n".join(lines), faults)) == 4_999
    assert faults == ["/list:3211: 'nobody' has no domain"]


ATOMS = st.text("abzAZ019!#$%&'*+/=?^_`{|}~-.", min_size=1, max_size=12)


@settings(deadline=None, derandomize=True, database=None)
@given(ATOMS, st.text("abZ09-.", min_size=1, max_size=12))
def test_the_quick_way_and_the_parser_agree(local: str, domain: str) -> None:
    line = f"{local}@{domain}".encode()
    path = parse_mailbox(line)
    faults: list[str] = []
    keys = parse_recipients("F", line, faults)
    if line.startswith(b"#"):
        assert (keys, faults) == (frozenset(), [])
    elif isinstance(path, Path):
        assert path.key in keys
    else:
        assert len(faults) == 1


def test_entries_are_texts_with_their_line() -> None:
    faults: list[str] = []
    assert list(entries("F", b"a\n# b\n\n c # d\n\xff\ne", faults)) == [("a", 1), ("c", 4), ("e", 6)]
    assert faults == ["F:5: not UTF-8"]
