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

import math
import re
import time
from collections.abc import Callable, Iterable

from fastsmtp._logline import plain_line
from fastsmtp.events import FIELDS

# With a newline and a syslog header a line still fits PIPE_BUF (4096 on Linux), so that lines of
# several workers on one pipe are never mixed.
MAX_LINE = 3_900
MAX_VALUE = 1_024

Format = Callable[[float, str, dict[str, object]], bytes]
_Shape = tuple[tuple[bytes, str], ...]

_ORDER = {name: place for place, name in enumerate(FIELDS)}
_NOT_BARE = re.compile(r'[^!-~]|["=\\]')
_TO_ESCAPE = re.compile(r'[^ -~]|["\\]')
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
# An escaped character takes up to 16 bytes (four of UTF-8, \xNN each) in logfmt, 12 in JSON.
_WORST = 16


class Clockface:
    """Time stamps, b"ts=" and ISO 8601 in UTC with milliseconds, made once a millisecond from what a second has."""

    def __init__(self) -> None:
        self._millisecond = self._second = -1
        self._text = self._until_second = b""

    def __call__(self, when: float) -> bytes:
        """when: seconds since the epoch."""
        millisecond = int(when * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                self._until_second = time.strftime("ts=%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            self._text = b"%b.%03dZ" % (self._until_second, rest)
        return self._text


def in_order(fields: Iterable[str]) -> list[str]:
    """Field names in the contract's order, unknown ones last."""
    return sorted(fields, key=lambda name: _ORDER.get(name.removesuffix("_"), len(_ORDER)))


class Logfmt:
    """Formats as logfmt.  Nearly all lines hold nothing to escape: compiled, about 1 us; the rest takes ten."""

    def __init__(self) -> None:
        self._stamp = Clockface()
        # (event, names as given) -> what stands before each value, in the contract's order, and its key.
        self._shapes: dict[tuple[str, ...], tuple[bytes, _Shape]] = {}

    def __call__(self, when: float, event: str, fields: dict[str, object]) -> bytes:
        """One line, without its end."""
        known = self._shapes.get((event, *fields))
        if known is None:
            shape = tuple((f" {name.removesuffix('_')}=".encode(), name) for name in in_order(fields))
            known = self._shapes[event, *fields] = (f" event={event}".encode(), shape)
        stamp = self._stamp(when)
        line = plain_line(stamp, *known, fields)
        return self._slow(stamp, known, fields) if line is None else line

    def _slow(self, stamp: bytes, known: tuple[bytes, _Shape], fields: dict[str, object]) -> bytes:
        event, shape = known
        line = stamp + event
        is_cut = False
        for prefix, key in shape:
            value = fields[key]
            if value is None:
                continue
            written, was_cut = _fitted(_as_text(value), MAX_LINE - len(line) - len(prefix), _quoted)
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
        import json

        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def __call__(self, when: float, event: str, fields: dict[str, object]) -> bytes:
        """One line, without its end."""
        start: dict[str, object] = {"ts": self._stamp(when)[3:].decode(), "event": event}
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
                import json

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
