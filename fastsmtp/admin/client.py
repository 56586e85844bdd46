"""The other end of the admin socket, for the command line: blocking, no event loop.  Rank 9."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, Final

from fastsmtp import errors
from fastsmtp.admin import protocol
from fastsmtp.admin.protocol import Entry
from fastsmtp.queue.row import Filter

# A million rows are held, flushed or deleted within this time.
PATIENCE_S: Final = 120.0


class NotRunning(errors.FastsmtpError):
    """No server listens at the socket."""


class Client:
    """One connection to a running server.

    Raises NotRunning; errors.ConfigError, with words for the operator, for everything else that is in the way.
    """

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/{protocol.SOCKET}"
        self._sock = _connected(directory, self._path)
        try:
            hello = self._hear()
        except errors.ConfigError:
            self._sock.close()
            raise
        if hello.get("protocol") != protocol.PROTOCOL:
            self._sock.close()
            raise errors.ConfigError(
                f"{self._path}: {hello.get('server', 'the server')} speaks protocol {hello.get('protocol')}, "
                f"this command {protocol.PROTOCOL}: use the one that belongs to the server"
            )

    def close(self) -> None:
        self._sock.close()

    def entries(self, filter: Filter, state: str) -> Iterator[list[Entry]]:
        words = protocol.filter_words(filter)
        for piece in self._ask("list", filter=words, state=state):
            if "entries" in piece:
                yield protocol.parse_entries(piece["entries"])

    def act(self, action: str, filter: Filter) -> int:
        words = protocol.filter_words(filter)
        return int(self._end(self._ask(action, filter=words, all=not words))["count"])

    def describe(self, id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._end(self._ask("show", id=id))["message"]
        return found

    def message(self, id: str) -> Iterator[bytes]:
        from base64 import b64decode

        for piece in self._ask("message", id=id):
            if "data" in piece:
                yield b64decode(piece["data"])

    def counts(self) -> dict[str, int]:
        return self._end(self._ask("counts"))

    def _end(self, pieces: Iterator[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for piece in pieces:
            found = piece.get("end", found)
        return found

    def _ask(self, command: str, **more: Any) -> Iterator[dict[str, Any]]:
        """Every piece of the answer, the end among them."""
        try:
            self._sock.sendall(protocol.frame({"protocol": protocol.PROTOCOL, "command": command, **more}))
        except OSError as error:
            raise self._lost(error) from None
        while True:
            piece = self._hear()
            yield piece
            if "end" in piece:
                return

    def _hear(self) -> dict[str, Any]:
        try:
            length = protocol.frame_length(self._read(4), protocol.ANSWER_BYTES)
            found = protocol.parse_frame(self._read(length))
        except (OSError, EOFError, errors.ProtocolError) as error:
            raise self._lost(error) from None
        if "refused" in found:
            raise errors.ConfigError(f"the server refuses: {found['refused']}")
        return found

    def _read(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._sock.recv(min(size, 1_048_576))
            if not piece:
                raise EOFError("it has hung up")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _lost(self, error: Exception) -> errors.ConfigError:
        return errors.ConfigError(f"{self._path}: {error or 'no answer'}")


def _connected(directory: str, path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(protocol.reachable(directory, folder))
        finally:
            os.close(folder)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise NotRunning(path) from None
    except PermissionError:
        sock.close()
        raise errors.ConfigError(
            f"{path}: permission denied; the queue is for root and the account it belongs to"
        ) from None
    except OSError as error:
        sock.close()
        raise errors.ConfigError(f"{path}: {error.strerror or error}") from None
    return sock
