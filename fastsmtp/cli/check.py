"""fastsmtp check: all that is wrong with the configuration, at once; the network is touched with --live only."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastsmtp.cli.flags import make_parser, parse_flags
from fastsmtp.config.load import load
from fastsmtp.config.model import Config
from fastsmtp.errors import ConfigError

if TYPE_CHECKING:
    from fastsmtp.config.load import Loaded


def run(arguments: Sequence[str]) -> int:
    """0 when the server would start with it, 1 else; faults and warnings on stderr, a line each."""
    parser = make_parser(
        "check", "Say all that is wrong with the configuration. Offline; exit status 1 on any fault."
    )
    parser.add_argument(
        "--live", action="store_true", help="ask the DNS lists and p0f, look at sources and next hops, too"
    )
    flags, given = parse_flags(parser, arguments)
    try:
        loaded = load(flags)
        concerns = [*_certificates(loaded), *_authorities(loaded)]
        _signers(loaded.config)
        _own_stages(loaded)
        warnings = [*loaded.warnings, *concerns, *_accounts(loaded)]
    except ConfigError as error:
        count = len(error.faults)
        for fault in error.faults:
            print(fault, file=sys.stderr)
        print(f"{count} fault{'s'[: count > 1]}", file=sys.stderr)
        return 1
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if given.live:
        from fastsmtp.cli.live import ask_all

        if not ask_all(loaded):
            return 1
    print("no faults")
    return 0


def _own_stages(loaded: Loaded) -> None:
    """Import each [[policy.python]] stage.  Raises ConfigError with every fault."""
    policies = [one.policy for one in loaded.settings]
    if any(policy.python for policy in policies):
        from fastsmtp.policy.own import load_stages, places_of

        load_stages(policies, places=places_of(loaded.config, loaded.provenance))


def _certificates(loaded: Loaded) -> list[str]:
    """Load each certificate with its key, as the server will.  Warnings; raises ConfigError with every fault."""
    config = loaded.config
    tables = [("tls", config.tls)]
    tables += [
        (f"listen[{index}].tls", listen.tls_table)
        for index, listen in enumerate(config.listen)
        if listen.tls_table is not None
    ]
    pairs: dict[tuple[str, str], str] = {}
    for place, table in tables:
        if table.certificate:
            pairs.setdefault((table.certificate, table.key), f"{place}.certificate")
        for name in table.names:
            pairs.setdefault((name.certificate, name.key), f"{place}.names.{name.name}.certificate")
    if config.remote.certificate:
        pairs.setdefault((config.remote.certificate, config.remote.key), "remote.certificate")
    if not pairs:
        return []
    from fastsmtp.certificate import end_concern, key_concern
    from fastsmtp.tls import read_credentials

    faults: dict[str, None] = {}
    warnings = []
    for (certificate, key), path in pairs.items():
        origin = loaded.provenance.get(path, "")
        place = f"{origin}: {path}: " if origin else f"{path}: "
        try:
            chain = read_credentials(certificate, key).certificate
            concerns = (key_concern(chain), end_concern(chain, time.time()))
        except ConfigError as error:
            faults.update((f"{place}{fault}", None) for fault in error.faults)
        else:
            warnings += [f"{place}{certificate}: {concern}" for concern in concerns if concern]
    if faults:
        raise ConfigError(*faults)
    return warnings


def _signers(config: Config) -> None:
    """Load what routes are verified against.  Raises ConfigError with every fault."""
    routes = [route for route in config.route if route.tls == "verified"]
    if not routes:
        return
    from fastsmtp.delivery.starttls import OutgoingTls, TlsRule
    from fastsmtp.records import replace

    tls = OutgoingTls(replace(config.remote, certificate="", key=""))
    faults: dict[str, None] = {}
    for route in routes:
        try:
            tls.context(TlsRule(route.tls, route.ca))
        except ConfigError as error:
            faults.update(dict.fromkeys(error.faults))
    if faults:
        raise ConfigError(*faults)


def _authorities(loaded: Loaded) -> list[str]:
    """Read the authorities of client certificates, as the server will.  Warnings; raises ConfigError."""
    config = loaded.config
    tables = [("tls", config.tls)]
    tables += [
        (f"listen[{index}].tls", listen.tls_table)
        for index, listen in enumerate(config.listen)
        if listen.tls_table is not None
    ]
    faults: dict[str, None] = {}
    warnings: dict[str, None] = {}
    seen: set[tuple[str, str]] = set()
    for place, table in tables:
        files = (table.client_ca, table.client_crl)
        if not table.client_ca or files in seen:
            continue
        seen.add(files)
        from fastsmtp.authorities import concerns, read_authorities

        said = {
            path: f"{loaded.provenance.get(f'{place}.{key}', '')}: {place}.{key}: ".removeprefix(": ")
            for key, path in (("client_ca", files[0]), ("client_crl", files[1]))
        }
        try:
            authorities = read_authorities(*files)
        except ConfigError as error:
            faults.update((f"{said.get(fault.partition(':')[0], '')}{fault}", None) for fault in error.faults)
            continue
        warnings.update(
            (f"{said[file]}{file}: {clause}", None) for file, clause in concerns(authorities, time.time())
        )
    if faults:
        raise ConfigError(*faults)
    return list(warnings)


def _accounts(loaded: Loaded) -> list[str]:
    """Look the accounts up, as the master will.  Returns warnings; raises ConfigError."""
    from fastsmtp.config.endpoint import parse_endpoint
    from fastsmtp.supervisor.privilege import account_for
    from fastsmtp.supervisor.queue import has_mail, uses_queue

    config = loaded.config
    addresses = [parse_endpoint(text) for listen in config.listen for text in listen.address]
    users = {config.user: None}
    if uses_queue(loaded) or has_mail(config.state):
        users[config.queue_user] = None
    faults: list[str] = []
    warnings: list[str] = []
    for user in users:
        try:
            _, warning = account_for(user, addresses)
        except ConfigError as error:
            faults += error.faults
        else:
            warnings += [warning] if warning else []
    if faults:
        raise ConfigError(*faults)
    return warnings
