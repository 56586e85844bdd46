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
    found: frozenset[str]
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
    found = set()
    if re.search(rb"\r(?!\n|\Z)", raw):
        found.add(FOUND_BARE_CR)
    if re.search(rb"(?<!\r)\n", raw):
        found.add(FOUND_BARE_LF)
    if b"\0" in raw:
        found.add(FOUND_NUL)
    lines = raw.split(b"\r\n")
    text = b"\r\n".join(line.removeprefix(b".") for line in lines)
    if is_normalizing:
        text = re.sub(rb"\r\n|\r|\n", b"\r\n", text)
    return Decoded(text, consumed, frozenset(found), end is not None)


def encode(text: bytes) -> bytes:
    """Dot-stuffing and the end of data; text ends with CR LF or is empty."""
    lines = text.split(b"\r\n")
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + b".\r\n"
