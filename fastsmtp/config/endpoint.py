"""HOST:PORT, as in [[listen]] address, --listen and DEST."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_pton  # socket itself makes enumerations of it, for 4 ms

from fastsmtp import patterns
from fastsmtp.typed import Final

_LABEL: Final = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_NAME: Final = patterns.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")


def parse_host_port(text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """("192.0.2.1", 25) of "192.0.2.1:25"; IPv6 in brackets, which are dropped.

    ValueError with one clause; also when there is no port and no default_port.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not is_ipv6(host):
            raise ValueError(f"{text!r}: no IPv6 address between the brackets")
        colon, port = rest[:1], rest[1:]
        if colon not in ("", ":"):
            raise ValueError(f"{text!r}: after the bracket comes :PORT")
    else:
        if text.count(":") > 1:
            raise ValueError(f"{text!r}: an IPv6 address stands in brackets, as [::1]:25")
        host, colon, port = text.partition(":")
        if default_port is None and not colon and host.isdigit():
            raise ValueError(f"{text!r} is a port without its host, as in 127.0.0.1:{text}")
        if not host:
            raise ValueError(f"{text!r}: no host; 0.0.0.0 and [::] are all addresses")
        if not is_ipv4(host) and (
            host.replace(".", "").isdigit() or not _NAME.fullmatch(host) or len(host) > 253
        ):
            raise ValueError(f"{host!r} is neither an address nor a host name")
    if not colon:
        if default_port is None:
            raise ValueError(f"{text!r} has no port, as in {text}:25")
        return host, default_port
    if not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"{port!r} is no port")
    return host, int(port)


def parse_endpoint(text: str) -> tuple[str, int]:
    """A listener's address: the port must be there and may be 0 (any free one).  ValueError as above."""
    return parse_host_port(text)


def is_ipv4(text: str) -> bool:
    return _is_address(AF_INET, text)


def is_ipv6(text: str) -> bool:
    return _is_address(AF_INET6, text.partition("%")[0])


def _is_address(family: int, text: str) -> bool:
    try:
        inet_pton(family, text)
    except (OSError, ValueError, UnicodeError):
        return False
    return True


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1 and the name localhost."""
    if is_ipv4(host):
        return host.startswith("127.")
    if is_ipv6(host):
        return inet_pton(AF_INET6, host.partition("%")[0]) == b"\0" * 15 + b"\1"
    return host.lower().rstrip(".") == "localhost"
