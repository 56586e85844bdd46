"""The header of a message: one regular expression over the whole body (RFC 5322 sections 2.2, 4.5.8)."""

from __future__ import annotations

import re
from typing import NamedTuple

# A field: ftext name, white space that the obsolete grammar allows, a colon, the rest of the line and the
# folded lines behind it.  The last line may lack its line end.
_FIELD = re.compile(rb"([!-9;-~]{1,997})[ \t]*:[^\n]*(?:\n|\Z)(?:[ \t][^\n]*(?:\n|\Z))*")
_EMPTY = re.compile(rb"\r?\n")


class Header(NamedTuple):
    hops: int
    size_bytes: int
    fields: tuple[tuple[bytes, int, int], ...]
    is_cut: bool


def read_header(body: bytes, header_bytes: int = 262_144, fields_max: int = 1_000) -> Header:
    """What HeaderScanner must find in body, however it is cut."""
    window = body[:header_bytes]
    fields = []
    at = 0
    while found := _FIELD.match(window, at):
        fields.append((found[1].lower(), at, found.end() - at))
        at = found.end()
    hops = sum(name == b"received" for name, _, _ in fields)
    is_cut = len(fields) > fields_max
    if empty := _EMPTY.match(window, at):
        at = empty.end()
    elif len(body) > header_bytes and _is_open(window[at:]):
        is_cut = True
    return Header(hops, at, tuple(fields[:fields_max]), is_cut)


def _is_open(rest: bytes) -> bool:
    """Whether the octets behind the last whole field could still become a field or the empty line."""
    return re.fullmatch(rb"|\r|[!-9;-~]{1,997}[ \t]*", rest) is not None
