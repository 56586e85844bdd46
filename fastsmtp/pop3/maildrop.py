"""A Maildir as a maildrop: the messages that were there at login, in the order in which they came.

Blocking: this serves one user in a process of its own.  Another reader may be at
work at the same time; a file that it renamed is found again, one that it removed is gone.

Rank 8.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator

from fastsmtp.pop3.text import octets

READ_BYTES = 65_536

# The maildir manual page: what lies in tmp for 36 hours unread was given up by whoever wrote it.
ABANDONED_S = 36 * 3600

# RFC 1939 section 7: a unique-id is 1 to 70 characters between 0x21 and 0x7E.
_IS_UNIQUE_ID = re.compile(r"[!-~]{1,70}").fullmatch


class Letter:
    """One message.  folder: "new" or "cur"; name: the file's; uid: stays the same while flags change."""

    __slots__ = ("folder", "name", "size_bytes", "uid")

    def __init__(self, folder: str, name: str, uid: str) -> None:
        self.folder = folder
        self.name = name
        self.uid = uid
        self.size_bytes = -1  # not counted yet


class Maildrop:
    """The letters of one session; numbers count from 0."""

    def __init__(self, path: str) -> None:
        """Raises OSError when this is no Maildir that we may read."""
        self._path = path
        found = []
        for folder in ("new", "cur"):
            with os.scandir(os.path.join(path, folder)) as entries:
                for entry in entries:
                    status = _status(entry)
                    if status is not None:
                        found.append((int(status.st_mtime), entry.name, folder))
        found.sort()
        self.letters: list[Letter] = []
        seen: set[str] = set()
        for _, name, folder in found:
            uid = _unique_id(name)
            if uid in seen:
                uid = _hash(f"{folder}/{name}")
            seen.add(uid)
            self.letters.append(Letter(folder, name, uid))

    def size_bytes(self, number: int) -> int:
        """Octets as they are sent; 0 when the message can't be read (then RETR says so)."""
        letter = self.letters[number]
        if letter.size_bytes < 0:
            try:
                letter.size_bytes = octets(self.read(number))
            except OSError:
                letter.size_bytes = 0
        return letter.size_bytes

    def read(self, number: int) -> Iterator[bytes]:
        """The message as it lies there, in pieces; opened now, OSError when it is gone."""
        descriptor = self._open(self.letters[number])
        return _pieces(descriptor)

    def update(self, deleted: Collection[int]) -> int:
        """QUIT: remove the deleted ones, move what was new to cur.  Returns how many could not be removed."""
        failed = 0
        for number, letter in enumerate(self.letters):
            if number in deleted:
                failed += not self._remove(letter)
            elif letter.folder == "new":
                self._keep(letter)
        return failed

    def clean(self, now_s: float) -> None:
        """Remove what somebody who wrote into tmp has given up; nobody else may ever do it."""
        folder = os.path.join(self._path, "tmp")
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = _status(entry)
                    if status is not None and now_s - max(status.st_atime, status.st_mtime) > ABANDONED_S:
                        os.unlink(entry.path)
        except OSError:
            # Housekeeping: what stays today goes another day, and the user's mail doesn't depend on it.
            return

    def _where(self, letter: Letter) -> str:
        return os.path.join(self._path, letter.folder, letter.name)

    def _open(self, letter: Letter) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(self._where(letter), flags)
        except FileNotFoundError:
            if not self._find_again(letter):
                raise
        return os.open(self._where(letter), flags)

    def _remove(self, letter: Letter) -> bool:
        """True when it is gone, by us or by somebody else."""
        try:
            os.unlink(self._where(letter))
        except FileNotFoundError:
            # Renamed since, or already removed.
            return not self._find_again(letter) or self._remove(letter)
        except OSError:
            return False
        return True

    def _keep(self, letter: Letter) -> None:
        name = letter.name if ":" in letter.name else f"{letter.name}:2,"
        try:
            os.rename(self._where(letter), os.path.join(self._path, "cur", name))
        except OSError:
            # It stays in new, where it is as safe, and is listed the next time all the same.
            return

    def _find_again(self, letter: Letter) -> bool:
        """Another reader has moved it from new, or changed its flags: both are renames."""
        base = letter.name.partition(":")[0]
        try:
            names = os.listdir(os.path.join(self._path, "cur"))
        except OSError:
            return False
        for name in names:
            if name.partition(":")[0] == base and (letter.folder, letter.name) != ("cur", name):
                letter.folder, letter.name = "cur", name
                return True
        return False


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of a plain file that isn't hidden; None for everything else."""
    if entry.name.startswith("."):
        return None
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _pieces(descriptor: int) -> Iterator[bytes]:
    try:
        while piece := os.read(descriptor, READ_BYTES):
            yield piece
    finally:
        os.close(descriptor)


def _unique_id(name: str) -> str:
    base = name.partition(":")[0]
    return base if _IS_UNIQUE_ID(base) else _hash(base)


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()
