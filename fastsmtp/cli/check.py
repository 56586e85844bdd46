"""fastsmtp check: all that is wrong with the configuration, at once, without touching the network."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastsmtp.cli.flags import make_parser, parse_flags
from fastsmtp.config import notbuilt
from fastsmtp.config.load import load
from fastsmtp.config.model import Config
from fastsmtp.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """0 when the server would start with it, 1 else; faults and warnings on stderr, a line each."""
    parser = make_parser(
        "check", "Say all that is wrong with the configuration. Offline; exit status 1 on any fault."
    )
    parser.add_argument(
        "--live", action="store_true", help="ask next hops and lists too (not built in this version)"
    )
    flags, given = parse_flags(parser, arguments)
    if given.live:
        raise ConfigError(f"--live: {notbuilt.MESSAGE}")
    try:
        loaded = load(flags)
        _certificates(loaded.config)
        warnings = [*loaded.warnings, *_account(loaded.config)]
    except ConfigError as error:
        count = len(error.faults)
        for fault in error.faults:
            print(fault, file=sys.stderr)
        print(f"{count} fault{'s'[: count > 1]}", file=sys.stderr)
        return 1
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print("no faults")
    return 0


def _certificates(config: Config) -> None:
    """Load each certificate with its key, as the server will.  Raises ConfigError with every fault."""
    tables = [config.tls, *(listen.tls_table for listen in config.listen if listen.tls_table is not None)]
    pairs = [(table.certificate, table.key) for table in tables if table.certificate]
    pairs += [(name.certificate, name.key) for table in tables for name in table.names]
    if not pairs:
        return
    from fastsmtp.tls import read_credentials

    faults: dict[str, None] = {}
    for certificate, key in dict.fromkeys(pairs):
        try:
            read_credentials(certificate, key)
        except ConfigError as error:
            faults.update(dict.fromkeys(error.faults))
    if faults:
        raise ConfigError(*faults)


def _account(config: Config) -> list[str]:
    """Look the account up, as the master will.  Returns a warning or none; raises ConfigError."""
    from fastsmtp.config.endpoint import parse_endpoint
    from fastsmtp.supervisor.privilege import account_for

    addresses = [parse_endpoint(text) for listen in config.listen for text in listen.address]
    _, warning = account_for(config.user, addresses)
    return [warning] if warning else []
