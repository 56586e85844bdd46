"""The engine that asks for client certificates, in memory: what it finds of each kind, and that nothing aborts."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import ssl
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from fastsmtp.authorities import Authorities
from fastsmtp.certificate import make_certificate
from fastsmtp.errors import ConfigError
from fastsmtp.tls import Certificate, Credentials, Handshake, ServerTls
from fastsmtp.tls_asking import ADDRESSES, MALFORMED, NUL, TOO_BIG, AskingObject, judge
from tests.pki import CLIENT, SERVER, Authority, Pair

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
UNKNOWN = "is of an authority that is not known here"
NO_LIST = "cannot be checked: its authority has no revocation list here"

OURS = Authority("Our CA")
THEIRS = Authority("Their CA")
NAMESAKE = Authority("Our CA")
BETWEEN = Authority("Our issuing CA", above=OURS)
JOE = OURS.issue("Joe@Example.org", common="Joe", subject_email="joe2@example.org", purposes=CLIENT)
GONE = OURS.issue("gone@example.org")


def credentials(name: str) -> Credentials:
    certificate, key = make_certificate([name], days=2)
    return Credentials(certificate, key, f"{name}.pem")


MX = credentials("mx.example")
OTHER = credentials("other.example")


def asking(ca: bytes = OURS.pem, crl: bytes = b"", **options: Any) -> ServerTls:
    authorities = Authorities(ca, crl, "ca.pem", "crl.pem" if crl else "")
    return ServerTls(MX, {"other.example": OTHER}, authorities=authorities, **options)


def client_context(version: ssl.TLSVersion, pair: Pair | None, tmp: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if pair is not None:
        context.load_cert_chain(*pair.write(tmp, "client"))
    return context


class Link:
    """A client and a server in memory; what one writes is moved to the other."""

    def __init__(
        self, server: ServerTls, context: ssl.SSLContext, name: str = "mx.example", session: Any = None
    ) -> None:
        assert server.asking is not None
        self.tls = server
        self.to_server, self.from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.to_client, self.from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.asking.wrap_bio(self.to_server, self.from_server, server_side=True)
        self.client = context.wrap_bio(
            self.to_client, self.from_client, server_hostname=name, session=session
        )

    def move(self) -> None:
        self.to_server.write(self.from_client.read())
        self.to_client.write(self.from_server.read())

    def shake(self) -> Handshake:
        waiting: list[ssl.SSLObject | AskingObject] = [self.client, self.server]
        for _ in range(20):
            for one in list(waiting):
                try:
                    one.do_handshake()
                    waiting.remove(one)
                except ssl.SSLWantReadError:
                    pass
                self.move()
            if not waiting:
                return self.tls.handshake(self.server)
        raise AssertionError("the handshake doesn't end")


@pytest.fixture(params=[V12, V13], ids=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return request.param  # type: ignore[no-any-return]


def shown(
    version: ssl.TLSVersion, tmp: Any, pair: Pair | None, ca: bytes = OURS.pem, crl: bytes = b""
) -> Certificate | None:
    agreed = Link(asking(ca, crl), client_context(version, pair, tmp)).shake()
    assert agreed.is_asked
    assert agreed.protocol == version.name.replace("v1_", "v1.")
    return agreed.certificate


def held(*addresses: str) -> tuple[str, tuple[bytes, ...]]:
    return "", tuple(address.encode() for address in addresses)


ROOT_LIST, BETWEEN_LIST = OURS.revoke(GONE), BETWEEN.revoke()
UNDER = BETWEEN.issue("deep@example.org", chain=BETWEEN.pem)
ALONE = BETWEEN.issue("deep@example.org")
SELF = Authority("Myself")
SELF_PAIR = Pair(SELF.pem, SELF.issue().key)

CASES: list[tuple[str, Pair, bytes, bytes, tuple[str, tuple[bytes, ...]]]] = [
    ("ours", JOE, OURS.pem, b"", held("joe2@example.org", "joe@example.org")),
    ("no EKU", OURS.issue("a@b.example"), OURS.pem, b"", held("a@b.example")),
    ("no address", OURS.issue(), OURS.pem, b"", held()),
    (
        "for servers",
        OURS.issue("a@b.example", purposes=SERVER),
        OURS.pem,
        b"",
        ("is not made for clients", ()),
    ),
    ("another's", THEIRS.issue("joe@example.org"), OURS.pem, b"", (UNKNOWN, ())),
    (
        "a namesake's",
        NAMESAKE.issue("joe@example.org"),
        OURS.pem,
        b"",
        ("is not signed by the authority that it names", ()),
    ),
    ("expired", OURS.issue("joe@example.org", days=(-5, -1)), OURS.pem, b"", ("has expired", ())),
    ("not yet", OURS.issue("joe@example.org", days=(1, 5)), OURS.pem, b"", ("is not valid yet", ())),
    ("revoked", GONE, OURS.pem, ROOT_LIST, ("has been revoked", ())),
    ("not revoked", JOE, OURS.pem, ROOT_LIST, held("joe2@example.org", "joe@example.org")),
    ("a list of another", JOE, OURS.pem, THEIRS.revoke(), (NO_LIST, ())),
    (
        "an old list",
        JOE,
        OURS.pem,
        OURS.revoke(days=(-5, -1)),
        ("cannot be checked: the revocation list has expired", ()),
    ),
    (
        "a list of tomorrow",
        JOE,
        OURS.pem,
        OURS.revoke(days=(1, 5)),
        ("cannot be checked: the revocation list is not valid yet", ()),
    ),
    (
        "a forged list",
        JOE,
        OURS.pem,
        NAMESAKE.revoke(),
        ("cannot be checked: the revocation list has a bad signature", ()),
    ),
    ("chain", UNDER, OURS.pem, b"", held("deep@example.org")),
    ("chain, not sent", ALONE, OURS.pem, b"", (UNKNOWN, ())),
    ("chain, known", ALONE, OURS.pem + BETWEEN.pem, b"", held("deep@example.org")),
    ("chain, its end only", ALONE, BETWEEN.pem, b"", held("deep@example.org")),
    ("chain, both lists", UNDER, OURS.pem, ROOT_LIST + BETWEEN_LIST, held("deep@example.org")),
    ("chain, the root's list is missing", UNDER, OURS.pem, BETWEEN_LIST, (NO_LIST, ())),
    ("chain, the issuer's list is missing", UNDER, OURS.pem, ROOT_LIST, (NO_LIST, ())),
    ("chain, known, the root's list is missing", ALONE, OURS.pem + BETWEEN.pem, BETWEEN_LIST, (NO_LIST, ())),
    ("chain, its end only, its list", ALONE, BETWEEN.pem, BETWEEN_LIST, held("deep@example.org")),
    (
        "an authority that has expired",
        (past := Authority("Past CA", days=(-9, -1))).issue("a@b.example"),
        past.pem,
        b"",
        ("has expired", ()),
    ),
    (
        "the key of RSA 1024",
        OURS.issue("a@b.example", key=rsa.generate_private_key(65_537, 1_024)),
        OURS.pem,
        b"",
        ("has a key that is too short", ()),
    ),
    (
        "the key of RSA 2048",
        OURS.issue("a@b.example", key=rsa.generate_private_key(65_537, 2_048)),
        OURS.pem,
        b"",
        held("a@b.example"),
    ),
]


@pytest.mark.parametrize(
    ("pair", "ca", "crl", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_what_is_found_of_a_certificate(
    version: ssl.TLSVersion,
    tmp_path: Any,
    pair: Pair,
    ca: bytes,
    crl: bytes,
    expected: tuple[str, tuple[bytes, ...]],
) -> None:
    found = shown(version, tmp_path, pair, ca, crl)
    assert found is not None
    assert (found.reason, found.addresses) == expected
    assert found.fingerprint == pair.fingerprint


def test_no_certificate_is_no_fault(version: ssl.TLSVersion, tmp_path: Any) -> None:
    assert shown(version, tmp_path, None) is None


def test_the_names_of_the_authorities_are_sent(version: ssl.TLSVersion, tmp_path: Any) -> None:
    """OpenSSL's client sends no certificate of another authority's unless it is told to; here the names are read."""
    from OpenSSL import SSL

    link = Link(asking(OURS.pem + THEIRS.pem), client_context(version, None, tmp_path))
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION if version is V12 else SSL.TLS1_3_VERSION)
    client = SSL.Connection(context)
    client.set_connect_state()
    for _ in range(6):
        for one in (client, link.server):
            with contextlib.suppress(SSL.WantReadError, ssl.SSLWantReadError):
                one.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            link.to_server.write(client.bio_read(65_536))
        data = link.from_server.read()
        if data:
            client.bio_write(data)
    assert client.get_client_ca_list(as_cryptography=True) == [OURS.name, THEIRS.name]


@pytest.mark.parametrize("name", ["mx.example", "other.example", "OTHER.example", "third.example"])
def test_a_server_name_gets_its_certificate_and_is_asked_as_well(
    version: ssl.TLSVersion, tmp_path: Any, name: str
) -> None:
    link = Link(asking(), client_context(version, JOE, tmp_path), name)
    agreed = link.shake()
    assert agreed.server_name == name.lower()
    served = x509.load_der_x509_certificate(link.client.getpeercert(True) or b"")
    expected = "other.example" if "other" in name.lower() else "mx.example"
    assert served.subject.rfc4514_string() == f"CN={expected}"
    assert agreed.certificate is not None
    assert agreed.certificate.reason == ""


def test_each_handshake_is_a_whole_one_so_no_ticket_speaks_for_a_certificate(
    version: ssl.TLSVersion, tmp_path: Any
) -> None:
    """What is found is found anew: here the certificate has been revoked since."""
    server = asking(crl=OURS.revoke())
    context = client_context(version, JOE, tmp_path)
    first = Link(server, context)
    assert first.shake().certificate == Certificate(
        "", JOE.fingerprint, (b"joe2@example.org", b"joe@example.org")
    )
    with pytest.raises(ssl.SSLWantReadError):
        first.client.read(1)  # TLS 1.3 brings what would be a ticket behind the handshake
    server.replace(MX, {}, Authorities(OURS.pem, OURS.revoke(JOE), "ca.pem", "crl.pem"))
    second = Link(server, context, session=first.client.session)
    agreed = second.shake()
    assert not second.client.session_reused
    assert not agreed.is_resumed
    assert agreed.certificate is not None
    assert agreed.certificate.reason == "has been revoked"


def test_a_ticket_of_the_engine_that_does_not_ask_is_worth_nothing_here(tmp_path: Any) -> None:
    server = asking()
    context = client_context(V12, JOE, tmp_path)
    incoming, outgoing, to_client, from_client = (ssl.MemoryBIO() for _ in range(4))
    plain = server.context.wrap_bio(incoming, outgoing, server_side=True)
    client = context.wrap_bio(to_client, from_client, server_hostname="mx.example")
    for _ in range(4):
        for one in (client, plain):
            with contextlib.suppress(ssl.SSLWantReadError):
                one.do_handshake()
            incoming.write(from_client.read())
            to_client.write(outgoing.read())
    assert not server.handshake(plain).is_asked
    assert client.session is not None and client.session.has_ticket
    agreed = Link(server, context, session=client.session).shake()
    assert agreed.certificate is not None
    assert not agreed.is_resumed


def test_replacing_changes_all_or_nothing(tmp_path: Any) -> None:
    server = asking()
    context = client_context(V13, JOE, tmp_path)
    with pytest.raises(ConfigError) as caught:
        server.replace(OTHER, {}, Authorities(b"nothing", b"", "ca.pem"))
    assert caught.value.faults == ("ca.pem: holds no certificate in PEM form",)
    link = Link(server, context)
    assert link.shake().certificate is not None
    served = x509.load_der_x509_certificate(link.client.getpeercert(True) or b"")
    assert served.subject.rfc4514_string() == "CN=mx.example"
    server.replace(OTHER, {}, Authorities(THEIRS.pem, b"", "ca.pem"))
    link = Link(server, context)
    certificate = link.shake().certificate
    assert certificate is not None
    assert certificate.reason == UNKNOWN
    server.replace(OTHER, {})
    assert server.asking is None


def test_versions_and_ciphers_are_those_of_the_table(tmp_path: Any) -> None:
    with pytest.raises(ssl.SSLError):
        Link(asking(minimum="1.3"), client_context(V12, JOE, tmp_path)).shake()
    server = asking(ciphers="ECDHE-ECDSA-AES128-GCM-SHA256:AES128-SHA")
    assert Link(server, client_context(V12, None, tmp_path)).shake().cipher == "ECDHE-ECDSA-AES128-GCM-SHA256"
    weak = client_context(V12, None, tmp_path)
    weak.set_ciphers("AES128-SHA@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        Link(server, weak).shake()


# --- records -----------------------------------------------------------------------------------------


def test_records_in_both_directions(version: ssl.TLSVersion, tmp_path: Any) -> None:
    """Several records that came at once are all read, though OpenSSL counts but the one it has begun."""
    link = Link(asking(), client_context(version, JOE, tmp_path))
    link.shake()
    lines = [b"line %d\r\n" % number for number in range(50)]
    for line in lines:
        link.client.write(line)
    link.move()
    got = b""
    buffer = memoryview(bytearray(4096))
    while link.to_server.pending or link.server.pending():
        try:
            got += bytes(buffer[: link.server.read(len(buffer), buffer)])
        except ssl.SSLWantReadError:
            break
    assert got == b"".join(lines)
    big = bytes(range(256)) * 1000
    sent = 0
    while sent < len(big):
        sent += link.server.write(memoryview(big)[sent:])
    link.move()
    back = b""
    while len(back) < len(big):
        back += link.client.read(65_536)
    assert back == big


def test_the_end_is_said_by_either_side(version: ssl.TLSVersion, tmp_path: Any) -> None:
    link = Link(asking(), client_context(version, JOE, tmp_path))
    link.shake()
    with pytest.raises(ssl.SSLWantReadError):
        link.server.unwrap()
    link.move()
    link.client.unwrap()
    link = Link(asking(), client_context(version, None, tmp_path))
    link.shake()
    with pytest.raises(ssl.SSLWantReadError):
        link.client.unwrap()
    link.move()
    with pytest.raises(ssl.SSLZeroReturnError):
        link.server.read(100, memoryview(bytearray(100)))
    link.server.unwrap()
    link.move()
    link.client.unwrap()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"EHLO not.tls\r\n", "WRONG_VERSION_NUMBER"),
        (b"\x16\x03\x01\x00\x05hello", ""),
        (b"\x80", "want"),
    ],
)
def test_garbage_is_an_ssl_error_with_a_reason(sent: bytes, reason: str) -> None:
    server = asking()
    assert server.asking is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.asking.wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(sent)
    with pytest.raises(ssl.SSLError) as caught:
        one.do_handshake()
    if reason == "want":
        assert isinstance(caught.value, ssl.SSLWantReadError)
    elif reason:
        assert caught.value.reason.upper().replace(" ", "_") == reason
    else:
        assert caught.value.reason


def test_a_broken_record_after_the_handshake(version: ssl.TLSVersion, tmp_path: Any) -> None:
    link = Link(asking(), client_context(version, JOE, tmp_path))
    link.shake()
    link.client.write(b"NOOP\r\n")
    record = bytearray(link.from_client.read())
    record[-1] ^= 1
    link.to_server.write(bytes(record))
    with pytest.raises(ssl.SSLError) as caught:
        link.server.read(100, memoryview(bytearray(100)))
    assert not isinstance(caught.value, ssl.SSLWantReadError)
    # And nothing of it is left for the next connection's errors.
    assert shown(version, tmp_path, JOE) is not None


def test_only_a_server_asks() -> None:
    server = asking()
    assert server.asking is not None
    with pytest.raises(ValueError, match="is the server"):
        server.asking.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())


def test_a_connection_is_no_cycle(tmp_path: Any) -> None:
    """The collector of a worker seldom looks, and each has 50 kB of OpenSSL's behind it."""
    link = Link(asking(), client_context(V13, JOE, tmp_path))
    link.shake()
    inner = weakref.ref(link.server._connection)
    gc.collect()
    gc.disable()
    try:
        del link
        assert inner() is None
    finally:
        gc.enable()


