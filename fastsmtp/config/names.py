"""Domains and addresses of the configuration: from what people write to what look-ups use.

"Bücher.example"   ->  "xn--bcher-kva.example"     (IDNA 2008 with UTS 46 mapping; RFC 5890)
".Example.ORG"     ->  ".example.org"              every sub-domain
"[192.0.2.1]"      ->  "[192.0.2.1]"               an address literal (RFC 5321 section 4.1.3)
"""

from __future__ import annotations

from functools import lru_cache

from fastsmtp import patterns
from fastsmtp.address import Address
from fastsmtp.typed import Final

# RFC 1123 section 2.1 label; "_" is no host name but stands in mail domains of the real world.
_LABEL: Final = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_DOMAIN: Final = patterns.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SHA256: Final = patterns.compile(r"[0-9a-f]{64}")
# RFC 5321 section 4.1.2 Dot-string.
_DOT_STRING: Final = patterns.compile(r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


@lru_cache(maxsize=1024)
def parse_domain_name(text: str) -> str:
    """Lower-case A-labels; ValueError with one clause.  A last dot is dropped."""
    name = text.removesuffix(".")
    if not name.isascii():
        name = _to_ascii(name)
    name = name.lower()
    if len(name) > 253 or not _DOMAIN.fullmatch(name):
        raise ValueError(f"{text!r} is no domain")
    return name


def parse_accept_domain(text: str) -> str:
    """A domain, a ".suffix" or an address literal, as AcceptTable has them; ValueError with one clause."""
    if text.startswith("["):
        return _literal(text)
    if text == "*":
        raise ValueError("'*' would take mail for the whole world; name the domains")
    if "@" in text:
        raise ValueError(f"{text!r} is an address, not a domain")
    if text.startswith("."):
        return "." + parse_domain_name(text[1:])
    return parse_domain_name(text)


def parse_host_name(text: str) -> str:
    """A name for greeting and Received, A-labels; an address literal is allowed (RFC 5321 section 4.1.3)."""
    return _literal(text) if text.startswith("[") else parse_domain_name(text)


def parse_mailbox_key(text: str) -> bytes:
    """The key (fastsmtp._parser.Path.key) of an address without quotes; ValueError with one clause.

    Only what an operator writes by hand comes here; recipient files go through lists.py.
    """
    local, at, domain = text.rpartition("@")
    if not at:
        raise ValueError(f"{text!r} has no @")
    local = local.lower()
    if len(local) > 64 or not _DOT_STRING.fullmatch(local):
        raise ValueError(f"{text!r}: bad local part")
    return f"{local}@{parse_host_name(domain)}".encode()


def parse_sender(text: str) -> str:
    """A sender of a [[route]]: "a@example.org", "@example.org", "@.example.org", or "" for "<>", the null path.

    Lower-case, A-labels; ValueError with one clause.
    """
    if text == "<>":
        return ""
    if text.startswith("@"):
        return "@" + parse_accept_domain(text[1:])
    if "@" not in text:
        raise ValueError(f'{text!r} is neither an address nor "@" and a domain')
    return parse_mailbox_key(text).decode()


def parse_certificate(text: str) -> bytes:
    """What a client certificate is known by: the key of an e-mail address, or b"sha256:" and 64 hex digits.

    Colons between the digits are dropped, as `openssl x509 -fingerprint` prints them.  ValueError with one clause.
    """
    kind, colon, digits = text.partition(":")
    if colon and "@" not in text:
        digits = digits.replace(":", "").strip().lower()
        if kind.strip().lower() != "sha256" or not _SHA256.fullmatch(digits):
            raise ValueError(f"{text!r} is no fingerprint: sha256: and 64 hexadecimal digits")
        return f"sha256:{digits}".encode()
    return parse_mailbox_key(text)


@lru_cache(maxsize=1024)
def spellings(domain: str) -> tuple[str, ...]:
    """The domain, and its U-label form if it has one: with SMTPUTF8 a client may send either (RFC 6531)."""
    if "xn--" not in domain:
        return (domain,)
    import idna

    dot = "." if domain.startswith(".") else ""
    try:
        return (domain, dot + idna.decode(domain.removeprefix(".")))
    except idna.IDNAError:
        return (domain,)


def _to_ascii(name: str) -> str:
    import idna

    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(f"{name!r} is no domain: {error}") from None


def _literal(text: str) -> str:
    inner = text[1:-1] if text.endswith("]") else ""
    is_ipv6 = inner[:5].lower() == "ipv6:"
    number = inner[5:] if is_ipv6 else inner
    try:
        if (":" in number) != is_ipv6 or "%" in number:
            raise ValueError
        Address(number)
    except ValueError:
        raise ValueError(f"{text!r} is no address literal, as [192.0.2.1] or [IPv6:2001:db8::1]") from None
    return text.lower()
