"""The command line: one file a subcommand, each imported only when it is asked for.

A subcommand's module has `run(arguments) -> int`: what stands behind its name,
and the exit status.  0: done.  1: the configuration, or what was asked about,
is wrong.  2: the command line is.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

# typing costs 8 ms, as much as Python itself: too much for fastsmtp preline.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

COMMANDS: Final = {
    "serve": "take mail",
    "check": "say all that is wrong with the configuration",
    "config": "show the configuration in effect, and where each value comes from",
    "queue": "the mail that waits: list, show, flush, hold, release, delete, bounce",
    "cert": "make a key and a certificate",
    "smtpd": "one SMTP session on standard input and output, in qmail-smtpd's place",
    "remote": "one message to one host, in qmail-remote's place",
    "policy": "the checks for Postfix, by its policy delegation protocol",
    "preline": "qmail's preline: a message with its From, Return-Path and Delivered-To lines",
    "pop3d": "one POP3 session over a Maildir, in qmail-pop3d's place",
    "popup": "name and password of a POP3 client, in qmail-popup's place",
    "qmail": "put fastsmtp in the place of programs of a qmail home, and take it out again",
}

PROGRAMS: Final = {
    "preline": "preline",
    "qmail-smtpd": "smtpd",
    "qmail-remote": "remote",
    "qmail-pop3d": "pop3d",
    "qmail-popup": "popup",
}
"""Called by one of these names (a link of `fastsmtp qmail link`) we are that program of qmail: name -> subcommand."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; argv without the program's name, sys.argv's by default."""
    if argv is None:
        argv = sys.argv[1:]
        program = PROGRAMS.get(os.path.basename(sys.argv[0]))
        if program is not None:
            return _run(program, list(argv))
    arguments = list(argv)
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        return _run(name, arguments[1:])
    if name == "--version":
        from fastsmtp.cli.version import version

        print(f"fastsmtp {version()}")
        return 0
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name:
        print(f"fastsmtp: there is no command {name!r}{_meant(name)}", file=sys.stderr)
    else:
        print(usage(), file=sys.stderr)
    return 2


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  fastsmtp {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join([
        "usage: fastsmtp COMMAND ...",
        "",
        *lines,
        "",
        "fastsmtp COMMAND --help says more; fastsmtp --version.",
        "`fastsmtp serve` without a configuration is a trial on 127.0.0.1:2525.",
    ])  # fmt: skip


def _run(name: str, arguments: list[str]) -> int:
    from fastsmtp.errors import ConfigError

    try:
        status: int = import_module(f"fastsmtp.cli.{name}").run(arguments)
        if sys.stdout is not None:  # None: it was closed when we began
            sys.stdout.flush()
    except ConfigError as error:
        for fault in error.faults:
            print(f"fastsmtp: {fault}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough (`fastsmtp config | head`); what is left goes nowhere.
        _drop_stdout()
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # A full disk behind `fastsmtp queue list > file`, a directory that can't be written.
        _drop_stdout()
        what = f"{error.filename}: " if isinstance(error.filename, str) else ""
        print(f"fastsmtp: {what}{error.strerror or error}", file=sys.stderr)
        return 1
    return status


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit doesn't fail again."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def _meant(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 1)
    return f"; did you mean {near[0]!r}?" if near else f" ({', '.join(COMMANDS)})"
