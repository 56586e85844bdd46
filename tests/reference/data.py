"""The text of DATA as operations on a whole byte string (RFC 5321 sections 2.3.8, 4.1.1.4, 4.5.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

FOUND_BARE_CR = "bare CR"
FOUND_BARE_LF = "bare LF"
FOUND_NUL = "NUL"


class Decoded(NamedTuple):
    text: bytes
    consumed: int
    found: tuple[str, ...]
    is_done: bool


def decode(wire: bytes, *, is_normalizing: bool = False) -> Decoded:
    """Decode wire, which begins at the first octet behind the 354.

    The end is CR LF . CR LF, or . CR LF at the very start (the CR LF of the DATA command counts).  While it
    has not come, a dot at the start of a line, and a CR behind it, belong to nothing and are not in `text`.
    """
    end = re.search(rb"(?:\A|(?<=\r\n))\.\r\n", wire)
    if end is None:
        open_tail = re.search(rb"(?:\A|(?<=\r\n))\.\r?\Z", wire)
        raw = wire[: open_tail.start()] if open_tail else wire
        consumed = len(wire)
    else:
        raw = wire[: end.start()]
        consumed = end.end()
    lines = raw.split(b"\r\n")
    text = b"\r\n".join(line.removeprefix(b".") for line in lines)
    return Decoded(_line_ends(text, is_normalizing), consumed, findings(raw), end is not None)


def decode_chunks(text: bytes, *, is_normalizing: bool, is_last: bool) -> Decoded:
    """The text of BDAT so far (RFC 3030): no dot means anything, no octets end it.

    A CR at the end of it all is bare.
    """
    found = findings(text)
    if is_last and text.endswith(b"\r"):
        found = tuple(dict.fromkeys((*found, FOUND_BARE_CR)))
    return Decoded(_line_ends(text, is_normalizing), len(text), found, is_last)


def findings(raw: bytes) -> tuple[str, ...]:
    """What there is in raw, in the order of its first appearance; a CR at the end of raw is still open."""
    names = ("", FOUND_NUL, FOUND_BARE_CR, FOUND_BARE_LF)
    each = re.finditer(rb"(\0)|(\r(?!\n|\Z))|((?<!\r)\n)", raw)
    return tuple(dict.fromkeys(names[found.lastindex or 0] for found in each))


def _line_ends(text: bytes, is_normalizing: bool) -> bytes:
    return re.sub(rb"\r\n|\r|\n", b"\r\n", text) if is_normalizing else text


def encode(text: bytes) -> bytes:
    """Dot-stuffing and the end of data; text ends with CR LF or is empty."""
    lines = text.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + b".\r\n"
