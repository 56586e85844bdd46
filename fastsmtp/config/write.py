"""The configuration in words: the example, the reference page, and the configuration in effect.

All made from model.py, so that a default stands nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from fastsmtp.config.dest import known_shapes
from fastsmtp.config.lines import Path
from fastsmtp.config.lists import entries
from fastsmtp.config.model import (
    Accept,
    Config,
    Deliver,
    Dns,
    Limits,
    Listen,
    Log,
    Metrics,
    Queue,
    Relay,
    ServerName,
    Tls,
)
from fastsmtp.config.outgoing import Remote, Route, Source, Weight
from fastsmtp.config.rules import (
    Clients,
    Dnsbl,
    Dnswl,
    HeloRule,
    Mfcheck,
    P0f,
    P0fMatch,
    Policy,
    PythonStage,
    RequireTls,
    ReverseDns,
    Rhsbl,
    SignatureRule,
    Tarpit,
)
from fastsmtp.config.tree import dotted

if TYPE_CHECKING:
    from fastsmtp.config.load import Loaded

# Header, record, and whether the header can stand uncommented: a table with a required key can't.
SECTIONS: Final[tuple[tuple[str, type, bool], ...]] = (
    ("", Config, True),
    ("[[listen]]", Listen, True),
    ("[tls]", Tls, True),
    ('[tls.names."mx2.example.org"]', ServerName, False),
    ("[limits]", Limits, True),
    ("[relay]", Relay, True),
    ("[[accept]]", Accept, False),
    ("[deliver]", Deliver, True),
    ("[remote]", Remote, True),
    ("[[source]]", Source, False),
    ("[[route]]", Route, False),
    ("[queue]", Queue, True),
    ("[dns]", Dns, True),
    ("[policy]", Policy, True),
    ("[policy.clients]", Clients, True),
    ("[[policy.dnsbl]]", Dnsbl, False),
    ("[[policy.dnswl]]", Dnswl, False),
    ("[[policy.rhsbl]]", Rhsbl, False),
    ("[policy.mfcheck]", Mfcheck, True),
    ("[policy.helo]", HeloRule, True),
    ("[policy.reverse_dns]", ReverseDns, True),
    ("[policy.tarpit]", Tarpit, True),
    ("[[policy.require_tls]]", RequireTls, False),
    ("[policy.p0f]", P0f, True),
    ("[[policy.p0f.match]]", P0fMatch, False),
    ("[policy.signatures]", SignatureRule, True),
    ("[[policy.python]]", PythonStage, False),
    ("[log]", Log, True),
    ("[metrics]", Metrics, True),
)

_LINE: Final = 118  # columns of the example

_PREFACE: Final = """\
# fastsmtp: every key of the configuration, as /etc/fastsmtp/fastsmtp.toml or --config FILE.
# A commented key shows its default; where its comment begins with "default:", the value is an example.
# An empty file is a valid configuration.  Where a list is asked for, an entry that begins with "/" is a file
# with one entry a line (# comments), re-read when it changes.
# Who wins: a flag of the command line, then this file, then a qmail home, then the default.  `fastsmtp config`
# says which.
"""

_INTRODUCTION: Final = """\
# Configuration

This page is made from `fastsmtp/config/model.py` by `python -m fastsmtp config --markdown`; a test compares.

A configuration is a TOML file: `--config FILE`, else `/etc/fastsmtp/fastsmtp.toml` when it exists. An empty
file is valid. `fastsmtp config --example` prints one with every key, `fastsmtp check` says all that is wrong
with yours, each with file and line, and `fastsmtp config` shows what is in effect and where each value comes
from.

- Who wins: a flag of the command line, then the file, then a qmail home (`qmail`, [qmail.md](qmail.md)), then the
  default.
- Where a list is asked for, an entry that begins with "/" is a file with one entry a line (`#` comments),
  re-read when it changes; a single text is a list of one.
- A key that the design names and this version doesn't have yet is a fault, never ignored.
- `serve` without a file, `--accept` and `--deliver` is a trial: 127.0.0.1:2525, every recipient accepted, all
  mail kept in a Maildir under the state directory, nothing leaves the machine.
