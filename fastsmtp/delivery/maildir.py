"""Delivery into Maildirs: a message is written in tmp, synced, linked into new, and the directory synced.

The path may hold {domain} and {local}.  Both are lower-cased and escaped, so
that no address leaves the directory: mail for Joe@Example.org and
joe@example.org is in one Maildir, as qmail-local and Postfix have it.

All that touches the disk is one blocking job; see queue/disk.py.

Rank 6: may import ranks 0 to 5.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from fastsmtp.delivery.dot import LfDecoder
from fastsmtp.delivery.program import Content
from fastsmtp.queue.disk import Disk

# What an address may show of itself in a file name; everything else is %XX, so two addresses never meet.
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_+=@.")
# NAME_MAX is 255 on every file system that we know (2026); what is longer is cut and gets a hash.
_NAME_BYTES = 200
# Tries to find a name that nobody has; one is enough unless a clock stands still and a pid comes back.
_TRIES = 5
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK})


def escape(part: bytes) -> bytes:
    """One part of an address as one file name: never empty, ".", "..", with a slash, or hidden."""
    name = b"".join(bytes((byte,)) if byte in _SAFE else b"%%%02X" % byte for byte in part.lower())
    if not name:
        return b"%empty"  # no escape looks like this
    if name.startswith(b"."):
        name = b"%2E" + name[1:]
    if len(name) > _NAME_BYTES:
        import hashlib

        digest = hashlib.sha256(part.lower()).hexdigest()[:32].encode()
        name = name[: _NAME_BYTES - 40] + b"%long-" + digest
    return name


def split_address(address: bytes) -> tuple[bytes, bytes]:
    """Local part without its quoting, and domain, of an address that our parser admitted."""
    local, _, domain = address.rpartition(b"@")
    if local.startswith(b'"') and local.endswith(b'"') and len(local) > 1:
        quoted = iter(local[1:-1])
        local = bytes(next(quoted, byte) if byte == 0x5C else byte for byte in quoted)
    return local, domain


class MaildirPath:
    """The PATH of a maildir: DEST, ready to be filled in."""

    __slots__ = ("_template", "root")

    def __init__(self, template: str) -> None:
        self._template = os.fsencode(os.path.normpath(template))
        fixed = self._template.split(b"{", 1)[0]
        self.root = self._template if fixed == self._template else os.path.dirname(fixed) or b"."

    def directory(self, address: bytes) -> bytes:
        template = self._template
        if self.root is template:
            return template
        local, domain = split_address(address)
        # The escaped parts hold no brace, so filling in one can't make a second placeholder.
        return template.replace(b"{domain}", escape(domain)).replace(b"{local}", escape(local))


class Target:
    """One file to write: the Maildir, the fixed part of its path, and whom the message is for."""

    __slots__ = ("address", "directory", "root")

    def __init__(self, directory: bytes, root: bytes, address: bytes) -> None:
        self.directory = directory
        self.root = root
        self.address = address


class _Letter:
    """What goes into each file."""

    __slots__ = ("body", "prefix", "sender")

    def __init__(self, sender: bytes, prefix: bytes, body: Content) -> None:
        self.sender = sender
        self.prefix = prefix
        self.body = body


class MaildirWriter:
    """Writes messages into Maildirs.

    hostname   for the file names
    clock_ns   nanoseconds since 1970
    random     n random bytes
    """

    __slots__ = ("_clock_ns", "_count", "_disk", "_hostname", "_random")

    def __init__(
        self,
        disk: Disk,
        hostname: str,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._disk = disk
        # The convention's own escapes: "/" and ":" have a meaning in a Maildir's file names.
        self._hostname = hostname.replace("/", "\\057").replace(":", "\\072")
        self._clock_ns = clock_ns
        self._random = random
        self._count = itertools.count(1)

    def store(
        self, targets: Sequence[Target], sender: bytes, prefix: bytes, body: Content
    ) -> Awaitable[None] | None:
        """Put the message into every target's Maildir, or into none.

        When it is done, all files and their directories are synced.  Raises (or the awaitable does)
        errors.StorageFull and errors.StorageFailed; what was linked by then has been taken back.
        """
        return self._disk.run(_store, self._name, tuple(targets), _Letter(sender, prefix, body))

    def _name(self) -> bytes:
        """A file name that nobody else makes: time, process, number in it, randomness, host."""
        seconds, nanoseconds = divmod(self._clock_ns(), 1_000_000_000)
        unique = f"M{nanoseconds // 1000}P{os.getpid()}Q{next(self._count)}R{self._random(4).hex()}"
        return os.fsencode(f"{seconds}.{unique}.{self._hostname}")


def _store(
    system: Any,
    make_name: Callable[[], bytes],
    targets: tuple[Target, ...],
    letter: _Letter,
) -> None:
    delivered: list[bytes] = []
    try:
        for target in targets:
            delivered.append(_store_one(system, make_name, target, letter))
        for new in dict.fromkeys(os.path.dirname(path) for path in delivered):
            sync_directory(system, new)
    except BaseException:
        # The client will send it again: take back what a reader hasn't moved yet.
        for path in delivered:
            _unlink(system, path)
        raise


def _store_one(system: Any, make_name: Callable[[], bytes], target: Target, letter: _Letter) -> bytes:
    """Write one file and link it into new; returns its path there.  Not synced: its entry in new."""
    fd, name = _create(system, make_name, target)
    tmp = os.path.join(target.directory, b"tmp", name)
    try:
        try:
            for piece in _content(system, target.address, letter):
                _write_all(system, fd, piece)
            system.fsync(fd)
        finally:
            system.close(fd)
        return _link(system, tmp, target.directory, name)
    finally:
        _unlink(system, tmp)


def _create(system: Any, make_name: Callable[[], bytes], target: Target) -> tuple[int, bytes]:
    """A new file in tmp.  Makes the Maildir when there is none."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    name = make_name()
    for tries in range(_TRIES, 0, -1):
        try:
            return system.open(os.path.join(target.directory, b"tmp", name), flags, 0o600), name
        except FileNotFoundError:
            if tries == 1:
                raise
            make_maildir(system, target.directory, target.root)
        except FileExistsError:
            if tries == 1:
                raise
            name = make_name()
    raise AssertionError("the last try returns or raises")


