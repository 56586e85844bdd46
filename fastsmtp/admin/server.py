"""The admin socket of a running server: who may use it, and what is asked there.

    server = AdminServer(handler, directory, version=...)
    await server.start()          in the process that owns the queue
    await server.close()

Only root and the account that the queue belongs to are heard: SMTP workers can
add mail and not read it, so their account is not among them.  A client that is
slow, silent or wrong costs itself its connection, and others nothing.

Not here: what is in the queue (desk.py has the handler).  Rank 9.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

from fastsmtp import errors
from fastsmtp.admin import protocol
from fastsmtp.admin.protocol import Entry
from fastsmtp.log import Log, log_defect
from fastsmtp.queue.row import Filter

# An operator, his scripts, and a monitor.
CLIENTS: Final = 8
# How long a client may take to read a piece, or to say what it wants.
PATIENCE_S: Final = 60.0
_CREDENTIALS: Final = struct.Struct("3i")


class Handler(Protocol):
    """What stands behind the socket.  Errors of ours (errors.FastsmtpError) are told to the client."""

    def entries(self, filter: Filter, state: str) -> AsyncIterator[list[Entry]]:
        """Recipients in the queue, those of one message together, protocol.ENTRIES at most at a time.

        state   one of protocol.STATES, "" for all
        """

    async def act(self, action: str, filter: Filter) -> int:
        """One of protocol.ACTIONS, on all that is found; gives how many recipients that were."""

    async def describe(self, id: str) -> dict[str, Any] | None:
        """protocol.description() of a message, None when it isn't in the queue."""

    def message(self, id: str) -> AsyncIterator[bytes]:
        """The message itself, in pieces of any size; nothing when it isn't in the queue."""

    async def counts(self) -> dict[str, int]:
        """Recipients by state (protocol.STATES), and "messages"."""


