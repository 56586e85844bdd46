"""The wire codec: names, queries, every type that it takes apart, and packets that are wrong at any byte."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp._dns import Answer, Mx, Question, Soa, Srv, Status, Tlsa, decode, encode_query, make_answer
from tests.fakes.dns_server import (
    AAAA,
    CNAME,
    MX,
    NS,
    PTR,
    SOA,
    SRV,
    TLSA,
    TXT,
    A,
    a,
    mx,
    name,
    packet,
    record,
    soa,
    txt,
)

HERE = b"\xc0\x0c"
NAME = b"example.org"


def ask(type: int = A, text: bytes = NAME) -> tuple[Question, bytes]:
    question = Question(text, type)
    return question, encode_query(question, 0x1234)


def answered(type: int, *records: bytes, **settings: object) -> Answer:
    question, query = ask(type)
    answer = decode(packet(query, records, **settings), question)  # type: ignore[arg-type]
    assert answer is not None
    return answer


# ------------------------------------------------------------ questions


def test_a_query_is_as_the_standard_has_it() -> None:
    _, query = ask(MX)
    assert (
        query
        == (
            b"\x12\x34\x01\x00\0\1\0\0\0\0\0\1"
            + name("example.org")
            + b"\0\x0f\0\1"  # RD, one question, class IN
            b"\0" + b"\0\x29" + struct.pack("!H", 1232) + b"\0\0\0\0" + b"\0\0"
        )
    )
    assert encode_query(Question(NAME, A), 1, has_edns=False)[10:12] == b"\0\0"
    assert encode_query(Question(NAME, A), 1, wants_ad=True)[3] == 0x20


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        (b"", b"\0"),
        (b".", b"\0"),
        (b"Example.ORG.", name("example.org")),
        (b"a\\.b.example", b"\3a.b\7example\0"),
        (b"a\\046b", b"\3a.b\0"),
        (b"\\000\\255", b"\2\0\xff\0"),
        (b"\xc3\xa9.example", b"\2\xc3\xa9\7example\0"),
        (b"_25._tcp.mx", b"\3_25\4_tcp\2mx\0"),
        (b"x" * 63, b"\x3f" + b"x" * 63 + b"\0"),
        (b".".join([b"x" * 63] * 3 + [b"x" * 61]), (b"\x3f" + b"x" * 63) * 3 + b"\x3d" + b"x" * 61 + b"\0"),
    ],
)
def test_a_name_that_can_exist(text: bytes, wire: bytes) -> None:
    assert encode_query(Question(text, A), 0, has_edns=False)[12:-4] == wire


@pytest.mark.parametrize(
    "text",
    [b"a..b", b".a", b"x" * 64, b".".join([b"x" * 63] * 4), b"a\\", b"a\\25", b"a\\256", b"a\\2x5", b"a.."],
)
def test_a_name_that_can_not_exist(text: bytes) -> None:
    with pytest.raises(ValueError, match="no domain name"):
        encode_query(Question(text, A), 0)


def test_questions_are_equal_whatever_the_letters() -> None:
    one, other = Question(b"Example.org.", A), Question(b"example.ORG", A)
    assert one == other
    assert hash(one) == hash(other)
    assert one != Question(b"example.org", MX)
    assert one != object()
    assert Question(b"a\\.", A).name == b"a\\."
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(ValueError, match="no DNS type"):
        Question(NAME, 65_536)


# -------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("type", "rdata", "value"),
    [
        (A, a("192.0.2.1"), a("192.0.2.1")),
        (AAAA, a("2001:db8::1"), a("2001:db8::1")),
        (MX, mx(10, "MX.Example.NET"), Mx(10, b"mx.example.net")),
        (MX, b"\0\x05\2mx" + HERE, Mx(5, b"mx.example.org")),
        (MX, mx(0, "."), Mx(0, b"")),
        (PTR, name("host.example.net"), b"host.example.net"),
        (PTR, b"\3a.b\1\\\2\0\xff\0", b"a\\.b.\\\\.\\000\\255"),
        (NS, HERE, b"example.org"),
        (CNAME, name("other.example"), b"other.example"),
        (TXT, txt(b"v=spf1 ", b"-all"), (b"v=spf1 ", b"-all")),
        (TXT, txt(b""), (b"",)),
        (SRV, struct.pack("!3H", 1, 2, 587) + name("mail.example"), Srv(1, 2, 587, b"mail.example")),
        (TLSA, b"\3\1\1" + b"h" * 32, Tlsa(3, 1, 1, b"h" * 32)),
        (SOA, soa(60), Soa(b"ns.example", b"hostmaster.example", 1, 2, 3, 4, 60)),
        (257, b"\0\5issueca.example", b"\0\5issueca.example"),
        (65_280, b"", b""),
    ],
)
def test_a_record_of_each_type(type: int, rdata: bytes, value: object) -> None:
    answer = answered(type, record(HERE, type, 300, rdata))
    assert answer == make_answer(Status.NOERROR, (value,), 300)
    assert not answer.is_failed


@pytest.mark.parametrize(
    ("type", "rdata"),
    [
        (A, b"\1\2\3"),
        (A, b"\1\2\3\4\5"),
        (AAAA, a("192.0.2.1")),
        (MX, b"\0"),
        (MX, b"\0\1"),
        (MX, mx(1, "mx") + b"x"),
        (MX, b"\0\1\x40a"),
        (MX, b"\0\1\xff\xff"),
        (PTR, b"\x05abc"),
        (PTR, b""),
        (TXT, b""),
        (TXT, b"\5abc"),
        (SRV, b"\0\0\0\0\0\0"),
        (SOA, name("a") + name("b") + b"\0" * 19),
        (TLSA, b"\3\1"),
    ],
)
def test_a_record_that_is_not_what_its_type_says(type: int, rdata: bytes) -> None:
    answer = answered(type, record(HERE, type, 300, rdata))
    assert answer.status is Status.BROKEN
    assert answer.is_failed
    assert answer.reason == "broken"


def test_the_order_of_records_is_kept_and_strangers_are_not_among_them() -> None:
    answer = answered(
        A,
        record(HERE, A, 30, a("192.0.2.2")),
        record(name("else.example"), A, 1, a("192.0.2.9")),
        record(HERE, TXT, 1, txt(b"x")),
        HERE + struct.pack("!HHIH", A, 3, 1, 4) + a("192.0.2.8"),  # class CHAOS
        record(name("EXAMPLE.org"), A, 20, a("192.0.2.1")),
    )
    assert answer.records == (a("192.0.2.2"), a("192.0.2.1"))
    assert answer.ttl == 20


def test_aliases_lead_to_the_records_in_any_order() -> None:
    answer = answered(
        A,
        record(name("c.example"), A, 50, a("192.0.2.1")),
        record(name("b.example"), CNAME, 40, name("c.example")),
        record(HERE, CNAME, 60, name("B.example")),
    )
    assert answer == make_answer(Status.NOERROR, (a("192.0.2.1"),), 40, canonical_name=b"c.example")


def test_an_alias_to_nothing_is_nodata_or_nxdomain_of_its_target() -> None:
    question, query = ask(A)
    alias, end = record(HERE, CNAME, 30, name("gone.example")), record(b"\0", SOA, 120, soa(60))
    for rcode, status in ((0, Status.NODATA), (3, Status.NXDOMAIN)):
        answer = decode(packet(query, [alias], [end], rcode=rcode), question)
        assert answer == make_answer(status, (), 30, canonical_name=b"gone.example", rcode=rcode)


@pytest.mark.parametrize(("links", "status"), [(8, Status.NOERROR), (9, Status.BROKEN)])
def test_a_chain_of_aliases_has_an_end(links: int, status: Status) -> None:
    names = [HERE, *(name(f"n{i}.example") for i in range(links))]
    chain = [record(names[i], CNAME, 60, names[i + 1]) for i in range(links)]
    assert answered(A, *chain, record(names[-1], A, 60, a("192.0.2.1"))).status is status


def test_aliases_that_go_round_are_broken() -> None:
    there = name("b.example")
    assert answered(A, record(HERE, CNAME, 60, there), record(there, CNAME, 60, HERE)).status is Status.BROKEN
    assert answered(A, record(HERE, CNAME, 60, HERE)).status is Status.BROKEN


def test_the_alias_itself_can_be_asked_for() -> None:
    assert answered(CNAME, record(HERE, CNAME, 60, name("b.example"))).records == (b"b.example",)


@pytest.mark.parametrize(
    ("ttl", "minimum", "expected"),
    [
        (120, 60, 60),
        (30, 60, 30),
        (1 << 31, 60, 0),
        (90_000, 90_000, 10_800),
        (60, 0xFFFFFFFF, 0),
        (0, 60, 0),
    ],
)
def test_how_long_nothing_is_remembered(ttl: int, minimum: int, expected: int) -> None:
    question, query = ask(A)
    end = record(name("org"), SOA, ttl, soa(minimum))
    for rcode, status in ((0, Status.NODATA), (3, Status.NXDOMAIN)):
        answer = decode(packet(query, (), [end], rcode=rcode), question)
        assert answer == make_answer(status, (), expected, rcode=rcode)
        assert not answer.is_failed


def test_without_an_soa_nothing_is_not_remembered() -> None:
    assert answered(A, rcode=3) == make_answer(Status.NXDOMAIN)


def test_times_are_capped_and_nonsense_is_zero() -> None:
    assert answered(A, record(HERE, A, 1_000_000, a("192.0.2.1"))).ttl == 86_400
    assert answered(A, record(HERE, A, 0x80000000, a("192.0.2.1"))).ttl == 0


@pytest.mark.parametrize(
    ("rcode", "status"),
    [(1, Status.FORMERR), (2, Status.SERVFAIL), (4, Status.NOTIMP), (5, Status.REFUSED), (12, Status.OTHER)],
)
def test_an_rcode_that_says_nothing_of_the_name(rcode: int, status: Status) -> None:
    answer = answered(A, rcode=rcode)
    assert (answer.status, answer.rcode, answer.is_failed) == (status, rcode, True)
    assert answered(A, record(HERE, A, 1, a("192.0.2.1")), rcode=rcode).records == ()


def test_the_rest_of_the_rcode_stands_in_the_opt_record() -> None:
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 24, 0)
    answer = answered(A, additional=[opt])
    assert (answer.status, answer.rcode) == (Status.BADVERS, 16)


def test_the_ad_bit_counts_only_for_a_trusted_server() -> None:
    question, query = ask(A)
    made = packet(query, [record(HERE, A, 60, a("192.0.2.1"))], flags=0x81A0)
    for trusts_ad in (False, True):
        answer = decode(made, question, trusts_ad=trusts_ad)
        assert answer is not None
        assert answer.is_authentic is trusts_ad


# ------------------------------------------------------ hostile packets


def test_what_answers_another_question_is_no_answer() -> None:
    question, query = ask(A)
    good = packet(query, [record(HERE, A, 60, a("192.0.2.1"))])
    assert decode(good, question) is not None
    assert decode(query, question) is None  # QR is not set
    assert decode(good, Question(NAME, MX)) is None
    assert decode(good, Question(b"example.com", A)) is None
    assert decode(good[:4] + b"\0\2" + good[6:], question) is None
    assert decode(good[:2] + b"\x89" + good[3:], question) is None  # another opcode
    assert decode(good.replace(b"\0\1\0\1\xc0", b"\0\1\0\3\xc0"), question) is None


def test_cut_at_any_byte_it_is_no_answer_or_broken() -> None:
    question, query = ask(MX)
    whole = packet(
        query,
        [record(HERE, CNAME, 60, name("c.example")), record(name("c.example"), MX, 60, mx(1, "mx.example"))],
    )
    for end in range(len(whole)):
        answer = decode(whole[:end], question)
        assert answer is None or answer.status is Status.BROKEN, end
    empty = packet(query, (), [record(b"\0", SOA, 120, soa())], rcode=3)
    for end in range(len(empty)):
        answer = decode(empty[:end], question)
        assert answer is None or answer.status is Status.BROKEN, end


def test_counts_that_lie_are_broken() -> None:
    question, query = ask(A)
    good = bytearray(packet(query, [record(HERE, A, 60, a("192.0.2.1"))]))
    for at in (6, 8, 10):
        lying = bytearray(good)
        lying[at : at + 2] = b"\xff\xff"
        answer = decode(bytes(lying), question)
        assert answer is not None
        # Behind a complete answer nobody looks any further.
        assert answer.status is (Status.BROKEN if at == 6 else Status.NOERROR)


@pytest.mark.parametrize("offset", [0, 4, 11, 29, 30, 0x3FFF])
def test_a_pointer_into_the_header_to_itself_or_ahead_is_broken(offset: int) -> None:
    owner = struct.pack("!H", 0xC000 | offset)
    assert len(ask(A)[1]) - 11 == 29  # where the first record stands
    assert answered(A, record(owner, A, 60, a("192.0.2.1"))).status is Status.BROKEN


def test_a_staircase_of_pointers_is_broken_but_128_are_not() -> None:
    question, query = ask(65_280)
    for steps, status in ((127, Status.NOERROR), (128, Status.BROKEN)):
        first = 29 + 12
        stairs = HERE + b"".join(struct.pack("!H", 0xC000 | first + 2 * i) for i in range(steps - 1))
        stair = record(HERE, 65_280, 60, stairs)
        last = record(struct.pack("!H", 0xC000 | first + 2 * (steps - 1)), 65_280, 60, b"x")
        answer = decode(packet(query, [stair, last]), question)
        assert answer is not None
        assert answer.status is status


def test_a_compression_bomb_is_broken_and_not_unpacked() -> None:
    question, query = ask(MX)
    long = b"".join(b"\x3f" + bytes([65 + i]) * 63 for i in range(3)) + b"\x3d" + b"z" * 61 + b"\0"
    first = record(HERE, MX, 60, b"\0\1" + long)
    pointer = struct.pack("!H", 0xC000 | 29 + 12 + 2)
    bomb = packet(query, [first] + [record(HERE, MX, 60, b"\0\2" + pointer)] * 3_000)
    assert len(bomb) < 65_536
    answer = decode(bomb, question)
    assert answer is not None
    assert answer.status is Status.BROKEN
    few = decode(packet(query, [first] + [record(HERE, MX, 60, b"\0\2" + pointer)] * 300), question)
    assert few is not None
    assert len(few.records) == 301


def test_a_name_of_more_than_255_bytes_is_broken() -> None:
    part = b"".join(b"\x3f" + b"x" * 63 for _ in range(3))
    assert answered(PTR, record(HERE, PTR, 60, part + b"\x3d" + b"x" * 61 + b"\0")).status is Status.NOERROR
    assert answered(PTR, record(HERE, PTR, 60, part + b"\x3e" + b"x" * 62 + b"\0")).status is Status.BROKEN
    head = record(HERE, PTR, 60, b"\x3f" + b"x" * 63 + b"\0")
    ring = record(HERE, PTR, 60, part + struct.pack("!H", 0xC000 | 29 + 12))
    assert answered(PTR, head, ring).status is Status.BROKEN


def test_the_longest_answer_is_read() -> None:
    addresses = [struct.pack("!I", number) for number in range(4_000)]
    answer = answered(A, *(record(HERE, A, 60, address) for address in addresses))
    assert answer.records == tuple(addresses)


# ------------------------------------------------------------ properties

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=6).filter(lambda parts: sum(map(len, parts)) + len(parts) < 255)


def text_of(parts: list[bytes]) -> bytes:
    return b".".join(b"".join(b"\\%03d" % byte for byte in part) for part in parts)


@given(names)
def test_every_name_comes_back(parts: list[bytes]) -> None:
    wire = b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    question = Question(text_of(parts), PTR)
    query = encode_query(question, 7)
    assert query[12 : 12 + len(wire)] == wire.lower()
    answer = decode(packet(query, [record(HERE, PTR, 60, wire)]), question)
    assert answer is not None
    (shown,) = answer.records
    assert encode_query(Question(shown, A), 7, has_edns=False)[12:-4] == wire.lower()


@given(st.lists(st.lists(st.binary(max_size=255), min_size=1, max_size=4), min_size=1, max_size=8))
def test_every_text_comes_back(texts: list[list[bytes]]) -> None:
    answer = answered(TXT, *(record(HERE, TXT, 60, txt(*strings)) for strings in texts))
    assert answer.records == tuple(tuple(strings) for strings in texts)


@given(
    st.binary(max_size=200), st.integers(0, 65_535), st.sampled_from([A, AAAA, MX, TXT, PTR, SOA, SRV, TLSA])
)
def test_noise_behind_a_question_raises_nothing(noise: bytes, answers: int, type: int) -> None:
    question, query = ask(type)
    made = packet(query)[: len(query) - 11]
    made = made[:6] + answers.to_bytes(2) + made[8:] + noise
    assert decode(made, question) is not None


@given(st.data())
def test_a_changed_byte_raises_nothing(data: st.DataObject) -> None:
    question, query = ask(MX)
    made = bytearray(
        packet(
            query,
            [record(HERE, CNAME, 60, b"\1c" + HERE), record(b"\1c" + HERE, MX, 60, b"\0\1\2mx" + HERE)],
            [record(b"\0", SOA, 60, soa())],
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    answer = decode(bytes(made), question)
    assert answer is None or isinstance(answer.status, Status)


def test_answers_are_values() -> None:
    one = make_answer(Status.NOERROR, (b"x",), 3, True, b"y")
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))
    assert one != make_answer(Status.NOERROR, (b"x",), 3)
    assert one != object()
    assert "NOERROR" in repr(one)
    with pytest.raises(TypeError):
        Answer()
