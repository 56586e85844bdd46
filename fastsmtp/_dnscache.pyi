"""Answers kept for as long as they say, in a fixed number of bytes: a ring, the oldest goes first.

What is in it is seen through fastsmtp._dns.Engine only.
"""

from typing import final

@final
class Cache:
    """entries: live ones; evicted: pushed out to make room, since the start."""

    entries: int
    evicted: int
    def __init__(self, capacity_bytes: int) -> None:
        """Raises ValueError below 4 KiB; more than 2 GiB are not used."""
    def __len__(self) -> int: ...
    @property
    def capacity_bytes(self) -> int: ...
    @property
    def used_bytes(self) -> int:
        """Walks over all entries; for tests and figures."""
