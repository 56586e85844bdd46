"""The authorities of client certificates: tls.client_ca and tls.client_crl, read, judged, and worried about.

    authorities = read_authorities("/etc/fastsmtp/clientca.pem", "/etc/fastsmtp/clientcrl.pem")
    ServerTls(credentials, authorities=authorities)       # asks for certificates of theirs
    concerns(authorities, time.time())                    # what will not work, or soon no more

Each certificate of client_ca is trusted as it stands: a root, an authority
between, or the one certificate of a client that has signed itself.  cryptography
costs 60 ms to import, so it is imported where it is used.

Rank 3: may import ranks 0 to 2.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastsmtp.certificate import key_concern, unreadable
from fastsmtp.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

CERTIFICATE: Final = b"CERTIFICATE"
REVOCATIONS: Final = b"X509 CRL"
# Each client is sent all their names; OpenSSL's limit of a certificate request is 100 kB.
NAMES: Final = 100
_DAY_S: Final = 86_400
# As for our own certificates: who renews in time has done it by then.
SOON_S: Final = 14 * _DAY_S

# What is looked at later, so it is looked at once where a fault has a place.
_PARTS: Final = {
    CERTIFICATE: ("subject", "issuer", "not_valid_after_utc", "extensions"),
    REVOCATIONS: ("issuer", "next_update_utc", "extensions"),
}
# RFC 7468 section 2, in the lax way of section 3: what stands between the blocks is a comment.
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----.*?-----END \1-----", re.DOTALL)


class Authorities(NamedTuple):
    """Contents of client_ca and client_crl, PEM; b"" where there is no client_crl.

    *_origin  the files, for messages
    """

    ca: bytes
    crl: bytes = b""
    ca_origin: str = ""
    crl_origin: str = ""


def read_authorities(client_ca: str, client_crl: str = "") -> Authorities:
    """Read and parse the files.  Raises ConfigError with every fault found, file and line each."""
    faults: list[str] = []
    contents = []
    for path in (client_ca, client_crl):
        try:
            contents.append(Path(path).read_bytes() if path else b"")
        except OSError as error:
            faults.append(f"{path}: can't be read: {error.strerror}")
            contents.append(b"")
    authorities = Authorities(contents[0], contents[1], client_ca, client_crl)
    if not faults:
        parse_authorities(authorities)
    if faults:
        raise ConfigError(*faults)
    return authorities


def parse_authorities(
    authorities: Authorities,
) -> tuple[list[x509.Certificate], list[x509.CertificateRevocationList]]:
    """(certificates, revocation lists).  Raises ConfigError with every fault, file and line each."""
    from cryptography import x509

    faults: list[str] = []
    ca = _parse(authorities.ca, authorities.ca_origin, CERTIFICATE, x509.load_pem_x509_certificate, faults)
    crl = []
    if authorities.crl_origin:
        crl = _parse(authorities.crl, authorities.crl_origin, REVOCATIONS, x509.load_pem_x509_crl, faults)
    if faults:
        raise ConfigError(*faults)
    return [one for one, _ in ca], [one for one, _ in crl]


def blocks(pem: bytes, label: bytes) -> Iterator[tuple[bytes, int]]:
    """The PEM blocks with this label, and the line on which each begins."""
    line, counted_to = 1, 0
    for found in _BLOCK.finditer(pem):
        if found[1] == label:
            line += pem.count(b"\n", counted_to, found.start())
            counted_to = found.start()
            yield found[0], line


def _parse(
    pem: bytes, origin: str, label: bytes, load: Callable[[bytes], Any], faults: list[str]
) -> list[tuple[Any, int]]:
    what = "certificate" if label == CERTIFICATE else "revocation list"
    parsed = []
    is_empty = True
    for block, line in blocks(pem, label):
        is_empty = False
        try:
            one = load(block)
            for part in _PARTS[label]:
                # Each is parsed when it is asked for.
                getattr(one, part)
            parsed.append((one, line))
        except unreadable() as error:
            # Without cryptography's hint to its own documents.
            reason = str(error).partition(". See ")[0]
            faults.append(f"{origin}:{line}: the {what} can't be read: {reason}")
    if is_empty:
        faults.append(f"{origin}: holds no {what} in PEM form")
    return parsed


def concerns(authorities: Authorities, now: float) -> list[tuple[str, str]]:
    """(file, a clause) for what is no fault but makes certificates worthless, now or within SOON_S.

    now  seconds since the epoch
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    found: list[tuple[str, str]] = []
    faults: list[str] = []
    ca = _parse(authorities.ca, authorities.ca_origin, CERTIFICATE, x509.load_pem_x509_certificate, faults)
    for certificate, line in ca:
        clause = _ending(certificate.not_valid_after_utc, now)
        if clause:
            found.append((authorities.ca_origin, f"line {line}: {name_of(certificate.subject)} {clause}"))
        concern = key_concern(certificate.public_bytes(serialization.Encoding.PEM))
        if concern:
            found.append((authorities.ca_origin, f"line {line}: {name_of(certificate.subject)} {concern}"))
    if len(ca) > NAMES:
        found.append((authorities.ca_origin, f"{len(ca)} authorities: each client is sent the names of all"))
    if not authorities.crl_origin:
        return found
    subjects = {one.subject for one, _ in ca}
    crl = _parse(authorities.crl, authorities.crl_origin, REVOCATIONS, x509.load_pem_x509_crl, faults)
    for revocations, line in crl:
        issuer = name_of(revocations.issuer)
        if revocations.issuer not in subjects:
            clause = f"line {line}: {issuer} is not in client_ca"
            found.append((authorities.crl_origin, clause))
        end = revocations.next_update_utc
        clause = "" if end is None else _ending(end, now)
        if clause:
            found.append((authorities.crl_origin, f"line {line}: the list of {issuer} {clause}"))
    issuers = {one.issuer for one, _ in crl}
    for certificate, line in ca:
        if certificate.subject not in issuers and _is_authority(certificate):
            subject = name_of(certificate.subject)
            clause = f"no list of {subject} ({authorities.ca_origin}:{line}): its certificates grant nothing"
            found.append((authorities.crl_origin, clause))
    return found


def _ending(end: datetime.datetime, now: float) -> str:
    left_s = end.timestamp() - now
    if left_s >= SOON_S:
        return ""
    return f"ends in {int(left_s // _DAY_S)} days" if left_s > 0 else "has ended"


def _is_authority(certificate: x509.Certificate) -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def name_of(name: x509.Name) -> str:
    """A distinguished name for a message: RFC 4514, printable, not too long."""
    text = name.rfc4514_string() or "without a name"
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 100 else clean[:97] + "..."
