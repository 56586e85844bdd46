"""`fastsmtp cert`, and the certificate that the server makes for itself."""

from __future__ import annotations

import datetime
import grp
import ipaddress
import os
import pathlib
import pwd
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fastsmtp.certificate import (
    DAY_S,
    SELF_MADE,
    make_certificate,
    make_request,
    not_after,
    self_made,
    write_file,
)
from fastsmtp.cli import cert
from fastsmtp.cli import main as fastsmtp
from fastsmtp.errors import ConfigError
from fastsmtp.tls import ServerTls, read_credentials

NOW = 1_767_225_600.0  # 2026-01-01


def names_of(pem: bytes, load: str = "certificate") -> list[str]:
    parsed = x509.load_pem_x509_csr(pem) if load == "request" else x509.load_pem_x509_certificate(pem)
    found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_a_certificate_says_what_it_is_for() -> None:
    pem, key = make_certificate(
        [
            "MX.example.org",
            "b\xfccher.example",
            "*.example.org",
            "192.0.2.1",
            "[2001:db8::1]",
            "mx.example.org",
        ],
        days=10,
        wall=lambda: NOW,
    )
    assert names_of(pem) == [
        "mx.example.org",
        "xn--bcher-kva.example",
        "*.example.org",
        "192.0.2.1",
        "2001:db8::1",
    ]
    parsed = x509.load_pem_x509_certificate(pem)
    assert isinstance(parsed.public_key(), ec.EllipticCurvePublicKey)
    assert parsed.not_valid_before_utc < datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    assert not_after(pem) == NOW + 10 * DAY_S
    assert not parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    parsed.verify_directly_issued_by(parsed)
    assert isinstance(serialization.load_pem_private_key(key, None), ec.EllipticCurvePrivateKey)
    addresses = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert addresses.get_values_for_type(x509.IPAddress)[0] == ipaddress.ip_address("192.0.2.1")


def test_a_name_too_long_for_a_common_name_is_an_alternative_only() -> None:
    name = ".".join(["a" * 40, "b" * 40, "example"])
    pem, _ = make_certificate([name], days=1)
    assert names_of(pem) == [name]
    assert len(x509.load_pem_x509_certificate(pem).subject) == 0


def test_a_request_is_signed_by_its_key() -> None:
    pem, _ = make_request(["mx.example.org"])
    assert x509.load_pem_x509_csr(pem).is_signature_valid
    assert names_of(pem, "request") == ["mx.example.org"]


def test_every_name_that_is_none_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        make_certificate(["a b", "mx.example.org", "*.*.example"], days=1)
    assert len(caught.value.faults) == 2


def test_what_is_no_certificate_has_no_end() -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        not_after(b"nothing")


def test_the_self_made_certificate_is_kept_until_it_has_to_be_renewed(tmp_path: pathlib.Path) -> None:
    made = self_made(tmp_path, "mx.example.org", wall=lambda: NOW)
    path = tmp_path / SELF_MADE
    assert os.listdir(tmp_path) == [SELF_MADE]
    assert path.stat().st_mode & 0o777 == 0o600
    assert names_of(made.certificate) == ["mx.example.org"]
    ServerTls(made)
    assert self_made(tmp_path, "mx.example.org", wall=lambda: NOW + 334 * DAY_S) == made
    renewed = self_made(tmp_path, "mx.example.org", wall=lambda: NOW + 336 * DAY_S)
    assert renewed != made
    other = self_made(tmp_path, "mx2.example.org", wall=lambda: NOW + 336 * DAY_S)
    assert names_of(other.certificate) == ["mx2.example.org"]
    path.write_bytes(b"damaged")
    again = self_made(tmp_path, "mx2.example.org", wall=lambda: NOW)
    assert read_credentials(str(path)) == again
    path.chmod(0o644)
    assert self_made(tmp_path, "mx2.example.org", wall=lambda: NOW) != again
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_certificate_that_cannot_be_kept_is_a_fault(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=f"can't write .*/missing/{SELF_MADE}: No such file or directory"):
        self_made(tmp_path / "missing", "mx.example.org")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    (tmp_path / "key.pem").mkdir()
    with pytest.raises(ConfigError, match="can't write"):
        write_file(tmp_path / "key.pem", b"x", mode=0o600)
    assert os.listdir(tmp_path) == ["key.pem"]
    mask = os.umask(0)
    try:
        write_file(tmp_path / "cert.pem", b"x", mode=0o644)
    finally:
        os.umask(mask)
    assert (tmp_path / "cert.pem").stat().st_mode & 0o777 == 0o644


