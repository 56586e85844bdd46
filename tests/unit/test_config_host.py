"""The real machine, as far as the configuration asks it."""

from __future__ import annotations

import os
import pathlib

import pytest

from fastsmtp.config.host import Host


def test_a_file_has_contents_a_mode_and_an_owner(tmp_path: pathlib.Path) -> None:
    host, file = Host(), tmp_path / "key"
    file.write_bytes(b"\xff")
    file.chmod(0o640)
    assert host.exists(str(file))
    assert host.read(str(file)) == b"\xff"
    assert host.mode(str(file)) == (0o640, os.geteuid())
    with pytest.raises(FileNotFoundError):
        host.read(str(tmp_path / "absent"))
    with pytest.raises(IsADirectoryError):
        host.read(str(tmp_path))


def test_accounts_cores_and_limits_are_the_system_s() -> None:
    host = Host()
    assert host.has_account("root")
    assert not host.has_account("no-such-account")
    assert host.cores() >= 1
    assert host.open_files() > 0
    assert host.is_root() == (os.geteuid() == 0)
    assert host.directory() == os.getcwd()
    assert host.environ is os.environ
    assert host.name()
