"""What is fuzzed: one function of bytes a target, which raises when a promise is broken.

To add one: a function here or in formats.py, a line in TARGETS, a few small files in corpus/NAME, where the
grammar has words dictionaries/NAME, and a word in IN_PYTHON where nothing of it is compiled.  make fuzz, prove.py
and tests/unit/test_fuzz_corpus.py find it by its name.

The promises: nothing raises for any input; the outcome is the same however the input is cut; it is what the
reference says; what is kept of unread input is bounded.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from fastsmtp import _dnscodec, _parser, _record, _session
from fastsmtp import reply as replies
from fastsmtp._body import HeaderScanner
from fastsmtp._signatures import Signatures, SignatureScanner
from fastsmtp.authorities import (
    CERTIFICATE,
    REVOCATIONS,
    Authorities,
    blocks,
    concerns,
    parse_authorities,
)
from fastsmtp.delegation import request
from fastsmtp.errors import ConfigError, ProtocolError
from fastsmtp.queue.fileheader import FileHeader, Purpose
from fastsmtp.queue.recovery import recover
from fastsmtp.queue.store import Store
from fastsmtp.tls_asking import ADDRESSES, judge
from tests.fakes.files import Files, Tree
from tests.fuzz import formats
from tests.reference import data as reference_data
from tests.reference import journal as reference_journal
from tests.reference import parser as reference_parser
from tests.reference import session as reference_session
from tests.reference.header import Header, read_header
from tests.reference.nexthop import NextHopReply, read_replies
from tests.reference.parser import Fault
from tests.reference.play import Answers, Outcome, Player, comparable
from tests.reference.signatures import find as find_signature

# FOUND_* bits and Fault numbers of the compiled module by the reference's names.
FOUND = {
    _parser.FOUND_BARE_CR: reference_data.FOUND_BARE_CR,
    _parser.FOUND_BARE_LF: reference_data.FOUND_BARE_LF,
    _parser.FOUND_NUL: reference_data.FOUND_NUL,
}
FAULT = {getattr(_parser, f"FAULT_{fault.name}"): fault for fault in Fault}
PATH_FIELDS = reference_parser.Path._fields


def cuts_of(data: bytes) -> Iterator[list[bytes]]:
    """The data whole, octet by octet, and at cuts that are drawn from the data itself."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    dice = random.Random(zlib.crc32(data))
    cuts = sorted({0, len(data), *(dice.randrange(len(data) + 1) for _ in range(4))})
    yield [data[start:end] for start, end in itertools.pairwise(cuts)]


def body(data: bytes) -> None:
    """HeaderScanner; the first octet chooses the bounds."""
    bounds = {}
    if data[:1] and data[0] & 1:
        bounds = {"header_bytes": data[0] >> 2, "fields_max": data[0] >> 5}
    text = data[1:]
    expected = read_header(text, **bounds)
    for pieces in cuts_of(text):
        scanner = HeaderScanner(**bounds)
        for piece in pieces:
            scanner.feed(piece)
        facts = scanner.finish()
        assert Header(facts.hops, facts.size_bytes, facts.fields, facts.is_cut) == expected
        assert facts.is_cut or facts.count(b"received") == facts.hops


SIGNATURES = (b"TVqQ", b"UEsDBBQAA", b"X5O!P%@AP", b"Sig: x")


def signatures(data: bytes) -> None:
    """SignatureScanner; the first octet chooses whether it decodes."""
    is_decoding = data[:1] > b"a"
    mail = data[1:]
    expected = find_signature(mail, SIGNATURES, is_decoding=is_decoding)
    ready = Signatures(SIGNATURES)
    for pieces in cuts_of(mail):
        scanner = SignatureScanner(ready, is_decoding=is_decoding)
        for piece in pieces:
            scanner.feed(piece)
        hit = scanner.finish()
        assert (None if hit is None else (hit.signature, hit.part, hit.is_decoded)) == expected


def agree(compiled: object, reference: object) -> None:
    """A compiled outcome is the reference's, where Fault.SYNTAX stands for any fault."""
    if isinstance(reference, frozenset):
        assert isinstance(compiled, int), f"{compiled!r} where {reference} was to be found"
        assert FAULT[compiled] in reference or Fault.SYNTAX in reference, (
            f"{FAULT[compiled]} not in {reference}"
        )
    else:
        assert plain(compiled) == reference, f"{plain(compiled)!r} is not {reference!r}"


