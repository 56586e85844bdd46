"""Raise an open connection to TLS, by STARTTLS or implicit.  For connection.py, under uvloop and asyncio.

Every connection is accepted in clear.  An Upgrade is started from inside a
callback of the raw transport, and says once what came of it:

    def connection_made(self, raw):          # implicit TLS: in connection_made itself, never later
        self.upgrade = Upgrade(loop, raw, self, context, timeout_s=30.0, done=self.tls_done)

    def buffer_updated(self, size):
        if self.upgrade is not None:
            self.upgrade.settle()            # the client's first words came with the end of its handshake
            if self.upgrade is not None:
                return                       # it failed
        ...                                  # STARTTLS:
        self.raw.pause_reading()             # 1. nothing more is read in clear
        self.raw.write(b"220 ...")           # 2. the answer, still in clear
        self.upgrade = Upgrade(...)          # 3. the session drops what was read behind STARTTLS

    def tls_done(self, outcome):
        if isinstance(outcome, Failed):
            ...                              # log outcome.reason, end the connection
        else:
            self.upgrade, self.transport = None, outcome.transport
            session.restart(is_tls=True)

What the caller may rely on
- done is called exactly once, never inside the constructor.  On Failed the raw transport is closed already.
- After Failed, connection_lost of the protocol may come, may not come, or may have come: asyncio calls it
  or not by the moment of the failure.  So the end of a connection must be something that can be done twice.
- To give up, abort the raw transport; done gets Failed.
- Nothing is left behind: no task, no exception that nobody takes, no transport that stays open.

What the caller has to do
- eof_received and buffer_updated call settle() first while an upgrade is open: the last message of the
  handshake and the first of the session often share a segment, and asyncio hands on the latter before
  anybody hears of the former.  get_buffer may be called then as well.
- Keep the raw transport.  Holding a client back means pausing both: the raw one, so that the kernel holds
  the client's data (paused alone, the TLS layer goes on reading up to 256 kB), and the TLS one, for the
  records that were read before.  On resuming the order doesn't matter.
- Keep every connection in a set: a paused transport and its protocol are a cycle that the garbage
  collector closes.
- Where clear bytes come first (a PROXY header before implicit TLS), get_buffer must give exactly as many
  bytes as the header still needs: what was read can't be given back to TLS.  The Upgrade is then started
  in the buffer_updated that completes the header.

Rank 8.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

# For the peer's close_notify once we have said ours.  SMTP has ended by QUIT long before; many never send it.
SHUTDOWN_TIMEOUT_S = 3.0

# What is read from the socket at once under TLS.  Both loops offer a buffer of 256 KiB a connection, and neither it
# nor OpenSSL's memory BIO gives back what it once held.  What one connection holds (PSS) that is idle, 28 kB before,
# after a message of 1 MB, and what CPU that message takes, by size of a read (uvloop 0.23, OpenSSL 3.0, 2026):
#     whole 746 kB, 1.3 ms    16,368 61 kB, 1.8 ms    8,176 42 kB, 1.5 ms    4,096 38 kB, 2.8 ms
#                              4,080 33 kB, 2.8 ms    2,032 31 kB, 4.1 ms
# 16 less than a page, since the buffer begins behind malloc's own 16 bytes on a page of its own.
READ_BYTES = 4_080


class Raised(NamedTuple):
    """The handshake is complete: write to transport from now on; ssl_object knows what was agreed on."""

    transport: asyncio.Transport
    ssl_object: ssl.SSLObject


class Failed(NamedTuple):
    """No TLS, and no connection any more; reason is a few words for the log."""

    reason: str


Outcome = Raised | Failed


class _Narrow(asyncio.BufferedProtocol):
    """The TLS layer's own protocol, which is shown READ_BYTES at a time: all else is handed through."""

    __slots__ = ("_inner", "buffer_updated")

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        # The loop asks for this once and keeps it: no call of ours stands between the two for each read.
        self.buffer_updated = inner.buffer_updated  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        view: memoryview = self._inner.get_buffer(READ_BYTES)
        return view[:READ_BYTES]

    def eof_received(self) -> bool | None:
        kept: bool | None = self._inner.eof_received()
        return kept

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class Upgrade:
    """One handshake on its way; see the module's text."""

    __slots__ = ("_coroutine", "_done", "_loop", "_waiter", "raw")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        raw: asyncio.Transport,
        protocol: asyncio.BaseProtocol,
        context: ssl.SSLContext,
        *,
        timeout_s: float,
        done: Callable[[Outcome], None],
    ) -> None:
        """Begin the handshake as the server.  Reading is paused at once and resumed by the TLS layer."""
        self.raw = raw
        self._loop = loop
        self._done: Callable[[Outcome], None] | None = done
        self._waiter: asyncio.Future[object] | None = None
        if raw.is_reading():
            raw.pause_reading()
        self._coroutine: Coroutine[Any, Any, asyncio.Transport | None] = loop.start_tls(
            raw,
            protocol,
            context,
            server_side=True,
            ssl_handshake_timeout=timeout_s,
            ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        )
        # The coroutine is stepped here and now instead of being made a task: a task begins in the next
        # turn of the loop, when a fast client's ClientHello has been read by the wrong protocol.
        outcome = self._step()
        if outcome is not None:
            loop.call_soon(self._finish, outcome)
        else:
            raw.set_protocol(_Narrow(raw.get_protocol()))

    def settle(self) -> None:
        """If the handshake has ended, see to it that done has been called."""
        if self._done is not None and self._waiter is not None and self._waiter.done():
            self._resume(self._waiter)

    def _step(self) -> Outcome | None:
        """Run the coroutine until it waits, None, or ends."""
        try:
            self._waiter = self._coroutine.send(None)
        except StopIteration as end:
            return self._outcome(end.value)
        except ssl.SSLError as error:
            return Failed((error.reason or "tls error").lower().replace("_", " "))
        except ConnectionAbortedError:  # what both loops raise when ssl_handshake_timeout is over
            return Failed("timeout")
        except (OSError, RuntimeError):  # reset, or closed by ourselves
            return Failed("connection lost")
        self._waiter.add_done_callback(self._resume)
        return None

    def _resume(self, waiter: asyncio.Future[object]) -> None:
        if waiter is not self._waiter or self._done is None:
            return  # settle() was here before
        self._waiter = None
        outcome = self._step()
        if outcome is not None:
            self._finish(outcome)

    def _outcome(self, transport: asyncio.Transport | None) -> Outcome:
        # A connection that is closed during the handshake ends asyncio's wait without an error.
        ssl_object = None if transport is None else transport.get_extra_info("ssl_object")
        if transport is None or ssl_object is None or ssl_object.version() is None or transport.is_closing():
            return Failed("connection lost")
        return Raised(transport, ssl_object)

    def _finish(self, outcome: Outcome) -> None:
        done, self._done = self._done, None
        if isinstance(outcome, Failed):
            self.raw.abort()
        if done is not None:
            done(outcome)
