"""Raw values of a configuration and where each came from: toml.py reads them, flags.py lays its own over."""

from __future__ import annotations

import itertools

from fastsmtp.config.lines import Path
from fastsmtp.typed import Any


class Tree:
    """Nested dicts and lists as tomllib gives them, and the origin ("FILE:12", "--listen") of places.

    is_program  a program gave the values, and may say what a file can't (model.ANY_DOMAIN)
    """

    __slots__ = ("is_program", "origins", "values")

    def __init__(
        self,
        values: dict[str, Any] | None = None,
        origins: dict[Path, str] | None = None,
        *,
        is_program: bool = False,
    ) -> None:
        self.is_program = is_program
        self.values: dict[str, Any] = {} if values is None else values
        self.origins: dict[Path, str] = {} if origins is None else origins

    def origin(self, path: Path) -> str:
        """Where path, or the nearest thing around it, was written; "" when nowhere."""
        while path:
            origin = self.origins.get(path)
            if origin is not None:
                return origin
            path = path[:-1]
        return ""

    def set(self, path: Path, value: Any, origin: str) -> None:
        """Put value at path, making what is missing on the way; a list grows by one at its length.

        What isn't a table where one is needed stays as it is: the reader finds that fault.
        """
        node: Any = self.values
        for key, following in itertools.pairwise(path):
            fresh: Any = [] if isinstance(following, int) else {}
            if isinstance(key, int) and isinstance(node, list):
                if key == len(node):
                    node.append(fresh)
                node = node[key]
            elif isinstance(node, dict):
                node = node.setdefault(key, fresh)
            else:
                return
        last = path[-1]
        if isinstance(last, int) and isinstance(node, list):
            node[last:] = [value]
        elif isinstance(node, dict):
            node[last] = value
        else:
            return
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin

    def find(self, value: str) -> Path:
        """The first place where this text stands; () where it doesn't."""
        found: list[tuple[Path, Any]] = [((), self.values)]
        while found:
            path, node = found.pop()
            if node == value:
                return path
            if isinstance(node, dict):
                found += [((*path, key), below) for key, below in reversed(node.items())]
            elif isinstance(node, list):
                found += [((*path, number), below) for number, below in reversed(list(enumerate(node)))]
        return ()

    def length(self, key: str) -> int:
        """How many tables the array of tables has; 0 when it isn't there or is none."""
        tables = self.values.get(key)
        return len(tables) if isinstance(tables, list) else 0


def dotted(path: Path) -> str:
    """("accept", 0, "domain") as accept[0].domain."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text
