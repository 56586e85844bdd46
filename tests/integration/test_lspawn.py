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
from fastsmtp.supervisor.lspawn import CAPABILITIES
from tests.integration.daemon import ran
from tests.integration.servers import Process, is_alive, until
from tests.unit.test_errand import record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

USER = "games"
OTHER = "mail"
USERS = (USER, OTHER)


class Asked:
    """A line, and an errand that is under way on it."""

    def __init__(self, path: str, dest: str, user: str = USER) -> None:
        self.sock = connect(path)
        self.sock.settimeout(60)
        self.send(dest, user)

    def send(self, dest: str, user: str = USER) -> None:
        writable = record([b"Subject: x\r\n\r\nText\r\n"], 20)
        readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
        try:
            socket.send_fds(self.sock, [errand(key_of(user, dest))], [readable])
        finally:
            os.close(writable)
            os.close(readable)

    def answer(self) -> object:
        """The last one's."""
        with self.sock:
            return self.next_answer()

    def next_answer(self) -> object:
        return read_answer(self.sock.recv(40_000))


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A directory that the account may write; pytest's own it may not enter."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="fastsmtp-test-"))
    path.chmod(0o755)
    os.chown(path, pwd.getpwnam(USER).pw_uid, -1)
    yield path
    shutil.rmtree(path)


Started = Callable[..., tuple[Process, str, str]]


@pytest.fixture
def started(folder: pathlib.Path) -> Iterator[Started]:
    """Starts one with a program that USERS may have run: the process, its socket, the DEST."""
    processes = []

    def start(
        program: str,
        keep_s: float = 1.0,
        children: int = 2,
        *,
        answer_s: float = 60.0,
        kill_s: float = 60.0,
    ) -> tuple[Process, str, str]:
        (folder / "program").write_text(program)
        dest = f"pipe:/bin/sh {folder}/program"
        path = str(folder / "socket")
        words = [word for user in USERS for word in (user, dest)]
        process = Process(
            [
                sys.executable,
                "-m",
                "tests.integration.lspawn_process",
                path,
                *map(str, (answer_s, kill_s, keep_s, children)),
                *words,
            ]
        )
        processes.append(process)
        process.wait_for("^ready$")
        return process, path, dest

    yield start
    for process in processes:
        process.close()


def ended(process: Process) -> None:
    """Tell it to end; it says that it has no child any more, and what it has counted."""
    process.signal(signal.SIGTERM)
    process.wait_for("^alone$")


