"""From flags and files to what the server runs on: Loaded, or ConfigError with every fault at once.

Pure but for reading files (through Host), so that a reload can be tried without
any effect: what is wrong raises, and whoever asked goes on with what it has.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping

from fastsmtp.records import dataclass, field
from fastsmtp.typed import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fastsmtp.config.control import Home
    from fastsmtp.config.flags import Flags
    from fastsmtp.config.host import Host
    from fastsmtp.config.lists import Lists
    from fastsmtp.config.model import Config
    from fastsmtp.config.settings import Settings
    from fastsmtp.config.tree import Tree

DEFAULT_FILE: Final = "/etc/fastsmtp/fastsmtp.toml"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that holds.

    config         as written, defaults and the machine's own values filled in
    settings       one a listener, in the order of config.listen
    lists          the files that the lists name, as they were read
    provenance     "limits.recipients" -> "FILE:12", "--listen", "default" ...; an array's tables as listen[0]
    warnings       one line each; a trial has none
    watched_files  every file whose change matters: the configuration itself, lists, certificates, keys
    is_trial       no configuration at all: the trial's
    home           the qmail home, where there is one
    environment    variables of the process that count, as in a tcpserver rule; none without qmail home, rules
                   and compatible
    """

    config: Config
    settings: tuple[Settings, ...]
    lists: Lists
    provenance: Mapping[str, str]
    warnings: tuple[str, ...]
    watched_files: tuple[str, ...]
    is_trial: bool
    home: Home | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def load(
    flags: Flags | None = None,
    *,
    values: Mapping[str, Any] | None = None,
    host: Host | None = None,
    is_served: bool = True,
) -> Loaded:
    """Read, overlay, check, compile.  ConfigError holds all faults.

    flags   of the command line; --config names the file, else DEFAULT_FILE where it exists
    values  nested dicts in the file's place, for programs; then no file is read and nothing is a trial
    is_served  False for who only looks into a server's configuration, and need not be what the server is, nor may
               read its keys
    """
    from fastsmtp.config.check import check
    from fastsmtp.config.flags import Flags, overlay
    from fastsmtp.config.host import Host
    from fastsmtp.config.lists import Lists
    from fastsmtp.config.resolve import resolve, trial
    from fastsmtp.config.settings import compile_settings, list_paths
    from fastsmtp.config.toml import build, read_toml
    from fastsmtp.config.tree import dotted
    from fastsmtp.errors import ConfigError

    flags = flags or Flags()
    host = host or Host()
    file = None if values is not None else _file(flags, host)
    tree = read_toml(file, _read(file, host)) if file else _given(values)
    is_trial = file is None and values is None and flags.is_trial
    overlay(tree, flags, host.directory())
    home = _home(tree, host)
    built = build(tree)
    faults = [*(home.faults if home else ()), *built.faults]

    origins = dict(built.provenance)
    config, warnings = resolve(built.config, host, origins)
    if is_trial:
        config = trial(config, origins)

    files: dict[str, bytes] = {}
    for path in list_paths(config):
        try:
            files[path] = host.read(path)
        except OSError as error:
            files[path] = b""
            faults.append(_unread(tree, path, error.strerror))
    lists = Lists(files, frozenset(home.lists if home else ()))
    is_qmails = home is not None or bool(config.tcprules) or bool(config.compatible)
    environment, said = _environment(host) if is_qmails else ({}, [])
    warnings += said
    settings: tuple[Settings, ...] = ()
    try:
        settings = compile_settings(config, lists, environment, warnings)
    except ConfigError as error:
        faults.extend(error.faults)

    table = settings[0].accept if settings else None
    checked = check(config, built, tree, host, table, is_trial=is_trial, is_served=is_served)
    faults.extend(checked.faults)
    if home is not None:
        warnings += home.warnings
        warnings += home.unheard(table) if table is not None else []
    if faults:
        raise ConfigError(*sorted(dict.fromkeys(faults), key=functools.partial(_place, file)))
    return Loaded(
        config=config,
        settings=settings,
        lists=lists,
        provenance={dotted(path): origin for path, origin in origins.items()},
        # A trial is to be tried, not put right: its greeting and its limits matter to nobody.
        warnings=() if is_trial else (*warnings, *checked.warnings),
        watched_files=tuple(
            dict.fromkeys([*([file] if file else []), *files, *checked.files, *(home.files if home else ())])
        ),
        is_trial=is_trial,
        home=home,
        environment=environment,
    )


def state_of(flags: Flags, host: Host | None = None) -> str:
    """The state directory of the server that flags and file are for, whatever else is wrong with the file.

    ConfigError: there is no such file, it is no TOML, or its state is no path.
    """
    from fastsmtp.config.host import Host
    from fastsmtp.config.resolve import ROOTS_STATE, default_state
    from fastsmtp.config.toml import fault_line, read_toml, shown
    from fastsmtp.config.tree import Tree
    from fastsmtp.errors import ConfigError

    host = host or Host()
    file = _file(flags, host)
    tree = read_toml(file, _read(file, host)) if file else Tree()
    state = tree.values.get("state")
    if state is None:
        state, _ = default_state(host)
        # Asked by an account that isn't root about a server that root has started.
        return ROOTS_STATE if host.exists(ROOTS_STATE) and not host.exists(f"{state}/queue") else str(state)
    if not isinstance(state, str) or not state.startswith("/"):
        raise ConfigError(fault_line(tree, ("state",), f"path {shown(state)} must begin with /"))
    return state


def _home(tree: Tree, host: Host) -> Home | None:
    """The qmail home that tree names, laid under it."""
    path = tree.values.get("qmail")
    if not isinstance(path, str) or not path.startswith("/"):
        return None
    from fastsmtp.config.control import read_home

    home = read_home(path, host)
    home.lay_under(tree)
    return home


def _unread(tree: Tree, file: str, why: str | None) -> str:
    """A fault for a file that a list names and that can't be read, with the place that names it."""
    from fastsmtp.config.toml import fault_line

    place = tree.find(file)
    return fault_line(tree, place, f"{file}: {why}") if place else f"{file}: {why}"


def _environment(host: Host) -> tuple[dict[str, str], list[str]]:
    """The process's own variables that count for every client, and warnings."""
    from fastsmtp.config.environment import KNOWN
    from fastsmtp.config.tcprules import HARSH

    found = {name: host.environ[name] for name in KNOWN if name in host.environ}
    words = found.get("DENYMAIL", "").split(",")
    warnings = [f"$DENYMAIL: {word} {what}" for word, what in HARSH.items() if word in words]
    if found.pop("RELAYCLIENT", None) is not None:
        warnings.append("$RELAYCLIENT: would let everybody relay: ignored")
    return found, warnings


def _given(values: Mapping[str, Any] | None) -> Tree:
    from fastsmtp.config.tree import Tree

    if values is None:
        return Tree({})
    import copy

    return Tree(copy.deepcopy(dict(values)), is_program=True)


def _place(file: str | None, fault: str) -> int:
    """The fault's line in the configuration file, for sorting; what stands elsewhere comes behind."""
    line = fault.removeprefix(f"{file}:").partition(":")[0]
    return int(line) if line.isdigit() else sys.maxsize


def _file(flags: Flags, host: Host) -> str | None:
    if flags.config is not None:
        import os.path

        return os.path.join(host.directory(), flags.config)
    return DEFAULT_FILE if host.exists(DEFAULT_FILE) else None


def _read(file: str, host: Host) -> bytes:
    from fastsmtp.errors import ConfigError

    try:
        return host.read(file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
