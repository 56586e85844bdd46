"""The signature scanner, a message at a time:  python -m pytest bench/bench_signatures.py"""

from __future__ import annotations

from typing import Any

import pytest

from bench.bench_parser import LINE
from fastsmtp._signatures import Signatures, SignatureScanner

SIGNATURES = Signatures(b"TV%c%c" % (a, b) for a in b"abcdefghij" for b in b"abcdefghij")
HEADER = b'Subject: x\r\nContent-Type: multipart/mixed; boundary="----=_Part_1"\r\n\r\n'
PART = b"------=_Part_1\r\nContent-Transfer-Encoding: base64\r\n\r\n"
BASE64 = b"QUJD" * 19 + b"\r\n"
CHUNK_BYTES = 65_536

MAILS = {
    "base64": HEADER + PART + BASE64 * 13_000,
    "text": HEADER + b"------=_Part_1\r\n\r\n" + LINE * 14_000,
    "1,000 parts": HEADER + (PART + BASE64 * 12) * 1_000,
    "short lines": HEADER + PART + b"x\r\n" * 340_000,
    "hyphens only": HEADER + b"--\r\n" * 250_000,
}


@pytest.mark.parametrize("mail", MAILS)
@pytest.mark.parametrize("is_decoding", [False, True], ids=["", "decoding"])
def bench_scan(benchmark: Any, mail: str, is_decoding: bool) -> None:
    """About 1 MB each: 1 GB/s is 1 ms."""
    text = MAILS[mail]
    pieces = [text[at : at + CHUNK_BYTES] for at in range(0, len(text), CHUNK_BYTES)]

    def scan() -> object:
        scanner = SignatureScanner(SIGNATURES, is_decoding=is_decoding)
        for piece in pieces:
            scanner.feed(piece)
        return scanner.finish()

    assert benchmark(scan) is None


def bench_small_message(benchmark: Any) -> None:
    """What the rule costs for a mail of 4 kB that has no parts."""
    text = b"Subject: x\r\n\r\n" + LINE * 55

    def scan() -> object:
        scanner = SignatureScanner(SIGNATURES)
        scanner.feed(text)
        return scanner.finish()

    assert benchmark(scan) is None
