"""Which watched files changed.  The master looks twice a second: that works on any file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from typing import Final

LOOK_S: Final = 0.5

Signature = tuple[int, int, int, int] | None
"""Device, inode, size and mtime; None: not there."""


def signature(path: str) -> Signature:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Watch:
    """`changed` names the files that differ from the last look and have been still since the one before.

    A file that is being written is left alone until it rests for one look; one that is not there is
    not a change (an editor may be between unlink and rename), but of those that may come and go.
    """

    def __init__(
        self,
        paths: Iterable[str],
        since_ns: int = 0,
        look: Callable[[str], Signature] = signature,
        *,
        coming: Collection[str] = (),
    ) -> None:
        """since_ns: when reading them began, on the wall clock; what changed later is a change.  0: now.

        coming  files, among paths or not, that may come and go: that they have gone, for two looks, is a change
        """
        paths = dict.fromkeys([*paths, *coming])
        self._coming = frozenset(coming)
        self._look = look
        self._known: dict[str, Signature] = {}
        self._seen: dict[str, Signature] = {}
        for path in paths:
            found = look(path)
            is_late = bool(since_ns and found and found[3] >= since_ns)
            self._known[path] = None if is_late else found
            self._seen[path] = found

    def changed(self) -> list[str]:
        """Files to read again; each change is named once."""
        names = []
        for path, known in self._known.items():
            found = self._look(path)
            is_told = found is not None or path in self._coming
            if is_told and found != known and found == self._seen[path]:
                self._known[path] = found
                names.append(path)
            self._seen[path] = found
        return names
