"""Messages as the world sends them, CRLF: for tests that they arrive byte for byte."""

from __future__ import annotations

import base64
import random

_HEADER = b"From: a@example.net\r\nTo: joe@example.org\r\nSubject: %b\r\nMessage-ID: <1@example.net>\r\n"
_DATE = b"Date: Sun, 22 Nov 2026 23:00:00 +0000\r\n"


def _mail(subject: bytes, *rest: bytes) -> bytes:
    return _HEADER % subject + _DATE + b"".join(rest)


def _attachment(size_bytes: int) -> bytes:
    data = random.Random(size_bytes).randbytes(size_bytes)
    return base64.encodebytes(data).replace(b"\n", b"\r\n")


def mime(size_bytes: int) -> bytes:
    """A multipart message with an attachment of about this size on the wire."""
    return _mail(
        b"a file",
        b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n\tboundary="=_b"\r\n\r\nPreamble\r\n',
        b"--=_b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
        "Grüße\r\n".encode(),
        b"--=_b\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n",
        _attachment(size_bytes * 57 // 78),
        b"--=_b--\r\n",
    )


MAILS: dict[str, bytes] = {
    "a line": _mail(b"hello", b"\r\nHello\r\n"),
    "an empty body": _mail(b"empty", b"\r\n"),
    "dots": _mail(b"dots", b"\r\n.\r\n..\r\n.a\r\n...\r\n \r\n.\r\n"),
    "long lines": _mail(b"long", b"\r\n", b"l" * 998 + b"\r\n", b"." * 998 + b"\r\n", b"m" * 990 + b"\r\n"),
    "8-bit": _mail(b"8bit", b"\r\n", bytes(b for b in range(1, 256) if b not in b"\r\n") + b"\r\n"),
    "MIME, 100 kB": mime(100_000),
    "MIME, 20 MB": mime(20_000_000),
}
