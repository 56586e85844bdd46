"""Fill in what only the machine knows: its name, its state directory, how many connections are possible."""

from __future__ import annotations

import os.path

from fastsmtp.config.host import Host
from fastsmtp.config.lines import Path
from fastsmtp.config.model import ANY_DOMAIN, Accept, Config, Limits
from fastsmtp.config.names import parse_host_name
from fastsmtp.records import replace
from fastsmtp.typed import Final

ROOTS_STATE: Final = "/var/lib/fastsmtp"
# Descriptors that a worker needs beside its connections: listeners, log, pipes, certificates.
_RESERVED_FILES = 64
# A connection's own socket, and a body file or a next hop's connection.
_FILES_PER_CONNECTION = 2


def resolve(config: Config, host: Host, origins: dict[Path, str]) -> tuple[Config, list[str]]:
    """The configuration with nothing left open, and warnings.  origins gets a word on what was filled in."""
    warnings: list[str] = []
    hostname = _hostname(config, host, origins)
    state = config.state
    if not state:
        state, origin = default_state(host)
        origins[("state",)] = origin
    postmaster = config.postmaster
    if not postmaster:
        postmaster = f"postmaster@{hostname}"
    listeners = tuple(
        listen if listen.name else replace(listen, name=f"listen{number}")
        for number, listen in enumerate(config.listen, 1)
    )
    workers = config.workers or host.cores()
    allowed = max((host.open_files() - _RESERVED_FILES) // _FILES_PER_CONNECTION, 1) * workers
    if config.limits.connections > allowed:
        origins[("limits", "connections")] = "lowered to what open files allow"
        warnings.append(
            f"limits.connections: lowered from {config.limits.connections} to {allowed}, which is what "
            f"{host.open_files()} open files allow {workers} worker{'s'[: workers > 1]}"
        )
    resolved = replace(
        config,
        hostname=hostname,
        state=state,
        postmaster=postmaster,
        listen=tuple(
            replace(listen, limits=_lowered(listen.limits, allowed)) if listen.limits else listen
            for listen in listeners
        ),
        limits=_lowered(config.limits, allowed),
    )
    return resolved, warnings


def trial(config: Config, origins: dict[Path, str]) -> Config:
    """`serve` without any configuration: every recipient taken, all mail kept in a Maildir under state."""
    place = f"maildir:{os.path.join(config.state, 'maildir')}"
    for name in ("domain", "deliver"):
        origins["accept", 0, name] = "trial"
    return replace(config, accept=(Accept(domain=(ANY_DOMAIN,), deliver=place),))


def default_state(host: Host) -> tuple[str, str]:
    """The state directory and where that comes from (docs/architecture.md section 6)."""
    given = host.environ.get("STATE_DIRECTORY", "")
    if given:
        # systemd gives several separated by colons; the first is ours.
        return given.partition(":")[0], "$STATE_DIRECTORY"
    if host.is_root():
        return ROOTS_STATE, "default"
    home = host.environ.get("XDG_STATE_HOME", "")
    if home.startswith("/"):
        return os.path.join(home, "fastsmtp"), "$XDG_STATE_HOME"
    return os.path.join(host.environ.get("HOME", "/"), ".local/state/fastsmtp"), "default"


def _hostname(config: Config, host: Host, origins: dict[Path, str]) -> str:
    if config.hostname:
        return parse_host_name(config.hostname)
    origins[("hostname",)] = "the system's name"
    try:
        return parse_host_name(host.name())
    except ValueError:
        # The system's name can be anything; a greeting can't.
        return "localhost"


def _lowered(limits: Limits, connections: int) -> Limits:
    return limits if limits.connections <= connections else replace(limits, connections=connections)
