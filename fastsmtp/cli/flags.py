"""The flags that lie over the configuration, the same for every subcommand that reads one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fastsmtp.config.flags import Flags

DEST = "discard, print, maildir:PATH, smtp://HOST[:PORT], lmtp://HOST[:PORT], lmtp+unix:PATH or refuse"


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser with every configuration flag; the subcommand adds its own."""
    parser = argparse.ArgumentParser(
        prog=f"fastsmtp {command}", description=description, allow_abbrev=False, add_help=True
    )
    group = parser.add_argument_group("configuration (a flag wins over the file)")
    add = group.add_argument
    add("--config", metavar="FILE", help="else /etc/fastsmtp/fastsmtp.toml when it exists")
    add("--qmail", metavar="DIR", help="a qmail home (not built in this version)")
    add("--tcprules", metavar="FILE", help="tcprules, text or cdb (not built in this version)")
    add(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="may be given again; port 0: any free one",
    )
    add("--workers", metavar="N", help="SMTP workers; 0: one per core")
    add("--hostname", metavar="NAME", help="for greeting and Received")
    add(
        "--accept",
        metavar="DOMAIN",
        action="append",
        default=[],
        help="take mail for this domain; may be given again",
    )
    add("--deliver", metavar="DEST", help=f"where everything goes: {DEST}")
    add(
        "--no-queue",
        action="store_true",
        help="hand over before the 250; the next hop's answer is the client's",
    )
    add(
        "--state",
        metavar="DIR",
        help="else $STATE_DIRECTORY, /var/lib/fastsmtp as root, $XDG_STATE_HOME/fastsmtp",
    )
    add(
        "--dns",
        metavar="HOST[:PORT]",
        action="append",
        default=[],
        help="a resolver (not built in this version)",
    )
    add("--user", metavar="NAME", help="the account that workers run as, when started as root")
    return parser


def parse_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[Flags, argparse.Namespace]:
    """Flags for load(), and the namespace with the subcommand's own; exits with 2 on a bad command line."""
    given = parser.parse_args(arguments)
    flags = Flags(
        config=given.config,
        qmail=given.qmail,
        tcprules=given.tcprules,
        listen=tuple(given.listen),
        workers=given.workers,
        hostname=given.hostname,
        accept=tuple(given.accept),
        deliver=given.deliver,
        no_queue=given.no_queue,
        state=given.state,
        dns=tuple(given.dns),
        user=given.user,
    )
    return flags, given
