"""fastsmtp cert: make an ECDSA P-256 key and a self-signed certificate, or a request for an authority."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastsmtp.errors import ConfigError

DEFAULT_CONFIG = Path("/etc/fastsmtp/fastsmtp.toml")
DAYS = 365  # as cautious as the public authorities, who went below 398 in 2020
DAYS_MAX = 36_500


# The accounts of a qmail home; qmail-smtpd runs as the first, and its certificate is theirs (make cert of tls.patch).
QMAIL_USER = "qmaild"
QMAIL_GROUP = "qmail"


class _Place(NamedTuple):
    """Where the files go.

    certificate  the certificate, or where the authority's answer is to go
    key          the key; None: it stands in the certificate's file, before it
    pem          what is made: the certificate, or the request
    """

    certificate: Path
    key: Path | None
    pem: Path


def run(arguments: Sequence[str]) -> int:
    """0 when the files were written; ConfigError, and nothing overwritten, else."""
    given = _parser().parse_args(arguments)
    place = _qmail_place(given) if given.qmail is not None else _own_place(given)
    if not given.force:
        written = [place.pem, *([place.key] if place.key is not None else [])]
        faults = [f"{file} exists; --force overwrites it" for file in written if _exists(file)]
        if faults:
            raise ConfigError(*faults)
    names = given.name or [_qmail_name(given.qmail) or _hostname(given.config)]

    # After the cheap faults: it imports ssl.
    from fastsmtp.certificate import make_certificate, make_request, subject_names

    names = subject_names(names)
    made = make_request(names) if given.request else make_certificate(names, days=given.days)
    told = f"for {', '.join(names)}"
    what = (
        f"a request {told}"
        if given.request
        else f"a self-signed certificate {told}, valid for {given.days} days"
    )
    (_write_qmail if given.qmail is not None else _write_own)(given, place, *made, what)
    return 0


def _own_place(given: argparse.Namespace) -> _Place:
    out = Path(given.out or ".").absolute()
    certificate = out / "cert.pem"
    return _Place(certificate, out / "key.pem", out / "request.pem" if given.request else certificate)


def _write_own(given: argparse.Namespace, place: _Place, pem: bytes, key: bytes, what: str) -> None:
    from fastsmtp.certificate import write_file

    key_path = place.pem.with_name("key.pem")
    # The key first: a server that watches both finds a pair that doesn't fit for a moment, and keeps the old one.
    write_file(key_path, key, mode=0o600)
    write_file(place.pem, pem, mode=0o644)
    if given.request:
        print(f"{place.pem}: {what}; the authority's answer, with its chain, goes to {place.certificate}")
    else:
        print(f"{place.pem}: {what}")
    print(f"{key_path}: its key, ECDSA P-256, to be read by its owner only")
    print(
        f'\nIn the configuration:\n\n[tls]\ncertificate = "{place.certificate}"\nkey         = "{key_path}"'
    )


# --- a qmail home ---------------------------------------------------------------------------------


def _qmail_place(given: argparse.Namespace) -> _Place:
    control = Path(given.qmail).absolute() / "control"
    if not control.is_dir():
        raise ConfigError(f"there is no directory {control}: {given.qmail} is no qmail home")
    certificate = control / "servercert.pem"
    if given.request:
        # Not into servercert.pem, as the patch does it: that one may be in use until the answer comes.
        return _Place(certificate, control / "req.key", control / "req.pem")
    return _Place(certificate, None, certificate)


def _write_qmail(given: argparse.Namespace, place: _Place, pem: bytes, key: bytes, what: str) -> None:
    from fastsmtp.certificate import write_file

    owner = _qmail_owner()
    if place.key is not None:
        write_file(place.key, key, mode=0o640, owner=owner)
        write_file(place.pem, pem, mode=0o644)
        print(f"{place.pem}: {what}")
        print(f"{place.key}: its key, ECDSA P-256")
        print(
            f"\nWhen the authority has answered with signed.pem, and its chain:\n\n"
            f"cat {place.key} signed.pem > {place.certificate}.new\n"
            f"chmod 640 {place.certificate}.new && chown {QMAIL_USER}:{QMAIL_GROUP} {place.certificate}.new\n"
            f"mv {place.certificate}.new {place.certificate}"
        )
        return
    write_file(place.pem, key + pem, mode=0o640, owner=owner)
    print(f"{place.pem}: {what}, and its key, ECDSA P-256")
    if owner is None:
        print(f"It belongs to whoever has called this: {_who(os.geteuid())}, not {QMAIL_USER}:{QMAIL_GROUP}.")
    link = place.pem.with_name("clientcert.pem")
    if given.force and link.is_symlink():
        link.unlink()
    if _exists(link):
        print(f"{link}: is there, and left as it is")
    else:
        try:
            link.symlink_to(place.pem.name)
        except OSError as error:
            raise ConfigError(f"can't make {link}: {error.strerror}") from error
        print(f"{link}: a link to it, for qmail-remote")


def _qmail_owner() -> tuple[int, int] | None:
    """(uid, gid) of qmaild and qmail, where they exist and we may give files away; else None."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(QMAIL_USER).pw_uid, grp.getgrnam(QMAIL_GROUP).gr_gid
    except KeyError:
        return None


def _who(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _qmail_name(home: str | None) -> str:
    """control/me, which is the name that qmail-smtpd greets with; "" when there is none."""
    if home is None:
        return ""
    try:
        text = (Path(home) / "control" / "me").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    return text.partition("\n")[0].strip()


def _exists(file: Path) -> bool:
    """Also a link that leads nowhere."""
    return file.exists() or file.is_symlink()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsmtp cert",
        description="Make an ECDSA P-256 key (key.pem) and a self-signed certificate (cert.pem).",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help=f"where to look for hostname; else {DEFAULT_CONFIG} when it exists")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", help="where the files go; the current directory by default")
    where.add_argument(
        "--qmail",
        metavar="DIR",
        help="into a qmail home, as the make cert of tls.patch: control/servercert.pem and its link clientcert.pem",
    )
    add(
        "--name",
        metavar="NAME",
        action="append",
        help="host name, *.NAME or IP address; may be given again; hostname by default, control/me with --qmail",
    )
    add("--days", metavar="N", type=_days, default=DAYS, help=f"how long it is valid, {DAYS} by default")
    add(
        "--request",
        action="store_true",
        help="a request for an authority to sign (request.pem; with --qmail control/req.pem) instead",
    )
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
