"""fastsmtp preline with real commands: what they read, and what qmail-local would make of the exit status."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.programs import environment, install

LINES = {
    "UFLINE": "From a@example.org Thu Jan  1 00:00:00 1970\n",
    "RPLINE": "Return-Path: <a@example.org>\n",
    "DTLINE": "Delivered-To: b@example.net\n",
}
U, R, D = LINES.values()
MAIL = "Subject: x\n\ntext\n"

# Far more than a pipe holds: the copy is still going on when the command ends.
BIG = b"x" * 1_000_000


def preline(
    *arguments: str, stdin: bytes = MAIL.encode(), lines: dict[str, str] = LINES, **more: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "fastsmtp", "preline", *arguments],
        input=stdin,
        capture_output=True,
        env=environment(**lines, **more),
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ([], U + R + D),
        (["-f"], R + D),
        (["-r"], U + D),
        (["-d"], U + R),
        (["-frd"], ""),
        (["-f", "-r", "-D"], D),
        (["-frd", "-RF"], U + R),
        (["-fF"], U + R + D),
        (["-p"], U + R + D),
        (["-pfrd"], ""),
        (["-f", "--"], R + D),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_reads_the_lines_and_the_message(options: list[str], head: str) -> None:
    done = preline(*options, "cat")
    assert (done.returncode, done.stdout, done.stderr) == (0, (head + MAIL).encode(), b"")


def test_what_stands_behind_the_command_is_its_own() -> None:
    done = preline("sh", "-c", 'echo "$0 $*"; exit 3', "-f", "-p", "--")
    assert (done.returncode, done.stdout) == (3, b"-f -p --\n")


def test_an_empty_message_still_has_its_lines() -> None:
    assert preline("cat", stdin=b"").stdout == (U + R + D).encode()


def test_a_message_of_any_octets_and_size_goes_through_unaltered() -> None:
    mail = bytes(range(256)) * 10_000
    done = preline("-frd", "cat", stdin=mail)
    assert (done.returncode, done.stdout) == (0, mail)


@pytest.mark.parametrize("status", [0, 1, 99, 100, 111])
def test_the_exit_status_of_the_command_is_ours(status: int) -> None:
    assert preline("sh", "-c", f"cat > /dev/null; exit {status}").returncode == status


@pytest.mark.parametrize(
    ("options", "stdin", "status"),
    [
        # A short message lies in the pipe, whether it is read or not.
        ([], MAIL.encode(), 7),
        (["-p"], MAIL.encode(), 7),
        # A long one: the original tries again, -p believes the command.
        ([], BIG, 111),
        (["-p"], BIG, 7),
    ],
    ids=["short", "short -p", "long", "long -p"],
)
def test_a_command_that_stops_reading(options: list[str], stdin: bytes, status: int) -> None:
    done = preline(*options, "sh", "-c", "exec <&-; exit 7", stdin=stdin)
    assert done.returncode == status
    assert (b"has stopped reading" in done.stderr) == (status == 111)


@pytest.mark.parametrize("options", [[], ["-p"]], ids=["", "-p"])
def test_a_command_that_was_killed_is_tried_again(options: list[str]) -> None:
    done = preline(*options, "sh", "-c", "cat > /dev/null; kill -9 $$")
    assert (done.returncode, done.stderr) == (111, b"preline: sh was killed by signal 9\n")


def test_with_p_the_command_is_waited_for_after_it_stopped_reading(tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "done"
    done = preline(
        "-p",
        "sh",
        "-c",
        f"exec <&-; dd if=/dev/zero bs=1000 count=1000 2>&- | wc -c > {mark}; exit 4",
        stdin=BIG,
    )
    assert (done.returncode, mark.read_text().strip()) == (4, "1000000")


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_not_in_the_environment_is_permanent(name: str) -> None:
    lines = {key: value for key, value in LINES.items() if key != name}
    done = preline("cat", lines=lines)
    assert (done.returncode, done.stdout) == (100, b"")
    assert done.stderr.startswith(b"preline: usage: preline") and done.stderr.endswith(f" {name}\n".encode())


@pytest.mark.parametrize(
    "arguments", [[], ["-p"], ["--"], ["-x", "cat"], ["-fx", "cat"], ["-"]], ids=" ".join
)
def test_a_wrong_call_is_permanent(arguments: list[str]) -> None:
    assert preline(*arguments).returncode == 100


def test_a_command_that_is_not_there_is_permanent(tmp_path: pathlib.Path) -> None:
    plain = tmp_path / "plain"
    plain.touch(0o644)
    for name in ("no-such-program", str(tmp_path / "absent"), str(plain), str(tmp_path)):
        done = preline(name, stdin=BIG)
        assert done.returncode == 100, name
        assert b"can't be run" in done.stderr


def test_a_command_that_is_being_written_may_run_later(tmp_path: pathlib.Path) -> None:
    busy = tmp_path / "busy"
    with busy.open("wb") as file:
        file.write(pathlib.Path("/bin/true").read_bytes())
        file.flush()
        busy.chmod(0o755)
        assert preline(str(busy)).returncode == 111


@pytest.mark.parametrize("is_on_path", [True, False], ids=["on PATH", "by its path"])
def test_a_script_without_an_interpreter_line_is_the_shell_s(
    tmp_path: pathlib.Path, is_on_path: bool
) -> None:
    script = tmp_path / "filter"
    script.write_text('read line; echo "$1:$line"; exit 5\n')
    script.chmod(0o755)
    name = "filter" if is_on_path else str(script)
    done = preline("-frd", name, "x", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (5, b"x:Subject: x\n")


def test_a_message_that_can_not_be_read_ends_the_command(tmp_path: pathlib.Path) -> None:
    """A descriptor that is open for writing only: the command must not take what it has for the whole message."""
    mark = tmp_path / "delivered"
    unreadable = os.open(tmp_path / "message", os.O_WRONLY | os.O_CREAT)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fastsmtp", "preline", "sh", "-c", f"cat > /dev/null; touch {mark}"],
            stdin=unreadable,
            capture_output=True,
            env=environment(**LINES),
            timeout=60,
            check=False,
        )
    finally:
        os.close(unreadable)
    assert done.returncode == 111
    assert b"can't be copied: Bad file descriptor" in done.stderr
    assert not mark.exists()


def test_the_command_inherits_no_ignored_signal_and_no_descriptor() -> None:
    done = preline(
        "-frd", sys.executable, "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
    )
    # The fourth is the folder that is being listed.
    assert done.stdout == b"[0, 1, 2, 3]\n"
    ignored = preline("-frd", "grep", "SigIgn", "/proc/self/status").stdout.split()[1]
    assert int(ignored, 16) & (1 << 12 | 1 << 24) == 0, "SIGPIPE or SIGXFSZ"


def test_called_as_preline_it_is_preline(tmp_path: pathlib.Path) -> None:
    (tmp_path / "preline").symlink_to(install(tmp_path))
    done = subprocess.run(
        [tmp_path / "preline", "-fr", "cat"],
        input=b"serve\n",
        capture_output=True,
        env=environment(**LINES),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{D}serve\n".encode())


def test_help_says_what_the_options_do() -> None:
    done = preline("--help", lines={})
    assert done.returncode == 0
    assert all(f"-{letter} ".encode() in done.stdout for letter in "frdFRDp")


def test_it_imports_next_to_nothing() -> None:
    """15 ms of CPU from start to end; Python alone takes 9.  typing, signal or re would each cost 4 and more."""
    code = (
        "import os, sys; before = set(sys.modules)\n"
        "from fastsmtp.cli import main; main(['preline', 'true'])\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(**LINES),
        timeout=60,
        check=True,
    )
    allowed = {"__future__", "errno", "fastsmtp", "fastsmtp.cli", "fastsmtp.cli.preline", "fastsmtp.errors"}
    assert set(eval(done.stdout)) - allowed <= {
        "importlib",
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "warnings",
    }