def _content(system: Any, address: bytes, letter: _Letter) -> Iterator[bytes]:
    """The file: Return-Path (RFC 5321 section 4.4), Delivered-To, prefix and body, with LF line ends."""
    if b"\n" in letter.sender or b"\n" in address:
        raise ValueError("a line end in an address")
    prefix = letter.prefix.replace(b"\r\n", b"\n")
    yield b"Return-Path: <%b>\nDelivered-To: %b\n%b" % (letter.sender, address, prefix)
    decoder = LfDecoder()
    for piece in letter.body.blocking_pieces(system):
        yield decoder.feed(piece)
    yield decoder.finish()


def _link(system: Any, tmp: bytes, directory: bytes, name: bytes) -> bytes:
    """Give the file in tmp its name in new, never over another file."""
    path = os.path.join(directory, b"new", name)
    try:
        system.link(tmp, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # A file system without hard links: the name is unique, so a rename does as well.
        system.rename(tmp, path)
    return path


def make_maildir(system: Any, directory: bytes, root: bytes) -> None:
    """Make what is missing of a Maildir, mode 0700, and sync it.

    tmp comes last: who finds it may rely on all else being safe.  The directories between root and
    the Maildir are synced even when another thread has just made them.
    """
    _make_directories(system, directory)
    at = directory
    while len(at) > len(root):
        at = os.path.dirname(at)
        sync_directory(system, at or b".")
    for name in (b"cur", b"new"):
        _make_directory(system, os.path.join(directory, name))
    sync_directory(system, directory)
    _make_directory(system, os.path.join(directory, b"tmp"))


def _make_directories(system: Any, directory: bytes) -> None:
    try:
        made = _make_directory(system, directory)
    except FileNotFoundError:
        _make_directories(system, os.path.dirname(directory))
        made = _make_directory(system, directory)
    if made:
        sync_directory(system, os.path.dirname(directory) or b".")


def _make_directory(system: Any, directory: bytes) -> bool:
    """Whether it was made now."""
    try:
        system.mkdir(directory, 0o700)
    except FileExistsError:
        return False
    return True


def sync_directory(system: Any, directory: bytes) -> None:
    """fsync of the directory's entries: without it a crash may lose a name though the file is safe."""
    fd = system.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.fsync(fd)
    finally:
        system.close(fd)


def _write_all(system: Any, fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[system.write(fd, view) :]


def _unlink(system: Any, path: bytes) -> None:
    """Remove a file that may be gone; what can't be removed in tmp, a reader sweeps after 36 hours."""
    try:
        system.unlink(path)
    except OSError:
        return