def test_cert_makes_a_pair_and_says_what_to_configure(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        fastsmtp(["cert", "--out", str(tmp_path), "--name", "mx.example.org", "--name", "B\xfccher.example"])
        == 0
    )
    made = read_credentials(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    assert names_of(made.certificate) == ["mx.example.org", "xn--bcher-kva.example"]
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    told = capsys.readouterr().out
    assert f'certificate = "{tmp_path}/cert.pem"\nkey         = "{tmp_path}/key.pem"' in told
    assert "valid for 365 days" in told
    assert "PRIVATE KEY" not in told


def test_cert_overwrites_only_when_forced(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cert", "--out", str(tmp_path), "--name", "mx.example.org"]
    (tmp_path / "key.pem").write_bytes(b"precious")
    assert fastsmtp(arguments) == 1
    assert "key.pem exists; --force overwrites it" in capsys.readouterr().err
    assert (tmp_path / "key.pem").read_bytes() == b"precious"
    assert not (tmp_path / "cert.pem").exists()
    assert fastsmtp([*arguments, "--force", "--days", "2"]) == 0
    read_credentials(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


def test_cert_makes_a_request(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fastsmtp(["cert", "--out", str(tmp_path), "--name", "mx.example.org", "--request"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["key.pem", "request.pem"]
    assert names_of((tmp_path / "request.pem").read_bytes(), "request") == ["mx.example.org"]
    assert f"goes to {tmp_path}/cert.pem" in capsys.readouterr().out


def test_cert_takes_its_name_from_the_configuration(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "fastsmtp.toml"
    # The files that it names are just what is to be made.
    config.write_text('hostname = "mx.example.org"\n[tls]\ncertificate = "cert.pem"\n')
    assert fastsmtp(["cert", "--out", str(tmp_path), "--config", str(config)]) == 0
    assert names_of((tmp_path / "cert.pem").read_bytes()) == ["mx.example.org"]
    monkeypatch.setattr(cert, "DEFAULT_CONFIG", config)
    assert fastsmtp(["cert", "--out", str(tmp_path), "--force"]) == 0
    assert names_of((tmp_path / "cert.pem").read_bytes()) == ["mx.example.org"]
    monkeypatch.setattr(cert, "DEFAULT_CONFIG", tmp_path / "missing")
    monkeypatch.setattr("fastsmtp.config.host.Host.name", lambda _: "host.example")
    assert fastsmtp(["cert", "--out", str(tmp_path), "--force"]) == 0
    assert names_of((tmp_path / "cert.pem").read_bytes()) == ["host.example"]
    capsys.readouterr()
    assert fastsmtp(["cert", "--out", str(tmp_path), "--force", "--config", "/missing"]) == 1
    assert capsys.readouterr().err == "fastsmtp: /missing: can't be read: No such file or directory\n"
    config.write_text("hostname = ")
    assert fastsmtp(["cert", "--out", str(tmp_path), "--force", "--config", str(config)]) == 1


# --- into a qmail home ------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A qmail home on a machine that has qmail's accounts."""
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "me").write_text("Mail.Example.org \nnot this\n")
    monkeypatch.setattr(pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid={"qmaild": 4321}[name]))
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid={"qmail": 5432}[name]))
    return tmp_path


def test_a_qmail_home_gets_what_make_cert_made(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fastsmtp(["cert", "--qmail", str(home)]) == 0
    control = home / "control"
    assert sorted(os.listdir(control)) == ["clientcert.pem", "me", "servercert.pem"]
    made = read_credentials(str(control / "servercert.pem"))
    assert names_of(made.certificate) == ["mail.example.org"]
    assert made.certificate.startswith(b"-----BEGIN PRIVATE KEY-----")
    status = (control / "servercert.pem").stat()
    assert status.st_mode & 0o7777 == 0o640
    assert os.readlink(control / "clientcert.pem") == "servercert.pem"
    told = capsys.readouterr().out
    if os.geteuid() == 0:
        assert (status.st_uid, status.st_gid) == (4321, 5432)
    else:
        assert "It belongs to whoever has called this" in told
    assert "PRIVATE KEY" not in told


def test_a_qmail_home_s_certificate_is_overwritten_only_when_forced(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control = home / "control"
    (control / "servercert.pem").symlink_to("elsewhere.pem")
    (control / "clientcert.pem").write_bytes(b"another")
    assert fastsmtp(["cert", "--qmail", str(home)]) == 1
    assert "servercert.pem exists; --force overwrites it" in capsys.readouterr().err
    assert fastsmtp(["cert", "--qmail", str(home), "--force", "--name", "mx.example.org"]) == 0
    assert names_of(read_credentials(str(control / "servercert.pem")).certificate) == ["mx.example.org"]
    assert not (control / "servercert.pem").is_symlink()
    assert (control / "clientcert.pem").read_bytes() == b"another"
    assert "is there, and left as it is" in capsys.readouterr().out
    (control / "clientcert.pem").unlink()
    (control / "clientcert.pem").symlink_to("gone.pem")
    assert fastsmtp(["cert", "--qmail", str(home), "--force"]) == 0
    assert os.readlink(control / "clientcert.pem") == "servercert.pem"


def test_a_request_for_a_qmail_home_leaves_its_certificate_alone(
    home: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """make cert-req wrote the new key over the certificate that was in use."""
    control = home / "control"
    (control / "servercert.pem").write_bytes(b"in use")
    assert fastsmtp(["cert", "--qmail", str(home), "--request"]) == 0
    assert names_of((control / "req.pem").read_bytes(), "request") == ["mail.example.org"]
    assert (control / "req.key").stat().st_mode & 0o7777 == 0o640
    assert (control / "servercert.pem").read_bytes() == b"in use"
    assert f"cat {control}/req.key signed.pem > {control}/servercert.pem.new" in capsys.readouterr().out
    assert fastsmtp(["cert", "--qmail", str(home), "--request"]) == 1
    assert capsys.readouterr().err.count("exists; --force") == 2


def test_what_is_no_qmail_home(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fastsmtp(["cert", "--qmail", str(tmp_path)]) == 1
    assert f"there is no directory {tmp_path}/control" in capsys.readouterr().err


def test_without_control_me_the_system_s_name_is_used(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "control" / "me").unlink()
    monkeypatch.setattr(cert, "DEFAULT_CONFIG", home / "missing")
    monkeypatch.setattr("fastsmtp.config.host.Host.name", lambda _: "host.example")
    assert fastsmtp(["cert", "--qmail", str(home)]) == 0
    assert "for host.example" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--days", "0"], "is not between 1 and 36500"),
        (["--days", "x"], "invalid"),
        (["--nam", "x"], "unrecognized arguments"),
        (["--qmail", "/var/qmail", "--out", "."], "not allowed with argument"),
    ],
)
def test_a_wrong_command_line_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        fastsmtp(["cert", *arguments])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_a_directory_that_is_not_there_is_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert fastsmtp(["cert", "--out", "/missing/folder", "--name", "mx.example.org"]) == 1
    assert "can't write /missing/folder/key.pem: No such file or directory" in capsys.readouterr().err
