"""fastsmtp preline: qmail's preline, which gives a program of a .qmail file the lines that qmail-local keeps.

qmail-local runs it with the message on descriptor 0 and the lines in the
environment: UFLINE ("From " line), RPLINE (Return-Path), DTLINE (Delivered-To).
It writes them and the message to the standard input of COMMAND.

It runs once for each delivery, so it imports nothing that Python hasn't loaded already.
Rank 10.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself makes enumerations of it, for 4 ms
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "usage: preline [-prdfRDF] COMMAND [ARGUMENT...]"

# What qmail-local makes of a program's exit status (man 8 qmail-command): 100 bounces the mail, 111 tries it again.
PERMANENT = 100
TEMPORARY = 111

LINES = {"f": b"UFLINE", "r": b"RPLINE", "d": b"DTLINE"}  # in the order in which they are written

COPY_BYTES = 65_536

# Why a program that is there may still start later; all else that stops it is for good.
_PASSING = frozenset({
    errno.EAGAIN, errno.EBUSY, errno.EDEADLK, errno.EDQUOT, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENOLCK, errno.ENOMEM, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT, errno.ETXTBSY,
})  # fmt: skip


class _Failed(Exception):
    """What is told on stderr, and the exit status that goes with it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def run(arguments: Sequence[str]) -> int:
    """The command's own exit status; 111 when it was killed or the copy failed, 100 when we were called wrongly."""
    if list(arguments) == ["--help"]:
        print(_help())
        return 0
    try:
        return _preline(list(arguments))
    except _Failed as failed:
        print(f"preline: {failed}", file=sys.stderr)
        return failed.status


def _preline(arguments: list[str]) -> int:
    lines = {letter: os.environb.get(name) for letter, name in LINES.items()}
    missing = [LINES[letter].decode() for letter, line in lines.items() if line is None]
    if missing:
        raise _Failed(PERMANENT, f"{USAGE}; not in the environment: {' '.join(missing)}")
    wanted, ignores_epipe, command = _options(arguments)
    head = b"".join(line for letter, line in lines.items() if letter in wanted and line is not None)

    try:
        end_for_command, end_for_us = os.pipe()
    except OSError as error:
        raise _Failed(TEMPORARY, f"no pipe: {error.strerror}") from error
    child = _start(command, end_for_command)
    os.close(end_for_command)
    try:
        _copy(head, end_for_us, ignores_epipe=ignores_epipe)
    except BrokenPipeError as error:
        # As the original: without -p a command that stops reading is run again, however it ends.
        raise _Failed(TEMPORARY, f"{command[0]} has stopped reading (-p ignores that)") from error
    except OSError as error:
        # At the end of its input the command would take the part that it got for the whole message.
        os.kill(child, _signal.SIGKILL)
        raise _Failed(TEMPORARY, f"the message can't be copied: {error.strerror}") from error
    os.close(end_for_us)
    return _wait(child, command[0])


def _options(arguments: list[str]) -> tuple[set[str], bool, list[str]]:
    """(letters of the lines to write, -p, the command with its arguments).

    Options end where the command begins, or behind "--": what stands there belongs to the command.
    """
    wanted = set(LINES)
    ignores_epipe = False
    at = 0
    while at < len(arguments) and arguments[at].startswith("-") and arguments[at] != "-":
        letters = arguments[at][1:]
        at += 1
        if letters == "-":
            break
        for letter in letters:
            if letter == "p":
                ignores_epipe = True
            elif letter in LINES:
                wanted.discard(letter)
            elif letter.lower() in LINES:
                wanted.add(letter.lower())
            else:
                raise _Failed(PERMANENT, f"there is no option -{letter}; {USAGE}")
    if at == len(arguments):
        raise _Failed(PERMANENT, USAGE)
    return wanted, ignores_epipe, arguments[at:]


def _start(command: list[str], read_end: int) -> int:
    """Start the command with read_end as its standard input; returns its process id."""
    try:
        return _spawn(command[0], command, read_end)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            # A script without a #! line: execvp of the C library gives it to the shell.
            return _spawn("/bin/sh", ["sh", _find(command[0]), *command[1:]], read_end)
        status = TEMPORARY if error.errno in _PASSING else PERMANENT
        raise _Failed(status, f"{command[0]} can't be run: {error.strerror}") from error


def _spawn(path: str, arguments: list[str], read_end: int) -> int:
    # Python ignores two signals that the command must not inherit as ignored.
    return os.posix_spawnp(
        path,
        arguments,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0)],
        setsigdef=[_signal.SIGPIPE, _signal.SIGXFSZ],
    )


def _find(name: str) -> str:
    """Where the command stands that the search along PATH has found."""
    if "/" in name:
        return name
    paths = (os.path.join(folder, name) for folder in os.get_exec_path())
    return next((path for path in paths if os.access(path, os.X_OK)), name)


def _copy(head: bytes, write_end: int, *, ignores_epipe: bool) -> None:
    """Write head and then all of descriptor 0.  OSError; BrokenPipeError only when it is to be told.

    The last piece is written without a look at EPIPE, as the original does with its last 8 KiB: what
    the command would have found in the pipe when it ended is no reason to run it again.
    """
    pending = head
    try:
        while chunk := os.read(0, COPY_BYTES):
            if len(pending) + len(chunk) <= COPY_BYTES:
                pending += chunk
            else:
                _write(write_end, pending)
                pending = chunk
    except BrokenPipeError:
        if ignores_epipe:
            return
        raise
    try:
        _write(write_end, pending)
    except BrokenPipeError:
        return


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _wait(child: int, name: str) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        raise _Failed(TEMPORARY, f"{name} was killed by signal {-status}")
    return status


def _help() -> str:
    return "\n".join([
        USAGE,
        "",
        "Write the message on standard input to COMMAND, behind the lines that qmail-local keeps in the environment.",
        "",
        "  -f  without UFLINE, the From line           -F  with it",
        "  -r  without RPLINE, Return-Path             -R  with it",
        "  -d  without DTLINE, Delivered-To            -D  with it",
        "  -p  a COMMAND that stops reading has seen enough: its own exit status counts",
        "",
        "Exit status: COMMAND's; 100 when called wrongly or COMMAND can't be run; 111 for what may work later.",
    ])  # fmt: skip
