"""lspawn by itself, with short times: what hangs is killed, children are bounded, and none can go back to root."""

from __future__ import annotations

import os
import pathlib
import pwd
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

from fastsmtp.delivery.errand import errand, key_of, read_answer
from fastsmtp.delivery.outcome import Delivered, Retry
from fastsmtp.queue.line import connect
from tests.integration.daemon import ran
from tests.integration.servers import Process, is_alive, until
from tests.unit.test_errand import record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

USER = "games"


class Asked:
    """An errand that is under way."""

    def __init__(self, path: str, dest: str) -> None:
        self.sock = connect(path)
        self.sock.settimeout(60)
        writable = record([b"Subject: x\r\n\r\nText\r\n"], 20)
        readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
        socket.send_fds(self.sock, [errand(key_of(USER, dest))], [readable])
        os.close(writable)
        os.close(readable)

    def answer(self) -> object:
        with self.sock:
            return read_answer(self.sock.recv(40_000))


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A directory that the account may write; pytest's own it may not enter."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="fastsmtp-test-"))
    path.chmod(0o755)
    os.chown(path, pwd.getpwnam(USER).pw_uid, -1)
    yield path
    shutil.rmtree(path)


Started = Callable[[str], tuple[Process, str, str]]


@pytest.fixture
def started(folder: pathlib.Path) -> Iterator[Started]:
    """Starts one with a program: the process, its socket, the DEST."""
    processes = []

    def start(program: str) -> tuple[Process, str, str]:
        (folder / "program").write_text(program)
        dest = f"pipe:/bin/sh {folder}/program"
        path = str(folder / "socket")
        process = Process([sys.executable, "-m", "tests.integration.lspawn_process", path, USER, dest])
        processes.append(process)
        process.wait_for("^ready$")
        return process, path, dest

    yield start
    for process in processes:
        process.close()


def test_a_program_that_hangs_is_killed(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started(f"echo $$ > {folder}/pid; exec sleep 1000")
    found = Asked(path, dest).answer()
    assert isinstance(found, Retry)
    assert "took too long and was killed" in found.reason
    assert not pathlib.Path(f"/proc/{(folder / 'pid').read_text().strip()}").exists()
    process.signal(signal.SIGTERM)
    process.wait_for("^alone$")


def test_a_child_that_hangs_is_killed(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started(f"kill -STOP $PPID; sleep 1000 & echo $! > {folder}/pid; exec sleep 1000")
    found = Asked(path, dest).answer()
    assert isinstance(found, Retry)
    assert (found.reason, found.may_have_arrived) == (f"as {USER}: took too long and was killed", True)
    started_by_it = (folder / "pid").read_text().strip()
    until(lambda: not is_alive(int(started_by_it)), "what it has started is killed too")
    process.signal(signal.SIGTERM)
    process.wait_for("^alone$")
    process.wait_for("^gfastsmtp_lspawn_children 0$")
    process.wait_for("^cfastsmtp_lspawn_errands_total begun 1$")
    process.wait_for("^cfastsmtp_lspawn_errands_total failed 1$")
    assert any("lspawn_failed" in line for line in process.lines) or "lspawn_failed" in process.errors()


def test_children_are_bounded_and_all_are_answered(started: Started, folder: pathlib.Path) -> None:
    # Each waits for its own go: with two children at a time the third is not begun before one has ended.
    process, path, dest = started(f"echo $$ >> {folder}/begun; test -e {folder}/go || sleep 1000")
    asked = [Asked(path, dest) for _ in range(6)]
    first = [one.answer() for one in asked[:2]]
    assert all(isinstance(one, Retry) for one in first)
    (folder / "go").touch()
    rest = [one.answer() for one in asked[2:]]
    assert all(isinstance(one, Retry | Delivered) for one in rest)
    assert isinstance(rest[-1], Delivered)
    assert len((folder / "begun").read_text().split()) == 6
    process.signal(signal.SIGTERM)
    process.wait_for("^alone$")


def test_who_has_hung_up_gets_nothing_delivered(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started(f"echo $$ >> {folder}/begun; sleep 1000")
    asked = [Asked(path, dest) for _ in range(3)]
    # It waits for a child to end; then nobody is there to hear of it.
    asked[2].sock.close()
    for one in asked[:2]:
        assert isinstance(one.answer(), Retry)
    process.signal(signal.SIGTERM)
    process.wait_for("^alone$")
    assert len((folder / "begun").read_text().split()) == 2


BECOME = """
import os, sys
from fastsmtp.supervisor.privilege import become_person, person_for
become_person(person_for(sys.argv[1]), runs_programs=False)
for call in (os.setuid, os.seteuid, os.setgid, os.setegid):
    try:
        call(0)
        print("became root")
    except PermissionError:
        print("no")
try:
    os.setgroups([0])
    print("joined root")
except PermissionError:
    print("no")
for line in open("/proc/self/status"):
    if line.startswith(("Uid", "Gid", "Cap", "NoNewPrivs")):
        print(line.strip().replace("\\t", " "))
"""


def test_the_child_has_no_way_back_and_is_not_to_be_looked_into(
    started: Started, folder: pathlib.Path
) -> None:
    games = pwd.getpwnam(USER)
    lines = ran(sys.executable, "-c", BECOME, USER).splitlines()
    assert lines[:5] == ["no"] * 5
    status = dict(line.split(": ", 1) for line in lines[5:])
    assert status["Uid"].split() == [str(games.pw_uid)] * 4
    assert status["Gid"].split() == [str(games.pw_gid)] * 4
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    # The process that has started a program was root's, with all that the master has in its memory.
    _, path, dest = started(
        f"for name in environ maps mem; do cat /proc/$PPID/$name && echo $name >> {folder}/read; done\n"
        f"ls /proc/$PPID/fd && echo fd >> {folder}/read\n"
        f"echo done >> {folder}/read\n"
    )
    assert isinstance(Asked(path, dest).answer(), Delivered)
    assert (folder / "read").read_text() == "done\n"
