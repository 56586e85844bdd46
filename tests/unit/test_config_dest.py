"""DEST, HOST:PORT, and the names of domains and addresses."""

from __future__ import annotations

import re

import pytest

from fastsmtp.config.dest import Dest, parse_dest
from fastsmtp.config.endpoint import is_loopback, parse_endpoint
from fastsmtp.config.names import parse_accept_domain, parse_domain_name, parse_mailbox_key, spellings

DESTS = [
    ("discard", Dest("discard")),
    ("print", Dest("print")),
    ("refuse", Dest("refuse")),
    ("maildir:/var/mail/{domain}/{local}", Dest("maildir", path="/var/mail/{domain}/{local}")),
    ("smtp://mx.example.org", Dest("smtp", "mx.example.org", 25)),
    ("smtp://mx.example.org:2525/", Dest("smtp", "mx.example.org", 2525)),
    ("smtp://[2001:db8::1]:26", Dest("smtp", "2001:db8::1", 26)),
    ("smtp://[::1]", Dest("smtp", "::1", 25)),
    ("lmtp://127.0.0.1", Dest("lmtp", "127.0.0.1", 24)),
    ("lmtp://dovecot:24", Dest("lmtp", "dovecot", 24)),
    ("lmtp+unix:/run/dovecot/lmtp", Dest("lmtp+unix", path="/run/dovecot/lmtp")),
    ("pipe:/bin/cat -u 'a b'", Dest("pipe", path="/bin/cat -u 'a b'")),
    ("qmail-queue", Dest("qmail-queue")),
    ("qmail-queue:/opt/filter", Dest("qmail-queue", path="/opt/filter")),
    ("qmail-queue:bin/filter", Dest("qmail-queue", path="bin/filter")),  # $QMAILQUEUE: from the qmail home
]


@pytest.mark.parametrize(("text", "dest"), DESTS, ids=[text for text, _ in DESTS])
def test_a_destination_is_read(text: str, dest: Dest) -> None:
    assert parse_dest(text) == dest
    assert parse_dest(str(dest)) == dest


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("", "is no destination"),
        ("maildir", "is no destination"),
        ("maildir:", "must begin with /"),
        ("maildir:mail", "path 'mail' must begin with /"),
        ("maildir:/mail/{user}", "'{user}' in a Maildir's path"),
        ("maildir:/mail/{domain", "'{' in a Maildir's path"),
        ("maildir:/a\0b", "no NUL"),
        ("smtp:mx.example.org", "is no destination"),
        ("smtp://", "no host"),
        ("smtp://mx.example.org:smtp", "'smtp' is no port"),
        ("smtp://mx.example.org:65536", "'65536' is no port"),
        ("smtp://mx.example.org:", "'' is no port"),
        ("smtp://2001:db8::1", "stands in brackets"),
        ("smtp://[mx]", "no IPv6 address between"),
        ("smtp://[::1]25", "after the bracket comes :PORT"),
        ("smtp://a b", "neither an address nor a host name"),
        ("smtp://256.1.1.1", "neither an address nor a host name"),
        ("discard:x", "is no destination"),
        ("DISCARD", "is no destination"),
        ("pipe:", "is no destination"),
        ("pipe:cat", "begins with /"),
        ("pipe:  ", "begins with /"),
        ("pipe:/bin/cat 'x", "No closing quotation"),
        ("pipe:/bin/c\0", "no NUL"),
        ("qmail-queue:", "needs the path of a program"),
        ("qmail-queue:/a\0b", "needs the path of a program"),
    ],
)
def test_a_wrong_destination_says_why(text: str, clause: str) -> None:
    with pytest.raises(ValueError, match=re.escape(clause)):
        parse_dest(text)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("0.0.0.0:25", ("0.0.0.0", 25)),
        ("[::]:25", ("::", 25)),
        ("localhost:2525", ("localhost", 2525)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[fe80::1%eth0]:25", ("fe80::1%eth0", 25)),
    ],
)
def test_a_listeners_address_is_read(text: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["25", ":25", "::1:25", "0.0.0.0", "[::]", "a:b:c", "host:-1", "host:٣"])
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("Localhost.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("127.example.org", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("Bücher.example", "xn--bcher-kva.example"),
        (".Bücher.example", ".xn--bcher-kva.example"),
        (".example.org", ".example.org"),
        ("_spf.example.org", "_spf.example.org"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8::1]", "[ipv6:2001:db8::1]"),
        ("localhost", "localhost"),
    ],
)
def test_a_domain_becomes_lower_case_a_labels(text: str, domain: str) -> None:
    assert parse_accept_domain(text) == domain


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a..b", "-a.example", "a-.example", "a b", "*", "*.example.org", "user@example.org",
     "x" * 64, "[192.0.2]", "[2001:db8::1]", "[IPv6:192.0.2.1]", "[192.0.2.1",
     "a.\N{SNOWMAN}.example", "[::1%lo]"],
)  # fmt: skip
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        parse_accept_domain(text)


def test_the_trial_s_star_is_no_domain_name() -> None:
    with pytest.raises(ValueError, match="is no domain"):
        parse_domain_name("*")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Postmaster@Example.org", b"postmaster@example.org"),
        ("a.b+c@Bücher.example", b"a.b+c@xn--bcher-kva.example"),
        ("root@[192.0.2.1]", b"root@[192.0.2.1]"),
    ],
)
def test_an_address_has_a_key(text: str, key: bytes) -> None:
    assert parse_mailbox_key(text) == key


@pytest.mark.parametrize(
    "text", ["postmaster", "@example.org", "a..b@example.org", "a b@example.org", "a@", "é@x.org"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        parse_mailbox_key(text)


def test_a_domain_is_known_by_both_its_spellings() -> None:
    assert spellings("example.org") == ("example.org",)
    assert spellings("xn--bcher-kva.example") == ("xn--bcher-kva.example", "bücher.example")
    assert spellings(".xn--bcher-kva.example") == (".xn--bcher-kva.example", ".bücher.example")
    assert spellings("xn--a-.example") == ("xn--a-.example",)
