"""cdb files: every record is found, and nothing that a file can hold reads outside of it or goes on for ever."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.config.cdb import Cdb, is_cdb, read_cdb
from fastsmtp.config.load import load
from tests.cdbs import make_cdb
from tests.conftest import needs

RECORDS = [(b"%d.example" % n, b"%d" % (n * n)) for n in range(300)]


@given(st.dictionaries(st.binary(max_size=12), st.binary(max_size=12), max_size=60), st.binary(max_size=12))
def test_what_was_put_in_is_found(records: dict[bytes, bytes], other: bytes) -> None:
    data = make_cdb(records.items())
    cdb = Cdb(data)
    assert dict(cdb.records()) == records
    assert {key: cdb.get(key) for key in records} == records
    assert cdb.get(other) == records.get(other)


def test_of_two_records_with_a_key_the_first_is_found() -> None:
    assert Cdb(make_cdb([(b"a", b"1"), (b"a", b"2")])).get(b"a") == b"1"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "is no cdb, or cut"),
        (b"\0" * 2047, "is no cdb, or cut"),
        (b"\0" * 2048, "is damaged or cut: a hash table lies outside"),
        (make_cdb(RECORDS)[:-1], "is damaged or cut: a hash table lies outside"),
        (b"a text\n" * 400, "is damaged or cut: a hash table lies outside"),
    ],
)
def test_what_is_no_cdb_is_a_value_error(data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Cdb(data)


def test_a_cut_is_seen_wherever_it_is() -> None:
    data = make_cdb(RECORDS[:30])
    for size in range(len(data)):
        with pytest.raises(ValueError, match="cut"):
            Cdb(data[:size])


@given(
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
    st.binary(max_size=8),
)
def test_damage_is_a_value_error_or_an_answer(changes: list[tuple[int, int]], key: bytes) -> None:
    data = bytearray(make_cdb(RECORDS[:20]))
    for at, octet in changes:
        data[at % len(data)] = octet
    try:
        cdb = Cdb(bytes(data))
    except ValueError:
        return
    for one in (key, RECORDS[0][0], RECORDS[7][0]):
        try:
            found = cdb.get(one)
        except ValueError:
            continue
        assert found is None or isinstance(found, bytes)
    try:
        assert len(list(cdb.records())) <= len(data)
    except ValueError:
        return


@pytest.mark.parametrize(("data", "found"), [(b"", False), (b"a.example\n", False), (make_cdb([]), True)])
def test_text_and_cdb_are_told_apart(data: bytes, found: bool) -> None:
    assert is_cdb(data) is found


def test_a_list_of_domains_may_be_a_cdb(tmp_path: Path) -> None:
    file = tmp_path / "domains.cdb"
    file.write_bytes(make_cdb([(b"a.example", b""), (b".b.example", b""), (b"xn--bcher-kva.example", b"")]))
    accept = [{"domain": [str(file), ".c.example"], "deliver": "discard"}]
    table = load(values={"hostname": "mx.example.org", "accept": accept}).settings[0].accept
    ours = (
        "a.example",
        "x.b.example",
        "y.x.b.example",
        "z.c.example",
        "xn--bcher-kva.example",
        "b\u00fccher.example",
    )
    others = ("x.a.example", "b.example", "c.example", "example", "")
    assert [name for name in (*ours, *others) if table.find(name.encode()) is not None] == list(ours)


@needs("tcprules")
def test_a_cdb_of_debians_tcprules(tmp_path: Path) -> None:
    text = "".join(f'192.0.2.{n}:allow,N="{n}"\n' for n in range(256))
    cdb = tmp_path / "rules.cdb"
    subprocess.run(["tcprules", str(cdb), str(tmp_path / "tmp")], input=text.encode(), check=True, timeout=60)
    data = cdb.read_bytes()
    found = Cdb(data)
    assert [found.get(b"192.0.2.%d" % n) for n in range(256)] == [b"+N=%d\0" % n for n in range(256)]
    assert found.get(b"192.0.2.256") is None
    assert make_cdb(read_cdb(data)) == data
