"""TLS for listeners: certificates in, a context out; what was agreed on as a value.

    credentials = read_credentials("/etc/fastsmtp/cert.pem", "/etc/fastsmtp/key.pem")
    server_tls = ServerTls(credentials, {"mx2.example.org": other})
    ... Upgrade(loop, raw, protocol, server_tls.context, ...) ...  # smtp/start_tls.py
    server_tls.handshake(transport.get_extra_info("ssl_object"))   # -> Handshake
    server_tls.replace(fresh)                                      # tickets stay valid

One ServerTls is made by the master before the fork; its context holds the keys
that tickets are sealed with, so a ticket of one worker resumes on any other.
The context itself never changes.  It has the default certificate of the start;
all others stand in inner contexts, which the server-name callback puts in place
for the handshakes that need one (it costs 0.6 kB a connection) and which
replace() swaps as a whole: what doesn't fit is found before anything changed,
and no old certificate of another key type lingers in a slot of OpenSSL's.

With `authorities` there is a second engine beside it, `asking`: the same
certificates, and each client is asked for one of its own (tls_asking.py).  Who
makes the connection takes one engine or the other; nothing else has to know.

Rank 3: may import ranks 0 to 2.
"""

from __future__ import annotations

import os
import ssl
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from fastsmtp.config.check import key_mode_fault
from fastsmtp.config.ciphers import choose
from fastsmtp.errors import ConfigError

if TYPE_CHECKING:
    from fastsmtp.authorities import Authorities
    from fastsmtp.config.model import Tls
    from fastsmtp.tls_asking import AskingContext, AskingObject

MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Credentials(NamedTuple):
    """A certificate chain and its key.

    certificate  PEM, the server's own certificate first
    key          PEM, not encrypted
    origin       the file that the certificate came from, for messages
    """

    certificate: bytes
    key: bytes
    origin: str

    def __repr__(self) -> str:
        """Without the key: a repr ends in logs and tracebacks."""
        return f"Credentials({self.origin!r})"


class Certificate(NamedTuple):
    """What a client has shown.

    reason       "" when it holds; else why not: what follows "your certificate"
    fingerprint  "sha256:" and 64 hex digits
    addresses    e-mail addresses in it, lower-case; none unless it holds
    """

    reason: str
    fingerprint: str
    addresses: tuple[bytes, ...]


class Handshake(NamedTuple):
    """What a handshake agreed on.  protocol "TLSv1.3", cipher by OpenSSL's name, bits of its key.

    is_asked     the client was asked for a certificate
    certificate  what it has shown, or None
    """

    protocol: str
    cipher: str
    bits: int
    server_name: str
    is_resumed: bool
    is_asked: bool = False
    certificate: Certificate | None = None


class ServerSslObject(ssl.SSLObject):
    """An SSLObject that remembers the name which the client asked for; ssl keeps it on client sides only."""

    server_name: str = ""


def read_credentials(certificate: str, key: str = "") -> Credentials:
    """Read a chain and its key from PEM files; without key it stands in the certificate's file.

    Raises ConfigError with every fault found: a missing or unreadable file, no certificate or key in
    it, an encrypted key, a key that doesn't fit, a key that others can read.
    """
    key = key or certificate
    faults: list[str] = []
    certificate_pem = _read(certificate, faults)
    key_pem = certificate_pem if key == certificate else _read(key, faults)
    if key_pem is not None:
        faults += key_mode_faults(key)
    if certificate_pem is not None and b"-----BEGIN CERTIFICATE-----" not in certificate_pem:
        faults.append(f"{certificate}: holds no certificate in PEM form")
    if key_pem is not None and b"PRIVATE KEY-----" not in key_pem:
        faults.append(f"{key}: holds no private key in PEM form")
    if faults or certificate_pem is None or key_pem is None:
        raise ConfigError(*faults)
    credentials = Credentials(certificate_pem, key_pem, certificate)
    try:
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), credentials)
    except ConfigError as error:
        raise ConfigError(
            *(fault.replace("the key", f"the key in {key}", 1) for fault in error.faults)
        ) from None
    return credentials


def read_configured(tls: Tls) -> tuple[Credentials, dict[str, Credentials]]:
    """What a [tls] table with a certificate names, as ServerTls and replace() take it.

    Raises ConfigError with every fault of every file; none is used then.
    """
    faults: list[str] = []
    read: dict[str, Credentials] = {}
    wanted = [("", tls.certificate, tls.key), *((one.name, one.certificate, one.key) for one in tls.names)]
    for name, certificate, key in wanted:
        try:
            read[name] = read_credentials(certificate, key)
        except ConfigError as error:
            where = f'[tls.names."{name}"] ' if name else ""
            faults += [where + fault for fault in error.faults]
    if faults:
        raise ConfigError(*faults)
    return read.pop(""), read


