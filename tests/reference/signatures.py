"""What SignatureScanner must find: the mail as a list of lines, decoded by the standard library where that can.

The bounds are those of the scanner: they decide what counts as a boundary, not only how much memory is used.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import NamedTuple

LINE = 1_024
FIELD = 2_048
BOUNDARY = 128
BOUNDARIES = 32
DECODED = 192

_BOUNCES = (b"Hi. This is the ", b"This message was created automatically by mail delivery software")
_NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
_PARAMETER = re.compile(rb"boundary[*0-9 \t]*=[ \t]*", re.IGNORECASE)
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")


class Hit(NamedTuple):
    signature: bytes
    part: int
    is_decoded: bool


class _Line(NamedTuple):
    text: bytes  # without its line end, at most LINE octets
    is_cut: bool


class _Field(NamedTuple):
    name: bytes
    value: bytes
    is_cut: bool


def _lines(mail: bytes) -> list[_Line]:
    found = []
    pieces = mail.split(b"\n")
    for piece in pieces if pieces[-1] else pieces[:-1]:
        is_cut = len(piece) > LINE
        found.append(_Line(piece[:LINE] if is_cut else piece.removesuffix(b"\r"), is_cut))
    return found


class Walk:
    """The state between two lines; `hit` is the first."""

    def __init__(self, signatures: Iterable[bytes], is_decoding: bool) -> None:
        self.signatures = sorted(signatures, key=len)
        self.is_decoding = is_decoding
        self.hit: Hit | None = None
        self.boundaries: set[bytes] = set()
        self.is_lax = False
        self.part = 0
        self.begin_header()

    def begin_header(self, *, skips_empty: bool = False) -> None:
        self.part += 1
        self.in_header = True
        self.skips_empty = skips_empty
        self.fields: list[_Field] = []
        self.has_odd_line = False
        self.is_open = False  # the last of the fields may go on
        self.body: list[bytes] | None = None
        self.first = b""  # its first line that is not empty

    def compare(self, text: bytes, is_decoded: bool = False) -> None:
        for signature in self.signatures:
            if self.hit is None and text.startswith(signature):
                self.hit = Hit(signature, self.part, is_decoded)

    def line(self, line: _Line) -> None:
        text = line.text
        if self.in_header and text[:1] not in (b" ", b"\t"):
            self.read_field()
        if text.startswith(b"--") and (
            self.is_lax or any(text[2:].startswith(one) for one in self.boundaries)
        ):
            self.end_body()
            self.begin_header()
        elif self.in_header:
            self.header_line(line)
        else:
            self.body_line(text)

    def header_line(self, line: _Line) -> None:
        text = line.text
        if not text:
            if not self.skips_empty:
                if any(
                    field.value.lower().startswith(b"message/")
                    for field in self.fields
                    if field.name == b"content-type"
                ):
                    self.begin_header()
                else:
                    self.in_header, self.body = False, []
            return
        self.skips_empty = False
        if text[:1] in (b" ", b"\t"):
            if self.fields and self.is_open:
                last = self.fields[-1]
                value = last.value + text
                self.fields[-1] = _Field(last.name, value, last.is_cut or line.is_cut)
            return
        found = _NAME.match(text)
        if found:
            self.fields.append(_Field(found[1].lower(), text[found.end() :], line.is_cut))
            self.is_open = True
        elif not self.has_odd_line:
            self.has_odd_line = True
            self.compare(text)

    def read_field(self) -> None:
        """The field before this line is complete."""
        if not self.is_open:
            return
        self.is_open = False
        name, value, is_cut = self.fields.pop()
        is_cut = is_cut or len(value) > FIELD
        value = value[:FIELD].lstrip(b" \t")
        self.fields.append(_Field(name, value, is_cut))
        if name != b"content-type":
            return
        self.is_lax = self.is_lax or is_cut
        at = 0
        while found := _PARAMETER.search(value, at):
            at = self.read_boundary(value, found.end())

    def read_boundary(self, value: bytes, at: int) -> int:
        text = b""
        is_quoted = value[at : at + 1] == b'"'
        at += is_quoted
        while at < len(value):
            octet = value[at : at + 1]
            if octet == b'"' if is_quoted else octet in (b";", b" ", b"\t"):
                break
            if is_quoted and octet == b"\\" and at + 1 < len(value):
                at += 1
            if len(text) == BOUNDARY:
                self.is_lax = True
                return at
            text += value[at : at + 1]
            at += 1
        if text in self.boundaries:
            return at
        if not text or len(self.boundaries) == BOUNDARIES:
            self.is_lax = True
        else:
            self.boundaries.add(text)
        return at

    def body_line(self, text: bytes) -> None:
        assert self.body is not None
        if self.first.startswith(_BOUNCES) and text.startswith(b"---"):
            self.end_body()
            self.begin_header(skips_empty=True)
            return
        if not self.first:
            self.first = text
            self.compare(text)
        self.body.append(text)

    def end_body(self) -> None:
        if not self.is_decoding or self.body is None:
            return
        encodings = [
            field.value.lower() for field in self.fields if field.name == b"content-transfer-encoding"
        ]
        known = [one for one in encodings if one.startswith((b"base64", b"quoted-printable"))]
        decoded = _decoded(self.body, known[-1][:1] if known else b"")[:DECODED]
        self.compare(base64.b64encode(decoded)[: len(decoded) * 8 // 6], True)
        self.compare(decoded.lstrip(b"\r\n"), True)


def _decoded(body: list[bytes], encoding: bytes) -> bytes:
    if encoding == b"b":
        text = _NO_BASE64.sub(b"", b"".join(body).partition(b"=")[0])
        return base64.b64decode(text + b"A" * (-len(text) % 4))[: len(text) * 6 // 8]
    if encoding == b"q":
        return b"".join(_unquoted(line.rstrip(b" \t")) for line in body)
    return b"".join(line + b"\r\n" for line in body)


def _unquoted(line: bytes) -> bytes:
    text = b""
    at = 0
    while at < len(line):
        pair = re.compile(rb"=([0-9A-Fa-f]{2})").match(line, at)
        if pair:
            text += bytes.fromhex(pair[1].decode())
            at = pair.end()
        elif line[at:] == b"=":
            return text
        else:
            text += line[at : at + 1]
            at += 1
    return text + b"\r\n"


def find(mail: bytes, signatures: Iterable[bytes], *, is_decoding: bool = False) -> Hit | None:
    """The first hit in the order in which the lines come; what is decoded is known when its body ends."""
    walk = Walk(signatures, is_decoding)
    for line in _lines(mail):
        walk.line(line)
        if walk.hit is not None:
            return walk.hit
    walk.end_body()
    return walk.hit
