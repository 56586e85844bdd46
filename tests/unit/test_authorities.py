"""client_ca and client_crl: read or refused with file and line, worried about in time, told of by check."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fastsmtp.authorities import (
    CERTIFICATE,
    SOON_S,
    Authorities,
    blocks,
    concerns,
    name_of,
    parse_authorities,
    read_authorities,
)
from fastsmtp.cli import main as fastsmtp
from fastsmtp.errors import ConfigError
from tests.pki import Authority
from tests.pki import name_of as make_name

OURS, THEIRS = Authority("Our CA"), Authority("Their CA")
BETWEEN = Authority("Between", above=OURS)
SHORT = Authority("Short", key=rsa.generate_private_key(65_537, 1_024))
CRL = OURS.revoke()
LINES = CRL.count(b"\n")
SECOND = OURS.pem.count(b"\n") + 1


def broken(pem: bytes) -> bytes:
    return pem.replace(b"MI", b"!!", 1)


def test_what_stands_between_the_blocks_is_a_comment() -> None:
    pem = b"# ours\n" + OURS.pem + b"\nsubject=Their CA\n" + THEIRS.pem.replace(b"\n", b"\r\n") + CRL
    found = list(blocks(pem, CERTIFICATE))
    assert [line for _, line in found] == [2, 2 + OURS.pem.count(b"\n") + 2]
    ca, crl = parse_authorities(Authorities(pem, pem, "ca.pem", "crl.pem"))
    assert [one.subject for one in ca] == [OURS.name, THEIRS.name]
    assert [one.issuer for one in crl] == [OURS.name]


@pytest.mark.parametrize(
    ("ca", "crl", "faults"),
    [
        (b"", b"", ["ca.pem: holds no certificate in PEM form"]),
        (CRL, b"", ["ca.pem: holds no certificate in PEM form"]),
        (OURS.pem[:200], b"", ["ca.pem: holds no certificate in PEM form"]),
        (OURS.pem, OURS.pem, ["crl.pem: holds no revocation list in PEM form"]),
        (broken(OURS.pem), CRL, ["ca.pem:1: the certificate can't be read: "]),
        (
            b"\n\n" + OURS.pem + broken(THEIRS.pem),
            b"",
            [f"ca.pem:{SECOND + 2}: the certificate can't be read: "],
        ),
        (
            broken(OURS.pem),
            b"x\n" + broken(CRL),
            ["ca.pem:1: the certificate can't be read: ", "crl.pem:2: the revocation list can't be read: "],
        ),
    ],
)
def test_faults_have_file_and_line(ca: bytes, crl: bytes, faults: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_authorities(Authorities(ca, crl, "ca.pem", "crl.pem" if crl else ""))
    assert len(caught.value.faults) == len(faults)
    assert all(found.startswith(fault) for found, fault in zip(caught.value.faults, faults, strict=True))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_authorities(f"{tmp_path}/ca.pem", f"{tmp_path}/crl.pem")
    assert caught.value.faults == (
        f"{tmp_path}/ca.pem: can't be read: No such file or directory",
        f"{tmp_path}/crl.pem: can't be read: No such file or directory",
    )


@pytest.mark.parametrize(
    ("ca", "crl", "said"),
    [
        (OURS.pem, b"", []),
        (OURS.pem, CRL, []),
        (
            Authority("Old", days=(-9, -1)).pem,
            b"",
            [("ca.pem", "line 1: CN=Old has ended")],
        ),
        (
            OURS.pem + Authority("Soon", days=(-9, 3.5)).pem,
            b"",
            [("ca.pem", f"line {SECOND}: CN=Soon ends in 3 days")],
        ),
        (SHORT.pem, b"", [("ca.pem", "line 1: CN=Short has an RSA key of 1024 bits, less than 2048")]),
        (OURS.pem, OURS.revoke(days=(-9, -1)), [("crl.pem", "line 1: the list of CN=Our CA has ended")]),
        (OURS.pem, OURS.revoke(days=(-9, 2.5)), [("crl.pem", "line 1: the list of CN=Our CA ends in 2 days")]),
        (
            OURS.pem,
            CRL + THEIRS.revoke(),
            [("crl.pem", f"line {1 + LINES}: CN=Their CA is not in client_ca")],
        ),
        (
            OURS.pem + BETWEEN.pem,
            CRL,
            [("crl.pem", f"no list of CN=Between (ca.pem:{SECOND}): its certificates grant nothing")],
        ),
        # Who has signed himself has nobody to be revoked by.
        (
            OURS.pem + OURS.issue(days=(-1, 50)).certificate,
            CRL,
            [],
        ),
    ],
)  # fmt: skip
def test_what_will_not_work_or_soon_no_more(ca: bytes, crl: bytes, said: list[tuple[str, str]]) -> None:
    authorities = Authorities(ca, crl, "ca.pem", "crl.pem" if crl else "")
    assert concerns(authorities, time.time()) == said


def test_nothing_is_said_long_before_the_end() -> None:
    authorities = Authorities(OURS.pem, OURS.revoke(days=(-1, 40)), "ca.pem", "crl.pem")
    assert concerns(authorities, time.time()) == []
    assert len(concerns(authorities, time.time() + 40 * 86_400 - SOON_S)) == 1
    assert len(concerns(authorities, time.time() + 200 * 86_400)) == 2


def test_many_authorities_are_many_names_for_each_client() -> None:
    pem = OURS.pem * 101
    assert ("ca.pem", "101 authorities: each client is sent the names of all") in concerns(
        Authorities(pem, b"", "ca.pem"), time.time()
    )


def test_a_name_for_a_message_is_printable_and_short() -> None:
    assert name_of(make_name("a\nb\x1b")) == "CN=a?b?"
    assert len(name_of(make_name("x" * 64, email="y" * 200))) == 100


CONFIG = """hostname = "mx.example.org"
[deliver]
default = "discard"
[tls]
client_ca = "{folder}/ca.pem"
client_crl = "{folder}/crl.pem"
[relay]
certificates = "joe@example.org"
"""


def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    config = tmp_path / "f.toml"
    config.write_text(CONFIG.replace("{folder}", str(tmp_path)))
    status = fastsmtp(["check", "--config", str(config)])
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "").splitlines()
    return status, [line for line in said if "client_" in line or "fault" in line]


def test_check_says_where_a_fault_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ca.pem").write_bytes(OURS.pem + broken(THEIRS.pem))
    (tmp_path / "crl.pem").write_bytes(broken(CRL))
    status, said = checked(tmp_path, capsys)
    assert status == 1
    assert said[0].startswith(f"f.toml:5: tls.client_ca: ca.pem:{SECOND}: the certificate can't be read: ")
    assert said[1].startswith("f.toml:6: tls.client_crl: crl.pem:1: the revocation list can't be read: ")
    assert said[2:] == ["2 faults"]


def test_check_warns_of_what_is_short_or_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_bytes(SHORT.pem + Authority("Old", days=(-9, -1)).pem)
    (tmp_path / "crl.pem").write_bytes(SHORT.revoke(days=(-9, -1)))
    status, said = checked(tmp_path, capsys)
    assert status == 0
    line = 1 + SHORT.pem.count(b"\n")
    assert said == [
        "warning: f.toml:5: tls.client_ca: ca.pem: line 1: CN=Short has an RSA key of 1024 bits, less than 2048",
        f"warning: f.toml:5: tls.client_ca: ca.pem: line {line}: CN=Old has ended",
        "warning: f.toml:6: tls.client_crl: crl.pem: line 1: the list of CN=Short has ended",
        "warning: f.toml:6: tls.client_crl: crl.pem: no list of CN=Old "
        f"(ca.pem:{line}): its certificates grant nothing",
    ]


def test_check_warns_of_a_short_key_of_our_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = OURS.issue(key=rsa.generate_private_key(65_537, 1_024))
    certificate, key = own.write(tmp_path, "own")
    config = tmp_path / "f.toml"
    config.write_text(
        'hostname = "mx.example.org"\n[deliver]\ndefault = "discard"\n'
        f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
    )
    status = fastsmtp(["check", "--config", str(config)])
    said = capsys.readouterr().err
    # OpenSSL's security level of most systems refuses it as well.
    assert "has an RSA key of 1024 bits, less than 2048" in said or (status == 1 and "too weak" in said)
