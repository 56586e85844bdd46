"""Authorities and certificates of every kind, good and hostile, for tests of client certificates."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)


class Pair(NamedTuple):
    """A certificate, its chain behind it, and its key; PEM."""

    certificate: bytes
    key: bytes

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    @property
    def fingerprint(self) -> str:
        return f"sha256:{self.parsed.fingerprint(hashes.SHA256()).hex()}"

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Paths of the certificate and the key, as files NAME.pem and NAME.key."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        paths[0].write_bytes(self.certificate)
        paths[1].touch(0o600)
        paths[1].write_bytes(self.key)
        return str(paths[0]), str(paths[1])


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def name_of(common: str, *, email: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if email:
        attributes.append(x509.NameAttribute(NameOID.EMAIL_ADDRESS, email))
    return x509.Name(attributes)


class Authority:
    """An authority with a key of its own; `above` has signed it, else it has itself."""

    def __init__(
        self,
        common: str,
        *,
        above: Authority | None = None,
        days: tuple[float, float] = (-10, 100),
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = name_of(common)
        self.above = above
        signer = above or self
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() + days[0] * DAY)
            .not_valid_after(now() + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer.key, hashes.SHA256())
        )
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *addresses: str,
        common: str = "client",
        subject_email: str = "",
        days: tuple[float, float] = (-1, 5),
        purposes: Sequence[x509.ObjectIdentifier] | None = None,
        names: Iterable[x509.GeneralName] = (),
        chain: bytes = b"",
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> Pair:
        """A client's certificate; addresses stand in the SAN, purposes in the EKU (None: there is none)."""
        own = key or ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(name_of(common, email=subject_email))
            .issuer_name(self.name)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() + days[0] * DAY)
            .not_valid_after(now() + days[1] * DAY)
        )
        alternatives = [*(x509.RFC822Name(address) for address in addresses), *names]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return Pair(
            certificate.public_bytes(serialization.Encoding.PEM) + chain,
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def revoke(self, *pairs: Pair, days: tuple[float, float] = (-1, 50)) -> bytes:
        """Its revocation list, PEM: these are no longer valid."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now() + days[0] * DAY)
            .next_update(now() + days[1] * DAY)
        )
        for pair in pairs:
            revoked = x509.RevokedCertificateBuilder().serial_number(pair.parsed.serial_number)
            builder = builder.add_revoked_certificate(revoked.revocation_date(now() - DAY / 2).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