# --- what a certificate says ---------------------------------------------------------------------------


def der(pair: Pair) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return pair.parsed.public_bytes(Encoding.DER)


def patched(pair: Pair, old: bytes, new: bytes) -> bytes:
    """The certificate with other bytes of the same length in it; its signature is nobody's business here."""
    assert len(old) == len(new)
    data = der(pair)
    assert data.count(old) >= 1
    return data.replace(old, new)


def many(count: int) -> Pair:
    return OURS.issue(*(f"user{number}@example.org" for number in range(count)))


JUDGED: list[tuple[str, bytes, int, str, int]] = [
    ("plain", der(JOE), 0, "", 2),
    ("one that does not hold", der(JOE), 10, "has expired", 0),
    ("an error without words", der(JOE), 79, "is not valid (OpenSSL: 79)", 0),
    ("NUL in an address", patched(JOE, b"Joe@Example.org", b"Joe@Example\0org"), 0, NUL, 0),
    ("NUL in the subject's address", patched(JOE, b"joe2@example.org", b"joe2@example\0org"), 0, NUL, 0),
    (
        "NUL in a host name",
        patched(OURS.issue("a@b.example", names=[x509.DNSName("abc.def")]), b"abc.def", b"abc\0def"),
        0,
        NUL,
        0,
    ),
    ("8-bit text in an address", patched(JOE, b"Joe@Example.org", b"J\xffe@Example.org"), 0, MALFORMED, 0),
    ("as many addresses as are read", der(many(ADDRESSES)), 0, "", ADDRESSES),
    ("more addresses", der(many(ADDRESSES + 1)), 0, TOO_BIG, 0),
    ("10,000 addresses", der(many(10_000)), 0, TOO_BIG, 0),
    ("cut", der(JOE)[:-1], 0, MALFORMED, 0),
    ("nothing", b"", 0, MALFORMED, 0),
]


@pytest.mark.parametrize(
    ("data", "error", "reason", "count"), [case[1:] for case in JUDGED], ids=[case[0] for case in JUDGED]
)
def test_what_a_certificate_says(data: bytes, error: int, reason: str, count: int) -> None:
    found = judge(data, error)
    assert (found.reason, len(found.addresses)) == (reason, count)
    assert found.fingerprint == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert all(address == address.lower() for address in found.addresses)


@pytest.fixture(autouse=True)
def nothing_is_said_in_callbacks(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """pyOpenSSL writes what a callback raises to stderr."""
    yield
    assert capfd.readouterr().err == ""
