"""Errands to lspawn: what is one, what is an answer; and what a child does with a message that it was handed."""

from __future__ import annotations

import os
import pathlib

import pytest

from fastsmtp import errors, reply
from fastsmtp.config.flags import Flags
from fastsmtp.config.load import load
from fastsmtp.config.settings import user_pairs
from fastsmtp.delivery import wire
from fastsmtp.delivery.carrier import Carrier, check_inside, environment_of
from fastsmtp.delivery.errand import ERRAND_BYTES, answer, errand, key_of, read_answer, read_errand
from fastsmtp.delivery.job import Damaged, Result, Told
from fastsmtp.delivery.outcome import Delivered, Failed, Retry
from fastsmtp.message import Envelope, Recipient
from fastsmtp.queue.memory import memory_file
from fastsmtp.queue.model import BodyReference, Origins, QueuedMessage, encode
from fastsmtp.queue.place import Place
from fastsmtp.reply import Reply
from tests.unit.config_host import FakeHost


def test_an_errand_is_a_version_and_a_key() -> None:
    key = key_of("joe", "maildir:/home/joe/Maildir")
    assert len(errand(key)) == ERRAND_BYTES == 33
    assert read_errand(errand(key)) == key
    others = [
        ("joe", "maildir:/home/joe"),
        ("ann", "maildir:/home/joe/Maildir"),
        ("joemaildir:", "/home/joe/Maildir"),
    ]
    assert len({key, *(key_of(*pair) for pair in others)}) == 4


@pytest.mark.parametrize(
    "packet", [b"", b"\x01", errand(bytes(32)) + b"x", b"\0" + bytes(32), b"\x02" + bytes(32)]
)
def test_what_is_no_errand(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r"errand|version"):
        read_errand(packet)


@pytest.mark.parametrize(
    "outcome",
    [
        Delivered("maildir"),
        Retry(reply.PROGRAM_FAILED, "as joe: it ended with 1", may_have_arrived=True),
        Failed(Reply(550, "5.1.1", "No such user"), "as joe: it ended with 67"),
        Damaged("no message"),
    ],
)
def test_an_answer_is_one_outcome(outcome: Delivered | Retry | Failed | Damaged) -> None:
    found = read_answer(answer(outcome))
    assert type(found) is type(outcome)
    assert found == outcome or (isinstance(found, Retry | Failed) and str(found.reply) == str(outcome.reply))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0",
        answer(Delivered(""))[:-1],
        answer(Delivered("x"))[:-1] + b"\xff",
        answer(Delivered("")) + b"x",
        wire.results(0, []),
        wire.results(0, [Result(Place(0, 0, 0, 0), number, Delivered("")) for number in range(2)]),
        wire.results(0, [Result(Place(0, 0, 0, 0), 0, Told(Delivered(""), is_relayed=False))]),
    ],
)
def test_what_is_no_answer(packet: bytes) -> None:
    with pytest.raises(ValueError):
        read_answer(packet)


def test_the_accounts_and_destinations_of_a_configuration() -> None:
    text = """
[[accept]]
domain = ["a.example"]
deliver = "maildir:/m/{local}"
user = "joe"
[[accept]]
domain = ["b.example"]
deliver = "maildir:/m/{local}"
user = "joe"
[[accept]]
domain = ["c.example"]
[[route]]
sender = "@d.example"
[[route]]
deliver = "pipe:/bin/true"
user = "ann"
[deliver]
default = "maildir:/all"
user = "eve"
"""
    host = FakeHost(
        {"/f.toml": text, "/bin/true": b""}, modes={"/bin/true": 0o755}, root=True,
        accounts=("fastsmtp", "joe", "ann", "eve"),
    )  # fmt: skip
    loaded = load(Flags(config="/f.toml"), host=host)
    assert user_pairs(loaded.config) == (
        ("joe", "maildir:/m/{local}"), ("eve", "maildir:/all"), ("ann", "pipe:/bin/true"),
    )  # fmt: skip
    routing = loaded.settings[0].routing
    assert [
        (route.deliver, route.user)
        for route in (
            routing.find(b"x@any.example", b"a.example", ""),
            routing.find(b"x@d.example", b"c.example", ""),
            routing.find(b"x@any.example", b"c.example", ""),
        )
    ] == [("maildir:/m/{local}", "joe"), ("maildir:/all", "eve"), ("pipe:/bin/true", "ann")]


GONE = "[[accept]]\ndomain = ['%s']\ndeliver = '%s'\n"
JOES, ANNS = "user = 'joe'\n", "user = 'ann'\n"