class AdminServer:
    """One socket.

    directory  of the queue; the socket is protocol.SOCKET in it
    version    of the running program
    log        gets a line for each change: who asked for what, and how much it was
    commands   how often each was carried out
    """

    def __init__(self, handler: Handler, directory: str, *, version: str, log: Log) -> None:
        self._handler = handler
        self._directory = directory
        self._version = version
        self._log = log
        self._inode = 0
        self.commands: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._allowed = frozenset({0, os.geteuid()})

    async def start(self) -> None:
        """Raises errors.StorageFailed when the socket can't be made."""
        try:
            listener = _listener(self._directory)
        except OSError as error:
            raise errors.StorageFailed(f"{self._directory}/{protocol.SOCKET}: {error}") from error
        self._inode = os.stat(f"{self._directory}/{protocol.SOCKET}").st_ino
        self._server = await asyncio.start_unix_server(self._met, sock=listener)

    async def close(self) -> None:
        """No more clients, and those that are there go."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        path = f"{self._directory}/{protocol.SOCKET}"
        with contextlib.suppress(OSError):
            # A successor may have put his own there.
            if os.stat(path).st_ino == self._inode:
                os.unlink(path)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        client = _Client(reader, writer)
        try:
            await self._serve(client, writer.get_extra_info("socket"))
        except (errors.ProtocolError, OSError, EOFError, TimeoutError, asyncio.CancelledError):
            # Gone, too slow, no client of ours, or we are closing.
            pass
        except Exception as error:  # noqa: BLE001 - ours; the others are served all the same
            self._failed(error)
        finally:
            if task is not None:
                self._tasks.discard(task)
            writer.transport.abort() if client.is_stuck else writer.close()

    async def _serve(self, client: _Client, sock: socket.socket) -> None:
        pid, uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid not in self._allowed:
            await client.say({"refused": "only root and the account of the queue may do this"})
            return
        if len(self._tasks) > CLIENTS:
            await client.say({"refused": f"{CLIENTS} others are being served"})
            return
        await client.say({"server": f"fastsmtp {self._version}", "protocol": protocol.PROTOCOL})
        while (request := await client.hear()) is not None:
            try:
                await client.say({"end": await self._answer(client, request, pid)})
            except (errors.FastsmtpError, ValueError) as error:
                await client.say({"refused": str(error)})
            except (OSError, EOFError, TimeoutError):
                raise
            except Exception as error:  # noqa: BLE001 - ours; the client must not wait for ever
                self._failed(error)
                await client.say({"refused": "an error in fastsmtp; its log says more"})

    def _failed(self, error: Exception) -> None:
        log_defect(self._log, error, what="admin")

    async def _answer(self, client: _Client, request: dict[str, Any], pid: int) -> dict[str, Any]:
        """Carry a request out; raises ValueError for one that can't be understood."""
        spoken = request.get("protocol")
        if spoken != protocol.PROTOCOL:
            raise ValueError(f"protocol {spoken!r}: this server speaks {protocol.PROTOCOL}")
        command = request.get("command")
        answer = await self._carry_out(client, request, command, pid)
        # What was carried out is one of the few that there are.
        command = str(command)
        self.commands[command] = self.commands.get(command, 0) + 1
        return answer

    async def _carry_out(
        self, client: _Client, request: dict[str, Any], command: Any, pid: int
    ) -> dict[str, Any]:
        if command in protocol.ACTIONS:
            found = protocol.parse_filter(request.get("filter"))
            if found == Filter() and request.get("all") is not True:
                raise ValueError("all of the queue, and not asked for as such")
            count = await self._handler.act(command, found)
            which = " ".join(f"{name}={value}" for name, value in protocol.filter_words(found).items())
            self._log.line("operator", pid=pid, what=command, found=count, reason=which or "all")
            return {"count": count}
        if command == "list":
            return await self._list(client, request)
        if command == "counts":
            return await self._handler.counts()
        id = request.get("id")
        if command == "show" and isinstance(id, str):
            return {"message": await self._handler.describe(id)}
        if command == "message" and isinstance(id, str):
            return {"pieces": await self._message(client, id)}
        raise ValueError(f"command {command!r} isn't known, or lacks something")

    async def _list(self, client: _Client, request: dict[str, Any]) -> dict[str, Any]:
        found = protocol.parse_filter(request.get("filter"))
        state = request.get("state", "")
        if state and state not in protocol.STATES:
            raise ValueError(f"state {state!r} isn't known")
        count = 0
        async for entries in self._handler.entries(found, state):
            count += len(entries)
            await client.say({"entries": entries})
        return {"count": count}

    async def _message(self, client: _Client, id: str) -> int:
        from base64 import b64encode

        count = 0
        async for piece in self._handler.message(id):
            for at in range(0, len(piece), 1_048_576):
                await client.say({"data": b64encode(piece[at : at + 1_048_576]).decode()})
                count += 1
        return count


class _Client:
    """Frames in and out.  is_stuck: it doesn't read what it is told."""

    __slots__ = ("_reader", "_writer", "is_stuck")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_stuck = False

    async def say(self, contents: object) -> None:
        if self._writer.is_closing():
            # It has seen enough; uvloop would call this an error of ours.
            raise ConnectionResetError
        self._writer.write(protocol.frame(contents))
        try:
            await asyncio.wait_for(self._writer.drain(), PATIENCE_S)
        except TimeoutError:
            self.is_stuck = True
            raise

    async def hear(self) -> dict[str, Any] | None:
        """The next request; None when there is none any more."""
        try:
            head = await asyncio.wait_for(self._reader.readexactly(4), PATIENCE_S)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        length = protocol.frame_length(head, protocol.REQUEST_BYTES)
        return protocol.parse_frame(await asyncio.wait_for(self._reader.readexactly(length), PATIENCE_S))


def _listener(directory: str) -> socket.socket:
    """Bound, and for its owner only, before anybody can connect.  The lock on the state directory keeps others away."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = protocol.reachable(directory, folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(CLIENTS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener
