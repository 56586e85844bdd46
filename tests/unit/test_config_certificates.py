"""Client certificates and ciphers in the configuration: what is granted, left out, and warned of."""

from __future__ import annotations

import pytest

from fastsmtp.address import Address
from fastsmtp.config.ciphers import SAFE, choose
from fastsmtp.config.flags import Flags
from fastsmtp.config.load import Loaded, load
from fastsmtp.config.names import parse_certificate
from fastsmtp.errors import ConfigError
from tests.unit.config_host import FakeHost

DIGITS = "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08"
COLONS = ":".join(DIGITS[at : at + 2] for at in range(0, 64, 2))
CA, CRL = "-----BEGIN CERTIFICATE-----", "-----BEGIN X509 CRL-----"
BEGIN = 'hostname = "mx.example.org"\n[deliver]\ndefault = "discard"\n'


def loaded(text: str, **files: str) -> Loaded:
    named = {f"/{name}": contents for name, contents in files.items()}
    host = FakeHost({"/f.toml": BEGIN + text, "/ca": CA, "/crl": CRL, **named})
    return load(Flags(config="/f.toml"), host=host)


def warnings(text: str) -> list[str]:
    own = [one.replace("/f.toml:", "F:") for one in loaded(text).warnings]
    return [one for one in own if "relay" in one or "tls" in one]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("joe@example.org", b"joe@example.org"),
        ("Joe.User+x@EXAMPLE.org", b"joe.user+x@example.org"),
        ("joe@b\xfccher.example", b"joe@xn--bcher-kva.example"),
        (f"sha256:{DIGITS}", b"sha256:" + DIGITS.lower().encode()),
        (f"SHA256:{COLONS}", b"sha256:" + DIGITS.lower().encode()),
    ],
)
def test_what_a_certificate_is_known_by(text: str, key: bytes) -> None:
    assert parse_certificate(text) == key


@pytest.mark.parametrize(
    "text", ["", "joe", "@example.org", "joe@", f"sha1:{DIGITS}", "sha256:", f"sha256:{DIGITS}0", "sha256:zz"]
)
def test_what_is_no_certificate(text: str) -> None:
    with pytest.raises(ValueError, match=r"has no @|bad local part|is no domain|is no fingerprint"):
        parse_certificate(text)


def test_grants_stand_in_the_configuration_and_in_files() -> None:
    text = (
        f'[tls]\nclient_ca = "/ca"\n[relay]\ncertificates = ["ann@example.org", "sha256:{COLONS}", "/list"]\n'
        'certificates_from = ["192.0.2.0/24", "/networks"]\n'
    )
    lists = {"list": "# people\nJoe@Example.org  # joe\r\n\n", "networks": "2001:db8::/32\n"}
    settings = loaded(text, **lists).settings[0]
    fingerprint = b"sha256:" + DIGITS.lower().encode()
    assert settings.certificates == {b"ann@example.org", b"joe@example.org", fingerprint}
    assert [
        Address(one) in settings.certificates_from for one in ("192.0.2.9", "198.51.100.1", "2001:db8::1")
    ] == [True, False, True]


def test_everybody_is_asked_by_default() -> None:
    settings = loaded("").settings[0]
    assert settings.certificates == frozenset()
    assert Address("192.0.2.9") in settings.certificates_from
    assert Address("2001:db8::1") in settings.certificates_from


def test_a_bad_line_of_the_list_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        loaded('[relay]\ncertificates = "/list"\n', list="joe@example.org\n\njoe\nsha256:1\n")
    assert caught.value.faults == (
        "/list:3: 'joe' has no @",
        "/list:4: 'sha256:1' is no fingerprint: sha256: and 64 hexadecimal digits",
    )


NO_CA = "F:5: relay.certificates: no listener's tls has a client_ca, so no client is asked for one"
NO_GRANT = "tls.client_ca: there are no relay.certificates, so no client is asked for one"
GRANT = 'certificates = "joe@example.org"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[relay]\n{GRANT}[tls]\nclient_ca = "/ca"\nclient_crl = "/crl"\n', []),
        (f"[relay]\n{GRANT}", [NO_CA]),
        (f'[relay]\n{GRANT}[tls]\nclient_ca = "/ca"\n[[listen]]\ntls = "off"\n', [NO_CA]),
        (f'[relay]\n{GRANT}[[listen]]\n[listen.tls]\nclient_ca = "/ca"\n', []),
        (f'[relay]\n{GRANT}[tls]\nclient_ca = "/ca"\n[[listen]]\n[listen.tls]\nclient_ca = ""\n', [NO_CA]),
        ('[tls]\nclient_ca = "/ca"\n', [f"F:5: {NO_GRANT}"]),
        ('[[listen]]\n[listen.tls]\nclient_ca = "/ca"\n', [f"F:6: listen.{NO_GRANT}"]),
        ('[tls]\nciphers = "ECDHE+AESGCM"\n', []),
        (
            '[tls]\nciphers = "ECDHE-RSA-AES256-GCM-SHA384:AES128-SHA"\n',
            ["F:5: tls.ciphers: not safe, so left out: AES128-SHA"],
        ),
        (
            '[[listen]]\n[listen.tls]\nciphers = "RC4:EXP"\n',
            ["F:6: listen.tls.ciphers: none of 'RC4:EXP' is a safe cipher of TLS 1.2: our own list is used"],
        ),
    ],
)
def test_what_has_no_effect_is_warned_of(text: str, said: list[str]) -> None:
    assert [one for one in warnings(text) if "certificate is configured" not in one] == said


def test_a_listener_s_own_authorities_have_their_own_revocation_lists() -> None:
    listeners = (
        '[[listen]]\naddress = "127.0.0.1:1"\n[listen.tls]\nclient_ca = "/own"\n'
        '[[listen]]\naddress = "127.0.0.1:2"\n[listen.tls]\nminimum = "1.3"\n'
    )
    text = f'[relay]\n{GRANT}[tls]\nclient_ca = "/ca"\nclient_crl = "/crl"\n{listeners}'
    tables = [one.tls for one in loaded(text, own=CA).settings]
    assert [(one.client_ca, one.client_crl) for one in tables] == [("/own", ""), ("/ca", "/crl")]


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("", SAFE),
        ("RC4-MD5", SAFE),
        ("a b c", SAFE),
        ("@SECLEVEL=0:ALL:eNULL", None),
        ("DEFAULT", None),
        ("ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256", None),
    ],
)
def test_what_is_used_of_a_list_is_safe_and_in_its_order(text: str, used: str | None) -> None:
    found = choose(text)
    if used is not None:
        assert found.used == used
        assert found.is_none == bool(text)
        return
    names = found.used.split(":")
    assert all(name.startswith("ECDHE-") for name in names)
    if text.startswith("ECDHE"):
        assert names == text.split(":")
        assert found.warning(text) == ""
    else:
        assert "AES128-SHA" in found.dropped
        assert found.warning(text).startswith("not safe, so left out: ")
        assert found.warning(text).endswith(" more")
