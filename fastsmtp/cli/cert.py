"""fastsmtp cert: make an ECDSA P-256 key and a self-signed certificate, or a request for an authority."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path

from fastsmtp.errors import ConfigError

DEFAULT_CONFIG = Path("/etc/fastsmtp/fastsmtp.toml")
DAYS = 365  # as cautious as the public authorities, who went below 398 in 2020
DAYS_MAX = 36_500


def run(arguments: Sequence[str]) -> int:
    """0 when the files were written; ConfigError, and nothing overwritten, else."""
    parser = _parser()
    given = parser.parse_args(arguments)
    out = Path(given.out).absolute()
    key_path = out / "key.pem"
    path = out / ("request.pem" if given.request else "cert.pem")
    if not given.force:
        faults = [f"{file} exists; --force overwrites it" for file in (path, key_path) if file.exists()]
        if faults:
            raise ConfigError(*faults)
    names = given.name or [_hostname(given.config)]

    # After the cheap faults: it imports ssl.
    from fastsmtp.certificate import make_certificate, make_request, subject_names, write_file

    names = subject_names(names)
    pem, key = make_request(names) if given.request else make_certificate(names, days=given.days)
    # The key first: a server that watches both finds a pair that doesn't fit for a moment, and keeps the old one.
    write_file(key_path, key, mode=0o600)
    write_file(path, pem, mode=0o644)
    told = f"for {', '.join(names)}"
    certificate = out / "cert.pem"
    if given.request:
        print(f"{path}: a request {told}; the authority's answer, with its chain, goes to {certificate}")
    else:
        print(f"{path}: a self-signed certificate {told}, valid for {given.days} days")
    print(f"{key_path}: its key, ECDSA P-256, to be read by its owner only")
    print(f'\nIn the configuration:\n\n[tls]\ncertificate = "{certificate}"\nkey         = "{key_path}"')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsmtp cert",
        description="Make an ECDSA P-256 key (key.pem) and a self-signed certificate (cert.pem).",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help=f"where to look for hostname; else {DEFAULT_CONFIG} when it exists")
    add("--out", metavar="DIR", default=".", help="where the files go; the current directory by default")
    add(
        "--name",
        metavar="NAME",
        action="append",
        help="host name, *.NAME or IP address; may be given again; hostname by default",
    )
    add("--days", metavar="N", type=_days, default=DAYS, help=f"how long it is valid, {DAYS} by default")
    add("--request", action="store_true", help="a request for an authority to sign (request.pem) instead")
    add("--force", action="store_true", help="overwrite what is there")
    return parser


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= DAYS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {DAYS_MAX}")
    return days


def _hostname(config: str | None) -> str:
    """hostname of the configuration, else the system's name.

    Nothing else of the configuration is looked at: it may well name the files that are to be made now.
    """
    file = Path(config) if config is not None else DEFAULT_CONFIG
    if config is not None or file.exists():
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: can't be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{file}: {error}") from error
        if isinstance(values.get("hostname"), str):
            return str(values["hostname"])
    from fastsmtp.config.host import Host

    return Host().name()
