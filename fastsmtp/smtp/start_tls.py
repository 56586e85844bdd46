"""TLS on an open connection, by STARTTLS or implicit: a layer between a transport and a protocol, under any loop.

Every connection is accepted in clear.  An Upgrade is made from inside a
callback of the raw transport, takes its protocol's place there, and says once
what came of the handshake; from then on it is the protocol's transport:

    def connection_made(self, raw):          # implicit TLS: in connection_made itself, never later
        Upgrade(loop, raw, self, context, timeout_s=30.0, done=self.tls_done)

    def buffer_updated(self, size):          # STARTTLS
        self.raw.write(b"220 ...")           # 1. the answer, still in clear
        Upgrade(...)                         # 2. the session drops what was read behind STARTTLS

    def tls_done(self, outcome):
        if isinstance(outcome, Failed):
            ...                              # log outcome.reason, end the connection
        else:
            self.transport = outcome.transport
            session.restart(is_tls=True)

It is ours and not loop.start_tls, because that gives every connection a buffer
of 256 KiB, a future, and bound methods that make cycles: measured with uvloop
0.23, a handshake costs 70 us of CPU less this way, an idle connection 5 kB
(docs/decisions/0011).  Of the context it uses wrap_bio and nothing else.

What the caller may rely on
- done is called exactly once, never inside the constructor.  On Failed the raw transport is closed already.
- Nothing reaches the protocol between the constructor and done, but pause_writing, resume_writing and
  connection_lost; what is read after that is TLS.
- After Failed connection_lost comes as well.  So the end of a connection must be something that can be done twice.
- To give up, abort the raw transport; done gets Failed.

What the caller has to do
- Its get_buffer gives the same memory each time, for what is read from the socket as for what is decrypted;
  it may be one for all connections.
- Its holds_back() is asked before what has come is decrypted; True: it can take nothing now, and has paused both
  transports.
- Keep the raw transport.  Holding a client back means pausing both: the raw one, so that the kernel holds
  the client's data, and the TLS one, for the records that were read before.
- Keep every connection in a set: a paused transport and its protocol are a cycle that the garbage
  collector closes.  At the end forget the TLS transport, which knows its protocol.
- Where clear bytes come first (a PROXY header before implicit TLS), get_buffer must give exactly as many
  bytes as the header still needs: what was read can't be given back to TLS.  The Upgrade is then made
  in the buffer_updated that completes the header.

Rank 8.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastsmtp.tls_asking import AskingContext, AskingObject

# For the peer's close_notify once we have said ours.  SMTP has ended by QUIT long before; many never send it.
SHUTDOWN_TIMEOUT_S = 3.0

# What is read from the socket at once under TLS.  OpenSSL's memory BIO never gives back what it once held.
# What a connection holds that is idle (PSS), 23 kB before, after a message of 1 MB: 27 kB with these.  Larger
# reads cost memory (with loop.start_tls 4 kB more at 8 KiB, 19 more at 16 KiB), smaller ones CPU: 2.8 ms for a
# message of 1 MB at 4 KiB, 4.1 at 2 KiB.
READ_BYTES = 4_096


class Raised(NamedTuple):
    """The handshake is complete: write to transport from now on; ssl_object knows what was agreed on."""

    transport: asyncio.Transport
    ssl_object: ssl.SSLObject | AskingObject


class Failed(NamedTuple):
    """No TLS, and no connection any more; reason is a few words for the log."""

    reason: str


Outcome = Raised | Failed


class Upgrade(asyncio.BufferedProtocol, asyncio.Transport):
    """The protocol of the raw transport, and the transport of the protocol above; see the module's text."""

    __slots__ = (
        "_done", "_incoming", "_is_closing", "_is_paused", "_loop", "_outgoing", "_protocol", "_ssl",
        "_timer", "raw",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        raw: asyncio.Transport,
        protocol: asyncio.BufferedProtocol,
        context: ssl.SSLContext | AskingContext,
        *,
        timeout_s: float,
        done: Callable[[Outcome], None],
    ) -> None:
        """Begin the handshake as the server."""
        self.raw = raw
        self._loop = loop
        self._protocol: Any = protocol
        self._done: Callable[[Outcome], None] | None = done
        self._is_paused = False
        self._is_closing = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl: ssl.SSLObject | AskingObject = context.wrap_bio(
            self._incoming, self._outgoing, server_side=True
        )
        self._timer: asyncio.TimerHandle | None = loop.call_later(timeout_s, self._fail, "timeout")
        if raw.is_closing():
            loop.call_soon(self._fail, "connection lost")
            return
        raw.set_protocol(self)
        if not raw.is_reading():
            # Paused, or not begun: uvloop begins when connection_made is over.
            loop.call_soon(self._read_on)

    # --- protocol of the raw transport -----------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        view = memoryview(self._protocol.get_buffer(READ_BYTES))
        return view if len(view) <= READ_BYTES else view[:READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_closing:
            return
        # Copied before the protocol's buffer is asked for again.
        self._incoming.write(memoryview(self._protocol.get_buffer(READ_BYTES))[:nbytes])
        if self._done is not None:
            if self._shake():
                self._read()
        elif not self._protocol.holds_back():
            # Else it stays encrypted: a record that is begun would cost OpenSSL's buffer of 17 kB.
            self._read()

    def eof_received(self) -> bool:
        """The raw connection's end.  What the protocol has not read by now is lost with it."""
        if self._done is not None:
            self._fail("connection lost")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None:
            self._fail("connection lost")
        self._stop_timer()
        self._is_closing = True
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # --- the handshake ---------------------------------------------------------------------------

    def _read_on(self) -> None:
        if not self.raw.is_closing():
            self.raw.resume_reading()

    def _shake(self) -> bool:
        """One step of the handshake; True when it is complete."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._fail((error.reason or "tls error").lower().replace("_", " "))
            return False
        self._stop_timer()
        done, self._done = self._done, None
        done(Raised(self, self._ssl))  # type: ignore[misc]  # it is there: _shake() runs once to its end
        # Tickets, unless the protocol's first words have taken them along.
        self._flush()
        return True

    def _fail(self, reason: str) -> None:
        done, self._done = self._done, None
        self._stop_timer()
        self.raw.abort()
        if done is not None:
            done(Failed(reason))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- records ---------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.raw.write(self._outgoing.read())

    def _read(self) -> None:
        """Give the protocol what can be decrypted, until it pauses."""
        incoming, ssl_object, protocol = self._incoming, self._ssl, self._protocol
        while (incoming.pending or ssl_object.pending()) and not self._is_paused:
            if self.is_closing():
                return
            view: Any = protocol.get_buffer(-1)
            try:
                size: Any = ssl_object.read(len(view), view)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                size = 0
            except ssl.SSLError:
                # A record that isn't what the peer's key makes of it.
                self._flush()
                self.raw.close()
                return
            if not size:
                # close_notify: it is answered.
                protocol.eof_received()
                self.close()
                return
            protocol.buffer_updated(size)
        self._flush()

    # --- transport of the protocol ---------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closing or self.raw.is_closing():
            return
        try:
            sent = self._ssl.write(data)
            while sent < len(data):
                # A record holds 16 KiB.
                sent += self._ssl.write(memoryview(data)[sent:])
        except ssl.SSLError:
            self.raw.abort()
            return
        self._flush()

    def pause_reading(self) -> None:
        """No more is decrypted; the raw transport is the caller's to pause."""
        self._is_paused = True

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if self._incoming.pending or self._ssl.pending():
                self._loop.call_soon(self._read)

    def is_reading(self) -> bool:
        return not self._is_paused and not self.is_closing()

    def close(self) -> None:
        """Say close_notify, and close when the peer does, or after SHUTDOWN_TIMEOUT_S."""
        if self._is_closing or self.raw.is_closing():
            return
        self._is_closing = True
        self._is_paused = False
        try:
            self._ssl.unwrap()
        except ssl.SSLError:
            # The peer's is to come.  What comes before it is dropped unread, so that no reset eats our last words;
            # the end of our side is for who waits for it before closing.
            self._flush()
            self._timer = self._loop.call_later(SHUTDOWN_TIMEOUT_S, self.raw.abort)
            self.raw.write_eof()
            return
        self._flush()
        self.raw.close()

    def abort(self) -> None:
        self.raw.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self.raw.is_closing()

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._ssl if name == "ssl_object" else self.raw.get_extra_info(name, default)
