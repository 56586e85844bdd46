"""The TLS engine that asks for a client certificate: pyOpenSSL, on the OpenSSL that cryptography brings.

Python's ssl can't do it: it aborts the handshake of any certificate that it
can't verify, and has no callback.  Here every certificate passes.  What OpenSSL
thinks of it is kept, as a word and not as an alert, and what it grants is
decided much later, at RCPT.

    context = AskingContext(default, names, authorities, minimum="1.2", ciphers=...)
    ssl_object = context.wrap_bio(incoming, outgoing, server_side=True)    # as smtp/start_tls.py does
    ... do_handshake() ...
    ssl_object.certificate()                       # Certificate, or None: the client has shown none

An AskingContext never changes: other certificates or authorities are another
one.  It gives no tickets, so each handshake is a whole one.  A ticket would
have to carry what was found of the certificate, and would go on saying it when
the certificate has ended or was revoked since; pyOpenSSL's has only "verified"
to say, whatever was found.

Rank 3: may import ranks 0 to 2.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Mapping
from typing import Final, overload

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto

from fastsmtp.authorities import Authorities, parse_authorities
from fastsmtp.certificate import short_key_bits, unreadable
from fastsmtp.errors import ConfigError
from fastsmtp.tls import Certificate, Credentials, Names

# Of a peer's chain that are looked at: its own certificate, and so many authorities above it.  Each one may cost
# us a check of a signature, with a key as long as the peer likes.
DEPTH: Final = 5
# OpenSSL takes 100 kB of certificates from a peer.  One of this size has a thousand names, or worse.
CERTIFICATE_BYTES: Final = 16_384
ADDRESSES: Final = 32
# What is moved from OpenSSL at once: a record of 16 KiB and its frame.
_MOVED_BYTES: Final = 17_408

_MINIMUM: Final = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_OPTIONS: Final = (
    SSL.OP_NO_COMPRESSION
    | SSL.OP_NO_RENEGOTIATION
    | SSL.OP_IGNORE_UNEXPECTED_EOF
    | SSL.OP_CIPHER_SERVER_PREFERENCE
    | SSL.OP_NO_TICKET
)

# X509_V_ERR_* of OpenSSL (x509_vfy.h), which never change their numbers -> what a client and the log are told.
_UNKNOWN: Final = "is of an authority that is not known here"
_REASONS: Final[Mapping[int, str]] = {
    2: _UNKNOWN,  # UNABLE_TO_GET_ISSUER_CERT
    3: "cannot be checked: its authority has no revocation list here",  # UNABLE_TO_GET_CRL
    7: "is not signed by the authority that it names",  # CERT_SIGNATURE_FAILURE
    8: "cannot be checked: the revocation list has a bad signature",  # CRL_SIGNATURE_FAILURE
    9: "is not valid yet",  # CERT_NOT_YET_VALID
    10: "has expired",  # CERT_HAS_EXPIRED
    11: "cannot be checked: the revocation list is not valid yet",  # CRL_NOT_YET_VALID
    12: "cannot be checked: the revocation list has expired",  # CRL_HAS_EXPIRED
    18: _UNKNOWN,  # DEPTH_ZERO_SELF_SIGNED_CERT
    19: _UNKNOWN,  # SELF_SIGNED_CERT_IN_CHAIN
    20: _UNKNOWN,  # UNABLE_TO_GET_ISSUER_CERT_LOCALLY
    21: _UNKNOWN,  # UNABLE_TO_VERIFY_LEAF_SIGNATURE
    22: "is too far from its authority",  # CERT_CHAIN_TOO_LONG
    23: "has been revoked",  # CERT_REVOKED
    24: "is of an authority that is none",  # INVALID_CA
    25: "is too far from its authority",  # PATH_LENGTH_EXCEEDED
    26: "is not made for clients",  # INVALID_PURPOSE
    66: "has a key that is too short",  # EE_KEY_TOO_SMALL
    67: "is of an authority whose key is too short",  # CA_KEY_TOO_SMALL
    68: "is of an authority whose hash is too weak",  # CA_MD_TOO_WEAK
}
_NO_LIST: Final = 3
_TOO_SHORT: Final = 66
MALFORMED: Final = "cannot be read"
TOO_BIG: Final = "is too big"
NUL: Final = "has a NUL in a name"
REASONS: Final = frozenset({*_REASONS.values(), MALFORMED, TOO_BIG, NUL})
"""All that Certificate.reason can be, but "" and the number of an error of OpenSSL's that has no words here."""


class _Seen:
    """What the callbacks of a handshake have learnt."""

    __slots__ = ("error", "server_name")

    def __init__(self) -> None:
        self.error = 0
        self.server_name = ""


