"""TLS towards next hops: contexts, session tickets, and what is remembered of handshakes that failed.

    off             never
    opportunistic   where it is offered, with any certificate (RFC 7435); in clear where it isn't, or where a
                    handshake has failed lately
    required        any certificate, never in clear
    verified        a certificate for the host's name by a trusted signer, never in clear: by its subject
                    alternative names alone, where "*" stands for one label (RFC 6125 section 6.4)

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastsmtp.config.ciphers import choose
from fastsmtp.config.outgoing import Remote
from fastsmtp.config.routes import Route
from fastsmtp.errors import ConfigError, NextHopInsecure
from fastsmtp.tls import MINIMUM

# Hosts that are remembered; a session is 1 to 3 kB.
SESSIONS_MAX = 1_000
# For the peer's close_notify behind QUIT, which many never send; in seconds.
SHUTDOWN_S = 3.0
FAILURES_MAX = 10_000
# Of what is decrypted, taken at once: a record of TLS (RFC 8446 section 5.1).
READ_BYTES = 16_384


class TlsRule(NamedTuple):
    """What one host must have.  mode as a route's tls;  ca "" is the system's."""

    mode: str
    ca: str = ""

    @property
    def is_mandatory(self) -> bool:
        return self.mode in ("required", "verified")


RuleFor = Callable[[Route, str], TlsRule]
"""The rule for a host of a route; the host's name is lower-case, or its address."""


def rule_of_route(route: Route, host: str) -> TlsRule:
    """The same for every host of the route."""
    return TlsRule(route.tls, route.ca)


class ClientContext(ssl.SSLContext):
    """A context that resumes the last session with a host; asyncio and uvloop have no other way in."""

    sessions: OrderedDict[str, ssl.SSLSession]

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        name = kwargs.get("server_hostname") or ""
        session = self.sessions.pop(name, None)
        if session is not None:
            kwargs["session"] = session  # a ticket is used once (RFC 8446 appendix C.4)
        try:
            return super().wrap_bio(*args, **kwargs)
        except ValueError:
            kwargs.pop("session", None)
            return super().wrap_bio(*args, **kwargs)

    def keep(self, name: str, ssl_object: ssl.SSLObject) -> None:
        """Remember a session for the next connection with that name."""
        session = ssl_object.session
        if session is not None and session.has_ticket:
            self.sessions[name] = session
            if len(self.sessions) > SESSIONS_MAX:
                self.sessions.popitem(last=False)


class Decrypted(asyncio.BufferedProtocol):
    """Stands between a TLS transport and its protocol, and has what is decrypted written into a small buffer.

    Without it uvloop makes one of 256 KiB for each read, which the kernel has to map and unmap.

    buffer   of the process: what is in it is the protocol's at once
    """

    __slots__ = ("_buffer", "_protocol")

    def __init__(self, protocol: asyncio.Protocol, buffer: memoryview) -> None:
        self._protocol = protocol
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


class OutgoingTls:
    """The client's side of TLS in one process.

    Raises ConfigError, from the constructor for our own certificate, from context() for a signer's file.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._contexts: dict[tuple[bool, str], ClientContext] = {}
        self._failures: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self.context(TlsRule("opportunistic"))

    def context(self, rule: TlsRule) -> ClientContext:
        """The context for a rule that wants TLS.  Raises ConfigError."""
        key = (rule.mode == "verified", rule.ca if rule.mode == "verified" else "")
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._make(*key)
        return context

    def _make(self, is_verified: bool, ca: str) -> ClientContext:
        remote = self._remote
        context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
        context.sessions = OrderedDict()
        context.minimum_version = MINIMUM[remote.tls_minimum]
        context.hostname_checks_common_name = False
        what = "remote.ciphers"
        try:
            context.set_ciphers(choose(remote.ciphers).used)
            if remote.certificate:
                what = remote.certificate
                context.load_cert_chain(remote.certificate, remote.key or None, password=_refuse_password)
            if is_verified:
                what = ca or "the system's certificates"
                if ca:
                    context.load_verify_locations(cadata=Path(ca).read_text("ascii", "replace"))
                else:
                    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            else:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
        except (ssl.SSLError, OSError, ValueError) as error:
            raise ConfigError(f"{what}: {getattr(error, 'strerror', None) or error}") from None
        return context

    async def start(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        rule: TlsRule,
        name: str,
        timeout_s: float,
    ) -> asyncio.Transport:
        """The handshake with a host by its name or address.  Raises NextHopInsecure; then the connection is gone."""
        try:
            context = self.context(rule)
        except ConfigError as error:
            transport.abort()
            raise NextHopInsecure(str(error)) from None
        try:
            raised = await asyncio.get_running_loop().start_tls(
                transport,
                Decrypted(protocol, self._buffer),
                context,
                server_hostname=name,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except ssl.SSLCertVerificationError as error:
            transport.abort()
            raise NextHopInsecure(f"certificate: {error.verify_message}") from None
        except ssl.SSLError as error:
            transport.abort()
            raise NextHopInsecure(f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}") from None
        except (OSError, TimeoutError) as error:
            transport.abort()
            raise NextHopInsecure(f"TLS: {error or 'no handshake in time'}") from None
        except BaseException:
            transport.abort()
            raise
        if raised is None:
            raise NextHopInsecure("TLS: the connection was lost")
        return raised

    def keep_session(self, transport: asyncio.BaseTransport, rule: TlsRule, name: str) -> None:
        """At the end of a connection: its ticket is there by now."""
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.context(rule).keep(name, ssl_object)

    # --- what failed --------------------------------------------------------------------------------

    def note_failure(self, host: str, reason: str, now: float) -> bool:
        """An opportunistic handshake failed; True when the host is spoken to in clear from now on, for a while."""
        if self._remote.on_tls_failure != "clear" or not self._remote.tls_failure_h:
            return False
        self._failures[host] = (now + self._remote.tls_failure_h * 3_600.0, reason)
        self._failures.move_to_end(host)
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)
        return True

    def has_failed(self, host: str, now: float) -> bool:
        """Whether opportunistic TLS with this host is left out for now."""
        failure = self._failures.get(host)
        if failure is None:
            return False
        if failure[0] <= now:
            del self._failures[host]
            return False
        return True


def _refuse_password() -> str:
    """Never ask at the terminal."""
    raise ValueError("the key is encrypted")
