"""HeaderScanner: a table of bodies, each whole, octet by octet, at random cuts, and against the reference."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from fastsmtp._body import HeaderFacts, HeaderScanner
from tests.reference.header import Header, read_header


def scan(body: bytes, cuts: Sequence[int] = (), **bounds: int) -> HeaderFacts:
    scanner = HeaderScanner(**bounds)
    at = 0
    for cut in [*cuts, len(body)]:
        scanner.feed(body[at:cut])
        at = cut
    return scanner.finish()


def values(facts: HeaderFacts) -> Header:
    return Header(facts.hops, facts.size_bytes, facts.fields, facts.is_cut)


# Under each sentence: the body, the bounds, and what is found (hops, size_bytes, [(name, text)], is_cut).
CASES: dict[str, tuple[bytes, dict[str, int], int, int, list[tuple[bytes, bytes]], bool]] = {
    "an empty body has no header": (b"", {}, 0, 0, [], False),
    "a body that begins with the empty line has an empty header": (b"\r\nhello\r\n", {}, 0, 2, [], False),
    "fields are listed in order, with their line ends": (
        b"From: a\r\nTo: b\r\n\r\nbody\r\n",
        {},
        0,
        18,
        [(b"from", b"From: a\r\n"), (b"to", b"To: b\r\n")],
        False,
    ),
    "names are lower-cased, values may be empty": (
        b"SUBJECT:\r\nX-9_!~: \r\n\r\n",
        {},
        0,
        22,
        [(b"subject", b"SUBJECT:\r\n"), (b"x-9_!~", b"X-9_!~: \r\n")],
        False,
    ),
    "folded lines belong to their field, and what looks like a field in them is none": (
        b"Received: from a\r\n\tby b\r\n Received: c\r\nTo: d\r\n\r\n",
        {},
        1,
        48,
        [(b"received", b"Received: from a\r\n\tby b\r\n Received: c\r\n"), (b"to", b"To: d\r\n")],
        False,
    ),
    "a line of white space only is folded, not empty": (
        b"A: 1\r\n \r\nReceived: x\r\n\r\n",
        {},
        1,
        24,
        [(b"a", b"A: 1\r\n \r\n"), (b"received", b"Received: x\r\n")],
        False,
    ),
    "Received fields are hops in any case of letters; Delivered-To and Received-SPF are none": (
        b"RECEIVED: 1\r\nreceived: 2\r\nReceived : 3\r\n"
        b"Delivered-To: x\r\nReceived-SPF: pass\r\nXReceived: y\r\n\r\n",
        {},
        3,
        93,
        [
            (b"received", b"RECEIVED: 1\r\n"),
            (b"received", b"received: 2\r\n"),
            (b"received", b"Received : 3\r\n"),
            (b"delivered-to", b"Delivered-To: x\r\n"),
            (b"received-spf", b"Received-SPF: pass\r\n"),
            (b"xreceived", b"XReceived: y\r\n"),
        ],
        False,
    ),
    "white space before the colon is obsolete and accepted": (
        b"To \t : x\r\n\r\n",
        {},
        0,
        12,
        [(b"to", b"To \t : x\r\n")],
        False,
    ),
    "a line that is no field ends the header before it": (
        b"To: x\r\nhello world\r\nReceived: y\r\n\r\n",
        {},
        0,
        7,
        [(b"to", b"To: x\r\n")],
        False,
    ),
    "a colon without a name is no field": (b"To: x\r\n: y\r\n", {}, 0, 7, [(b"to", b"To: x\r\n")], False),
    "an mbox From line is no field": (b"From me Mon\r\nTo: x\r\n\r\n", {}, 0, 0, [], False),
    "a folded line with nothing before it is no field": (
        b" To: x\r\nReceived: y\r\n\r\n",
        {},
        0,
        0,
        [],
        False,
    ),
    "an 8-bit or control octet in a name makes it no field": (
        b"To: x\r\nR\xc3\xa9: y\r\n\r\n",
        {},
        0,
        7,
        [(b"to", b"To: x\r\n")],
        False,
    ),
    "8-bit and NUL in a value are its own business": (
        b"To: \xc3\xa9\x00\r\n\r\n",
        {},
        0,
        11,
        [(b"to", b"To: \xc3\xa9\x00\r\n")],
        False,
    ),
    "a bare LF ends a line, as it will for a Maildir behind us": (
        b"Received: a\nReceived: b\n\nReceived: c\n",
        {},
        2,
        25,
        [(b"received", b"Received: a\n"), (b"received", b"Received: b\n")],
        False,
    ),
    "a bare CR ends no line": (
        b"A: 1\rReceived: x\r\n\rReceived: y\r\n\r\n",
        {},
        0,
        18,
        [(b"a", b"A: 1\rReceived: x\r\n")],
        False,
    ),
    "a header may end with the body, in the middle of a value": (
        b"Received: x\r\nTo: y",
        {},
        1,
        18,
        [(b"received", b"Received: x\r\n"), (b"to", b"To: y")],
        False,
    ),
    "a name that never got its colon is no field": (
        b"To: y\r\nReceived",
        {},
        0,
        7,
        [(b"to", b"To: y\r\n")],
        False,
    ),
    "a CR that never got its LF is no empty line": (b"To: y\r\n\r", {}, 0, 7, [(b"to", b"To: y\r\n")], False),
    "behind header_bytes nothing is read, and the open field ends there": (
        b"To: y\r\nReceived: abc\r\nReceived: d\r\n\r\n",
        {"header_bytes": 20},
        1,
        20,
        [(b"to", b"To: y\r\n"), (b"received", b"Received: abc")],
        True,
    ),
    "a name that header_bytes cuts is not indexed": (
        b"To: y\r\nReceived: abc\r\n\r\n",
        {"header_bytes": 12},
        0,
        7,
        [(b"to", b"To: y\r\n")],
        True,
    ),
    "a header that fits header_bytes exactly is not cut": (
        b"To: y\r\n\r\nbody",
        {"header_bytes": 9},
        0,
        9,
        [(b"to", b"To: y\r\n")],
        False,
    ),
    "nor is a body of exactly header_bytes": (
        b"To: yy\r\n",
        {"header_bytes": 8},
        0,
        8,
        [(b"to", b"To: yy\r\n")],
        False,
    ),
    "fields over fields_max are not indexed, but hops and size are still counted": (
        b"A: 1\r\nB: 2\r\nReceived: 3\r\n x\r\nReceived: 4\r\n\r\nbody",
        {"fields_max": 1},
        2,
        44,
        [(b"a", b"A: 1\r\n")],
        True,
    ),
    "exactly fields_max fields are not cut": (
        b"A: 1\r\nB: 2\r\n\r\n",
        {"fields_max": 2},
        0,
        14,
        [(b"a", b"A: 1\r\n"), (b"b", b"B: 2\r\n")],
        False,
    ),
    "a name has at most 997 octets": (
        b"x" * 997 + b": y\r\n" + b"x" * 998 + b": y\r\n\r\n",
        {},
        0,
        1002,
        [(b"x" * 997, b"x" * 997 + b": y\r\n")],
        False,
    ),
}


@pytest.mark.parametrize("sentence", CASES)
def test_found(sentence: str) -> None:
    body, bounds, hops, size_bytes, fields, is_cut = CASES[sentence]
    facts = scan(body, (), **bounds)
    assert [(name, body[at : at + length]) for name, at, length in facts.fields] == fields
    assert (facts.hops, facts.size_bytes, facts.is_cut) == (hops, size_bytes, is_cut)


@pytest.mark.parametrize("sentence", CASES)
def test_same_however_cut(sentence: str) -> None:
    body, bounds, *_ = CASES[sentence]
    whole = values(scan(body, (), **bounds))
    assert whole == read_header(body, **bounds)
    assert values(scan(body, list(range(len(body))), **bounds)) == whole
    for cut in range(len(body) + 1):
        assert values(scan(body, [cut], **bounds)) == whole


def test_random_headers_and_cuts_agree_with_the_reference() -> None:
    dice = random.Random(5322)
    pieces = [
        b"Received",
        b"received",
        b"a",
        b"B",
        b":",
        b": x",
        b" ",
        b"\t",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\xff",
        b"\0",
    ]
    for _ in range(4_000):
        body = b"".join(dice.choices(pieces, k=dice.randrange(25)))
        bounds = (
            {"header_bytes": dice.randrange(40), "fields_max": dice.randrange(4)}
            if dice.random() < 0.5
            else {}
        )
        cuts = sorted(dice.choices(range(len(body) + 1), k=dice.randrange(5)))
        assert values(scan(body, cuts, **bounds)) == read_header(body, **bounds), (body, cuts, bounds)


def test_has_and_count_ask_by_name_in_any_case() -> None:
    facts = scan(b"Received: a\r\nDATE: x\r\nreceived: b\r\n\r\nTo: body\r\n")
    assert facts.count(b"received") == facts.count(b"Received") == 2
    assert facts.has(b"date")
    assert facts.has(b"Date")
    for absent in (b"", b"to", b"dat", b"dates", b"date:", b"d\0te", b"x" * 5_000):
        assert not facts.has(absent)
        assert facts.count(absent) == 0


def test_many_fields_and_names_grow_their_blocks() -> None:
    body = b"".join(b"X-Field-%d: value\r\n" % i for i in range(2_000)) + b"\r\n"
    facts = scan(body, list(range(0, len(body), 7)), fields_max=5_000)
    assert values(facts) == read_header(body, fields_max=5_000)
    assert facts.has(b"x-field-1999")


def test_feeding_after_the_end_changes_nothing() -> None:
    scanner = HeaderScanner()
    scanner.feed(b"A: 1\r\n\r\nReceived: x\r\n")
    scanner.feed(b"Received: y\r\n\r\n")
    facts = scanner.finish()
    assert (facts.hops, facts.size_bytes) == (0, 8)
    scanner.feed(b"B: 2\r\n\r\n")
    again = scanner.finish()
    assert again.fields == ()
    assert facts.fields == ((b"a", 0, 6),)
    assert facts.fields is facts.fields


def test_only_the_scanner_makes_facts() -> None:
    with pytest.raises(TypeError):
        HeaderFacts()
    with pytest.raises(ValueError, match="negative"):
        HeaderScanner(header_bytes=-1)
    with pytest.raises(TypeError):
        HeaderScanner().feed("text")  # type: ignore[arg-type]