class AskingContext:
    """Makes connections that ask.  The part of ssl.SSLContext that start_tls.py needs, and no more."""

    def __init__(
        self,
        default: Credentials,
        names: Mapping[str, Credentials],
        authorities: Authorities,
        *,
        minimum: str,
        ciphers: str,
    ) -> None:
        """default, names: as ServerTls; ciphers: names that OpenSSL knows.  Raises ConfigError with every fault."""
        self._ca, self._crl = parse_authorities(authorities)
        self._origin = " and ".join(filter(None, (authorities.ca_origin, authorities.crl_origin)))
        subjects = {one.subject for one in self._ca}
        # An authority that is trusted though its own is not known: nobody could revoke it.
        self._unrevokable = {
            one.fingerprint(hashes.SHA256()) for one in self._ca if one.issuer not in subjects
        }
        self._minimum = _MINIMUM[minimum]
        self._ciphers = ciphers.encode()
        self._names: Names[SSL.Context] = Names(default, names, self._context)

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, server_side: bool = False
    ) -> AskingObject:
        """A connection whose records come in by one BIO and go out by the other; always the server's side."""
        if not server_side:
            raise ValueError("who asks for a client's certificate is the server")
        connection = SSL.Connection(self._names.default)
        connection.set_accept_state()
        return AskingObject(connection, incoming, outgoing)

    def _context(self, credentials: Credentials) -> SSL.Context:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(self._minimum)
        context.set_cipher_list(self._ciphers)
        context.set_options(_OPTIONS)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 17 kB for each connection that waits; ssl does it too
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_session_id(b"fastsmtp")  # OpenSSL insists, where certificates are asked for
        _load(context, credentials)
        self._trust(context)
        context.set_verify(SSL.VERIFY_PEER, self._look_at)
        context.set_verify_depth(DEPTH)
        context.set_tlsext_servername_callback(self._choose)
        return context

    def _trust(self, context: SSL.Context) -> None:
        store = context.get_cert_store()
        if store is None:
            raise RuntimeError("OpenSSL made a context without a store")
        try:
            for certificate in self._ca:
                store.add_cert(crypto.X509.from_cryptography(certificate))
                context.add_client_ca(certificate)
            for revocations in self._crl:
                store.add_crl(revocations)
        except (crypto.Error, SSL.Error, ValueError) as error:
            raise ConfigError(f"{self._origin}: OpenSSL can't use it: {error}") from None
        flags = crypto.X509StoreFlags.PARTIAL_CHAIN
        if self._crl:
            flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
        store.set_flags(flags)

    def _look_at(
        self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, is_good: int
    ) -> bool:
        """Called by OpenSSL for each certificate of the chain; what it thinks is kept, and all pass."""
        seen: _Seen = connection.get_app_data()
        if is_good or seen.error:
            return True
        if error == _NO_LIST and depth and self._is_unrevokable(certificate):
            return True
        seen.error = error
        return True

    def _is_unrevokable(self, certificate: crypto.X509) -> bool:
        return hashlib.sha256(_der(certificate)).digest() in self._unrevokable

    def _choose(self, connection: SSL.Connection) -> None:
        """Called by OpenSSL in each handshake; what it raises would be written to stderr, so it raises nothing."""
        asked = connection.get_servername()
        if not asked:
            return
        name = asked.decode("ascii", "replace").lower().removesuffix(".")
        connection.get_app_data().server_name = name if name.isascii() else ""
        chosen = self._names.find(name)
        if chosen is not None:
            connection.set_context(chosen)