def plain(value: object) -> object:
    """A compiled Path as the reference's, alone or before the rest of the text."""
    if isinstance(value, _parser.Path):
        return reference_parser.Path(*(getattr(value, name) for name in PATH_FIELDS))
    if isinstance(value, tuple) and value and isinstance(value[0], _parser.Path):
        return plain(value[0]), value[1]
    return value


# RFC 5321 section 4.5.3.1, and limits small enough for a fuzzer to reach.
LIMITS: tuple[dict[str, Any], ...] = (
    {},
    {"local_bytes": 5, "domain_bytes": 9},
    {"local_bytes": 5},
    {"domain_bytes": 9},
)


def parser(data: bytes) -> None:
    """All doors of the parser on one text; the first octet chooses limits and UTF-8."""
    options = data[0] if data else 0
    text = data[1:]
    limits = LIMITS[options & 3]
    path_limits = {**limits, "path_bytes": 16} if options & 4 else limits
    for is_utf8_allowed in (False, True):
        for is_reverse in (False, True):
            arguments = {"is_reverse": is_reverse, "is_utf8_allowed": is_utf8_allowed, **path_limits}
            agree(
                _parser.parse_path(text, **arguments),
                reference_parser.parse_path(text, **arguments),
            )
        agree(
            _parser.parse_mailbox(text, is_utf8_allowed=is_utf8_allowed, **limits),
            reference_parser.parse_mailbox(text, is_utf8_allowed=is_utf8_allowed, **limits),
        )
        domain_limit = {"domain_bytes": limits.get("domain_bytes", 255)}
        agree(
            _parser.parse_domain(text, is_utf8_allowed=is_utf8_allowed, **domain_limit),
            reference_parser.parse_domain(text, is_utf8_allowed=is_utf8_allowed, **domain_limit),
        )
        agree(
            _parser.parse_parameters(text, is_utf8_allowed=is_utf8_allowed),
            reference_parser.parse_parameters(text, is_utf8_allowed=is_utf8_allowed),
        )
    agree(_parser.decode_xtext(text), reference_parser.decode_xtext(text))


def data(wire: bytes) -> None:
    """DataDecoder, strict and normalizing."""
    for is_normalizing in (False, True):
        expected = reference_data.decode(wire, is_normalizing=is_normalizing)
        for pieces in cuts_of(wire):
            decoder = _parser.DataDecoder(is_normalizing=is_normalizing)
            text, consumed = b"", 0
            for piece in pieces:
                decoded, used = decoder.feed(piece)
                text += decoded
                consumed += used
                assert used == len(piece) or decoder.is_done
            found = {name for bit, name in FOUND.items() if decoder.found & bit}
            assert (text, consumed, decoder.is_done) == (expected.text, expected.consumed, expected.is_done)
            assert found == set(expected.found)
            assert decoder.size_bytes == len(text)


def session_terms(options: int) -> dict[str, Any]:
    """Terms from the bits of one number: each offer and each small limit is met by some input."""
    return {
        "hostname": "mx.example",
        "message_bytes": (100, 0, 1_000, 52_428_800)[options & 3],
        "errors": (3, 20)[options >> 2 & 1],
        "command_bytes": (512, 64)[options >> 3 & 1],
        "is_starttls_offered": bool(options >> 4 & 1),
        "is_tls_required": bool(options >> 4 & options >> 5 & options >> 6 & 1),
        "is_normalizing": bool(options >> 7 & 1),
        "is_xclient_allowed": bool(options >> 8 & 1),
        "is_chunking": not options >> 9 & options >> 10 & 1,
        "is_smtputf8": not options >> 11 & 1,
        "is_dsn": not options >> 12 & options >> 13 & 1,
        "recipients": (1_000, 0)[options >> 14 & 1],
        "is_compatible": bool(~options >> 4 & options >> 5 & options >> 6 & 1),
    }


GREETINGS = (replies.banner("mx.example"),) * 6 + (replies.EARLY_TALKER, replies.OVERLOADED)


