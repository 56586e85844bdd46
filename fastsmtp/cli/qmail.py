"""fastsmtp qmail link|unlink BIN: fastsmtp in the place of programs of a qmail home, and out of it again.

A link by the program's name leads to the command fastsmtp, which then is that
program (cli.PROGRAMS).  What stood there is kept beside it.  At no moment is
there no program by that name: mail is being delivered meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence

from fastsmtp.cli import PROGRAMS
from fastsmtp.errors import ConfigError

USAGE = "usage: fastsmtp qmail link BIN\n       fastsmtp qmail unlink BIN"

COMMAND = "fastsmtp"
KEPT = ".qmail"  # behind the name of a program that gave way
FRESH = ".fastsmtp-new"  # behind the name of a link that is being made

Step = Callable[[], None]


def run(arguments: Sequence[str]) -> int:
    """0 when every name is as it should be; ConfigError, and nothing changed, when one can't be."""
    if list(arguments) in (["--help"], ["-h"]):
        print(f"{USAGE}\n\nBIN is a qmail home's bin, as /var/qmail/bin. Names: {', '.join(PROGRAMS)}.\n")
        print(
            "link    puts a link to fastsmtp by each name; what stood there is kept beside it, as NAME.qmail"
        )
        print("unlink  puts back what stood there")
        return 0
    if len(arguments) != 2 or arguments[0] not in ("link", "unlink"):
        print(USAGE, file=sys.stderr)
        return 2
    what, folder = arguments
    if not os.path.isdir(folder):
        raise ConfigError(f"{folder}: not a directory")
    folder = os.path.abspath(folder)
    if what == "link":
        _link(folder, _command())
    else:
        _unlink(folder)
    return 0


def _link(folder: str, command: str) -> None:
    steps: list[tuple[str, Step]] = []
    faults: list[str] = []
    for name in PROGRAMS:
        place = os.path.join(folder, name)
        kept = place + KEPT
        if _is_ours(place):
            if os.readlink(place) == command:
                steps.append((f"{place}: is a link to {command} already", _nothing))
            else:
                old = os.readlink(place)
                steps.append((f"{place}: a link to {command}, no longer to {old}", _linking(place, command)))
        elif not os.path.lexists(place):
            steps.append((f"{place}: a link to {command}", _linking(place, command)))
        elif os.path.isdir(place):
            faults.append(f"{place}: is a directory")
        elif os.path.lexists(kept):
            faults.append(f"{place}: can't be kept, {kept} is there already; remove one of them")
        else:
            steps.append((f"{place}: kept as {kept}", _keeping(place, kept)))
            steps.append((f"{place}: a link to {command}", _linking(place, command)))
    if faults:
        raise ConfigError(*faults)
    closed = _closed_to_others(command)
    if closed:
        print(
            f"warning: {closed}: not everybody may enter or run it; qmail runs these programs as the user",
            file=sys.stderr,
        )
    _carry_out(steps)


def _unlink(folder: str) -> None:
    steps: list[tuple[str, Step]] = []
    faults: list[str] = []
    for name in PROGRAMS:
        place = os.path.join(folder, name)
        kept = place + KEPT
        if not _is_ours(place):
            if os.path.lexists(place) and os.path.lexists(kept):
                faults.append(f"{place}: is no link of ours; {kept} stays")
            elif os.path.lexists(kept):
                steps.append((f"{place}: put back from {kept}", _putting_back(kept, place)))
            else:
                steps.append((f"{place}: is no link of ours", _nothing))
        elif os.path.lexists(kept):
            steps.append((f"{place}: put back from {kept}", _putting_back(kept, place)))
        else:
            steps.append((f"{place}: the link is removed, there was nothing before it", _removing(place)))
    if faults:
        raise ConfigError(*faults)
    _carry_out(steps)


def _carry_out(steps: list[tuple[str, Step]]) -> None:
    """Each step is told when it is done; ConfigError with the one that failed."""
    for text, step in steps:
        try:
            step()
        except OSError as error:
            raise ConfigError(f"{text.partition(':')[0]}: {error.strerror}") from error
        print(text)


def _is_ours(place: str) -> bool:
    """A link that this command has made, of this or of another installation."""
    return os.path.islink(place) and os.path.basename(os.readlink(place)) == COMMAND


def _linking(place: str, command: str) -> Step:
    def step() -> None:
        fresh = place + FRESH
        if os.path.lexists(fresh):
            # Of one that was interrupted.
            os.unlink(fresh)
        os.symlink(command, fresh)
        os.replace(fresh, place)

    return step


def _keeping(place: str, kept: str) -> Step:
    """A second name, not another one: the first goes on working until the link takes it."""
    return lambda: os.link(place, kept, follow_symlinks=False)


def _putting_back(kept: str, place: str) -> Step:
    return lambda: os.replace(kept, place)


def _removing(place: str) -> Step:
    return lambda: os.unlink(place)


def _nothing() -> None:
    return


def _command() -> str:
    """The installed command fastsmtp: the one that is running, else the one beside this Python, else on PATH."""
    for path in (sys.argv[0], os.path.join(os.path.dirname(sys.executable), COMMAND), shutil.which(COMMAND)):
        if path and os.path.basename(path) == COMMAND and os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.abspath(path)
    raise ConfigError("the installed command fastsmtp is not to be found: pip install makes it")


def _closed_to_others(command: str) -> str:
    """The first part of the path that not everybody may enter (of the file: read and run); "" for none."""
    path = os.path.realpath(command)
    if os.stat(path).st_mode & 0o005 != 0o005:
        return path
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return path
    return ""