def key_mode_faults(key: str) -> list[str]:
    """A fault for a key file that others than its owner can read (config.check has the rule)."""
    status = os.stat(key)
    fault = key_mode_fault(key, stat.S_IMODE(status.st_mode), status.st_uid)
    return [fault] if fault else []


def _read(path: str, faults: list[str]) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        faults.append(f"{path}: can't be read: {error.strerror}")
        return None


def load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Put the credentials into a context that has none yet.  On ConfigError the context is spoilt."""
    origin = credentials.origin
    is_encrypted = False

    def no_password() -> str:
        # Without this OpenSSL would ask on the terminal.
        nonlocal is_encrypted
        is_encrypted = True
        return ""

    with _as_file(credentials.certificate) as certificate, _as_file(credentials.key) as key:
        try:
            context.load_cert_chain(certificate, key, password=no_password)
        except (ssl.SSLError, ValueError) as error:
            if is_encrypted:
                raise ConfigError(f"{origin}: the key is encrypted: store it without a password") from None
            reason = getattr(error, "reason", None) or ""
            if "MISMATCH" in reason:
                raise ConfigError(f"{origin}: the key doesn't fit the certificate") from None
            if "EE_KEY_TOO_SMALL" in reason or "MD_TOO_WEAK" in reason:
                words = reason.lower().replace("_", " ")
                raise ConfigError(f"{origin}: the certificate is too weak: {words}") from None
            raise ConfigError(f"{origin}: the certificate or the key can't be read as PEM") from None


@contextmanager
def _as_file(pem: bytes) -> Iterator[str]:
    """A path under which ssl finds these bytes; they never touch a disk where the system has memfd_create."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        with open(os.memfd_create("pem", os.MFD_CLOEXEC), "wb") as file:
            file.write(pem)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile("wb") as file:  # 0600
        file.write(pem)
        file.flush()
        yield file.name


T = TypeVar("T")


class Names(Generic[T]):
    """Which of an engine's contexts serves which server name.

    default  for who names no server, or one that isn't known
    """

    __slots__ = ("_exact", "_wildcards", "default")

    def __init__(
        self, default: Credentials, names: Mapping[str, Credentials], make: Callable[[Credentials], T]
    ) -> None:
        """A context for each of the credentials.  Raises ConfigError with every fault found."""
        faults: list[str] = []
        made: dict[Credentials, T] = {}

        def context_of(credentials: Credentials, where: str) -> T | None:
            if credentials not in made:
                try:
                    made[credentials] = make(credentials)
                except ConfigError as error:
                    faults.extend(where + fault for fault in error.faults)
            return made.get(credentials)

        fallback = context_of(default, "")
        self._exact: dict[str, T] = {}
        self._wildcards: dict[str, T] = {}
        for name, credentials in names.items():
            where = f'[tls.names."{name}"] '
            try:
                ascii_name = to_ascii(name)
            except ValueError as error:
                faults.append(f"{where}{error}")
                continue
            context = context_of(credentials, where)
            if context is None:
                continue
            if ascii_name.startswith("*."):
                self._wildcards[ascii_name[1:]] = context
            else:
                self._exact[ascii_name] = context
        if faults or fallback is None:
            raise ConfigError(*faults)
        self.default: T = fallback

    def find(self, name: str) -> T | None:
        """The context of a server name in lower case, exactly or by one label's wildcard; None: the default's."""
        found = self._exact.get(name)
        if found is None and self._wildcards:
            found = self._wildcards.get(name[name.find(".") :] if "." in name else "")
        return found


