"""A Maildir as a maildrop, with other readers at work in it."""

from __future__ import annotations

import hashlib
import os
import pathlib

import pytest

from fastsmtp.pop3.maildrop import ABANDONED_S, Maildrop


@pytest.fixture
def box(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("new", "cur", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(box: pathlib.Path, name: str, mail: bytes = b"x\n", age_s: int = 0) -> pathlib.Path:
    file = box / name
    file.write_bytes(mail)
    os.utime(file, (1_700_000_000 - age_s,) * 2)
    return file


def names(box: pathlib.Path) -> set[str]:
    return {str(path.relative_to(box)) for path in box.rglob("*") if path.is_file()}


def test_messages_stand_in_the_order_in_which_they_came(box: pathlib.Path) -> None:
    put(box, "new/3.c", age_s=1)
    put(box, "cur/1.a:2,S", age_s=3)
    put(box, "new/2.b", age_s=2)
    put(box, "cur/4.d:2,", age_s=1)
    assert [letter.uid for letter in Maildrop(str(box)).letters] == ["1.a", "2.b", "3.c", "4.d"]


def test_only_plain_files_that_are_not_hidden_are_messages(box: pathlib.Path) -> None:
    put(box, "new/.hidden")
    put(box, "tmp/1.a")
    (box / "new" / "folder").mkdir()
    (box / "cur" / "link").symlink_to("/etc/passwd")
    os.mkfifo(box / "cur" / "pipe")
    assert Maildrop(str(box)).letters == []


def test_a_size_is_counted_once_and_in_crlf(box: pathlib.Path) -> None:
    file = put(box, "new/1", b"a\nb\n")
    drop = Maildrop(str(box))
    assert drop.size_bytes(0) == 6
    file.unlink()
    assert drop.size_bytes(0) == 6


def test_a_message_that_can_not_be_read_has_size_0(box: pathlib.Path) -> None:
    file = put(box, "new/1")
    drop = Maildrop(str(box))
    file.unlink()
    assert drop.size_bytes(0) == 0
    with pytest.raises(FileNotFoundError):
        drop.read(0)


def test_update_deletes_what_it_is_told_and_moves_the_new(box: pathlib.Path) -> None:
    for name in ("new/1", "new/2", "new/3:2,F", "cur/4:2,S", "cur/5:2,"):
        put(box, name)
    drop = Maildrop(str(box))
    number = {letter.uid: at for at, letter in enumerate(drop.letters)}
    assert drop.update({number["1"], number["5"]}) == 0
    assert names(box) == {"cur/2:2,", "cur/3:2,F", "cur/4:2,S"}


def test_another_reader_s_renames_are_followed(box: pathlib.Path) -> None:
    for name in ("new/1", "cur/2:2,"):
        put(box, name, name.encode())
    drop = Maildrop(str(box))
    number = {letter.uid: at for at, letter in enumerate(drop.letters)}
    (box / "new/1").rename(box / "cur/1:2,S")
    (box / "cur/2:2,").rename(box / "cur/2:2,RS")
    assert b"".join(drop.read(number["1"])) == b"new/1"
    assert drop.update({number["2"]}) == 0
    assert names(box) == {"cur/1:2,S"}


def test_what_somebody_else_has_deleted_counts_as_deleted(box: pathlib.Path) -> None:
    file = put(box, "cur/1:2,")
    drop = Maildrop(str(box))
    file.unlink()
    assert drop.update({0}) == 0


def test_what_can_not_be_removed_is_counted(box: pathlib.Path) -> None:
    file = put(box, "cur/1:2,")
    drop = Maildrop(str(box))
    file.unlink()
    file.mkdir()  # unlink fails for everybody, for root too
    assert drop.update({0}) == 1


def test_a_unique_id_is_what_rfc_1939_allows_and_stays_so(box: pathlib.Path) -> None:
    long = "1." + "x" * 100
    put(box, f"new/{long}", age_s=3)
    put(box, "new/with blank", age_s=2)
    put(box, "new/twice", age_s=1)
    put(box, "cur/twice:2,S", age_s=1)
    uids = [letter.uid for letter in Maildrop(str(box)).letters]
    assert uids[0] == hashlib.sha256(long.encode()).hexdigest()
    assert all(1 <= len(uid) <= 70 and uid.isascii() and " " not in uid for uid in uids)
    assert len(set(uids)) == 4
    assert uids == [letter.uid for letter in Maildrop(str(box)).letters]


def test_abandoned_files_in_tmp_are_removed(box: pathlib.Path) -> None:
    put(box, "tmp/old", age_s=ABANDONED_S + 1)
    put(box, "tmp/young", age_s=ABANDONED_S - 1)
    put(box, "new/old", age_s=ABANDONED_S + 1)
    Maildrop(str(box)).clean(1_700_000_000.0)
    assert names(box) == {"tmp/young", "new/old"}


def test_no_maildir_is_an_error(box: pathlib.Path) -> None:
    (box / "cur").rmdir()
    with pytest.raises(OSError, match="No such file"):
        Maildrop(str(box))
    with pytest.raises(OSError, match="No such file"):
        Maildrop(str(box / "absent"))
