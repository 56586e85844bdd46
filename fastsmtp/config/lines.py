"""On which line each key and each value of a TOML text stands.

tomllib says nothing about places, and a fault without its line is half a fault.
This reads a text that tomllib has already taken, so it knows the grammar is
kept and only follows it: tables, keys, strings, arrays, inline tables.
"""

from __future__ import annotations

from fastsmtp import patterns
from fastsmtp.typed import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import re

Path = tuple[str | int, ...]
"""A key's place in the tree: ("accept", 0, "domain", 1)."""

_DOTALL: Final = 16  # re.DOTALL
_BLANK: Final = patterns.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE: Final = patterns.compile(r"[ \t]*")
_BARE_KEY: Final = patterns.compile(r"[A-Za-z0-9_-]+")
_PLAIN: Final = patterns.compile(r"[^,\]}#\r\n]+")
# In the order in which they must be tried: three quotes before one.
_STRINGS: Final = (
    patterns.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', _DOTALL),
    patterns.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}", _DOTALL),
    patterns.compile(r'"(?:[^"\\]|\\.)*"'),
    patterns.compile(r"'[^']*'"),
)


def find_lines(text: str) -> dict[Path, int]:
    """Path to line number, from 1; text is valid TOML."""
    return _Follower(text).follow()


class _Follower:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.counted_to = 0
        self.lines: dict[Path, int] = {}
        self.tables: dict[Path, int] = {}  # how often each [[array of tables]] came

    def follow(self) -> dict[Path, int]:
        table: Path = ()
        while self.skip(_BLANK) < len(self.text):
            if self.text.startswith("[[", self.at):
                self.at += 2
                table = self.place(self.key())
                index = self.tables.get(table, -1) + 1
                self.tables[table] = index
                self.lines.setdefault(table, self.here())
                table = (*table, index)
                self.lines[table] = self.here()
                self.at += 2
            elif self.text[self.at] == "[":
                self.at += 1
                table = self.place(self.key())
                self.lines[table] = self.here()
                self.at += 1
            else:
                self.pair(table)
        return self.lines

    def here(self) -> int:
        """The line of the current position; positions only grow."""
        self.line += self.text.count("\n", self.counted_to, self.at)
        self.counted_to = self.at
        return self.line

    def skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return self.at

    def place(self, keys: tuple[str, ...]) -> Path:
        """The path of a table header: the last element of each array of tables on the way."""
        path: Path = ()
        for number, key in enumerate(keys):
            path = (*path, key)
            if number < len(keys) - 1 and path in self.tables:
                path = (*path, self.tables[path])
        return path

    def key(self) -> tuple[str, ...]:
        """A dotted key; stops behind it."""
        keys: list[str] = []
        while True:
            self.skip(_SPACE)
            keys.append(self.string() if self.text[self.at] in "\"'" else self.bare())
            self.skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return tuple(keys)
            self.at += 1

    def bare(self) -> str:
        start = self.at
        return self.text[start : self.skip(_BARE_KEY)]

    def string(self) -> str:
        """A string in any quotes; stops behind it.  Unescaped only where it can be a key."""
        start = self.at
        for pattern in _STRINGS:
            if self.skip(pattern) != start:
                break
        quoted = self.text[start : self.at]
        if quoted[0] == '"' and "\\" in quoted and not quoted.startswith('"""'):
            import tomllib

            return str(tomllib.loads(f"key = {quoted}")["key"])
        return quoted[1:-1]

    def pair(self, table: Path) -> None:
        line = self.here()
        path = table
        for key in self.key():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: Path) -> None:
        self.lines[path] = self.here() if isinstance(path[-1], int) else self.lines[path]
        opening = self.text[self.at]
        if opening in "\"'":
            self.string()
        elif opening == "[":
            self.at += 1
            index = 0
            while not self.closes("]"):
                self.value((*path, index))
                index += 1
        elif opening == "{":
            self.at += 1
            while not self.closes("}"):
                self.pair(path)
        else:
            self.skip(_PLAIN)

    def closes(self, bracket: str) -> bool:
        """Behind a value or an opening bracket: goes on to the next value, or past the closing bracket."""
        self.skip(_BLANK)
        if self.text.startswith(",", self.at):
            self.at += 1
            self.skip(_BLANK)
        if self.text.startswith(bracket, self.at):
            self.at += 1
            return True
        return False
