"""The parser's doors: what a Path holds, limits, and replies of a next hop."""

from __future__ import annotations

import pytest

from fastsmtp._parser import (
    FAULT_BAD_PARAMETER,
    FAULT_DOMAIN_TOO_LONG,
    FAULT_LOCAL_TOO_LONG,
    FAULT_PATH_TOO_LONG,
    FAULT_SYNTAX,
    NextHopReply,
    Path,
    ReplyParser,
    decode_xtext,
    fault_name,
    parse_domain,
    parse_mailbox,
    parse_parameters,
    parse_path,
)
from fastsmtp.errors import ProtocolError


def path(text: bytes) -> Path:
    parsed = parse_path(text, is_reverse=text == b"<>", is_utf8_allowed=True)
    assert not isinstance(parsed, int), fault_name(parsed)
    return parsed[0]


@pytest.mark.parametrize(
    ("text", "address", "local", "mailbox", "domain", "key"),
    [
        (b"<>", b"", b"", b"", b"", b""),
        (b"<Joe@Example.ORG>", b"Joe@Example.ORG", b"Joe", b"Joe", b"example.org", b"joe@example.org"),
        (b'<"A\\"b c"@x>', b'"A\\"b c"@x', b'"A\\"b c"', b'A"b c', b"x", b'a"b c@x'),
        (b"<@r,@s:a@b>", b"a@b", b"a", b"a", b"b", b"a@b"),
        (b"<POSTMASTER>", b"POSTMASTER", b"POSTMASTER", b"POSTMASTER", b"", b"postmaster@"),
        (
            b"<a@[IPv6:2001:DB8::1]>",
            b"a@[IPv6:2001:DB8::1]",
            b"a",
            b"a",
            b"[ipv6:2001:db8::1]",
            b"a@[ipv6:2001:db8::1]",
        ),
    ],
)
def test_a_path_holds_the_forms_that_are_asked_for(
    text: bytes, address: bytes, local: bytes, mailbox: bytes, domain: bytes, key: bytes
) -> None:
    found = path(text)
    assert (found.address, found.local, found.mailbox) == (address, local, mailbox)
    assert (found.domain, found.key, found.is_utf8) == (domain, key, False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"<" + b"a" * 64 + b"@b>", 0),
        (b"<" + b"a" * 65 + b"@b>", FAULT_LOCAL_TOO_LONG),
        (b"<a@" + b"b" * 63 + b">", 0),
        (b"<a@" + b"b" * 64 + b">", FAULT_DOMAIN_TOO_LONG),
        (b"<a@" + b"b." * 125 + b"bb>", 0),
        (b"<a@" + b"b." * 126 + b"bb>", FAULT_PATH_TOO_LONG),
        (b"<a@" + b"b." * 127 + b"bb>", FAULT_DOMAIN_TOO_LONG),
        (b"<@" + b"r" * 60 + b":" + b"a" * 64 + b"@" + b"b." * 64 + b"b>", FAULT_PATH_TOO_LONG),
    ],
)
def test_limits_of_section_4_5_3_1(text: bytes, fault: int) -> None:
    parsed = parse_path(text)
    assert (parsed if isinstance(parsed, int) else 0) == fault


def test_equal_paths_are_equal() -> None:
    assert path(b"<a@b>") == path(b"<a@b>")
    assert path(b"<a@b>") != path(b"<A@b>")
    assert len({path(b"<a@b>"), path(b"<a@b>")}) == 1


def test_python_makes_no_path_and_no_reply() -> None:
    for made in (Path, NextHopReply):
        with pytest.raises(TypeError):
            made()


def test_a_mailbox_is_nothing_but_one() -> None:
    assert parse_mailbox(b"a@b>") == FAULT_SYNTAX
    assert parse_mailbox(b"<a@b>") == FAULT_SYNTAX
    assert parse_mailbox(b"postmaster") == FAULT_SYNTAX


def test_a_domain_is_lower_cased() -> None:
    assert parse_domain(b"Mail.Example.ORG") == b"mail.example.org"
    assert parse_domain(b"example.org.") == FAULT_SYNTAX
    assert parse_domain(b"") == FAULT_SYNTAX


def test_parameters() -> None:
    assert parse_parameters(b"") == ()
    assert parse_parameters(b" size=1  X-Y") == ((b"SIZE", b"1"), (b"X-Y", None))
    for wrong in (b"A=1", b" A=1 a=2", b" =1", b" A=", b" A=\x01", b" A=1=2", b" -A", b" A\t"):
        assert parse_parameters(wrong) == FAULT_BAD_PARAMETER, wrong


def test_xtext() -> None:
    assert decode_xtext(b"a+2Bb+3D") == b"a+b="
    for wrong in (b"+2b", b"+2", b"a b", b"=", b"\x7f", b"\xc3\xa9"):
        assert decode_xtext(wrong) == FAULT_SYNTAX, wrong


REPLIES = (
    b"220 mx.example.org ESMTP\r\n"
    b"250-mx.example.org\r\n250-8BITMIME\r\n250-SIZE 1000\r\n250 DSN\r\n"
    b"250 2.1.5 Ok\n550-5.1.1 no\r\n550 5.1.1 such user\r\n354\r\n250 2.0.0\r\n550 2.0.0 x\r\n"
)
PARSED = [
    (220, "", (b"mx.example.org ESMTP",)),
    (250, "", (b"mx.example.org", b"8BITMIME", b"SIZE 1000", b"DSN")),
    (250, "2.1.5", (b"Ok",)),
    (550, "5.1.1", (b"no", b"such user")),
    (354, "", (b"",)),
    (250, "2.0.0", (b"",)),
    (550, "", (b"2.0.0 x",)),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_replies_of_a_next_hop_are_the_same_however_they_are_cut(size: int) -> None:
    parser = ReplyParser()
    found = []
    for at in range(0, len(REPLIES), size):
        found += parser.feed(REPLIES[at : at + size])
    assert [(reply.code, reply.enhanced, reply.lines) for reply in found] == PARSED


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n",
        b"25\r\n",
        b"150 x\r\n",
        b"600 x\r\n",
        b"250x\r\n",
        b"250-a\r\n251 b\r\n",
        b"250 " + b"x" * 2_048,
        b"250-x\r\n" * 129,
    ],
)
def test_what_is_no_reply_is_said(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ReplyParser().feed(data)
