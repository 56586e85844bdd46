"""Making certificates: ECDSA P-256 keys, self-signed certificates and requests; the server's self-made one.

P-256 because every TLS 1.2 client can verify it and its handshake costs a tenth
of RSA 2048's.  cryptography costs 60 ms to import, so it is imported where it
is used.

Rank 3: may import ranks 0 to 2.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastsmtp.errors import ConfigError
from fastsmtp.tls import Credentials, read_credentials, to_ascii

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

SELF_MADE = "self-made.pem"  # under the state directory: certificate and key in one file, so one rename
SELF_MADE_DAYS = 365
RENEW_BEFORE_DAYS = 30
DAY_S = 86_400
WARN_S = 14 * DAY_S
# RFC 9325 section 4.3: shorter keys are broken, or will be.
RSA_BITS = 2_048
# Clients whose clock is behind ours must not find the certificate not yet valid.
BACKDATED_S = 3_600


def subject_names(names: Sequence[str]) -> list[str]:
    """Host names as A-labels and IP addresses, each once, in order.  Raises ConfigError with every fault."""
    faults: list[str] = []
    found: dict[str, None] = {}
    for name in names:
        try:
            found[str(ipaddress.ip_address(name.strip("[]")))] = None
        except ValueError:
            try:
                found[to_ascii(name)] = None
            except ValueError as error:
                faults.append(str(error))
    if faults:
        raise ConfigError(*faults)
    return list(found)


def make_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A new ECDSA P-256 key and its PEM (PKCS 8, not encrypted)."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key, pem


def make_certificate(
    names: Sequence[str], *, days: float, wall: Callable[[], float] = time.time
) -> tuple[bytes, bytes]:
    """(certificate, key), both PEM: self-signed, for these names, valid for so many days from now.

    Raises ConfigError when a name is none.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    subject, alternatives = _subject(subject_names(names))
    key, key_pem = make_key()
    now = datetime.datetime.fromtimestamp(wall(), datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=BACKDATED_S))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(alternatives, critical=False)
        # Its own authority: who pins it, or trusts it, must not thereby trust what else its key signs.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


def make_request(names: Sequence[str]) -> tuple[bytes, bytes]:
    """(certificate signing request, key), both PEM, for an authority to sign.  Raises ConfigError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    subject, alternatives = _subject(subject_names(names))
    key, key_pem = make_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM), key_pem


def _subject(names: Sequence[str]) -> tuple[x509.Name, x509.SubjectAlternativeName]:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            general.append(x509.DNSName(name))
    # A common name holds at most 64 characters (RFC 5280 appendix A.1, ub-common-name); names count
    # only as alternatives anyway (RFC 9525 section 2).
    common = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names[:1] if len(name) <= 64]
    return x509.Name(common), x509.SubjectAlternativeName(general)


def not_after(certificate: bytes) -> float:
    """When the first certificate of a PEM chain ends, in seconds since the epoch.  Raises ConfigError."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except ValueError as error:
        raise ConfigError(f"the certificate can't be read: {error}") from None


def end_concern(certificate: bytes, now: float) -> str:
    """A clause about the end of the first certificate of a PEM chain, when it is near or over; else ""."""
    left_s = not_after(certificate) - now
    if left_s >= WARN_S:
        return ""
    days = int(left_s // DAY_S)
    return f"ends in {days} day{'s'[: days != 1]}" if left_s > 0 else "has ended"


def key_concern(certificate: bytes) -> str:
    """A clause about the key of the first certificate of a PEM chain, when it is too short; else ""."""
    from cryptography import x509

    try:
        bits = short_key_bits(x509.load_pem_x509_certificate(certificate))
    except unreadable():
        return ""
    return f"has an RSA key of {bits} bits, less than {RSA_BITS}" if bits else ""


def unreadable() -> tuple[type[Exception], ...]:
    """What cryptography raises for a certificate or revocation list that it can't read, now or when it is looked at."""
    from cryptography import x509

    # TypeError: an attribute of a name that is of no kind it knows.
    return (
        ValueError,
        TypeError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    )


def short_key_bits(certificate: x509.Certificate) -> int:
    """The length of an RSA key that is shorter than RSA_BITS; 0 for any other.  Raises one of unreadable()."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return 0
    return key.key_size if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS else 0


def self_made(state: Path, hostname: str, *, wall: Callable[[], float] = time.time) -> Credentials:
    """The certificate of our own making, for opportunistic TLS where none is configured.

    Kept in one file under the state directory, 0600; made anew when it is missing or damaged, names
    another host, or ends within RENEW_BEFORE_DAYS.  Raises ConfigError when it can't be written.
    """
    path = state / SELF_MADE
    with contextlib.suppress(ConfigError):
        kept = read_credentials(str(path))
        if not _is_due(kept.certificate, hostname, wall()):
            return kept
    certificate, key = make_certificate([hostname], days=SELF_MADE_DAYS, wall=wall)
    write_file(path, certificate + key, mode=0o600)
    return Credentials(certificate + key, certificate + key, str(path))


def _is_due(certificate: bytes, hostname: str, now: float) -> bool:
    from cryptography import x509

    parsed = x509.load_pem_x509_certificate(certificate)
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    _, wanted = _subject(subject_names([hostname]))
    return names != wanted or parsed.not_valid_after_utc.timestamp() - now < RENEW_BEFORE_DAYS * DAY_S


def write_file(path: Path, content: bytes, *, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Write a file whole or not at all, on disk when this returns; owner: (uid, gid).  Raises ConfigError."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(fd, "wb") as file:
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, mode)  # whatever the umask says
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.replace(fresh, path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from error
