"""Certificates by server name, replaced while tickets stay valid, and faults with a sentence each."""

from __future__ import annotations

import os
import pathlib
import ssl
import subprocess
import sys
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fastsmtp.certificate import make_certificate
from fastsmtp.cli import main as fastsmtp
from fastsmtp.config.model import ServerName, Tls
from fastsmtp.errors import ConfigError
from fastsmtp.tls import (
    Credentials,
    Handshake,
    ServerTls,
    key_mode_faults,
    read_configured,
    read_credentials,
    to_ascii,
)


def credentials(name: str) -> Credentials:
    certificate, key = make_certificate([name], days=2)
    return Credentials(certificate, key, f"{name}.pem")


@pytest.fixture(scope="module")
def default() -> Credentials:
    return credentials("default.example")


@pytest.fixture(scope="module")
def other() -> Credentials:
    return credentials("other.example")


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def shake(
    server: ServerTls,
    *,
    name: str | None = None,
    client: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> tuple[Handshake, str, ssl.SSLSession | None]:
    """A handshake in memory: what the server saw, the served name, a session to resume."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = server.context.wrap_bio(to_server, to_client, server_side=True)
    client_side = (client or client_context()).wrap_bio(
        to_client, to_server, server_hostname=name, session=session
    )
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (client_side, server_side):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    server_side.write(b"220")  # TLS 1.3: the ticket comes with the first bytes
    assert client_side.read(3) == b"220"
    der = client_side.getpeercert(binary_form=True)
    assert der is not None
    common = x509.load_der_x509_certificate(der).subject.rfc4514_string().removeprefix("CN=")
    return server.handshake(server_side), common, client_side.session


def test_what_was_agreed_on_is_a_value(default: Credentials) -> None:
    agreed, _, _ = shake(ServerTls(default), name="Mx.Example.ORG")
    assert agreed == Handshake("TLSv1.3", agreed.cipher, agreed.bits, "mx.example.org", False)
    assert agreed.cipher.startswith("TLS_") and agreed.bits in {128, 256}
    agreed, _, _ = shake(ServerTls(default), client=client_context(ssl.TLSVersion.TLSv1_2))
    assert agreed.protocol == "TLSv1.2"
    assert agreed.cipher.startswith("ECDHE-ECDSA-")
    assert agreed.server_name == ""


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (None, "default.example"),
        ("unknown.example", "default.example"),
        ("mx.example.org", "mx.example.org"),
        ("MX.Example.Org", "mx.example.org"),
        ("a.wild.example", "*.wild.example"),
        ("exact.wild.example", "exact.wild.example"),
        ("b.a.wild.example", "default.example"),
        ("wild.example", "default.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("localhost", "default.example"),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_server_name_chooses_the_certificate(
    asked: str | None, served: str, version: ssl.TLSVersion
) -> None:
    _, found, _ = shake(NAMED, name=asked, client=client_context(version))
    assert found == served


NAMED = ServerTls(
    credentials("default.example"),
    {
        name: credentials(name)
        for name in ("MX.example.org", "*.wild.example", "exact.wild.example", "b\xfccher.example")
    },
)


def test_versions_below_the_minimum_are_refused(default: Credentials) -> None:
    with pytest.raises(ssl.SSLError):
        shake(ServerTls(default, minimum="1.3"), client=client_context(ssl.TLSVersion.TLSv1_2))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [None, "mx.example.org"])
def test_a_replaced_certificate_is_served_and_tickets_stay_valid(
    version: ssl.TLSVersion, name: str | None, default: Credentials, other: Credentials
) -> None:
    server = ServerTls(default, {"mx.example.org": credentials("mx.example.org")})
    context = server.context
    client = client_context(version)
    _, _, session = shake(server, name=name, client=client)
    server.replace(other, {"mx.example.org": credentials("mx.example.org")})
    assert server.context is context
    assert shake(server, client=client)[1] == "other.example"
    agreed, _, _ = shake(server, name=name, client=client, session=session)
    assert agreed.is_resumed


def test_tickets_do_not_resume_on_a_server_that_was_made_anew(default: Credentials) -> None:
    client = client_context()
    _, _, session = shake(ServerTls(default), client=client)
    assert not shake(ServerTls(default), client=client, session=session)[0].is_resumed


def test_what_does_not_fit_changes_nothing(default: Credentials, other: Credentials) -> None:
    server = ServerTls(default)
    crossed = Credentials(other.certificate, default.key, "crossed.pem")
    with pytest.raises(ConfigError) as caught:
        server.replace(other, {"mx.example.org": crossed, "*.*.example": other, "a b.example": other})
    assert caught.value.faults[0] == (
        '[tls.names."mx.example.org"] crossed.pem: the key doesn\'t fit the certificate'
    )
    assert len(caught.value.faults) == 3
    assert shake(server, name="mx.example.org")[1] == "default.example"
    with pytest.raises(ConfigError, match=r"^crossed\.pem: the key doesn't fit"):
        server.replace(crossed)
    assert shake(server)[1] == "default.example"


def rsa_credentials(name: str) -> Credentials:
    certificate, _ = make_certificate([name], days=2)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    template = x509.load_pem_x509_certificate(certificate)
    signed = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Credentials(signed.public_bytes(serialization.Encoding.PEM), pem, f"{name}.pem")


def test_no_certificate_of_another_key_type_lingers_after_a_replacement(default: Credentials) -> None:
    server = ServerTls(rsa_credentials("old.example"))
    only_rsa = client_context(ssl.TLSVersion.TLSv1_2)
    only_rsa.set_ciphers("ECDHE+aRSA")
    assert shake(server, client=only_rsa)[1] == "old.example"
    server.replace(default)
    with pytest.raises(ssl.SSLError):
        shake(server, client=only_rsa)
    assert shake(server)[1] == "default.example"


def test_ciphers_are_those_of_the_list_that_are_safe(default: Credentials) -> None:
    server = ServerTls(default, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256:AES128-SHA:RC4-MD5")
    old = client_context(ssl.TLSVersion.TLSv1_2)
    assert shake(server, client=old)[0].cipher == "ECDHE-ECDSA-AES128-GCM-SHA256"
    old.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    with pytest.raises(ssl.SSLError):
        shake(server, client=old)
    # TLS 1.3 has its own.
    assert shake(server)[0].cipher.startswith("TLS_")


def test_a_key_never_stands_in_a_repr(default: Credentials) -> None:
    assert repr(default) == "Credentials('default.example.pem')"


@pytest.fixture
def files(tmp_path: pathlib.Path, default: Credentials) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(default.certificate)
    key.write_bytes(default.key)
    key.chmod(0o600)
    yield certificate, key


def test_files_are_read(files: tuple[pathlib.Path, pathlib.Path], default: Credentials) -> None:
    certificate, key = files
    assert read_credentials(str(certificate), str(key))[:2] == default[:2]
    both = certificate.with_name("both.pem")
    both.write_bytes(default.key + default.certificate)
    both.chmod(0o600)
    assert shake(ServerTls(read_credentials(str(both))))[1] == "default.example"


def test_every_fault_of_the_files_is_told(
    files: tuple[pathlib.Path, pathlib.Path], other: Credentials
) -> None:
    certificate, key = files
    folder = str(certificate.parent)

    def faults() -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read_credentials(str(certificate), str(key))
        return [fault.removeprefix(f"{folder}/") for fault in caught.value.faults]

    good_key = key.read_bytes()
    key.write_bytes(other.key)
    assert faults() == [f"cert.pem: the key in {key} doesn't fit the certificate"]
    parsed = serialization.load_pem_private_key(good_key, None)
    key.write_bytes(
        parsed.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert faults() == [f"cert.pem: the key in {key} is encrypted: store it without a password"]
    key.write_bytes(good_key[:80] + b"\n-----END PRIVATE KEY-----\n")
    assert faults() == [f"cert.pem: the certificate or the key in {key} can't be read as PEM"]
    key.write_bytes(b"nothing")
    certificate.write_bytes(b"nothing")
    key.chmod(0o644)
    allowed = "640" if os.geteuid() == 0 else "600"
    assert faults() == [
        f"key.pem: others can read or change this private key (mode 0644): chmod {allowed} {key}",
        "cert.pem: holds no certificate in PEM form",
        "key.pem: holds no private key in PEM form",
    ]
    key.unlink()
    certificate.unlink()
    assert faults() == [
        "cert.pem: can't be read: No such file or directory",
        "key.pem: can't be read: No such file or directory",
    ]


def test_a_table_is_read_whole_or_every_fault_is_told(
    files: tuple[pathlib.Path, pathlib.Path], default: Credentials, other: Credentials
) -> None:
    certificate, key = map(str, files)
    second = ServerName(name="mx2.example.org", certificate=certificate, key=key)
    read = read_configured(Tls(certificate=certificate, key=key, names=(second,)))
    assert read[0][:2] == default[:2]
    assert {name: one[:2] for name, one in read[1].items()} == {"mx2.example.org": default[:2]}
    missing = ServerName(name="mx3.example.org", certificate="/missing", key=key)
    files[1].write_bytes(other.key)
    with pytest.raises(ConfigError) as caught:
        read_configured(Tls(certificate=certificate, key=key, names=(missing,)))
    assert caught.value.faults == (
        f"{certificate}: the key in {key} doesn't fit the certificate",
        '[tls.names."mx3.example.org"] /missing: can\'t be read: No such file or directory',
    )


def test_check_loads_the_certificates_as_the_server_will(
    files: tuple[pathlib.Path, pathlib.Path], other: Credentials, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, key = files
    config = certificate.with_name("fastsmtp.toml")
    config.write_text(f'hostname = "mx.example.org"\n[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n')
    assert fastsmtp(["check", "--config", str(config)]) == 0
    key.write_bytes(other.key)
    assert fastsmtp(["check", "--config", str(config)]) == 1
    assert f"{certificate}: the key in {key} doesn't fit the certificate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "roots", "is_fault"),
    [
        (0o600, True, False),
        (0o400, True, False),
        (0o640, True, False),
        (0o660, True, True),
        (0o604, True, True),
        (0o600, False, False),
        (0o640, False, True),
    ],
)
def test_who_may_read_a_key(tmp_path: pathlib.Path, mode: int, roots: bool, is_fault: bool) -> None:
    if os.geteuid() != 0 and roots:
        pytest.skip("only root makes files of root")
    key = tmp_path / "key.pem"
    key.write_bytes(b"")
    key.chmod(mode)
    if os.geteuid() == 0 and not roots:
        os.chown(key, 65534, 65534)
    assert bool(key_mode_faults(str(key))) == is_fault


@pytest.mark.parametrize(
    ("name", "ascii_name"),
    [
        ("mx.example.org", "mx.example.org"),
        ("MX.Example.ORG.", "mx.example.org"),
        ("*.example.org", "*.example.org"),
        ("b\xfccher.example", "xn--bcher-kva.example"),
        ("B\xdcCHER.example", "xn--bcher-kva.example"),
        ("*.b\xfccher.example", "*.xn--bcher-kva.example"),
        ("XN--bcher-KVA.example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
    ],
)
def test_host_names_become_a_labels(name: str, ascii_name: str) -> None:
    assert to_ascii(name) == ascii_name


@pytest.mark.parametrize(
    "name", ["", "*.", "a..b", "a b", "*.*.example", "a.*.example", "-a.example", "a_b.example", "x" * 64]
)
def test_what_is_no_host_name_is_said_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no host name|a star that isn't its first label"):
        to_ascii(name)


def test_the_engine_costs_no_import_of_cryptography() -> None:
    code = "import sys, fastsmtp.tls, fastsmtp.certificate; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