- A destination (`deliver`) is one of:
  @DESTS@.
  A Maildir's path may hold `{domain}` and `{local}`. `--deliver` is where everything goes, accepted and
  relayed mail alike.
- `[listen.limits]`, `[listen.policy]` and `[listen.tls]` under a `[[listen]]` hold for that listener only;
  what they don't say is as in the global table. Where a listener has a `[listen.tls]`, the word that `tls`
  has otherwise is its `mode`.
- A file of recipients has one address a line. Addresses are compared without regard to case, and a domain's
  `postmaster` is always accepted (RFC 5321 section 4.5.1).
"""


def toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}"
    if isinstance(value, float):
        return f"{value:_}"
    if isinstance(value, tuple) and value and isinstance(value[0], Weight):
        return f"{{ {', '.join(f'{_key(name)} = {weight}' for name, weight in value)} }}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml, value))}]"
    # JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    """A key as TOML writes it: bare where it may be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def keys(record: type) -> list[dataclasses.Field[Any]]:
    """The plain keys of a record of the model: neither tables nor the name that a table's header gives."""
    return [field for field in dataclasses.fields(record) if is_key(record, field)]


def is_key(record: type, field: dataclasses.Field[Any]) -> bool:
    return "doc" in field.metadata and not (record is ServerName and field.name == "name")


def has_default(field: dataclasses.Field[Any]) -> bool:
    """True when the default is a value, not words and not required."""
    return field.default is not dataclasses.MISSING and not field.metadata["shown"]


def comment(field: dataclasses.Field[Any]) -> str:
    """What stands behind a key: the default in words, the choices, the meaning."""
    about = field.metadata
    parts = [f"default: {about['shown']}"] if about["shown"] else []
    if field.default is dataclasses.MISSING:
        parts.append("required")
    if about["choices"]:
        parts.append(" | ".join(about["choices"]))
    return "; ".join([*parts, about["doc"]])


def example() -> str:
    """Every key with its default, commented: a file that loads, and changes nothing."""
    lines = [_PREFACE]
    for title, record, stands in SECTIONS:
        if title:
            lines += ["", f"{'' if stands else '# '}{title}    # {summary(record)}"]
        rows = [(field, _shown(field)) for field in keys(record)]
        width = max(len(field.name) for field, _ in rows)
        pairs = [f"# {field.name:{width}} = {value}" for field, value in rows]
        column = max(map(len, pairs))
        for pair, (field, _) in zip(pairs, rows, strict=True):
            lines += _commented(pair, column, comment(field))
        if record is Listen:
            lines.append(
                "# [listen.limits], [listen.policy], [listen.tls]: for this listener only, laid over the"
            )
            lines.append("# global tables; with a [listen.tls], the word of tls is its mode")
    return "\n".join(lines) + "\n"


def _commented(pair: str, column: int, text: str) -> Iterator[str]:
    """A key and its comment, which goes on in further lines where it is long."""
    import textwrap

    head, *more = textwrap.wrap(text, max(_LINE - column - 4, 40), break_long_words=False)
    yield f"{pair:{column}}  # {head}"
    for line in more:
        yield f"#{'':{column}} # {line}"


def summary(record: type) -> str:
    """What a table is about, from its docstring's first line."""
    text = (record.__doc__ or "").strip().partition("\n")[0].removesuffix(".")
    opening, colon, rest = text.partition(": ")
    return rest if colon and opening.startswith("[") else text


def _shown(field: dataclasses.Field[Any]) -> str:
    if has_default(field):
        return toml(field.default)
    about = field.metadata
    return about["example"] or ("true" if field.type == "bool | None" else '""')


def leaves(config: Config) -> Iterator[tuple[Path, Any]]:
    """The place and value of every plain value of a configuration, tables in the example's order."""
    yield from _leaves(config, ())


