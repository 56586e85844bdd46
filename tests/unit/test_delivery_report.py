"""qmail-remote's report to the byte, and the files that it reads."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.delivery.lf_file import CrlfEncoder, LfFile
from fastsmtp.delivery.outcome import Delivered, Failed, Hop, Outcome, Retry
from fastsmtp.delivery.report import TEXT_BYTES, fault, report
from fastsmtp.errors import StorageFailed
from fastsmtp.message import Envelope
from fastsmtp.reply import NEXT_HOP_DOWN, Reply

HOP = Hop("mx.b.example", "192.0.2.1", 25)
WHO = b"mx.b.example [192.0.2.1]"
YES = Delivered("Ok: queued", hop=HOP, enhanced="2.0.0")
NO = Failed(Reply(550, "5.1.1", "Nobody"), "550 5.1.1 Nobody", hop=HOP)
LATER = Retry(Reply(450, "4.2.1", "Full"), "450 4.2.1 Full", hop=HOP)
DOWN = Retry(NEXT_HOP_DOWN, "192.0.2.1: Connection refused")
GONE = Retry(NEXT_HOP_DOWN, "192.0.2.1: Connection refused", remote="mx.b.example [192.0.2.1]")
LOST = Retry(NEXT_HOP_DOWN, "the connection was lost", may_have_arrived=True)
UNKNOWN = Failed(Reply(550, "5.1.2", "No such domain"), "b.example does not exist")

K = b"K%b accepted message.\nRemote host said: 2.0.0 Ok: queued\n\0" % WHO
H = b"h%b does not like recipient.\nRemote host said: 550 5.1.1 Nobody\n\0" % WHO
S = b"s%b does not like recipient.\nRemote host said: 450 4.2.1 Full\n\0" % WHO
GIVEN_UP = b"DGiving up on %b.\n\0" % WHO
CUT_OFF = Retry(NEXT_HOP_DOWN, "the connection was lost", True, hop=HOP)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([YES], b"r\0" + K),
        ([GONE], b"Z%b: Connection refused. (#4.4.1)\n\0" % WHO),
        ([YES, NO, LATER], b"r\0" + H + S + K),
        ([NO, YES], H + b"r\0" + K),
        ([NO], H + GIVEN_UP),
        ([LATER], S + GIVEN_UP),
        ([LATER, NO], S + H + GIVEN_UP),
        ([DOWN], b"Z192.0.2.1: Connection refused. (#4.4.1)\n\0"),
        ([DOWN, DOWN], b"Z192.0.2.1: Connection refused. (#4.4.1)\n\0"),
        ([LOST], b"Zthe connection was lost. Possible duplicate! (#4.4.1)\n\0"),
        ([UNKNOWN], b"Db.example does not exist. (#5.1.2)\n\0"),
        ([CUT_OFF], b"Zthe connection was lost. Possible duplicate! (#4.4.1)\n\0"),
        (
            [CUT_OFF, NO, LATER],
            b"r\0" + H + S + b"Zthe connection was lost. Possible duplicate! (#4.4.1)\n\0",
        ),
        ([UNKNOWN, DOWN], b"Z192.0.2.1: Connection refused. (#4.4.1)\n\0"),
    ],
)
def test_reports(outcomes: list[Outcome], expected: bytes) -> None:
    assert report(outcomes) == expected


def test_what_a_server_says_can_t_end_a_report_or_fill_a_log() -> None:
    said = report([Delivered("a\r\nb\0Z" + "x" * 9_000, hop=HOP)])
    first, second, nothing = said.split(b"\0")
    assert (first, nothing) == (b"r", b"")
    assert b"Remote host said: a b?Z" in second
    assert len(second) < TEXT_BYTES + 100
    assert (
        fault("Z", "control/outgoingip:1: 'x\0\n'", "4.3.0") == b"Zcontrol/outgoingip:1: 'x? ' (#4.3.0)\n\0"
    )


def lf_file(content: bytes) -> tuple[LfFile, bytes]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        found = LfFile(file.fileno(), "1", Envelope(b"", b""), 0)

        async def whole() -> bytes:
            return b"".join([piece async for piece in found.pieces()])

        return found, asyncio.run(whole())


@pytest.mark.parametrize(
    ("content", "wire", "ends_with_lf"),
    [
        (b"", b"", False),
        (b"a\nb\n", b"a\r\nb\r\n", True),
        (b"a\r\nb\r\n", b"a\r\nb\r\n", True),
        (b"a\n.\nb", b"a\r\n.\r\nb", False),
        (b"a\rb\n", b"a\r\nb\r\n", True),
        (b"a\r\r\nb\n", b"a\r\n\r\nb\r\n", True),
        (b"a\r", b"a\r\n", False),
        (b"x" * 65_535 + b"\r\n" + b"y\n", b"x" * 65_535 + b"\r\ny\r\n", True),
    ],
)
def test_a_file_is_read_as_it_goes_out(content: bytes, wire: bytes, ends_with_lf: bool) -> None:
    found, read = lf_file(content)
    assert read == wire
    assert (found.size_bytes, found.tail, found.ends_with_lf) == (len(wire), wire[-2:], ends_with_lf)
    assert found.ends_with_crlf is wire.endswith(b"\r\n")


def test_a_file_that_can_t_be_read() -> None:
    with pytest.raises(StorageFailed):
        LfFile(-1, "1", Envelope(b"", b""), 0)


@given(
    st.lists(
        st.binary(max_size=4).map(lambda text: text.translate(bytes(b"\r\na."[i % 4] for i in range(256))))
    )
)
def test_cuts_change_nothing_and_no_bare_line_end_leaves(pieces: list[Any]) -> None:
    encoder, whole = CrlfEncoder(), CrlfEncoder()
    cut = b"".join(encoder.feed(piece) for piece in pieces) + encoder.finish()
    assert cut == whole.feed(b"".join(pieces)) + whole.finish()
    assert cut.count(b"\r") == cut.count(b"\n") == cut.count(b"\r\n")