def play_session(options: int, wire: bytes) -> Outcome:
    """One dialogue against the reference, whole and cut; returns what happened."""
    terms = session_terms(options)
    greeting = GREETINGS[options >> 15 & 7]
    seed, kindness = options >> 18 & 15, (8, 8, 7, 4)[options >> 22 & 3]
    reference_player = Player(
        reference_session.Session(reference_session.Terms(**terms), b"7F3A"), Answers(seed, kindness)
    )
    expected = reference_player.play([wire], greeting)
    compiled_terms = _session.Terms(**terms)
    outcomes = []
    for pieces in cuts_of(wire):
        player = Player(_session.Session(compiled_terms, b"7F3A"), Answers(seed, kindness), _session)
        outcomes.append(player.play(pieces, greeting))
        # A command line with the longest that an extension adds to it (XCLIENT); never any text.
        assert player.held_most <= terms["command_bytes"] + 512
    for outcome in outcomes:
        assert outcome == outcomes[0], f"cut otherwise: {outcome}\nwhole:         {outcomes[0]}"
    assert comparable(outcomes[0]) == comparable(expected), f"{outcomes[0]}\nreference: {expected}"
    if terms["message_bytes"]:
        assert all(len(event[1]) <= terms["message_bytes"] for event in expected.events if event[0] == "BODY")
    return outcomes[0]


def session(data: bytes) -> None:
    """The dialogue: the first three octets choose terms, greeting and answers, the rest is the client's."""
    play_session(int.from_bytes(data[:3]), data[3:])


def nexthop(wire: bytes) -> None:
    """ReplyParser: a ProtocolError or the replies, at any cut.  What came before an error need not be told."""
    expected = read_replies(wire)
    for pieces in cuts_of(wire):
        reader = _parser.ReplyParser()
        replies_read = []
        is_broken = False
        try:
            for piece in pieces:
                replies_read += reader.feed(piece)
        except ProtocolError:
            is_broken = True
        found = [NextHopReply(reply.code, reply.enhanced, reply.lines) for reply in replies_read]
        assert is_broken == (expected is None), f"{wire!r} is broken: {is_broken}"
        assert is_broken or found == expected, f"{found} is not {expected}"


# Every type that the codec takes apart, and one that it doesn't: A NS CNAME SOA PTR MX TXT AAAA SRV TLSA, 65280.
DNS_TYPES = (1, 2, 5, 6, 12, 15, 16, 28, 33, 52, 65_280)


def dns(data: bytes) -> None:
    """The answer in a packet: header and question are right, so that the fuzzer gets behind them.

    data: an octet for the type, two for the flags, one each for the three counts, then the packet's records.
    """
    if len(data) < 6:
        return
    question = _dnscodec.Question(b"example.org", DNS_TYPES[data[0] % len(DNS_TYPES)])
    query = _dnscodec.encode_query(question, 1, has_edns=False)
    head = query[:2] + bytes([0x80 | data[1], data[2], 0, 1, 0, data[3], 0, data[4], 0, data[5]])
    packet = head + query[12:] + data[6:]
    answer = _dnscodec.decode(packet, question)
    assert repr(answer) == repr(_dnscodec.decode(packet, question))
    if answer is None:
        return
    assert isinstance(answer.status, _dnscodec.Status)
    assert 0 <= answer.ttl <= 86_400
    assert not (answer.is_failed and answer.records)
    # A name that is read can be asked for.
    for record in answer.records:
        if question.type in {2, 5, 12}:
            assert _dnscodec.encode_query(_dnscodec.Question(record, 1), 1)


SEGMENT_EPOCH = 0x5EED