class AskingObject:
    """One connection.  The part of ssl.SSLObject that start_tls.py and ServerTls need, with ssl's exceptions."""

    __slots__ = ("_connection", "_has_more", "_incoming", "_outgoing", "_seen")

    session_reused = False

    def __init__(self, connection: SSL.Connection, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self._has_more = False
        # Known to the connection too, which must not know us: no cycle.
        self._seen = _Seen()
        connection.set_app_data(self._seen)

    # --- records ---------------------------------------------------------------------------------

    def do_handshake(self) -> None:
        self._take()
        try:
            self._connection.do_handshake()
        except SSL.Error as error:
            raise _translated(error) from None
        finally:
            self._give()

    @overload
    def read(self, size: int) -> bytes: ...
    @overload
    def read(self, size: int, buffer: memoryview) -> int: ...
    def read(self, size: int, buffer: memoryview | None = None) -> bytes | int:
        self._take()
        try:
            if buffer is None:
                return self._connection.recv(size)
            return self._connection.recv_into(buffer, size)
        except SSL.Error as error:
            self._has_more = False
            self._give()
            if isinstance(error, SSL.WantReadError) and self._incoming.eof:
                raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer's end without its close_notify") from None
            raise _translated(error) from None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._connection.send(data)
        except SSL.Error as error:
            raise _translated(error) from None
        finally:
            self._give()

    def pending(self) -> int:
        """True in an if when read() may have more: unlike ssl's it counts no bytes."""
        return self._connection.pending() or self._has_more

    def unwrap(self) -> None:
        """Say close_notify.  SSLWantReadError until the peer has said its own."""
        try:
            is_over = self._connection.shutdown()
        except SSL.Error as error:
            raise _translated(error) from None
        finally:
            self._give()
        if not is_over:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the peer's close_notify is to come")

    def _take(self) -> None:
        if self._incoming.pending:
            self._connection.bio_write(self._incoming.read())
            self._has_more = True

    def _give(self) -> None:
        try:
            while True:
                data = self._connection.bio_read(_MOVED_BYTES)
                self._outgoing.write(data)
                if len(data) < _MOVED_BYTES:
                    return
        except SSL.WantReadError:
            return

    # --- what was agreed on ----------------------------------------------------------------------

    @property
    def server_name(self) -> str:
        return self._seen.server_name

    def cipher(self) -> tuple[str, str, int] | None:
        name = self._connection.get_cipher_name()
        if name is None:
            return None
        return name, self._connection.get_cipher_version() or "", self._connection.get_cipher_bits() or 0

    def version(self) -> str:
        return self._connection.get_protocol_version_name()

    def certificate(self) -> Certificate | None:
        """What the client has shown; None: nothing.  Call it once the handshake is complete."""
        shown = self._connection.get_peer_certificate()
        return None if shown is None else judge(_der(shown), self._seen.error)


def judge(der: bytes, error: int) -> Certificate:
    """What a certificate says, when OpenSSL's verification ended with this X509_V_ERR_ (0: it holds).

    Names of one that doesn't hold are somebody's invention, and not looked at.
    """
    fingerprint = f"sha256:{hashlib.sha256(der).hexdigest()}"
    if error:
        reason = _REASONS.get(error, f"is not valid (OpenSSL: {error})")
        return Certificate(reason, fingerprint, ())
    if len(der) > CERTIFICATE_BYTES:
        return Certificate(TOO_BIG, fingerprint, ())
    try:
        certificate = x509.load_der_x509_certificate(der)
        if short_key_bits(certificate):
            return Certificate(_REASONS[_TOO_SHORT], fingerprint, ())
        names = _names(certificate)
    except unreadable():
        # OpenSSL is more lenient.
        return Certificate(MALFORMED, fingerprint, ())
    if any("\0" in text for _, text in names):
        # "boss@example.org\0.evil.example" is read as two different names by different programs.
        return Certificate(NUL, fingerprint, ())
    addresses = dict.fromkeys(
        text.lower().encode() for is_address, text in names if is_address and text.isascii()
    )
    if len(addresses) > ADDRESSES:
        return Certificate(TOO_BIG, fingerprint, ())
    return Certificate("", fingerprint, tuple(addresses))


def _names(certificate: x509.Certificate) -> list[tuple[bool, str]]:
    """All texts of subject and SAN, and whether each is an e-mail address."""
    found = []
    for attribute in certificate.subject:
        value = attribute.value
        text = value if isinstance(value, str) else value.decode("latin-1")
        found.append((attribute.oid == NameOID.EMAIL_ADDRESS, text))
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return found
    for name in alternatives:
        if isinstance(name, x509.RFC822Name):
            found.append((True, name.value))
        elif isinstance(name, x509.DNSName | x509.UniformResourceIdentifier):
            found.append((False, name.value))
    return found


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def _load(context: SSL.Context, credentials: Credentials) -> None:
    """Put the credentials into a new context.  ConfigError where cryptography is stricter than ssl was."""
    try:
        chain = x509.load_pem_x509_certificates(credentials.certificate)
        key = serialization.load_pem_private_key(credentials.key, None)
        context.use_certificate(chain[0])
        for certificate in chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)  # type: ignore[arg-type]  # it says so when it can't use that kind
        context.check_privatekey()
    except (ValueError, TypeError, SSL.Error) as error:
        raise ConfigError(
            f"{credentials.origin}: can't be used where client certificates are asked for: {error}"
        ) from None


_KINDS: Final[tuple[tuple[type[SSL.Error], Callable[..., ssl.SSLError]], ...]] = (
    (SSL.WantReadError, ssl.SSLWantReadError),
    (SSL.WantWriteError, ssl.SSLWantWriteError),
    (SSL.ZeroReturnError, ssl.SSLZeroReturnError),
    (SSL.SysCallError, ssl.SSLEOFError),
)


def _translated(error: SSL.Error) -> ssl.SSLError:
    """The same as ssl would raise it; reason in OpenSSL's words, or ""."""
    for theirs, ours in _KINDS:
        if isinstance(error, theirs):
            return ours(0, str(error))
    # [(library, function, reason), ...], the first being the cause.
    errors = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reason = errors[0][2] if errors else ""
    translated = ssl.SSLError(1, reason or "tls error")
    translated.reason = reason
    return translated
