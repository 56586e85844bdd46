"""Requests of Postfix's policy delegation: name=value lines, ended by an empty one (SMTPD_POLICY_README).

Sans-IO: bytes in, requests out, the same however the bytes are cut.  Attributes that nobody knows are kept
and looked at by nobody.

Rank 8: pure.
"""

from __future__ import annotations

from typing import Final

REQUEST_BYTES: Final = 65_536
"""Of one request.  Postfix's are 1 to 2 kB; a certificate's subject may add some."""

ATTRIBUTES: Final = 200
"""Of one request; Postfix 3.8 sends 31."""

KIND: Final = "smtpd_access_policy"


class Broken(Exception):
    """What came is no request of policy delegation: there is no answer to it, and what follows is not read."""


class RequestParser:
    """Takes the bytes of one connection.

    After it has raised Broken it takes nothing more; requests that were complete before it are in `complete`.
    """

    __slots__ = ("_attributes", "_rest", "_size_bytes", "complete")

    def __init__(self) -> None:
        self._rest = b""
        self._size_bytes = 0
        self._attributes: dict[str, str] = {}
        self.complete: list[dict[str, str]] = []

    def feed(self, data: bytes) -> None:
        """Take data; whole requests go to `complete`.  Raises Broken."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._size_bytes += len(line) + 1
            if self._size_bytes > REQUEST_BYTES:
                raise Broken("a request that is too long")
            if line:
                self._attribute(line)
            else:
                self._end()
        if self._size_bytes + len(rest) > REQUEST_BYTES:
            raise Broken("a request that is too long")
        self._rest = rest

    def take(self) -> list[dict[str, str]]:
        """The requests that are complete, each once."""
        found, self.complete = self.complete, []
        return found

    @property
    def is_within(self) -> bool:
        """A request has begun and not ended."""
        return bool(self._rest or self._attributes)

    def _attribute(self, line: bytes) -> None:
        name, equals, value = line.partition(b"=")
        if not equals or not name:
            raise Broken("a line that is no name=value")
        if b"\0" in line:
            raise Broken("a NUL")
        key = name.decode("utf-8", "surrogateescape")
        if key in self._attributes:
            raise Broken("an attribute that is there twice")
        if len(self._attributes) >= ATTRIBUTES:
            raise Broken("too many attributes")
        self._attributes[key] = value.decode("utf-8", "surrogateescape")

    def _end(self) -> None:
        attributes, self._attributes = self._attributes, {}
        self._size_bytes = 0
        if attributes.get("request") != KIND:
            raise Broken(f"a request that is not {KIND}")
        self.complete.append(attributes)