def segment(data: bytes) -> None:
    """A segment, built record by record as the input says and then spoilt at the places that it names.

    Nothing raises; each record is found as it was written, or lies in a fault; compiled and reference agree.
    """
    image = bytearray(
        FileHeader(Purpose.MAIL, SEGMENT_EPOCH, 1, 0, 0, "0.1.0").encode().ljust(_record.BLOCK, b"\0")
    )
    written: dict[int, bytes] = {}
    batch = len(image)
    words = iter(data)
    for word in words:
        if word == 0xFF:
            break
        payload = bytes([word]) * (next(words, 0) * (1 + word % 4))
        if word % 5:
            written[len(image)] = payload
            image += reference_journal.record(SEGMENT_EPOCH, len(image), batch, _record.MESSAGE, payload)
        else:
            image += reference_journal.record(SEGMENT_EPOCH, len(image), batch, _record.END, b"")
            image += bytes(-len(image) % _record.BLOCK)
            batch = len(image)
    pristine = bytes(image)
    for word in words:
        # A flipped bit, or a sector of zeros, anywhere behind the header.
        at = (word << 16 | next(words, 0) << 8 | next(words, 0)) % len(image)
        if at < _record.BLOCK:
            continue
        if word & 1:
            image[at] ^= 1 << (word >> 1 & 7)
        else:
            end = min(at // 512 * 512 + 512, len(image))
            image[at // 512 * 512 : end] = bytes(end - at // 512 * 512)
    tree = Tree()
    tree.write(1, bytes(image), 0)
    tree.names["/q/mail-0000000000000001"] = 1
    tree.directories.add("/q")
    files = Files(tree)
    store = Store("/q", size_bytes=1 << 20, version="0.1.0", wall=lambda: 0.0, random=bytes)
    recovery = recover(files, store)
    found = {place.offset: payload for place, payload in recovery.messages(files, store)}
    assert found.items() <= written.items()
    assert found == reference_journal.whole(bytes(image), SEGMENT_EPOCH, written)
    if bytes(image) == pristine:
        assert found == written
    last = max(found, default=0)
    for offset in written.keys() - found.keys():
        # What is behind the last record that is whole may look like the end.
        assert offset > last or any(f.offset <= offset < f.offset + f.size_bytes for f in recovery.faults)


def certificate(data: bytes) -> None:
    """A client's certificate, with OpenSSL's verdict in the first octet; and all of it as client_ca and client_crl."""
    error, der = (data[0], data[1:]) if data else (0, b"")
    found = judge(der, error)
    assert found.fingerprint == f"sha256:{hashlib.sha256(der).hexdigest()}"
    assert not (error and not found.reason)
    assert not found.reason or not found.addresses
    assert len(found.addresses) <= ADDRESSES
    for address in found.addresses:
        assert address == address.lower()
        assert address.isascii()
        assert b"\0" not in address
        assert address in der.lower()
    with suppress(ConfigError):
        authorities = Authorities(data, data, "ca.pem", "crl.pem")
        ca, crl = parse_authorities(authorities)
        concerns(authorities, 1_800_000_000.0)
        for label, parsed in ((CERTIFICATE, ca), (REVOCATIONS, crl)):
            places = list(blocks(data, label))
            assert len(places) == len(parsed)
            for block, line in places:
                assert block in data
                assert 1 <= line <= data.count(b"\n") + 1


def delegation(data: bytes) -> None:
    """Requests of Postfix's policy delegation: the parser against a few lines that read the whole at once."""
    expected: list[dict[str, str]] = []
    is_broken = False
    text = data
    while not is_broken:
        head, end, text = text.partition(b"\n\n")
        if head.startswith(b"\n"):
            is_broken = True
            break
        lines = head.split(b"\n")
        if not end:
            # What has no end yet is only wrong where a whole line of it is.
            lines = lines[:-1]
        names = [line.partition(b"=")[0] for line in lines]
        is_broken = (
            any(b"=" not in line or b"\0" in line or line.startswith(b"=") for line in lines)
            or len(set(names)) < len(names)
            or len(lines) > request.ATTRIBUTES
            or len(head) + len(end) > request.REQUEST_BYTES
        )
        pairs = [line.decode("utf-8", "surrogateescape").partition("=") for line in lines]
        found = {name: value for name, _, value in pairs}
        if not end or is_broken:
            break
        is_broken = found.get("request") != request.KIND
        if not is_broken:
            expected.append(found)
    for cuts in cuts_of(data):
        parser = request.RequestParser()
        was_broken = False
        for cut in cuts:
            try:
                parser.feed(cut)
            except request.Broken:
                was_broken = True
                break
        assert parser.take() == expected, (data, cuts)
        assert was_broken == is_broken, (data, cuts, was_broken, is_broken)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "body": body,
    "parser": parser,
    "data": data,
    "signatures": signatures,
    "session": session,
    "nexthop": nexthop,
    "dns": dns,
    "segment": segment,
    "certificate": certificate,
    "delegation": delegation,
    "rules": formats.rules,
    "cdb": formats.cdb,
    "p0f": formats.p0f,
    "admin": formats.admin,
    "packets": formats.packets,
    "record": formats.record,
    "pop3": formats.pop3,
}

# What these try is written in Python: drive.py counts its lines.
IN_PYTHON = frozenset(
    {"admin", "cdb", "certificate", "delegation", "p0f", "packets", "pop3", "record", "rules"}
)
