"""fastsmtp serve: take mail, until told to stop."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from fastsmtp.cli.flags import make_parser, parse_flags
from fastsmtp.cli.version import version

if TYPE_CHECKING:
    from fastsmtp.config.load import Loaded

EX_OSERR = 71
"""The workers could not start, or the system failed us; sysexits.h.  1: the configuration is wrong."""


def run(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; ConfigError when the configuration has faults."""
    open_standard_streams()
    parser = make_parser("serve", "Take mail. Without a configuration: a trial on 127.0.0.1:2525.")
    flags, _ = parse_flags(parser, arguments)

    from fastsmtp.config.load import load
    from fastsmtp.supervisor.generation import StartFailed
    from fastsmtp.supervisor.master import Master
    from fastsmtp.supervisor.plan import ServerPlan
    from fastsmtp.supervisor.queue import Hall
    from fastsmtp.supervisor.shapes import Plan

    loaded = load(flags)
    for note in notes(loaded):
        say(f"fastsmtp: {note}", 2)

    def on_ready(plan: Plan, addresses: list[list[tuple[str, int]]]) -> None:
        say(ready_line(loaded, plan.workers, addresses), 1)

    try:
        running = version()
        hall = Hall(running)
        return Master(
            ServerPlan(loaded, hall),
            lambda: ServerPlan(load(flags), hall),
            on_ready=on_ready,
            version=running,
        ).run()
    except StartFailed as error:
        print(f"fastsmtp: {error}", file=sys.stderr)
        return EX_OSERR


def open_standard_streams() -> None:
    """Give 0, 1 and 2 that were closed (`2>&-`) /dev/null: else the next file or socket would be one of them."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - as long as the process


def say(line: str, fd: int) -> None:
    """A line to the terminal; that nobody takes it (a full disk, a reader that has gone) stops no mail."""
    with suppress(OSError):
        os.write(fd, f"{line}\n".encode())


def notes(loaded: Loaded) -> list[str]:
    """What the operator should know before the server is ready."""
    return [f"warning: {warning}" for warning in loaded.warnings]


def ready_line(loaded: Loaded, workers: int, addresses: Sequence[Sequence[tuple[str, int]]]) -> str:
    """One line; for the trial another, with the first mail."""
    from fastsmtp.supervisor.sockets import show

    where = ", ".join(show(*address) for listener in addresses for address in listener)
    line = f"fastsmtp {version()} ready: {where} ({workers} worker{'s'[: workers != 1]})"
    if not loaded.is_trial:
        return line
    maildir = loaded.config.accept[0].deliver.removeprefix("maildir:")
    url = show(*addresses[0][0])
    return (
        f"{line}; mail is kept in {maildir}\n"
        f"the first mail: curl --crlf --url smtp://{url} --mail-from a@example.org --mail-rcpt b@example.org "
        "--upload-file message.txt"
    )
