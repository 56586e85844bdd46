"""fastsmtp qmail link and unlink: names in a qmail home's bin, and what stood there before."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from fastsmtp.cli import PROGRAMS
from fastsmtp.cli import qmail as command
from fastsmtp.errors import ConfigError
from tests.programs import environment, install


@pytest.fixture
def script(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The installed command, as the one that is running."""
    script = install(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "qmail"])
    return script


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """A bin with programs of qmail's, one of them a link."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("preline", "qmail-popup", "qmail-smtpd", "qmail-remote"):
        (folder / name).write_text(f"#!/bin/sh\necho qmail {name}\n")
        (folder / name).chmod(0o711)
    (folder / "qmail-pop3d").symlink_to("qmail-smtpd")
    return folder


def picture(folder: pathlib.Path) -> dict[str, tuple[str, int]]:
    """Name -> what it is: the contents or the target, and the inode."""
    return {
        path.name: (str(path.readlink()) if path.is_symlink() else path.read_text(), path.lstat().st_ino)
        for path in folder.iterdir()
    }


def test_link_keeps_what_was_there_and_unlink_puts_it_back(
    home: pathlib.Path, script: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = picture(home)
    assert command.run(["link", str(home)]) == 0
    said = capsys.readouterr().out.splitlines()
    for name in PROGRAMS:
        assert (home / name).readlink() == script
        assert picture(home)[f"{name}.qmail"] == before[name]
        assert f"{home}/{name}: kept as {home}/{name}.qmail" in said
        assert f"{home}/{name}: a link to {script}" in said
    assert command.run(["unlink", str(home)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{home}/{name}: put back from {home}/{name}.qmail" for name in PROGRAMS]
    assert picture(home) == before


def test_both_can_be_called_again(
    home: pathlib.Path, script: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run(["link", str(home)])
    linked = picture(home)
    capsys.readouterr()
    assert command.run(["link", str(home)]) == 0
    assert f"{home}/preline: is a link to {script} already" in capsys.readouterr().out
    assert picture(home) == linked
    command.run(["unlink", str(home)])
    before = picture(home)
    capsys.readouterr()
    assert command.run(["unlink", str(home)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{home}/{name}: is no link of ours" for name in PROGRAMS]
    assert picture(home) == before


def test_a_name_that_was_not_there_is_gone_again_after_unlink(
    home: pathlib.Path, script: pathlib.Path
) -> None:
    (home / "preline").unlink()
    before = picture(home)
    command.run(["link", str(home)])
    assert (home / "preline").readlink() == script
    command.run(["unlink", str(home)])
    assert picture(home) == before


def test_another_installation_takes_over_and_the_kept_ones_stay(
    home: pathlib.Path, script: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = picture(home)
    command.run(["link", str(home)])
    (tmp_path / "other").mkdir()
    other = install(tmp_path / "other")
    monkeypatch.setattr(sys, "argv", [str(other), "qmail"])
    command.run(["link", str(home)])
    assert all((home / name).readlink() == other for name in PROGRAMS)
    command.run(["unlink", str(home)])
    assert picture(home) == before


def test_an_interrupted_link_is_finished_by_the_next(home: pathlib.Path, script: pathlib.Path) -> None:
    before = picture(home)
    (home / "preline.fastsmtp-new").symlink_to("/nowhere")
    command.run(["link", str(home)])
    command.run(["unlink", str(home)])
    assert picture(home) == before


@pytest.mark.parametrize("what", ["link", "unlink"])
def test_when_one_name_can_not_change_nothing_changes(
    what: str, home: pathlib.Path, script: pathlib.Path
) -> None:
    """An update of qmail has put its own program over our link: which of the two to keep, nobody knows."""
    (home / "qmail-popup.qmail").write_text("older")
    before = picture(home)
    with pytest.raises(ConfigError) as raised:
        command.run([what, str(home)])
    assert len(raised.value.faults) == 1
    assert raised.value.faults[0].startswith(f"{home}/qmail-popup: ")
    assert f"{home}/qmail-popup.qmail" in raised.value.faults[0]
    assert picture(home) == before


def test_a_directory_in_the_way(home: pathlib.Path, script: pathlib.Path) -> None:
    (home / "preline").unlink()
    (home / "preline").mkdir()
    with pytest.raises(ConfigError, match="preline: is a directory"):
        command.run(["link", str(home)])


def test_a_command_that_others_can_not_run_is_warned_of(
    home: pathlib.Path, script: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.chmod(0o700)
    assert command.run(["link", str(home)]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {script}: not everybody")


def test_without_an_installed_command_nothing_is_linked(
    home: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/nowhere/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    before = picture(home)
    with pytest.raises(ConfigError, match="not to be found"):
        command.run(["link", str(home)])
    assert picture(home) == before


def test_from_a_shell(home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    script = install(tmp_path)
    lines = {"UFLINE": "From a\n", "RPLINE": "Return-Path: <a>\n", "DTLINE": "Delivered-To: b\n"}

    def call(*words: str | pathlib.Path) -> str:
        done = subprocess.run(
            words,
            input="mail\n",
            capture_output=True,
            text=True,
            env=environment(**lines),
            timeout=60,
            check=True,
        )
        return done.stdout

    call(script, "qmail", "link", home)
    assert call(home / "preline", "-fr", "cat") == "Delivered-To: b\nmail\n"
    call(script, "qmail", "unlink", home)
    assert call(home / "preline") == "qmail preline\n"


@pytest.mark.parametrize(
    "arguments", [[], ["link"], ["unlink"], ["frob", "/"], ["link", "/", "/"]], ids=" ".join
)
def test_a_wrong_call_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: fastsmtp qmail")


def test_help_names_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["--help"]) == 0
    assert ", ".join(PROGRAMS) in capsys.readouterr().out


def test_what_is_no_directory(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="absent: not a directory"):
        command.run(["link", str(tmp_path / "absent")])
