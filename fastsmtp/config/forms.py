"""The grammars that model.py names: each form takes a text and raises ValueError with one clause, or returns.

Nothing is changed here; what a text comes to (A-labels, Networks, Dest) is made
where it is used, by the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from fastsmtp.config import notbuilt
from fastsmtp.config.dest import parse_dest
from fastsmtp.config.endpoint import parse_endpoint
from fastsmtp.config.names import parse_accept_domain, parse_host_name, parse_mailbox_key

_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _path(text: str) -> None:
    if not text.startswith("/"):
        raise ValueError(f"path {text!r} must begin with /")
    if "\0" in text:
        raise ValueError("a path has no NUL")


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
    if text == "any" or text.startswith("/"):
        return
    if text == "ask":
        raise ValueError(f"'ask' is {notbuilt.MESSAGE}; any, or a file of addresses")
    raise ValueError(f"{text!r} is neither any nor a file of addresses (a path that begins with /)")


def _log_target(text: str) -> None:
    if text not in ("stderr", "syslog") and not text.startswith("/"):
        raise ValueError(f"{text!r} is neither stderr, syslog nor a file (a path that begins with /)")


def _any(parse: Callable[[str], object]) -> Callable[[str], None]:
    def check(text: str) -> None:
        parse(text)

    return check


FORMS: Final[Mapping[str, Callable[[str], None]]] = {
    "dest": _any(parse_dest),
    "domain": _any(parse_accept_domain),
    "endpoint": _any(parse_endpoint),
    "hostname": _any(parse_host_name),
    "log_target": _log_target,
    "mailbox": _any(parse_mailbox_key),
    "network": check_network,
    "path": _path,
    "recipients": _recipients,
    "server_name": _server_name,
    "word": _word,
}
LISTS: Final = frozenset({"domain", "network"})
"""Forms whose list may name files: an entry that begins with "/" is a file with one entry a line."""
