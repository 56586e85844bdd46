"""The two descriptors of one client, as tcpserver and inetd give them: 0 to read, 1 to write, blocking with deadlines.

Sockets and pipes alike; in clear, or with TLS laid over them by memory buffers, so that no event loop is
needed.  ssl is imported with the first handshake.

Rank 8.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

    from fastsmtp.tls_asking import AskingContext, AskingObject

READ_BYTES = 4_096
BODY_READ_BYTES = 65_536


class Gone(Exception):
    """The client is not there any more, or takes nothing."""


class Late(Exception):
    """The deadline has passed."""


class Stopped(Exception):
    """We are to end: SIGTERM."""


class TlsFailed(Exception):
    """The handshake failed; the text is for the log."""


class Wire:
    """See the module's text.

    now       monotonic seconds; every deadline is in them
    stop      a descriptor that becomes readable when we are to end; -1: none
    bytes_in  octets read so far, under TLS those of the text
    """

    __slots__ = (
        "_incoming",
        "_now",
        "_outgoing",
        "_read_end",
        "_stop",
        "_tls",
        "_was",
        "_write_end",
        "bytes_in",
    )

    def __init__(self, read_end: int, write_end: int, now: Callable[[], float], stop: int = -1) -> None:
        self._read_end = read_end
        self._write_end = write_end
        self._now = now
        self._stop = stop
        self._was: list[tuple[int, bool]] = []
        self._tls: ssl.SSLObject | AskingObject | None = None
        self._incoming: ssl.MemoryBIO | None = None
        self._outgoing: ssl.MemoryBIO | None = None
        self.bytes_in = 0

    def begin(self) -> None:
        """From now on no read or write waits beyond its deadline."""
        self._was = [(end, os.get_blocking(end)) for end in (self._read_end, self._write_end)]
        for end, _ in self._was:
            os.set_blocking(end, False)

    def end(self) -> None:
        """The flag belongs to the connection, not to us: whoever has it after us finds it as it was."""
        for end, is_blocking in reversed(self._was):
            try:
                os.set_blocking(end, is_blocking)
            except OSError:
                continue

    # --- in --------------------------------------------------------------------------------------

    def read(self, size: int, deadline_s: float) -> bytes:
        """What has come, b"" at its end.  Raises Gone, Late, Stopped."""
        data = self._read_raw(size, deadline_s) if self._tls is None else self._read_tls(size, deadline_s)
        self.bytes_in += len(data)
        return data

    def wait(self, deadline_s: float) -> bool:
        """Until something can be read, or the deadline; whether something can."""
        try:
            self._wait(self._read_end, select.POLLIN, deadline_s)
        except Late:
            return False
        return True

    def pause(self, deadline_s: float) -> None:
        """Until the deadline, whatever comes.  Raises Gone when the client hangs up, Stopped."""
        waiting = select.poll()
        waiting.register(self._write_end, select.POLLERR | select.POLLHUP)
        if self._stop >= 0:
            waiting.register(self._stop, select.POLLIN)
        while (left_s := deadline_s - self._now()) > 0.0:
            for found, _ in waiting.poll(left_s * 1000.0 + 1.0):
                raise Stopped if found == self._stop else Gone

    def _read_raw(self, size: int, deadline_s: float) -> bytes:
        while True:
            self._wait(self._read_end, select.POLLIN, deadline_s)
            try:
                return os.read(self._read_end, size)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Gone from error

    def _read_tls(self, size: int, deadline_s: float) -> bytes:
        import ssl

        tls, incoming = self._tls, self._incoming
        assert tls is not None
        assert incoming is not None
        while True:
            try:
                return tls.read(size)
            except ssl.SSLWantReadError:
                self._flush_tls(deadline_s)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except (ssl.SSLError, OSError) as error:
                raise Gone from error
            data = self._read_raw(BODY_READ_BYTES, deadline_s)
            if data:
                incoming.write(data)
            else:
                incoming.write_eof()

    # --- out -------------------------------------------------------------------------------------

    def write(self, data: bytes, deadline_s: float) -> None:
        """Write all of it.  Raises Gone, Late.  That we are to end doesn't stop a reply."""
        if self._tls is None:
            self._write_raw(data, deadline_s)
            return
        import ssl

        left = memoryview(data)
        try:
            while left:
                left = left[self._tls.write(left) :]
        except (ssl.SSLError, OSError) as error:
            raise Gone from error
        self._flush_tls(deadline_s)

    def _write_raw(self, data: bytes, deadline_s: float) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._write_end, left) :]
            except BlockingIOError:
                self._wait(self._write_end, select.POLLOUT, deadline_s, is_stoppable=False)
            except OSError as error:
                raise Gone from error

    def _flush_tls(self, deadline_s: float) -> None:
        assert self._outgoing is not None
        data = self._outgoing.read()
        if data:
            self._write_raw(data, deadline_s)

    def _wait(self, end: int, event: int, deadline_s: float, *, is_stoppable: bool = True) -> None:
        waiting = select.poll()
        waiting.register(end, event)
        if is_stoppable and self._stop >= 0:
            waiting.register(self._stop, select.POLLIN)
        left_s = deadline_s - self._now()
        ready = waiting.poll(max(left_s, 0.0) * 1000.0 + 1.0 if left_s < 1e6 else None)
        if not ready:
            raise Late
        if is_stoppable and any(found == self._stop for found, _ in ready):
            raise Stopped

    # --- TLS and the end -------------------------------------------------------------------------

    def start_tls(
        self, context: ssl.SSLContext | AskingContext, deadline_s: float
    ) -> ssl.SSLObject | AskingObject:
        """A handshake as the server.  Raises TlsFailed, Gone, Late, Stopped."""
        import ssl
        from contextlib import suppress

        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls: ssl.SSLObject | AskingObject = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_tls(deadline_s)
                data = self._read_raw(BODY_READ_BYTES, deadline_s)
                if not data:
                    raise TlsFailed("the client hung up") from None
                self._incoming.write(data)
            except (ssl.SSLError, OSError) as error:
                with suppress(Gone, Late):
                    # The alert that tells the client why.
                    self._flush_tls(deadline_s)
                raise TlsFailed(getattr(error, "reason", "") or str(error)) from error
            else:
                self._flush_tls(deadline_s)
                self._tls = tls
                return tls

    def finish(self, deadline_s: float, most_bytes: int) -> None:
        """After the last reply: end our side, and drop what still comes, or a reset would eat the reply."""
        from contextlib import suppress

        with suppress(Gone, Late, Stopped):
            if self._tls is not None:
                self._say_close(deadline_s)
            if not self._shut_down():
                return
            dropped = 0
            while dropped <= most_bytes:
                data = self._read_raw(BODY_READ_BYTES, deadline_s)
                if not data:
                    return
                dropped += len(data)

    def _say_close(self, deadline_s: float) -> None:
        import ssl
        from contextlib import suppress

        assert self._tls is not None
        with suppress(ssl.SSLError, OSError):
            self._tls.unwrap()
        self._flush_tls(deadline_s)

    def _shut_down(self) -> bool:
        """End our side of a socket; False for what is none: a pipe is ended by its close."""
        if not stat.S_ISSOCK(os.fstat(self._write_end).st_mode):
            return False
        import socket
        from contextlib import suppress

        with suppress(OSError), socket.socket(fileno=os.dup(self._write_end)) as ours:
            ours.shutdown(socket.SHUT_WR)
        return True