def who_began(folder: pathlib.Path) -> list[int]:
    """The processes that had begun and said so before they were killed: on a busy machine perhaps none."""
    path = folder / "pid"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def test_a_program_that_hangs_is_killed(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started(f"echo $$ > {folder}/pid; exec sleep 1000", answer_s=1.0)
    found = Asked(path, dest).answer()
    assert isinstance(found, Retry)
    assert "took too long and was killed" in found.reason
    assert not any(is_alive(pid) for pid in who_began(folder))
    ended(process)


def test_a_child_that_hangs_is_killed(started: Started, folder: pathlib.Path) -> None:
    # A few seconds for the child, and so long for its program that it is never the child that ends it.
    process, path, dest = started(
        f"kill -STOP $PPID; sleep 1000 & echo $! > {folder}/pid; exec sleep 1000",
        answer_s=1_003.0,
        kill_s=-1_000.0,
    )
    found = Asked(path, dest).answer()
    assert isinstance(found, Retry)
    assert (found.reason, found.may_have_arrived) == (f"as {USER}: took too long and was killed", True)
    until(lambda: not any(is_alive(pid) for pid in who_began(folder)), "what it has started is killed too")
    ended(process)
    process.wait_for("^gfastsmtp_lspawn_children 0$")
    process.wait_for("^cfastsmtp_lspawn_errands_total begun 1$")
    process.wait_for("^cfastsmtp_lspawn_errands_total failed 1$")
    assert any("lspawn_failed" in line for line in process.lines) or "lspawn_failed" in process.errors()


WAITS = "echo begun >> {0}/said; until test -e {0}/go; do sleep 0.05; done; echo ended >> {0}/said"


def test_children_are_bounded_and_all_are_answered(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started(WAITS.format(folder))
    asked = [Asked(path, dest) for _ in range(6)]
    until(
        lambda: (folder / "said").exists() and (folder / "said").read_text() == "begun\n" * 2,
        "two have begun",
    )
    (folder / "go").touch()
    assert all(isinstance(one.answer(), Delivered) for one in asked)
    at_once = [0]
    for line in (folder / "said").read_text().splitlines():
        at_once.append(at_once[-1] + (1 if line == "begun" else -1))
    assert (len(at_once), max(at_once), at_once[-1]) == (13, 2, 0)
    ended(process)


def test_children_that_are_killed_make_room(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started("exec sleep 1000", answer_s=0.5)
    asked = [Asked(path, dest) for _ in range(6)]
    assert all(isinstance(one.answer(), Retry) for one in asked)
    ended(process)
    process.wait_for("^cfastsmtp_lspawn_errands_total begun 6$")


def test_who_has_hung_up_gets_nothing_delivered(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started(WAITS.format(folder))
    asked = [Asked(path, dest) for _ in range(3)]
    # It waits for a child to end; then nobody is there to hear of it.
    asked[2].sock.close()
    (folder / "go").touch()
    for one in asked[:2]:
        assert isinstance(one.answer(), Delivered)
    ended(process)
    process.wait_for("^cfastsmtp_lspawn_errands_total begun 2$")


LONG_S = 3_600.0


def test_a_process_delivers_one_after_the_other_of_one_account(
    started: Started, folder: pathlib.Path
) -> None:
    process, path, dest = started(f"echo $USER $PPID $$ >> {folder}/run-$USER", LONG_S, 4)
    os.chmod(folder, 0o777)
    lines = {user: Asked(path, dest, user) for user in USERS}
    for turn in range(4):
        for user, line in lines.items():
            if turn:
                line.send(dest, user)
            assert isinstance(line.next_answer(), Delivered)
    found = [(folder / f"run-{user}").read_text().split() for user in USERS]
    for user, words in zip(USERS, found, strict=True):
        assert words[::3] == [user] * 4
        assert len(set(words[1::3])) == 1, "one process has delivered all of it"
        assert len(set(words[2::3])) == 4, "each in a program of its own"
    assert found[0][1] != found[1][1]
    # What is another account's is not done by this one's process, and not as this account.
    lines[USER].send(dest, OTHER)
    refused = lines[USER].answer()
    assert isinstance(refused, Retry)
    assert "another process" in refused.reason
    # The one that is idle goes when lspawn goes.
    process.signal(signal.SIGTERM)
    process.wait_for("^alone$")
    assert lines[OTHER].sock.recv(1) == b""
    lines[OTHER].sock.close()
    assert [len((folder / f"run-{user}").read_text().split()) for user in USERS] == [12, 12]


def test_who_is_killed_while_idle_is_missed_by_nobody(started: Started, folder: pathlib.Path) -> None:
    _, path, dest = started(f"echo $PPID > {folder}/pid", LONG_S)
    line = Asked(path, dest)
    assert isinstance(line.next_answer(), Delivered)
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    found = line.next_answer()
    assert isinstance(found, Retry)
    assert "ended by signal 9" in found.reason
    assert line.sock.recv(1) == b""
    line.sock.close()
    assert isinstance(Asked(path, dest).answer(), Delivered)


def test_half_of_them_stay_at_most(started: Started, folder: pathlib.Path) -> None:
    # Two at a time: the second, begun while the first waits, goes at once; a third finds room.
    _, path, dest = started(f"echo $PPID >> {folder}/begun", LONG_S)
    staying = Asked(path, dest)
    assert isinstance(staying.next_answer(), Delivered)
    for _ in range(3):
        line = Asked(path, dest)
        assert isinstance(line.next_answer(), Delivered)
        with pytest.raises(ConnectionError):
            line.send(dest)
        line.sock.close()
    staying.send(dest)
    assert isinstance(staying.answer(), Delivered)
    begun = (folder / "begun").read_text().split()
    assert begun[0] == begun[4]
    assert len(set(begun)) == 4


def test_it_keeps_three_of_roots_powers_and_a_child_none(started: Started, folder: pathlib.Path) -> None:
    process, path, dest = started(
        f"grep -E '^(Uid|Cap|NoNew)' /proc/$PPID/status > {folder}/status; echo $PPID > {folder}/pid", LONG_S
    )
    line = Asked(path, dest)
    assert isinstance(line.next_answer(), Delivered)
    games = pwd.getpwnam(USER)
    child = status_of((folder / "status").read_text())
    assert child["Uid"].split() == [str(games.pw_uid)] * 4
    assert {child[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    root = status_of(pathlib.Path(f"/proc/{process.pid}/status").read_text())
    assert [int(root[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [
        0, sum(1 << number for number in CAPABILITIES), sum(1 << number for number in CAPABILITIES), 0,
    ]  # fmt: skip
    # Counters and metrics are other processes' too: whoever may write them may lie about them.
    pid = (folder / "pid").read_text().strip()
    assert "rw-s" in pathlib.Path(f"/proc/{process.pid}/maps").read_text()
    assert "rw-s" not in pathlib.Path(f"/proc/{pid}/maps").read_text()
    opened = {name: os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    assert sorted(where.partition(":")[0] for name, where in opened.items() if int(name) > 2) == [
        "pipe",
        "socket",
    ]
    line.sock.close()


def status_of(text: str) -> dict[str, str]:
    """Of /proc/PID/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


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
