"""The flags that lie over the configuration, the same for every subcommand that reads one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastsmtp.config.dest import known_shapes
from fastsmtp.config.flags import Flags


class Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal.  argparse asks shutil, at every start, which costs 10 ms of imports."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
        except (OSError, ValueError):
            columns = 80
        super().__init__(prog, width=max(columns - 2, 40))


def make_parser(
    command: str, description: str, *, without: Collection[str] = (), words: Mapping[str, str] | None = None
) -> argparse.ArgumentParser:
    """A parser with the configuration's flags; the subcommand adds its own.

    without  flags that mean nothing to the subcommand
    words    what it says of a flag in place of the words below
    """
    parser = argparse.ArgumentParser(
        prog=f"fastsmtp {command}", description=description, allow_abbrev=False, formatter_class=Formatter
    )
    group = parser.add_argument_group("configuration (a flag wins over the file)")
    words = words or {}

    def add(flag: str, text: str, **options: Any) -> None:
        if flag not in without:
            group.add_argument(flag, help=words.get(flag, text), **options)

    again = {"action": "append", "default": []}
    add("--config", "else /etc/fastsmtp/fastsmtp.toml when it exists", metavar="FILE")
    add("--qmail", "a qmail home as the configuration, as /var/qmail", metavar="DIR")
    add("--tcprules", "rules of tcpserver, text or cdb", metavar="FILE")
    add("--listen", "may be given again; port 0: any free one", metavar="HOST:PORT", **again)
    add("--workers", "SMTP workers; 0: one per core", metavar="N")
    add("--hostname", "for greeting and Received", metavar="NAME")
    add("--accept", "take mail for this domain; may be given again", metavar="DOMAIN", **again)
    add("--deliver", f"where everything goes: {known_shapes()}", metavar="DEST")
    add("--no-queue", "hand over before the 250; the next hop's answer is the client's", action="store_true")
    add(
        "--state", "else $STATE_DIRECTORY, /var/lib/fastsmtp as root, $XDG_STATE_HOME/fastsmtp", metavar="DIR"
    )
    add("--dns", "a resolver", metavar="HOST[:PORT]", **again)
    add("--user", "the account that workers run as, when started as root", metavar="NAME")
    return parser


def parse_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[Flags, argparse.Namespace]:
    """Flags for load(), and the namespace with the subcommand's own; exits with 2 on a bad command line."""
    given = parser.parse_args(arguments)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()
    }
    return Flags(**{name: values[name] for name in Flags.__slots__ if name in values}), given
