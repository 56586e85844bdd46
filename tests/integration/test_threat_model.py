"""docs/threat-model.md, its table of processes: compared with a running server."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import signal
import smtplib
import stat
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.integration.servers import Process, workers_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a server as root"),
]


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A directory that other accounts may enter; pytest's own they may not."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="fastsmtp-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def ids(pid: int) -> tuple[set[str], set[str]]:
    """All user and group ids of a process."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    users, groups = (re.search(rf"^{name}:\t(.*)$", status, re.M) for name in ("Uid", "Gid"))
    assert users and groups
    return set(users[1].split()), set(groups[1].split())


def open_files(pid: int) -> dict[int, str]:
    found = {}
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            found[int(link.name)] = os.readlink(link)
    return found


def test_a_server_started_as_root_is_what_the_table_says(folder: pathlib.Path) -> None:
    nobody = pwd.getpwnam("nobody")
    state = folder / "state"
    (folder / "list").write_text("# nobody\n")
    (folder / "fastsmtp.toml").write_text(
        f'state = "{state}"\nuser = "nobody"\nworkers = 2\nhostname = "mx.example.org"\n'
        f'[deliver]\ndefault = "maildir:{state}/spool/mail"\nqueue = false\n'
        f'[[listen]]\naddress = ["127.0.0.1:0"]\n'
        f'[log]\nto = "{folder}/log"\n'
    )
    server = Process([sys.executable, "-m", "fastsmtp", "serve", "--config", str(folder / "fastsmtp.toml")])
    try:
        port = int(server.wait_for(r"ready: 127.0.0.1:(\d+) ")[1])
        workers = workers_of(server.pid)
        assert len(workers) == 2
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=60) as client:
            client.sendmail("a@example.org", ["b@example.net"], b"Subject: x\r\n\r\n" + b"x" * 200_000)

        assert ids(server.pid) == ({"0"}, {"0"})
        files = open_files(server.pid)
        expected = r"/dev/null|pipe:|socket:|/dev/urandom|" + re.escape(str(folder / "log"))
        odd = {name for name in files.values() if not re.match(expected, name)}
        assert odd == {str(state / "fastsmtp.pid")}
        assert len(os.listdir(f"/proc/{server.pid}/task")) == 1, "the master has no thread"
        assert not any("eventpoll" in name for name in files.values()), "nor an event loop"

        for pid in workers:
            assert ids(pid) == ({str(nobody.pw_uid)}, {str(nobody.pw_gid)})
            kinds = r"/dev/null|pipe:|socket:|anon_inode:|/dev/urandom|" + re.escape(str(folder / "log"))
            # The body of the mail above, while the thread that closes it has not come to it.
            kinds += "|" + re.escape(str(state / "spool" / "#"))
            assert [name for name in open_files(pid).values() if not re.match(kinds, name)] == []

        assert owner(state) == 0
        assert (owner(state / "self-made.pem"), mode(state / "self-made.pem")) == (0, 0o600)
        assert owner(state / "fastsmtp.pid") == 0
        assert (owner(state / "spool"), mode(state / "spool")) == (nobody.pw_uid, 0o700)
        delivered = list((state / "spool" / "mail" / "new").iterdir())
        assert [owner(path) for path in delivered] == [nobody.pw_uid]
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    finally:
        server.close()


def owner(path: pathlib.Path) -> int:
    return path.stat().st_uid


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
