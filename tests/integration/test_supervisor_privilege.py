"""Accounts of a server that is started as root."""

from __future__ import annotations

import os
import pathlib
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.integration.servers import Client, standin, workers_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a server as root"),
]


@pytest.fixture
def open_path() -> Iterator[pathlib.Path]:
    """A directory that other accounts may enter; pytest's own they may not."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="fastsmtp-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_workers_run_as_the_account_and_cannot_go_back(open_path: pathlib.Path) -> None:
    nobody = pwd.getpwnam("nobody")
    with standin(open_path, user="nobody") as server, Client(server.address()) as client:
        assert client.say(b"PING").startswith(b"250")
        for pid in workers_of(server.pid):
            status = dict(
                re.findall(r"^(\w+):\t(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)
            )
            assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
            assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
            assert status["Groups"].split() == [str(nobody.pw_gid)]
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            assert status["NoNewPrivs"] == "1"
        master = pathlib.Path(f"/proc/{server.pid}/status").read_text()
        assert re.search(r"^Uid:\t0\t0", master, re.M)


@pytest.mark.parametrize("address", [["127.0.0.1", 26], ["0.0.0.0", 0]])
def test_without_the_account_nothing_exposed_is_served_as_root(
    tmp_path: pathlib.Path, address: list[object]
) -> None:
    with standin(tmp_path, user="fastsmtp-no-such", listeners=[["mx", [address]]]) as server:
        assert server.end() == 78
        assert server.count("^error: user: there is no account 'fastsmtp-no-such'.*") == 1
        assert server.count("useradd --system .* fastsmtp-no-such$") == 1


def test_a_trial_may_run_as_root_and_says_so(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, user="fastsmtp-no-such") as server, Client(server.address()) as client:
        assert client.say(b"PING").startswith(b"250")
        assert server.count("^notice what=user reason=.*everything runs as root.*useradd") == 1


def test_root_is_no_account_for_workers(tmp_path: pathlib.Path) -> None:
    with standin(tmp_path, user="root") as server:
        assert server.end() == 78
        assert server.count("error: user: 'root' is root; workers need an account without rights") == 1
