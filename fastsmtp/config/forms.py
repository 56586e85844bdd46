"""The grammars that model.py names: each form takes a text and raises ValueError with one clause, or returns.

Nothing is changed here; what a text comes to (A-labels, Networks, Dest) is made
where it is used, by the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from fastsmtp import patterns
from fastsmtp.config.dest import parse_dest
from fastsmtp.config.endpoint import is_ipv4, is_ipv6, parse_endpoint, parse_host_port
from fastsmtp.config.names import (
    parse_accept_domain,
    parse_certificate,
    parse_host_name,
    parse_mailbox_key,
    parse_sender,
)
from fastsmtp.config.patterns import check_pattern
from fastsmtp.config.zones import parse_answers
from fastsmtp.typed import Final

# RFC 5322 section 2.2 allows more; no program that reads the field needs it.
_HEADER_NAME: Final = patterns.compile(r"[A-Za-z][A-Za-z0-9-]{0,70}")
_WORD: Final = patterns.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _path(text: str) -> None:
    if not text.startswith("/"):
        raise ValueError(f"path {text!r} must begin with /")
    if "\0" in text:
        raise ValueError("a path has no NUL")


def _optional_path(text: str) -> None:
    if text:
        _path(text)


def _account(text: str) -> None:
    if text:
        _word(text)


def _word(text: str) -> None:
    if not _WORD.fullmatch(text):
        raise ValueError(f"{text!r} must be letters, digits, _ . -")


def _server_name(text: str) -> None:
    """What a client may ask for: a host name, or "*." and one."""
    if "_" in text or text.startswith("["):
        raise ValueError(f"{text!r} is no host name")
    parse_host_name(text.removeprefix("*."))


def check_network(text: str) -> None:
    """An address, or a network in CIDR without host bits."""
    from ipaddress import ip_network

    try:
        ip_network(text)
    except ValueError:
        try:
            meant = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is neither an address nor a network") from None
        raise ValueError(f"{text!r} has host bits set; the network is {str(meant)!r}") from None


def _recipients(text: str) -> None:
    if text in ("any", "ask") or text.startswith("/"):
        return
    raise ValueError(f"{text!r} is neither any, ask nor a file of addresses (a path that begins with /)")


def _log_target(text: str) -> None:
    if text not in ("stderr", "syslog") and not text.startswith("/"):
        raise ValueError(f"{text!r} is neither stderr, syslog nor a file (a path that begins with /)")


def _metrics_listen(text: str) -> None:
    if text.startswith("unix:"):
        _path(text.removeprefix("unix:"))
    elif text:
        parse_endpoint(text)


def _zone(text: str) -> None:
    """A list's domain."""
    if text.startswith("[") or "." not in parse_host_name(text):
        raise ValueError(f"{text!r} is no zone")


def _dns_server(text: str) -> None:
    """An address, with or without port; a name would need a server to be found."""
    if is_ipv6(text):
        return
    host, port = parse_host_port(text, default_port=53)
    if not port or not (is_ipv4(host) or is_ipv6(host)):
        raise ValueError(f"{text!r}: a name server is an address, with or without port")


def _header_name(text: str) -> None:
    if text and not _HEADER_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name of a header field")


def _python_stage(text: str) -> None:
    module, colon, name = text.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{text!r} is not MODULE:FUNCTION, as mysite.rules:no_printers")


def _line(text: str) -> None:
    """Words of a reply (RFC 5321 section 4.2: textstring)."""
    if not text.isascii() or not text.isprintable() or len(text) > 400:
        raise ValueError("must be at most 400 printable ASCII characters")


def _ipv4(text: str) -> None:
    if not is_ipv4(text):
        raise ValueError(f"{text!r} is no IPv4 address")


def _ipv6(text: str) -> None:
    if not is_ipv6(text):
        raise ValueError(f"{text!r} is no IPv6 address")


def _ciphers(text: str) -> None:
    """Only the alphabet; whether OpenSSL knows them is looked at where TLS is."""
    if not re.fullmatch(r"[A-Za-z0-9_+!:@=., -]+", text):
        raise ValueError(f"{text!r} is no list of ciphers")


def _any(parse: Callable[[str], object]) -> Callable[[str], None]:
    def check(text: str) -> None:
        parse(text)

    return check


FORMS: Final[Mapping[str, Callable[[str], None]]] = {
    "address_pattern": check_pattern,
    "answer": _any(parse_answers),
    "certificate": _any(parse_certificate),
    "ciphers": _ciphers,
    "dest": _any(parse_dest),
    "destination": _any(parse_accept_domain),
    "dns_server": _dns_server,
    "domain": _any(parse_accept_domain),
    "endpoint": _any(parse_endpoint),
    "header_name": _header_name,
    "hostname": _any(parse_host_name),
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "log_target": _log_target,
    "metrics_listen": _metrics_listen,
    "mailbox": _any(parse_mailbox_key),
    "network": check_network,
    "optional_path": _optional_path,
    "path": _path,
    "python_stage": _python_stage,
    "recipients": _recipients,
    "sender": _any(parse_sender),
    "server_name": _server_name,
    "text": _line,
    "account": _account,
    "word": _word,
    "zone": _zone,
}
LISTS: Final = frozenset({"address_pattern", "certificate", "domain", "destination", "network", "sender"})
"""Forms whose list may name files: an entry that begins with "/" is a file with one entry a line."""