def _leaves(record: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    tables = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(record, Listen) and field.name == "tls" and record.tls_table is not None:
            continue  # the table's mode, below
        if is_key(type(record), field):
            yield (*path, field.name), value
        elif value and field.name != "name":
            tables.append(((*path, field.name), value))
    for place, value in tables:
        here = place
        if isinstance(record, Listen) and value is record.tls_table:
            # The file calls this table tls, and what the model calls tls is its mode.
            here = (*path, "tls")
            yield (*here, "mode"), record.tls
        if not isinstance(value, tuple):
            yield from _leaves(value, here)
        elif isinstance(value[0], ServerName):
            for name in value:
                yield from _leaves(name, (*here, name.name))
        else:
            for index, item in enumerate(value):
                yield from _leaves(item, (*here, index))


def effective(config: Config, provenance: Mapping[str, str]) -> str:
    """The configuration in effect as TOML, each value with where it came from."""
    lines: list[str] = []
    table: Path = ()
    for path, value in leaves(config):
        if path[:-1] != table:
            table = path[:-1]
            lines += ["", header(table)]
        if value is None or (value == "" and path[-1] != "header") or (value == () and table[0] == "route"):
            continue  # no value of its own: another key's default, or a self-made certificate
        key = f"{path[-1]} = {toml(value)}"
        lines.append(f"{key:<50}  # {origin(path, provenance)}")
    return "\n".join(lines).lstrip("\n") + "\n"


ENTRIES_SHOWN: Final = 20


def facts_behind(loaded: Loaded) -> str:
    """What a qmail home and rules bring beside keys: entries with file and line, variables, what has no effect."""
    lines: list[str] = []
    home = loaded.home
    shown = [*(home.lists if home else ()), *([loaded.config.tcprules] if loaded.config.tcprules else ())]
    for path in shown:
        found = [f"# {path}:{number}: {text}" for text, number in entries(path, loaded.lists.files[path], [])]
        lines += found[:ENTRIES_SHOWN]
        if len(found) > ENTRIES_SHOWN:
            lines.append(f"# {path}: and {len(found) - ENTRIES_SHOWN:_} more")
    lines += [f"# environment: {name}={value!r}" for name, value in loaded.environment.items()]
    if home is not None and home.unsupported:
        lines += ["", "# found, and without effect here:"]
        lines += [f"# {file}: {why}" for file, why in home.unsupported]
    return "\n".join(["", *lines, ""]) if lines else ""


def header(table: Path) -> str:
    """("listen", 0) as [[listen]]; ("tls", "names", "a.b") as [tls.names."a.b"]."""
    names = [str(key) for key in table if isinstance(key, str)]
    name = ".".join(name if name.isidentifier() else toml(name) for name in names)
    return f"[[{name}]]" if isinstance(table[-1], int) else f"[{name}]"


def as_json(config: Config, provenance: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Dotted key -> {"value", "from"}."""
    return {
        dotted(path): {"value": _plain(value), "from": origin(path, provenance)}
        for path, value in leaves(config)
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it: weights are an object."""
    return dict(value) if isinstance(value, tuple) and value and isinstance(value[0], Weight) else value


def origin(path: Path, provenance: Mapping[str, str]) -> str:
    return provenance.get(dotted(path), "default")


def markdown() -> str:
    """docs/configuration.md."""
    lines = [_INTRODUCTION.replace("@DESTS@", known_shapes("`"))]
    for title, record, _ in SECTIONS:
        lines += [f"## {f'`{title}`' if title else 'Top of the file'}", ""]
        if record is not Config:
            text = summary(record)
            lines += [f"{text[:1].upper()}{text[1:]}.", ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += [_row(field) for field in keys(record)]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _row(field: dataclasses.Field[Any]) -> str:
    about = field.metadata
    if field.default is dataclasses.MISSING:
        default = f"required, e.g. `{about['example']}`"
    elif about["shown"]:
        default = about["shown"]
    else:
        default = f"`{toml(field.default)}`"
    meaning = [about["doc"]]
    if about["choices"]:
        meaning.insert(0, ", ".join(f"`{choice}`" for choice in about["choices"]))
    if about["unit"]:
        meaning.append(f"in {about['unit']}")
    bounds = _bounds(about)
    if bounds:
        meaning.append(bounds)
    if about["precedent"]:
        meaning.append(f"*{about['precedent']}*")
    return f"| `{field.name}` | {_cell(default)} | {_cell('; '.join(meaning))} |"


def _bounds(about: Mapping[str, Any]) -> str:
    low, high = about["low"], about["high"]
    if high is not None:
        return f"{low:_} to {high:_}"
    # "at least 0" says nothing.
    return f"at least {low:_}" if low else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
