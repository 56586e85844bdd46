"""Scanners: compiled, incremental, pure.  feed(chunk) for each decoded piece of body, then finish() -> facts.

Which ones run is decided at DATA.  The facts are the same however the body is cut.
"""

from typing import final

@final
class HeaderScanner:
    """Hop count and header index in one walk over the header; costs nothing once the header has ended.

    A header field is found as RFC 5322 section 2.2 has it (folded lines belong to it); the header ends at
    the first empty line, at the first line that is no field, or at header_bytes.  Memory is bounded by fields_max.
    A line ends at LF, with or without a CR: what is behind us will read it so.  Behind fields_max fields nothing is
    listed (is_cut), but hops and size_bytes are still counted; a field that header_bytes cuts ends there.
    """
    def __init__(self, *, header_bytes: int = 262_144, fields_max: int = 1_000) -> None: ...
    def feed(self, chunk: bytes) -> None: ...
    def finish(self) -> HeaderFacts: ...

@final
class HeaderFacts:
    """hops: Received and Delivered-To... only Received fields are hops (RFC 5321 section 6.3)."""

    hops: int
    size_bytes: int  # of the header with its empty line
    fields: tuple[tuple[bytes, int, int], ...]  # (name lower-case, offset, length incl. line ends) in order
    is_cut: bool  # a bound was hit; the rest is not indexed
    def has(self, name: bytes) -> bool: ...  # name in any case of letters
    def count(self, name: bytes) -> int: ...