@pytest.mark.parametrize(
    ("deliver", "tables", "user"),
    [
        # What the tables of now say of the place, and as whom mail for it goes whose own table is gone.
        ("maildir:/m/{local}", [], ""),
        ("maildir:/m/{local}", [""], ""),
        ("maildir:/m/{local}", [JOES], "joe"),
        ("maildir:/m/{local}", [JOES, JOES], "joe"),
        ("maildir:/m/{local}", [JOES, ANNS], None),
        ("maildir:/m/{local}", [JOES, ""], None),
        ("pipe:/bin/true", [], None),
        ("pipe:/bin/true", [""], ""),
        ("pipe:/bin/true", [JOES], None),
        ("pipe:/bin/true", ["", JOES], None),
    ],
)
def test_mail_whose_table_has_gone_is_nobody_elses(deliver: str, tables: list[str], user: str | None) -> None:
    text = "".join(GONE % (f"{n}.example", deliver) + user for n, user in enumerate(tables))
    host = FakeHost(
        {"/f.toml": text or GONE % ("x.example", "discard"), "/bin/true": b""}, modes={"/bin/true": 0o755}, root=True,
        accounts=("fastsmtp", "joe", "ann"),
    )  # fmt: skip
    found = load(Flags(config="/f.toml"), host=host).settings[0].routing.find(b"", b"a.example", "", deliver)
    if user is None:
        assert found.dest.kind == "refuse"
    else:
        assert (found.deliver, found.user) == (deliver, user)


def record(body: list[bytes] | BodyReference, size: int) -> int:
    envelope = Envelope(
        b"a@example.org", b"example.org", recipients=[Recipient(b"Joe@example.org", b"example.org")]
    )
    message = QueuedMessage("ID", 0, envelope, Origins(address="192.0.2.1"), b"Received: x\r\n", body, size)
    return memory_file("record", b"".join(encode(message)))


def carried(deliver: str, fd: int, home: str = "/nowhere") -> object:
    try:
        return Carrier(deliver, "joe", home, hostname="mx.example.org", version="1").carry([fd])
    finally:
        os.close(fd)


def test_a_message_is_delivered_from_its_record(tmp_path: pathlib.Path) -> None:
    body = b"Subject: x\r\n\r\nText\r\n"
    deliver = f"maildir:{tmp_path}/{{domain}}/{{local}}"
    assert carried(deliver, record([body], len(body))) == Delivered("maildir")
    (letter,) = (tmp_path / "example.org" / "joe" / "new").iterdir()
    assert letter.read_bytes() == (
        b"Return-Path: <a@example.org>\nDelivered-To: Joe@example.org\nReceived: x\nSubject: x\n\nText\n"
    )


def test_what_fails_names_the_account_and_a_damaged_message_is_one(tmp_path: pathlib.Path) -> None:
    deliver = f"maildir:{tmp_path}/file/Maildir"
    (tmp_path / "file").touch()
    failed = carried(deliver, record([b"x\r\n"], 3))
    assert isinstance(failed, Retry)
    assert failed.reason.startswith("as joe: ")
    assert failed.reply == reply.STORAGE_FAILED
    assert isinstance(carried(deliver, memory_file("record", b"\x01no message")), Damaged)
    handed = carried(f"maildir:{tmp_path}/{{local}}", record(BodyReference(1, 2, 3), 100_000))
    assert isinstance(handed, Damaged)
    assert "was not handed over" in handed.reason
    program = carried("pipe:/nowhere/program", record([b"x\r\n"], 3))
    assert isinstance(program, Retry)
    assert program.reason.startswith("as joe: /nowhere/program can't be run")


def test_where_links_may_lead(tmp_path: pathlib.Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for path in (home / "Maildir", home / "elsewhere", outside / "new"):
        path.mkdir(parents=True)
    (home / "inside").symlink_to(home / "elsewhere")
    (home / "out").symlink_to(outside)
    (home / "elsewhere" / "new").symlink_to(outside / "new")
    (tmp_path / "link").symlink_to(home)

    def is_inside(directory: pathlib.Path, root: pathlib.Path, of: pathlib.Path = home) -> bool:
        try:
            check_inside(os.fsencode(directory), os.fsencode(root), os.fsencode(of))
        except errors.StorageFailed:
            return False
        return True

    cases = [
        # the Maildir, the fixed part of its path, home
        (home / "Maildir", home / "Maildir", home, True),
        (home / "coming", home / "coming", home, True),
        (home / "inside", home / "inside", home, False),
        (home / "out", home / "out", home, False),
        (home / "out" / "joe", home / "out", home, False),
        (tmp_path / "link" / "Maildir", tmp_path / "link" / "Maildir", tmp_path / "link", True),
        # Not below the home: the fixed part counts, and may be a link of the operator's.
        (tmp_path / "link" / "Maildir", tmp_path / "link", pathlib.Path("/nonexistent"), True),
        (tmp_path / "link" / "out", tmp_path / "link", pathlib.Path("/nonexistent"), False),
        (home / "Maildir", home, pathlib.Path("/"), True),
    ]
    for directory, root, of, expected in cases:
        assert is_inside(directory, root, of) is expected, (directory, root, of)


def test_the_environment_is_all_of_it() -> None:
    assert environment_of("joe", "/home/joe") == {
        "HOME": "/home/joe", "LOGNAME": "joe", "USER": "joe", "SHELL": "/bin/sh",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }  # fmt: skip
