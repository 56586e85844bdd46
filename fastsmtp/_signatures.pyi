"""Signatures at the beginning of MIME parts: a scanner like those of _body, incremental, pure, of bounded memory."""

from collections.abc import Iterable
from typing import final

LINE_BYTES_MAX: int  # of a line, what a signature is compared with; a longer signature is refused

@final
class Signatures:
    """A set of literals, ready to be looked up; of two where one begins with the other the shorter stays.

    ValueError for an empty one, and for one longer than LINE_BYTES_MAX.
    """
    def __init__(self, literals: Iterable[bytes] = ()) -> None: ...
    def __len__(self) -> int: ...
    def find(self, line: bytes) -> bytes | None:
        """The signature that the line begins with."""

@final
class SignatureHit:
    """part: 1 for the message's own body, and one more for each header inside it; is_decoded: found by decoding."""

    signature: bytes
    part: int
    is_decoded: bool

@final
class SignatureScanner:
    """The first line of each body, as the prefix rule of control/signatures has it.

    A body begins behind each header: that of the message, of each MIME part, of each message in a message,
    and of the copy in a bounce.  Empty lines before its first line are skipped.  With is_decoding the first
    octets of each body, base64 and quoted-printable undone, are compared as well: as they are, and written
    as base64 again.

    The walk errs on the side of seeing too much: a boundary is never forgotten, and where there are more, or
    longer, than we keep, every line that begins with two hyphens begins a part.  The result is the same
    however the body is cut.
    """
    def __init__(self, signatures: Signatures, *, is_decoding: bool = False) -> None: ...
    def feed(self, chunk: bytes) -> None: ...
    def finish(self) -> SignatureHit | None:
        """The first hit, or None.  Only once, and nothing is fed after it."""
