"""Maildirs: file synced before its name, name before the answer, and no address leaves the directory."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fastsmtp import errors
from fastsmtp.delivery.maildir import MaildirPath, MaildirWriter, Target, escape, split_address
from fastsmtp.queue.disk import InlineDisk, ThreadDisk
from fastsmtp.queue.spool import Body, Budget
from tests.faulty import FaultyOs

ESCAPED = [
    ("an ordinary name", b"joe", b"joe"),
    ("letters are lower-cased", b"Joe.Public", b"joe.public"),
    ("what is safe stays", b"a-b_c+d=e.f", b"a-b_c+d=e.f"),
    ("a slash", b"../../etc/passwd", b"%2E.%2F..%2Fetc%2Fpasswd"),
    ("dot", b".", b"%2E"),
    ("dot dot", b"..", b"%2E."),
    ("a hidden name", b".qmail", b"%2Eqmail"),
    ("nothing", b"", b"%empty"),
    ("NUL", b"a\0b", b"a%00b"),
    ("a newline", b"a\nb", b"a%0Ab"),
    ("the escape itself", b"a%2Fb", b"a%252fb"),
    ("a placeholder", b"{local}", b"%7Blocal%7D"),
    ("UTF-8", "jörg".encode(), b"j%C3%B6rg"),
    ("an address literal", b"[ipv6:2001:db8::1]", b"%5Bipv6%3A2001%3Adb8%3A%3A1%5D"),
]


@pytest.mark.parametrize(("case", "part", "name"), ESCAPED)
def test_an_address_part_becomes_one_file_name(case: str, part: bytes, name: bytes) -> None:
    assert escape(part) == name


def test_a_long_part_becomes_a_name_that_fits_and_is_its_own() -> None:
    one, two = escape(b"\xff" * 255), escape(b"\xff" * 254)
    assert one != two
    assert max(len(one), len(two)) <= 255
    assert escape(b"\xff" * 255) == one


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        (b"joe@example.org", (b"joe", b"example.org")),
        (b'"joe"@example.org', (b"joe", b"example.org")),
        (b'"a b@c"@example.org', (b"a b@c", b"example.org")),
        (b'"a\\"b\\\\c"@example.org', (b'a"b\\c', b"example.org")),
        (b'""@example.org', (b"", b"example.org")),
        (b"joe@[192.0.2.1]", (b"joe", b"[192.0.2.1]")),
    ],
)
def test_a_local_part_loses_its_quotes(address: bytes, parts: tuple[bytes, bytes]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    ("template", "root", "directory"),
    [
        ("/mail", b"/mail", b"/mail"),
        ("/mail/", b"/mail", b"/mail"),
        ("/mail/{domain}/{local}", b"/mail", b"/mail/example.org/%2E."),
        ("/mail/{domain}/{local}/Maildir", b"/mail", b"/mail/example.org/%2E./Maildir"),
        ("/mail/u-{local}", b"/mail", b"/mail/u-%2E."),
        ("/{local}", b"/", b"/%2E."),
    ],
)
def test_no_address_leaves_the_directory(template: str, root: bytes, directory: bytes) -> None:
    path = MaildirPath(template)
    assert path.root == root
    assert path.directory(b'".."@Example.ORG') == directory


class Case:
    """A writer with a clock that stands still, and one message."""

    def __init__(
        self,
        tmp_path: Path,
        system: Any = os,
        is_threaded: bool = False,
        now_ns: int = 1_700_000_000_123_456_789,
    ) -> None:
        self.root = tmp_path
        self.disk = ThreadDisk(system) if is_threaded else InlineDisk(system)
        self.writer = MaildirWriter(self.disk, "mx/1:2", clock_ns=lambda: now_ns, random=bytes)
        self.body = Body(InlineDisk(), Budget(1 << 20), str(tmp_path))

    def store(self, *directories: str, text: bytes = b"Subject: x\r\n\r\n.dot\r\n") -> None:
        root = os.fsencode(self.root)
        targets = [
            Target(os.path.join(root, os.fsencode(directory)), root, b"to-%d@example.org" % number)
            for number, directory in enumerate(directories)
        ]
        self.body.write(text)

        async def stored() -> None:
            done = self.writer.store(
                targets, b"from@example.net", b"Received: here\r\n\tby us\r\n", self.body
            )
            if done is not None:
                await done

        try:
            asyncio.run(stored())
        finally:
            self.disk.close()
            self.body.release()

    def files(self, directory: str, part: str) -> list[Path]:
        return sorted((self.root / directory / part).iterdir())


@pytest.mark.parametrize("is_threaded", [False, True])
def test_a_message_is_a_file_in_new(tmp_path: Path, is_threaded: bool) -> None:
    case = Case(tmp_path, is_threaded=is_threaded)
    case.store("example.org/joe")
    [file] = case.files("example.org/joe", "new")
    assert file.read_bytes() == (
        b"Return-Path: <from@example.net>\nDelivered-To: to-0@example.org\n"
        b"Received: here\n\tby us\nSubject: x\n\n.dot\n"
    )
    assert file.name == f"1700000000.M123456P{os.getpid()}Q1R00000000.mx\\0571\\0722"
    assert case.files("example.org/joe", "tmp") == []
    assert case.files("example.org/joe", "cur") == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for made in ("example.org", "example.org/joe", "example.org/joe/new"):
        assert stat.S_IMODE((tmp_path / made).stat().st_mode) == 0o700


def test_every_recipient_has_a_file_of_its_own(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.store("a", "b", "a")
    assert len(case.files("a", "new")) == 2
    assert len(case.files("b", "new")) == 1
    owners = {line for file in case.files("a", "new") for line in file.read_bytes().split(b"\n")[1:2]}
    assert owners == {b"Delivered-To: to-0@example.org", b"Delivered-To: to-2@example.org"}


def test_file_and_directory_are_synced(tmp_path: Path) -> None:
    Case(tmp_path, now_ns=0).store("box")
    system = FaultyOs()
    Case(tmp_path, system).store("box")
    assert system.calls == {"open": 2, "write": 2, "fsync": 2, "link": 1, "unlink": 1, "close": 2}


def test_a_spooled_body_arrives_whole(tmp_path: Path) -> None:
    case = Case(tmp_path)
    text = b"".join(b"%d line\r\n" % number for number in range(50_000))
    case.store("box", text=text)
    [file] = case.files("box", "new")
    assert file.read_bytes().endswith(b"by us\n" + text.replace(b"\r\n", b"\n"))


FAULTS = [
    (name, at, number, errors.StorageFull if number == errno.ENOSPC else errors.StorageFailed)
    for name, last in [("open", 4), ("write", 4), ("fsync", 3), ("link", 2), ("close", 1)]
    for at in range(1, last + 1)
    for number in (errno.ENOSPC, errno.EIO)
] + [("link", 1, errno.EXDEV, errors.StorageFailed), ("open", 1, errno.EACCES, errors.StorageFailed)]


@pytest.mark.parametrize(("name", "at", "number", "error"), FAULTS)
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, name: str, at: int, number: int, error: type[Exception]
) -> None:
    for box in ("a", "b"):
        for part in ("tmp", "new", "cur"):
            (tmp_path / box / part).mkdir(parents=True)
    system = FaultyOs(name, at, number)
    case = Case(tmp_path, system)
    with pytest.raises(error):
        case.store("a", "b")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("at", range(1, 9))
def test_a_directory_that_cannot_be_synced_is_a_failure(tmp_path: Path, at: int) -> None:
    system = FaultyOs("fsync", at, errno.EIO)
    case = Case(tmp_path, system)
    try:
        case.store("example.org/joe")
    except errors.StorageFailed:
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    else:
        assert system.calls["fsync"] < at
        assert len(case.files("example.org/joe", "new")) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_gets_a_rename(tmp_path: Path, number: int) -> None:
    case = Case(tmp_path, FaultyOs("link", 1, number))
    case.store("box")
    assert len(case.files("box", "new")) == 1
    assert case.files("box", "tmp") == []


def test_a_name_that_is_taken_is_never_written_over(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.store("box")
    other = Case(tmp_path)  # the same clock, process, number and randomness
    taken = other.root / "box" / "tmp" / case.files("box", "new")[0].name
    taken.write_bytes(b"another's")
    other.store("box")
    assert taken.read_bytes() == b"another's"
    assert len(other.files("box", "new")) == 2


def test_a_name_that_is_taken_in_new_is_never_written_over(tmp_path: Path) -> None:
    Case(tmp_path).store("box")
    other = Case(tmp_path)
    with pytest.raises(errors.StorageFailed):
        other.store("box")
    assert len(other.files("box", "new")) == 1
    assert other.files("box", "tmp") == []


def test_a_line_end_in_an_address_is_our_defect(tmp_path: Path) -> None:
    case = Case(tmp_path)
    target = Target(os.fsencode(tmp_path / "box"), os.fsencode(tmp_path), b"a\nX-Evil: 1@example.org")
    with pytest.raises(ValueError, match="line end"):
        case.writer.store([target], b"", b"", case.body)
    assert case.files("box", "new") == case.files("box", "tmp") == []
