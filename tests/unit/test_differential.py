"""Compiled against reference on what hypothesis invents: paths, parameters, the text of DATA, whole dialogues.

The promises themselves are those of the fuzzer (tests/fuzz/targets.py); here the inputs come from the grammar
and its neighbourhood instead of from coverage.  Derandomized: the same examples on every run.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastsmtp import _parser, _session
from fastsmtp import reply as replies
from tests.fuzz import targets
from tests.reference import data as reference_data
from tests.reference import parser as reference

EXAMPLES = settings(
    derandomize=True, database=None, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)

# --- paths and parameters ---------------------------------------------------------------------------------

ATOMS = st.sampled_from(
    [b"a", b"Bob", b"x-y", b"!#$%&'*+/=?^_`{|}~", b"0", b"\xc3\xa9", b"\xf0\x9f\x93\xa7", b"\xc3"]
)
QUOTED = st.sampled_from(
    [b'""', b'"a b"', b'"a\\"b"', b'"\\\\"', b'"@<>,:"', b'"\xc3\xa9"', b'"', b'"\\', b'"\t"']
)
LABELS = st.sampled_from(
    [
        b"example",
        b"COM",
        b"x-1",
        b"-x",
        b"x-",
        b"_dmarc",
        b"1",
        b"",
        b"a" * 63,
        b"a" * 64,
        b"\xc3\xa9",
        b"\xa9",
    ]
)
GROUPS = st.sampled_from([b"0", b"ffff", b"2001", b"DB8", b"12345", b"g", b"", b"1.2.3.4", b"1.2.3.256"])
LITERALS = st.one_of(
    st.lists(st.sampled_from([b"0", b"1", b"255", b"256", b"001", b"0001", b""]), min_size=3, max_size=5).map(
        b".".join
    ),
    st.lists(GROUPS, min_size=1, max_size=9).map(lambda groups: b"IPv6:" + b":".join(groups)),
    st.tuples(st.lists(GROUPS, max_size=7), st.lists(GROUPS, max_size=7)).map(
        lambda halves: b"ipv6:" + b":".join(halves[0]) + b"::" + b":".join(halves[1])
    ),
    st.sampled_from([b"tag:x", b"tag-:x", b"tag:", b"x", b"", b"tag:a[b", b"t:a b"]),
).map(lambda inside: b"[" + inside + b"]")
DOMAINS = st.one_of(st.lists(LABELS, min_size=1, max_size=5).map(b".".join), LITERALS)
LOCALS = st.one_of(
    st.lists(ATOMS, min_size=1, max_size=4).map(b".".join), QUOTED, st.just(b"a" * 64), st.just(b"a" * 65)
)
ROUTES = st.one_of(
    st.just(b""), st.lists(DOMAINS, max_size=3).map(lambda hops: b",".join(b"@" + hop for hop in hops) + b":")
)
MAILBOXES = st.tuples(LOCALS, DOMAINS).map(b"@".join)
PATHS = st.tuples(ROUTES, MAILBOXES).map(lambda parts: b"<" + b"".join(parts) + b">")
NOISE = st.lists(
    st.sampled_from(
        [b"<", b">", b"@", b".", b'"', b"\\", b" ", b"a", b"[", b"]", b":", b"=", b"\r", b"\0", b"\x7f"]
    ),
    max_size=9,
).map(b"".join)
TEXTS = st.one_of(
    PATHS,
    MAILBOXES,
    DOMAINS,
    NOISE,
    st.tuples(PATHS, NOISE).map(b"".join),
    st.sampled_from([b"<>", b"<postmaster>", b"<PostMaster> X", b"<postmaster@>", b"<<>>", b""]),
)
KEYS = st.sampled_from([b"SIZE", b"size", b"BODY", b"X-1", b"8", b"-X", b"", b"A_B"])
VALUES = st.sampled_from(
    [b"", b"=", b"=1", b"=8BITMIME", b"=a=b", b"=\xc3\xa9", b"=\xc3", b"=a\x7f", b"=+2B"]
)
PARAMETERS = st.lists(
    st.tuples(st.sampled_from([b" ", b" ", b"  ", b"", b"\t"]), KEYS, VALUES).map(b"".join), max_size=4
).map(b"".join)


@EXAMPLES
@given(st.integers(0, 7), st.one_of(TEXTS, PARAMETERS))
def test_the_parser_is_the_reference(options: int, text: bytes) -> None:
    targets.parser(bytes([options]) + text)


@EXAMPLES
@given(st.binary(max_size=12))
def test_xtext_returns(value: bytes) -> None:
    encoded = reference.encode_xtext(value)
    assert _parser.decode_xtext(encoded) == value
    assert _parser.decode_xtext(value) == value or any(
        octet in b"+=" or not 33 <= octet <= 126 for octet in value
    )


@EXAMPLES
@given(
    st.text(
        st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs", "Cc"]),
        max_size=12,
    ),
    st.lists(st.from_regex(rb"[a-z0-9_]([a-z0-9_-]{0,5}[a-z0-9_])?", fullmatch=True), min_size=1, max_size=3),
)
def test_a_mailbox_that_we_write_is_the_mailbox_that_we_read(name: str, labels: list[bytes]) -> None:
    mailbox, domain = name.encode(), b".".join(labels)
    text = reference.quote(mailbox) + b"@" + domain
    path = _parser.parse_mailbox(text, is_utf8_allowed=True)
    assert isinstance(path, _parser.Path)
    assert (path.mailbox, path.domain, path.address) == (mailbox, domain, text)
    assert path.is_utf8 == (not text.isascii())
    assert _parser.parse_path(b"<" + path.address + b">", is_utf8_allowed=True) == (path, b"")


# --- the text of DATA -------------------------------------------------------------------------------------

WIRES = st.lists(
    st.sampled_from(
        [b"\r\n", b"\r\n", b"\r\n.", b".", b"..", b"\r", b"\n", b"\0", b"a", b"text", b"b" * 200,
         b"\r\n.\r\n", b"\n.\r\n", b"\r\n.\r", b"\r.\r\n", b"\n.\n", b"\r\n.\n", b"\xff"]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@EXAMPLES
@given(WIRES)
def test_the_data_decoder_is_the_reference(wire: bytes) -> None:
    targets.data(wire)


@EXAMPLES
@given(st.lists(st.sampled_from([b".", b"..", b"", b"a", b".a", b"a.", b"b" * 300, b"\xc3\xa9"]), max_size=8))
def test_a_text_that_we_send_is_the_text_that_we_receive(lines: list[bytes]) -> None:
    text = b"".join(line + b"\r\n" for line in lines)
    wire = reference_data.encode(text)
    for is_normalizing in (False, True):
        decoder = _parser.DataDecoder(is_normalizing=is_normalizing)
        assert decoder.feed(wire + b"QUIT\r\n") == (text, len(wire))
        assert decoder.is_done
        assert decoder.found == 0


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"a\r\n..b\r\n.\r\n", b"a\r\n.b\r\n"),
        (b"a\r\n.b\r\n.\r\n", b"a\r\nb\r\n"),
    ],
)
def test_the_reference_itself_on_what_everyone_knows(wire: bytes, text: bytes) -> None:
    decoded = reference_data.decode(wire + b"NOOP\r\n")
    assert decoded == reference_data.Decoded(text, len(wire), (), True)


@pytest.mark.parametrize(
    "false_end", [b"\n.\n", b"\n.\r\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r.\r", b"\n\n.\r\n"]
)
def test_no_other_end_of_data_than_crlf_dot_crlf(false_end: bytes) -> None:
    wire = b"a" + false_end + b"MAIL FROM:<>"
    assert not reference_data.decode(wire).is_done
    for is_normalizing in (False, True):
        decoder = _parser.DataDecoder(is_normalizing=is_normalizing)
        assert decoder.feed(wire)[1] == len(wire)
        assert not decoder.is_done
        assert decoder.found


# --- the dialogue -----------------------------------------------------------------------------------------

# What a client may send, right, nearly right and wrong; each is one command, or a command with its text.
COMMANDS = st.sampled_from(
    [
        b"EHLO client.example", b"EHLO [192.0.2.1]", b"HELO under_score", b"EHLO", b"HELO <x>",
        b"HELO " + b"n" * 256, b"MAIL FROM:<a@b.example>", b"mail from: <>", b"MAIL FROM:<a@b>SIZE=1",
        b"MAIL FROM:<a b>", b"MAIL <a@b>", b"MAIL FROM:<a@b> SIZE=10 BODY=8BITMIME RET=full ENVID=x+2B",
        b"MAIL FROM:<a@b> SIZE=99999999999999999999", b"MAIL FROM:<\xc3\xa9@b> SMTPUTF8", b"MAIL FROM:<\xc3\xa9@b>",
        b"MAIL FROM:<a@b> SIZE=1 SIZE=2", b"MAIL FROM:<a@b> BODY=9BIT", b"MAIL FROM:<a@b> RET=",
        b"MAIL FROM:<a@b> NOTIFY=NEVER", b"MAIL FROM:<a@b>  ", b"RCPT TO:<c@d.example>", b"RCPT TO:<postmaster>",
        b"RCPT TO:<>", b"RCPT TO:<@x,@y:c@d>", b"RCPT FROM:<a@b>",
        b"RCPT TO:<c@d> NOTIFY=success,FAILURE ORCPT=rfc822;a+2Bb", b"RCPT TO:<c@d> NOTIFY=NEVER,DELAY",
        b"RCPT TO:<c@d> NOTIFY=NEVER,NEVER", b"RCPT TO:<\xc3\xa9@d> ORCPT=utf-8;\xc3\xa9", b"RCPT TO:<c@d> ORCPT=x",
        b"DATA", b"DATA", b"DATA x", b"DATA\r\nSubject: x\r\n\r\n..y\r\n.", b"DATA\r\n" + b"t" * 150 + b"\r\n.",
        b"BDAT 7\r\nabcde\r\nBDAT 5 last\r\n.\r\n", b"BDAT 3 LAST\r\nab\r", b"BDAT 4\r\na\nb\0", b"BDAT 0 LAST",
        b"BDAT 0", b"BDAT 151\r\n" + b"c" * 149, b"BDAT x", b"BDAT", b"BDAT 2 FIRST",
        b"BDAT 9999999999999999999999", b"RSET", b"RSET x", b"NOOP", b"noop foo", b"VRFY", b"VRFY a", b"EXPN a",
        b"HELP", b"AUTH PLAIN", b"QUIT", b"QUIT x", b"STARTTLS", b"STARTTLS x",
        b"XCLIENT ADDR=192.0.2.1 NAME=[UNAVAILABLE]", b"XCLIENT FOO=1", b"XCLIENT ADDR", b"XCLIENT ADDR=1 ADDR=2",
        b"XCLIENT", b"GET / HTTP/1.1", b"FOO", b"", b" NOOP", b"NOOP \t ", b"NOOP\nNOOP", b"NO\rOP", b"NO\0OP",
        b"x" * 62, b"x" * 63, b"x" * 510, b"x" * 511, b"MAIL FROM:<" + b"x" * 620 + b"@b>", b"y" * 513 + b"\n",
        b"\x16\x03\x01", b".", b"\xff",
    ]
)  # fmt: skip
BEGINNINGS = st.sampled_from(
    [
        b"",
        b"EHLO c\r\n",
        b"EHLO c\r\nMAIL FROM:<a@b>\r\n",
        b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n",
        b"EHLO c\r\nMAIL FROM:<a@b> SMTPUTF8\r\nRCPT TO:<c@d>\r\n",
        b"HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n",
    ]
)
DIALOGUES = st.tuples(
    BEGINNINGS, st.lists(COMMANDS.map(lambda line: line + b"\r\n"), max_size=10).map(b"".join)
).map(b"".join)


@EXAMPLES
@given(st.integers(0, (1 << 24) - 1), DIALOGUES)
def test_a_session_is_the_reference_whatever_it_is_told_and_answered(options: int, wire: bytes) -> None:
    targets.play_session(options, wire)


@EXAMPLES
@given(st.integers(0, (1 << 24) - 1), DIALOGUES, st.integers(0, 2_000))
def test_a_session_that_breaks_off_is_the_reference(options: int, wire: bytes, size_bytes: int) -> None:
    targets.play_session(options, wire[: size_bytes % (len(wire) + 1)])


@pytest.mark.parametrize(
    ("wire", "events", "last_line"),
    [
        (
            b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n",
            ["HELO", "MAIL", "RCPT", "DATA", "BODY", "END", "QUIT"],
            b"221 2.0.0 Bye",
        ),
        (
            b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3\r\nx\r\nBDAT 0 LAST\r\nQUIT\r\n",
            ["HELO", "MAIL", "RCPT", "DATA", "BODY", "END", "QUIT"],
            b"221 2.0.0 Bye",
        ),
        (b"EHLO c\r\nMAIL FROM:<a@b>\r\nRSET\r\n", ["HELO", "MAIL", "RESET"], b"250 2.0.0 Ok"),
        (b"HELO c\r\nMAIL FROM:<> SIZE=1\r\n", ["HELO"], b"555 5.5.4 Parameters need EHLO (id 7F3A)"),
        (
            b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\n.\r\nMAIL FROM:<e@f>\r\n",
            ["HELO", "MAIL", "RCPT", "DATA", "BODY", "VIOLATION"],
            b"550 5.6.0 Bare <CR> or <LF> received (id 7F3A)",
        ),
    ],
)
def test_the_dialogues_that_everyone_knows(wire: bytes, events: list[str], last_line: bytes) -> None:
    """Against a list, so that reference and compiled session are not wrong together."""
    outcome = targets.play_session(1, wire)
    assert [event[0] for event in outcome.events] == events
    assert outcome.output.split(b"\r\n")[-2] == last_line


def test_a_refused_ehlo_changes_nothing() -> None:
    """RFC 5321 section 4.1.4: the server stays in the state that it was in."""
    session = _session.Session(_session.Terms(hostname="mx.example"), b"1")
    session.greet(replies.banner("mx.example"))
    session.feed(b"EHLO c\r\nHELO d\r\nMAIL FROM:<a@b> SIZE=10\r\n")
    assert session.next_event() is not None
    session.reply(replies.OK)
    assert session.next_event() is not None
    session.reply(replies.DENIED)
    event = session.next_event()
    assert event is not None
    assert (_session.EVENT_NAMES[event.kind], event.size_bytes) == ("MAIL", 10)