class ServerTls:
    """The TLS of one listener, or of several with the same certificates.

    context  for handshakes as the server
    asking   the same with a request for the client's certificate; None without authorities.  replace() makes
             another one

    Tickets are sealed with keys of its age, so the master makes a new one, in new workers, after 24 hours.
    """

    def __init__(
        self,
        default: Credentials,
        names: Mapping[str, Credentials] | None = None,
        *,
        minimum: str = "1.2",
        ciphers: str = "",
        authorities: Authorities | None = None,
    ) -> None:
        """default serves whoever names no server or one that isn't in names.

        names: "mx.example.org" or "*.example.org" (one label), any case, IDN as U- or A-labels.
        ciphers: as tls.ciphers.  Raises ConfigError with every fault found.
        """
        self._minimum = minimum
        self._ciphers = choose(ciphers).used
        self._names: Names[ssl.SSLContext] = Names(default, names or {}, self._inner)
        self.asking = self._asking(default, names or {}, authorities)
        # None until replace(): what self.context itself has.
        self._default: ssl.SSLContext | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._configure(self.context)
        load(self.context, default)
        self.context.sslobject_class = ServerSslObject
        self.context.sni_callback = self._choose

    def replace(
        self,
        default: Credentials,
        names: Mapping[str, Credentials] | None = None,
        authorities: Authorities | None = None,
    ) -> None:
        """Serve these from the next handshake on; tickets stay valid.  On ConfigError nothing has changed."""
        fresh: Names[ssl.SSLContext] = Names(default, names or {}, self._inner)
        self.asking = self._asking(default, names or {}, authorities)
        self._names = fresh
        self._default = fresh.default

    def handshake(self, ssl_object: ssl.SSLObject | AskingObject) -> Handshake:
        """What was agreed on; call it once the handshake is complete."""
        cipher, protocol, bits = ssl_object.cipher() or ("", "", 0)
        name: str = getattr(ssl_object, "server_name", "")
        # cipher() names the version that brought the cipher, which may be older than the one in use.  Every
        # connection keeps these words, and there are few of them.
        protocol = sys.intern(ssl_object.version() or protocol)
        agreed = Handshake(protocol, sys.intern(cipher), bits, name, bool(ssl_object.session_reused))
        if isinstance(ssl_object, ssl.SSLObject):
            return agreed
        return agreed._replace(is_asked=True, certificate=ssl_object.certificate())

    def _asking(
        self, default: Credentials, names: Mapping[str, Credentials], authorities: Authorities | None
    ) -> AskingContext | None:
        if authorities is None:
            return None
        # 90 ms of imports, for those who use it.
        from fastsmtp.tls_asking import AskingContext

        return AskingContext(default, names, authorities, minimum=self._minimum, ciphers=self._ciphers)

    def _configure(self, context: ssl.SSLContext) -> None:
        context.minimum_version = MINIMUM[self._minimum]
        context.set_ciphers(self._ciphers)
        # Many senders hang up without close_notify; SMTP has its own end of data, so nothing can be cut
        # short unnoticed (OpenSSL 3 made this an error).
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_IGNORE_UNEXPECTED_EOF
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        # One ticket a handshake: a mail client connects again one by one; OpenSSL's two are for browsers.
        context.num_tickets = 1

    def _inner(self, credentials: Credentials) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._configure(context)
        load(context, credentials)
        return context

    def _choose(self, ssl_object: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Called by OpenSSL in each handshake, with the server name that was asked for, or None."""
        chosen = self._default
        if name:
            lowered = name.lower().removesuffix(".")
            if isinstance(ssl_object, ServerSslObject):
                ssl_object.server_name = lowered
            found = self._names.find(lowered)
            if found is not None:
                chosen = found
        if chosen is not None:
            # Certificate and key only: ciphers, versions and ticket keys stay those of self.context.
            ssl_object.context = chosen


def ignore_bad_server_names() -> None:
    """Keep clients from writing tracebacks to our stderr; for a process of ours, once at its start.

    A server name that isn't ASCII ends its own handshake inside the ssl module, which reports it through
    sys.unraisablehook (CPython 3.11 to 3.13): several unbounded lines a connection, on a stderr that may block.
    Everything else still goes to the hook that is in place now.
    """
    report = sys.unraisablehook

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not (
            isinstance(unraisable.exc_value, UnicodeDecodeError) and isinstance(unraisable.object, bytes)
        ):
            report(unraisable)

    sys.unraisablehook = report_others


def to_ascii(name: str) -> str:
    """A host name, or "*." and one, as lower-case A-labels.  Raises ValueError with a sentence."""
    import idna

    star, _, host = name.rpartition("*.")
    if star:
        raise ValueError(f"{name!r} has a star that isn't its first label")
    wildcard = "*." if name.startswith("*.") else ""
    host = host.removesuffix(".")
    try:
        if host.isascii():
            lowered = host.lower()
            # Underscores and the like are refused here as they are in IDNA.
            return wildcard + ".".join(idna.encode(label).decode() for label in lowered.split("."))
        return wildcard + idna.encode(host, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(f"{name!r} is no host name: {error}") from None
