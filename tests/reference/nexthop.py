"""A next hop's replies, all at once, as regular expressions (RFC 5321 section 4.2, RFC 2034 section 4)."""

from __future__ import annotations

import re
from typing import NamedTuple

LINE_BYTES = 2_048
LINES = 128
_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(?:(([2-5])\.[0-9]{1,3}\.[0-9]{1,3})(?: |\Z))?(.*))?", re.S)


class NextHopReply(NamedTuple):
    code: int
    enhanced: str
    lines: tuple[bytes, ...]


def read_replies(wire: bytes) -> list[NextHopReply] | None:
    """The complete replies in wire; None when it is not a next hop's."""
    *lines, rest = wire.split(b"\n")
    if any(len(line) >= LINE_BYTES for line in [*lines, rest]):
        return None
    replies = []
    open_lines: list[tuple[int, str, bytes]] = []
    for line in lines:
        text = line.removesuffix(b"\r")
        found = _LINE.fullmatch(text)
        if found is None or len(open_lines) == LINES:
            return None
        code, enhanced, said = int(found[1]), found[3] or b"", found[5] or b""
        if enhanced and found[4] != text[:1]:  # another class than the code's: it is text
            enhanced, said = b"", text[4:]
        if open_lines and open_lines[0][0] != code:
            return None
        open_lines.append((code, enhanced.decode(), said))
        if found[2] != b"-":
            replies.append(NextHopReply(code, open_lines[0][1], tuple(said for _, _, said in open_lines)))
            open_lines = []
    return replies
