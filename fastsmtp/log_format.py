r"""How one event becomes one line: logfmt or JSON.

    ts=2026-01-31T12:00:00.123Z event=reject id=7F3A9C2E client=192.0.2.1 helo="a \"b\" \xff" code=550

Whatever a peer sends, it can't forge a field or a line.  In logfmt a value stands
bare only when it is printable ASCII without space, quote, equals sign and
backslash; else it is quoted, with \" \\ \n \r \t and \xNN for each byte of
everything that isn't printable.  UTF-8 that is printable is kept.  In JSON the
line is ASCII; bytes that aren't UTF-8 stand as the four characters \xNN.

A value is cut at MAX_VALUE characters, a line holds at most MAX_LINE bytes; a
cut value ends in "..." and the line in truncated=true.

Rank 0: imports only its own rank.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

from fastsmtp.events import FIELDS

# With a newline and a syslog header a line still fits PIPE_BUF (4096 on Linux), so that lines of
# several workers on one pipe are never mixed.
MAX_LINE = 3_900
MAX_VALUE = 1_024

Format = Callable[[float, str, dict[str, object]], bytes]
_Fetch = Callable[[dict[str, object]], Iterable[Any]]
_Shape = tuple[str, bytes, _Fetch]

_ORDER = {name: place for place, name in enumerate(FIELDS)}
_BARE = bytes(byte for byte in range(0x21, 0x7F) if byte not in b'"=\\')
_NOT_BARE = re.compile(r'[^!-~]|["=\\]')
_TO_ESCAPE = re.compile(r'[^ -~]|["\\]')
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
# An escaped character takes up to 16 bytes (four of UTF-8, \xNN each) in logfmt, 12 in JSON.
_WORST = 16


class Clockface:
    """Time stamps as ISO 8601 in UTC with milliseconds, made once a millisecond."""

    def __init__(self) -> None:
        self._millisecond = -1
        self._text = ""

    def __call__(self, when: float) -> str:
        """when: seconds since the epoch."""
        millisecond = int(when * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            self._text = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))}.{rest:03d}Z"
        return self._text


def in_order(fields: Iterable[str]) -> list[str]:
    """Field names in the contract's order, unknown ones last."""
    return sorted(fields, key=lambda name: _ORDER.get(name.removesuffix("_"), len(_ORDER)))


class Logfmt:
    """Formats as logfmt.  Lines of only bare values, nearly all, cost about 1 us; see _slow for the rest."""

    def __init__(self) -> None:
        self._stamp = Clockface()
        # (event, names as given) -> template, a newline between each two values, and what fetches the
        # values in the template's order.
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def __call__(self, when: float, event: str, fields: dict[str, object]) -> bytes:
        """One line, without its end."""
        shape = self._shapes.get((event, *fields))
        if shape is None:
            shape = self._learn(event, fields)
        template, between, fetch = shape
        # What has a form of its own (None, bool, float, lists) counts as empty, and empty goes the slow way.
        texts = [
            value
            if (kind := type(value)) is str
            else value.decode("latin-1")
            if kind is bytes
            else str(value)
            if kind is int
            else ""
            for value in fetch(fields)
        ]
        # All values are looked at together: what is left once bare characters are gone must be the
        # newlines put between them.
        joined = "\n".join(texts)
        if (
            len(joined) > MAX_VALUE
            or not joined.isascii()
            or joined.encode().translate(None, _BARE) != between
            or "" in texts
        ):
            return self._slow(when, event, fields)
        return (template % (self._stamp(when), *texts)).encode()

    def _learn(self, event: str, fields: dict[str, object]) -> _Shape:
        names = in_order(fields)
        template = f"ts=%s event={event}" + "".join(f" {name.removesuffix('_')}=%s" for name in names)
        # itemgetter of a single name gives no tuple.
        fetch: _Fetch = itemgetter(*names) if len(names) > 1 else dict.values
        shape = self._shapes[event, *fields] = (template, b"\n" * (len(names) - 1), fetch)
        return shape

    def _slow(self, when: float, event: str, fields: dict[str, object]) -> bytes:
        line = f"ts={self._stamp(when)} event={event}".encode()
        is_cut = False
        for name in in_order(fields):
            value = fields[name]
            if value is None:
                continue
            text = _as_text(value)
            prefix = f" {name.removesuffix('_')}=".encode()
            written, was_cut = _fitted(text, MAX_LINE - len(line) - len(prefix), _quoted)
            is_cut |= was_cut
            if written:
                line += prefix + written
        return line + b" truncated=true" if is_cut else line


def _quoted(text: str) -> bytes:
    if text and not _NOT_BARE.search(text):
        return text.encode()
    return b'"' + _TO_ESCAPE.sub(_escape, text).encode() + b'"'


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    short = _SHORT.get(character)
    if short is not None:
        return short
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that isn't UTF-8, through surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


def _as_text(value: object) -> str:
    """The value before quoting; bytes that aren't UTF-8 become lone surrogates."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(round(value, 3))
    if isinstance(value, list | tuple):
        return ",".join(map(_as_text, value))
    return str(value)


def _fitted(text: str, room: int, write: Callable[[str], bytes]) -> tuple[bytes, bool]:
    """The value as written, in at most room bytes; cut when needed, empty when there is no room at all."""
    is_cut = len(text) > MAX_VALUE
    written = write(text[:MAX_VALUE] + "..." if is_cut else text)
    if len(written) <= room:
        return written, is_cut
    kept = min(len(text), MAX_VALUE, room // _WORST)
    return (write(text[:kept] + "...") if kept > 1 else b""), True


class JsonLines:
    """Formats as JSON, one object a line, keys in the contract's order."""

    def __init__(self) -> None:
        self._stamp = Clockface()
        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def __call__(self, when: float, event: str, fields: dict[str, object]) -> bytes:
        """One line, without its end."""
        start: dict[str, object] = {"ts": self._stamp(when), "event": event}
        values = {
            name.removesuffix("_"): fields[name] for name in in_order(fields) if fields[name] is not None
        }
        plain = {name: _as_json(value) for name, value in values.items()}
        line = self._encode(start | plain)
        if len(line) <= MAX_LINE and not any(map(_is_long, plain.values())):
            return line.encode()
        # Too long: lists become text, and each value gets what is left.
        left = MAX_LINE - len(self._encode(start))
        for name, value in plain.items():
            left -= len(name) + 4
            if isinstance(value, bool | int | float):
                start[name] = value
                left -= len(repr(value))
                continue
            text = value if isinstance(value, str) else ",".join(map(str, value))  # type: ignore[call-overload]
            written, _ = _fitted(text, left, self._as_bytes)
            if written:
                start[name] = json.loads(written)
                left -= len(written)
        start["truncated"] = True
        return self._encode(start).encode()

    def _as_bytes(self, text: str) -> bytes:
        return self._encode(text).encode()


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > MAX_VALUE


def _as_json(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else str(value)
    if isinstance(value, bool | int):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    # A lone surrogate has no place in UTF-8, and strict readers refuse its escape.
    return str(value).encode("utf-8", "backslashreplace").decode()
