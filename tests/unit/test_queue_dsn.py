"""Reports: who is told what, in which form; read back with Python's email package; nothing hostile gets through."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp._payload import decode
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.dsn import (
    DOUBLE_BOUNCE_SENDER,
    FULL_BYTES,
    HEADER_BYTES,
    Action,
    Fate,
    Reporter,
    is_wanted,
    original_bytes,
)
from fastsmtp.queue.dsn_text import duration
from fastsmtp.queue.model import Origins, QueuedMessage, encode
from fastsmtp.queue.row import Said

NOW = 1_800_000_000_000
HOST, POSTMASTER = "mx.example.org", "postmaster@example.org"
BODY = (
    b"From: Joe <joe@sender.example>\r\nTo: ann@there.example\r\nSubject: a question\r\n"
    b"Message-ID: <1@sender.example>\r\nX-Long: one\r\n two\r\n\r\nHello Ann,\r\nwhen?\r\n"
)
SAID = Said(550, "5.1.1", "no such user here", "mx.there.example [192.0.2.1]")


def message(
    *recipients: Recipient, body: bytes = BODY, sender: bytes = b"joe@sender.example", **envelope: Any
) -> QueuedMessage:
    to = recipients or (Recipient(b"ann@there.example", b"there.example"),)
    return QueuedMessage(
        "1QZ9GHK2M0AB", NOW - 3_600_000, Envelope(sender, sender.rpartition(b"@")[2], recipients=to, **envelope),
        Origins(address="192.0.2.9"), b"Received: from x by mx.example.org; now\r\n", (body,), len(body),
    )  # fmt: skip


def failed(recipient: int = 0, said: Said = SAID, **more: Any) -> Fate:
    return Fate(recipient, Action.FAILED, said, NOW - 1_000, **more)


def report_of(
    about: QueuedMessage, *fates: Fate, original: bytes | None = None, **options: Any
) -> QueuedMessage | None:
    given = fates or (failed(),)
    if original is None:
        assert isinstance(about.body, tuple)
        (body,) = about.body
        original = body[: original_bytes(about, given)]
    return Reporter(HOST, POSTMASTER, **options).report(
        about, given, id="REPORT", now_ms=NOW, original=original
    )


def parsed(report: QueuedMessage | None) -> EmailMessage:
    """As a reader of mail takes it; fails for any defect, for a bare CR or LF, and for a line that is too long."""
    assert report is not None
    assert isinstance(report.body, tuple)
    (wire,) = report.body
    assert wire.replace(b"\r\n", b"").count(b"\n") == wire.replace(b"\r\n", b"").count(b"\r") == 0
    assert max(map(len, wire.split(b"\r\n"))) <= 998
    assert report.body_bytes == len(wire) == report.envelope.size_bytes
    assert report.envelope.sender == b""
    assert (report.envelope.body == b"8BITMIME") == (not wire.isascii())
    # The queue takes it as any other message.
    assert (
        decode(b"".join(encode(report))).envelope.recipients[0].address
        == report.envelope.recipients[0].address
    )
    found = email.message_from_bytes(wire, policy=email.policy.SMTPUTF8)
    assert isinstance(found, EmailMessage)
    for part in found.walk():
        assert not part.defects, (part.get_content_type(), part.defects)
    assert found.get_content_type() == "multipart/report"
    assert found.get_param("report-type") == "delivery-status"
    assert found["Auto-Submitted"] == "auto-replied"
    return found


def parts_of(found: EmailMessage) -> list[Any]:
    return list(found.iter_parts())


def blocks(found: EmailMessage) -> list[dict[str, str]]:
    """The fields of the part for programs: of the message, then of each recipient."""
    status = parts_of(found)[1]
    assert status.get_content_type() in ("message/delivery-status", "message/global-delivery-status")
    if status.get_content_type() == "message/delivery-status":
        return [{name: str(value) for name, value in block.items()} for block in status.get_payload()]
    raw = status.as_bytes(policy=email.policy.SMTPUTF8).partition(b"\r\n\r\n")[2]
    texts = raw.replace(b"\r\n", b"\n").strip().split(b"\n\n")
    return [
        {line.partition(": ")[0]: line.partition(": ")[2] for line in text.decode().split("\n")}
        for text in texts
    ]


def test_a_failure_is_told_in_three_parts() -> None:
    found = parsed(report_of(message(envid=b"QQ+2B1", ret=b"HDRS")))
    assert found["To"] == "joe@sender.example"
    assert found["From"].addresses[0].addr_spec == f"MAILER-DAEMON@{HOST}"
    assert found["Subject"] == "Your message could not be delivered"
    assert found["In-Reply-To"] == found["References"] == "<1@sender.example>"
    assert found["Date"].datetime.timestamp() == NOW // 1000
    text, status, header = parts_of(found)
    assert text.get_content().splitlines() == [
        "This is the mail system at mx.example.org.",
        "",
        "Your message could not be delivered to:",
        "",
        "<ann@there.example>",
        "    mx.there.example [192.0.2.1] said:",
        "    550 5.1.1 no such user here",
        "",
        "It will not be tried again.",
        "",
        "The header of the message is at the end of this report.",
        "",
        "If you need help, write to <postmaster@example.org> and name the message's",
        "id, 1QZ9GHK2M0AB.",
    ]
    assert status.get_content_type() == "message/delivery-status"
    assert blocks(found) == [
        {
            "Reporting-MTA": "dns; mx.example.org",
            "Original-Envelope-Id": "QQ+1",
            "Arrival-Date": "Fri, 15 Jan 2027 07:00:00 +0000",
        },
        {
            "Final-Recipient": "rfc822;ann@there.example",
            "Action": "failed",
            "Status": "5.1.1",
            "Remote-MTA": "dns; mx.there.example [192.0.2.1]",
            "Diagnostic-Code": "smtp; 550 5.1.1 no such user here",
            "Last-Attempt-Date": "Fri, 15 Jan 2027 07:59:59 +0000",
            "Final-Log-Id": "1QZ9GHK2M0AB",
        },
    ]
    assert header.get_content_type() == "text/rfc822-headers"
    assert "Received: from x" in header.get_content()
    assert "Hello" not in header.get_content()


WANTED = [
    ((), "failed delayed"),
    ((b"NEVER",), ""),
    ((b"FAILURE",), "failed"),
    ((b"DELAY",), "delayed"),
    ((b"SUCCESS",), "delivered relayed"),
    ((b"SUCCESS", b"FAILURE", b"DELAY"), "failed delayed delivered relayed"),
]


@pytest.mark.parametrize(("notify", "actions"), WANTED)
def test_the_sender_is_told_what_notify_asks_for(notify: tuple[bytes, ...], actions: str) -> None:
    recipient = Recipient(b"ann@there.example", b"there.example", notify)
    told = [action.value for action in Action if is_wanted(recipient, action)]
    assert told == actions.split()
    for action in Action:
        report = report_of(message(recipient), Fate(0, action, SAID, NOW))
        assert (report is not None) == (action.value in told)


def test_all_failed_recipients_of_a_message_are_in_one_report_and_only_those_who_asked() -> None:
    to = [
        Recipient(b"a@one.example", b"one.example", (b"FAILURE",), b"rfc822;Old+2BName@one.example"),
        Recipient(b"b@two.example", b"two.example", (b"NEVER",)),
        Recipient(b"c@three.example", b"three.example"),
    ]
    timed_out = failed(2, Said(0, "", "no answer", ""), status="4.4.7")
    found = parsed(report_of(message(*to), failed(0), failed(1), timed_out))
    first, second = blocks(found)[1:]
    assert first["Original-Recipient"] == "rfc822;Old+Name@one.example"
    assert (second["Final-Recipient"], second["Status"]) == ("rfc822;c@three.example", "4.4.7")
    assert "Remote-MTA" not in second
    assert second["Diagnostic-Code"] == "x-fastsmtp; no answer"
    text = parts_of(found)[0].get_content()
    assert "two.example" not in text
    assert "again and again for 59 minutes" in text


@pytest.mark.parametrize(
    ("action", "status", "subject", "words"),
    [
        (Action.DELAYED, "4.2.0", "Your message is delayed", "until it is 5 days old"),
        (Action.DELIVERED, "2.0.0", "Your message was delivered", "You asked for this notice."),
        (Action.RELAYED, "2.0.0", "Your message was passed on", "in the hands of that system"),
    ],
)
def test_other_news_has_its_own_words_and_the_header_only(
    action: Action, status: str, subject: str, words: str
) -> None:
    said = Said(451, "4.2.0", "busy", "h") if action is Action.DELAYED else Said(250, "2.0.0", "ok", "h")
    until_ms = NOW + 119 * 3_600_000 if action is Action.DELAYED else 0
    to = Recipient(b"ann@there.example", b"there.example", (b"DELAY", b"SUCCESS"))
    found = parsed(report_of(message(to, ret=b"FULL"), Fate(0, action, said, NOW, until_ms=until_ms)))
    assert found["Subject"] == subject
    assert words in parts_of(found)[0].get_content()
    block = blocks(found)[1]
    assert (block["Action"], block["Status"]) == (action.value, status)
    assert ("Will-Retry-Until" in block) == bool(until_ms)
    assert parts_of(found)[2].get_content_type() == "text/rfc822-headers"


RETURNED: list[tuple[str, dict[str, Any], bytes, str]] = [
    ("RET=FULL", {"ret": b"FULL"}, BODY, "message/rfc822"),
    ("RET=HDRS", {"ret": b"HDRS"}, BODY, "text/rfc822-headers"),
    ("no RET", {}, BODY, "text/rfc822-headers"),
    ("RET=FULL and too big", {"ret": b"FULL"}, BODY + b"x" * FULL_BYTES, "text/rfc822-headers"),
    ("8 bits", {"ret": b"FULL"}, BODY + b"\xfc\r\n", "message/rfc822"),
    ("no line end", {"ret": b"FULL"}, BODY + b"end", "message/rfc822"),
    ("a header and nothing else", {}, b"Subject: a question\r\n", "text/rfc822-headers"),
    ("a header without end", {}, b"Subject: a question\r\nX: " + b"y " * 40_000, "text/rfc822-headers"),
    ("no header", {}, b"\r\nSubject: none\r\n", "text/rfc822-headers"),
    ("nothing", {}, b"", "text/rfc822-headers"),
]


@pytest.mark.parametrize(
    ("given", "body", "kind"), [case[1:] for case in RETURNED], ids=[c[0] for c in RETURNED]
)
def test_what_comes_back_of_the_original(given: dict[str, Any], body: bytes, kind: str) -> None:
    found = parsed(report_of(message(body=body, **given)))
    last = parts_of(found)[-1]
    assert last.get_content_type() == kind
    raw = bytes(last.get_payload(0)) if kind == "message/rfc822" else last.get_payload(decode=True)
    assert raw.startswith(b"Received: from x by mx.example.org; now\r\n")
    assert (b"when?" in raw) == (kind == "message/rfc822")
    assert len(raw) <= FULL_BYTES
    assert b"Subject: none" not in raw
    if b"a question" in body:
        assert b"Subject: a question\r\n" in raw


def test_an_original_that_cannot_be_read_is_left_out_but_for_what_we_added() -> None:
    found = parsed(report_of(message(ret=b"FULL"), original=b""))
    assert parts_of(found)[2].get_content() == "Received: from x by mx.example.org; now\r\n"


def test_a_boundary_that_is_in_the_original_is_not_taken() -> None:
    body = BODY + b"\r\n--report_REPORT_0--\r\n--report_REPORT_1\r\nContent-Type: text/html\r\n\r\nevil\r\n"
    found = parsed(report_of(message(body=body, ret=b"FULL")))
    assert len(parts_of(found)) == 3
    assert found.get_boundary() == "report_REPORT_2"


# --- no loop ----------------------------------------------------------------------------------------------------

NEVER_MESSAGES = [
    ("null sender, to the postmaster himself", b"", b"PostMaster@example.org", "postmaster"),
    ("null sender, dropped by choice", b"", b"ann@there.example", "drop"),
    ("qmail's double bounce", DOUBLE_BOUNCE_SENDER, b"ann@there.example", "postmaster"),
]


@pytest.mark.parametrize(
    ("sender", "to", "choice"),
    [case[1:] for case in NEVER_MESSAGES],
    ids=[case[0] for case in NEVER_MESSAGES],
)
def test_nobody_is_told(sender: bytes, to: bytes, choice: str) -> None:
    about = message(Recipient(to, to.rpartition(b"@")[2]), sender=sender)
    assert report_of(about, double_bounce=choice) is None


def test_a_bounce_that_fails_goes_to_the_postmaster_once() -> None:
    first = report_of(message())
    assert first is not None
    second = report_of(first)
    found = parsed(second)
    assert found["To"] == POSTMASTER
    assert found["Subject"] == "A notice could not be delivered"
    assert "A message without a sender" in parts_of(found)[0].get_content()
    assert second is not None
    assert report_of(second) is None


@pytest.mark.parametrize("action", [Action.DELAYED, Action.DELIVERED, Action.RELAYED])
def test_of_a_message_without_a_sender_only_failures_are_told(action: Action) -> None:
    to = Recipient(b"ann@there.example", b"there.example", (b"SUCCESS", b"DELAY"))
    assert report_of(message(to, sender=b""), Fate(0, action, SAID, NOW)) is None


# --- addresses beyond ASCII -------------------------------------------------------------------------------------


def test_addresses_in_utf8_have_the_types_of_rfc_6533() -> None:
    to = Recipient(
        "änn@bücher.example".encode(), "bücher.example".encode(), (), rb"utf-8;\x{E4}nn@b\x{FC}cher.example"
    )
    about = message(
        to,
        sender="jöe@sender.example".encode(),
        is_smtputf8=True,
        body="Subject: Grüße\r\n\r\nHi\r\n".encode(),
    )
    report = report_of(about)
    found = parsed(report)
    assert report is not None
    assert report.envelope.is_smtputf8
    assert found["To"] == "jöe@sender.example"
    text, status, header = parts_of(found)
    assert "<änn@bücher.example>" in text.get_content()
    assert status.get_content_type() == "message/global-delivery-status"
    assert header.get_content_type() == "message/global-headers"
    block = blocks(found)[1]
    assert block["Final-Recipient"] == "utf-8;änn@bücher.example"
    assert block["Original-Recipient"] == "utf-8;änn@bücher.example"


def test_a_reply_beyond_ascii_is_readable_without_8bitmime() -> None:
    found = parsed(
        report_of(message(), failed(said=Said(550, "5.1.1", "Benutzer gibt es nicht, tschüß", "h")))
    )
    assert "tschüß" in parts_of(found)[0].get_content()
    assert blocks(found)[1]["Diagnostic-Code"] == "smtp; 550 5.1.1 Benutzer gibt es nicht, tsch??"


# --- what others chose ------------------------------------------------------------------------------------------

HOSTILE = [
    "line one\r\nFinal-Recipient: rfc822;victim@example.org",
    "x\r\n\r\n--report_REPORT_0\r\nContent-Type: text/html\r\n\r\n<b>",
    "a\nb\rc\0d\x1b[31me\x7f",
    "y" * 100_000,
    "word " * 20_000,
    "\u2028\u2029\x85\ud800 \N{RIGHT-TO-LEFT OVERRIDE}",
    " \t  ",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_next_hop_says_ends_no_field_and_no_part(text: str) -> None:
    found = parsed(report_of(message(), failed(said=Said(550, "5.1.1", text, text))))
    assert len(parts_of(found)) == 3
    first, second = blocks(found)
    assert set(first) == {"Reporting-MTA", "Arrival-Date"}
    assert second["Final-Recipient"] == "rfc822;ann@there.example"
    assert len(second.get("Diagnostic-Code", "")) < 1_100
    (wire,) = report_of(message(), failed(said=Said(550, "5.1.1", text, text))).body  # type: ignore[union-attr,misc]
    assert len(wire) < 8_000


anything = st.text(max_size=300)
octets = st.binary(max_size=120)


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(anything, anything, octets, octets, octets, octets, st.booleans(), st.sampled_from(list(Action)))
def test_whatever_others_chose_a_report_can_be_read(
    text: str,
    host: str,
    address: bytes,
    orcpt: bytes,
    envid: bytes,
    junk: bytes,
    is_utf8: bool,
    action: Action,
) -> None:
    to = Recipient(address, b"", (b"SUCCESS", b"DELAY", b"FAILURE"), orcpt)
    # A session lets no bare line end in.
    body = junk.replace(b"\r", b"").replace(b"\n", b"\r\n").replace(b"\0", b"")
    about = message(to, body=body, envid=envid, ret=b"FULL", is_smtputf8=is_utf8)
    report = report_of(about, Fate(0, action, Said(450, "", text, host), NOW))
    assert report is not None
    assert isinstance(report.body, tuple)
    (wire,) = report.body
    found = email.message_from_bytes(wire, policy=email.policy.SMTPUTF8)
    assert found.get_content_type() == "multipart/report"
    assert 2 <= len(found.get_payload()) <= 3
    assert wire.replace(b"\r\n", b"").count(b"\n") == wire.replace(b"\r\n", b"").count(b"\r") == 0
    second = blocks(found)[1]
    assert second["Action"] == action.value
    assert len(wire) < 10_000


def test_a_thousand_recipients_are_all_in_the_fields_and_a_hundred_in_the_text() -> None:
    to = [Recipient(f"u{at}@there.example".encode(), b"there.example") for at in range(1_000)]
    found = parsed(report_of(message(*to), *(failed(at) for at in range(1_000))))
    assert len(blocks(found)) == 1_001
    assert "and 900 more" in parts_of(found)[0].get_content()


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (0, "a moment"), (1_000, "1 second"), (59_000, "59 seconds"), (119_000, "119 seconds"), (120_000, "2 minutes"),
        (7_199_000, "119 minutes"), (7_200_000, "2 hours"), (172_800_000, "2 days"), (432_000_000, "5 days"),
    ],
)  # fmt: skip
def test_durations_are_told_as_people_do(ms: int, words: str) -> None:
    assert duration(ms) == words


def test_the_header_that_comes_back_is_bounded() -> None:
    body = b"".join(b"X-%d: %s\r\n" % (at, b"v" * 70) for at in range(5_000)) + b"\r\nbody\r\n"
    found = parsed(report_of(message(body=body)))
    raw = parts_of(found)[2].get_payload(decode=True)
    assert HEADER_BYTES - 200 < len(raw) <= HEADER_BYTES + 2
    assert raw.endswith(b"v\r\n")
