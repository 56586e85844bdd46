"""The command line: which subcommand, what it prints, what it returns."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tomllib

import pytest

from fastsmtp.cli import COMMANDS, main
from fastsmtp.cli.flags import make_parser, parse_flags
from fastsmtp.config.flags import Flags

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "fastsmtp.toml"
    file.write_text('hostname = "mx.example.org"\n[deliver]\ndefault = "discard"\n[[listen]]\ntls = "off"\n')
    return file


def test_the_version_is_meson_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert f"version: '{capsys.readouterr().out.split()[1]}'" in (ROOT / "meson.build").read_text()


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), ([], 2)])
def test_usage_names_every_command(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert all(f"fastsmtp {name}" in (err if status else out) for name in COMMANDS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chek", "fastsmtp: there is no command 'chek'; did you mean 'check'?\n"),
        ("x", f"fastsmtp: there is no command 'x' ({', '.join(COMMANDS)})\n"),
        ("--frob", f"fastsmtp: there is no command '--frob' ({', '.join(COMMANDS)})\n"),
    ],
)
def test_an_unknown_command_is_a_usage_error(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err == said


def test_check_says_so_when_all_is_well(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(config)]) == 0
    assert capsys.readouterr().out == "no faults\n"


def test_check_says_all_faults_and_fails(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("workers = -1\n[limits]\nerrors = 0\n")
    assert main(["check", "--config", str(config), "--deliver", "pipe:cat"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{config}:1: workers: must be at least 0, not -1",
        f"{config}:3: limits.errors: must be at least 1, not 0",
        "--deliver: pipe: needs the path of a program that begins with /, and its arguments",
        "3 faults",
    ]


def test_check_finds_a_key_that_does_not_fit(
    config: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert main(["cert", "--out", str(tmp_path / name), "--name", "mx.example.org"]) == 0
    with config.open("a") as file:
        file.write(f"[tls]\ncertificate = '{tmp_path}/a/cert.pem'\nkey = '{tmp_path}/b/key.pem'\n")
    capsys.readouterr()
    assert main(["check", "--config", str(config)]) == 1
    err = capsys.readouterr().err
    line = len(config.read_text().splitlines()) - 1
    assert f"{config}:{line}: tls.certificate: {tmp_path}/a/cert.pem: the key in {tmp_path}/b/key.pem" in err
    assert err.endswith("1 fault\n")


def test_check_says_which_certificate_ends(
    config: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cert", "--out", str(tmp_path), "--name", "mx.example.org", "--days", "3"]) == 0
    with config.open("a") as file:
        file.write(f"[tls]\ncertificate = '{tmp_path}/cert.pem'\nkey = '{tmp_path}/key.pem'\n")
    capsys.readouterr()
    assert main(["check", "--config", str(config)]) == 0
    line = len(config.read_text().splitlines()) - 1
    assert (
        f"warning: {config}:{line}: tls.certificate: {tmp_path}/cert.pem: ends in 2 days"
        in capsys.readouterr().err
    )


def test_check_live_has_nothing_to_ask_without_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--live"]) == 0
    assert capsys.readouterr().out == "no lists to ask\nno faults\n"


def test_config_shows_values_and_where_they_come_from(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--config", str(config), "--workers", "3"]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out)["workers"] == 3
    lines = [line.split() for line in out.splitlines()]
    assert ["workers", "=", "3", "#", "--workers"] in lines
    assert ["hostname", "=", '"mx.example.org"', "#", f"{config}:1"] in lines
    assert ["user", "=", '"fastsmtp"', "#", "default"] in lines


def test_config_as_json(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", str(config), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["deliver.default"] == {"value": "discard", "from": f"{config}:3"}
    assert values["limits.errors"] == {"value": 20, "from": "default"}


@pytest.mark.parametrize("form", ["--example", "--markdown"])
def test_example_and_page_need_no_sound_configuration(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", "/absent", form]) == 0
    assert "message_bytes" in capsys.readouterr().out


def test_a_fault_is_told_in_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--config", "/absent"]) == 1
    assert capsys.readouterr().err == "fastsmtp: /absent: No such file or directory\n"


@pytest.mark.parametrize(
    "arguments", [["check", "--frob"], ["check", "--conf", "x"], ["config", "--json", "--example"]]
)
def test_a_bad_flag_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: fastsmtp" in capsys.readouterr().err


def test_every_flag_reaches_the_configuration() -> None:
    flags, _ = parse_flags(
        make_parser("serve", "x"),
        shlex.split(
            "--config f --qmail q --tcprules t --listen a:1 --listen b:2 --workers 3 --hostname h --accept d "
            "--accept e --deliver print --no-queue --state s --dns 1.1.1.1 --user u"
        ),
    )
    assert flags == Flags(
        config="f",
        qmail="q",
        tcprules="t",
        listen=("a:1", "b:2"),
        workers="3",
        hostname="h",
        accept=("d", "e"),
        deliver="print",
        no_queue=True,
        state="s",
        dns=("1.1.1.1",),
        user="u",
    )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_says_how_it_is_used(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([command, "--help"])
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")


@pytest.mark.parametrize(
    ("command", "flag"), [("smtpd", "--listen"), ("smtpd", "--tcprules"), ("policy", "--deliver")]
)
def test_a_flag_that_would_do_nothing_is_a_usage_error(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main([command, flag, "x"])
    assert raised.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_the_frame_and_the_model_are_cheap_to_import() -> None:
    code = (
        "import sys, fastsmtp.cli, fastsmtp.cli.flags, fastsmtp.config.load, fastsmtp.config.model\n"
        "fastsmtp.cli.flags.parse_flags(fastsmtp.cli.flags.make_parser('serve', 'x'), [])\n"
        "heavy = {'asyncio', 'ssl', 'cryptography', 'msgspec', 'uvloop', 'pycares', 'idna', 'tomllib', 'shutil'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code).stdout == "[]\n"


def test_python_dash_m_is_the_command_and_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m fastsmtp config --example | true"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_behind_standard_output_is_no_traceback() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastsmtp", "config", "--example"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"fastsmtp: No space left on device\n")
