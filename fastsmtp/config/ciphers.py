"""Which ciphers TLS 1.2 may use: what is safe, and what an operator's list leaves of it.

tls.ciphers, and qmail's control/tlsserverciphers before it, are lists in OpenSSL's words, often from years when
"DEFAULT" or "RC4" were good advice.  OpenSSL says what such a list means; only what is in SAFE too is used.
TLS 1.3 has nothing but good ciphers, and is not touched.

Rank 2; ssl costs 25 ms to import, so it is imported where a list is looked at.
"""

from __future__ import annotations

from functools import lru_cache

from fastsmtp.records import dataclass
from fastsmtp.typed import Final

# Forward secrecy only, AEAD first (RFC 9325 section 4.2).  CBC stays at the end: Windows Server 2012 R2
# has nothing better for RSA certificates, and a sender that finds no common cipher falls back to clear text.
SAFE: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!eNULL:!PSK:!SRP"


@dataclass(frozen=True, slots=True)
class Ciphers:
    """What an operator's list comes to.

    used     for OpenSSL: names with colons between, or SAFE when none of the list is safe
    dropped  names that the list has and SAFE has not, in its order
    is_none  nothing of the list is left, so SAFE stands in its place
    """

    used: str
    dropped: tuple[str, ...]
    is_none: bool

    def warning(self, text: str) -> str:
        """A clause that says what was left out of the list `text`; "" when all of it is used."""
        if self.is_none:
            return f"none of {text!r} is a safe cipher of TLS 1.2: our own list is used"
        if not self.dropped:
            return ""
        few = ", ".join(self.dropped[:8])
        more = f" and {len(self.dropped) - 8} more" if len(self.dropped) > 8 else ""
        return f"not safe, so left out: {few}{more}"


@lru_cache(maxsize=64)
def choose(text: str) -> Ciphers:
    """What of the list is safe; "" is SAFE itself.  Any text will do: what OpenSSL doesn't know is not there."""
    if not text:
        return Ciphers(SAFE, (), False)
    safe = set(_meant(SAFE))
    asked = _meant(text)
    used = [name for name in asked if name in safe]
    dropped = tuple(name for name in asked if name not in safe)
    return Ciphers(":".join(used) or SAFE, dropped, not used)


def _meant(text: str) -> list[str]:
    """The names of the ciphers of TLS 1.2 that an OpenSSL list means, in its order."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.set_ciphers(text)
    except ssl.SSLError:
        return []
    return [one["name"] for one in context.get_ciphers() if one["protocol"] != "TLSv1.3"]
