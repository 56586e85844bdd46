"""The header field that tells the next hop what policy found (policy.header).

    X-Fastsmtp-Policy: score=5 dnsbl=zen.spamhaus.org(127.0.0.10) helo=unresolvable

Copies that a client brings along are cut out: docs/decisions/0031-foreign-policy-fields.md.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import patterns
from fastsmtp._body import HeaderFacts
from fastsmtp.policy.facts import Facts

# RFC 5322 section 2.1.1: lines of 78 characters where that is possible.
_LINE = 78
# A tag's value is a stage's own; nothing in it may end a line or look like another word.
_UNSAFE = patterns.compile(r"[^!-~]")
_WORD_MOST = 400


def write(name: str, facts: Facts) -> bytes:
    """The field with its line end; b"" when nothing was found."""
    if not facts.tags and not facts.score:
        return b""
    lines = [f"{name}: score={facts.score}"]
    for tag, value in facts.tags.items():
        word = _UNSAFE.sub("_", f"{tag}={value}" if value else tag)[:_WORD_MOST]
        if len(lines[-1]) + 1 + len(word) > _LINE:
            lines.append(f"\t{word}")
        else:
            lines[-1] += f" {word}"
    return ("\r\n".join(lines) + "\r\n").encode()


def foreign(names: tuple[bytes, ...], header: HeaderFacts) -> list[tuple[int, int]]:
    """(offset, length) in the body of every field of these lower-case names, in order."""
    return [(offset, length) for field, offset, length in header.fields if field in names]
