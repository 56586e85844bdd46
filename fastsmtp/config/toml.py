"""TOML to Config: every fault at once, each with file and line, or the flag that brought it.

A value that is wrong is replaced by its default and its place noted, so that
what comes after can go on looking for more faults without making new ones up.
"""

from __future__ import annotations

import functools
import re
import sys
import types
from collections.abc import Mapping

from fastsmtp import records
from fastsmtp.config.forms import FORMS, LISTS
from fastsmtp.config.lines import Path, find_lines
from fastsmtp.config.model import ANY_DOMAIN, Config, Limits, Listen, ServerName, Tls
from fastsmtp.config.outgoing import Weight
from fastsmtp.config.rules import Policy
from fastsmtp.config.tree import Tree, dotted
from fastsmtp.errors import ConfigError
from fastsmtp.typed import Any, Final, TypeVar, cast

T = TypeVar("T")

DEFAULT: Final = "default"
NO_CERTIFICATE: Final = "is given without its certificate"

# What no number may pass, where the model says no limit: what C and the timers can hold.
_MOST: Final = {int: 2**53, float: 1e9}
_KINDS: Final = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def read_toml(name: str, data: bytes) -> Tree:
    """The raw tree of a file; ConfigError with its line when it is no TOML."""
    import tomllib

    try:
        text = data.decode()
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_fault(name, str(error), text)) from None
    lines = find_lines(text.replace("\r\n", "\n"))
    return Tree(values, {path: f"{name}:{line}" for path, line in lines.items()})


def _syntax_fault(name: str, message: str, text: str) -> str:
    what, _, place = message.rpartition(" (at ")
    found = re.match(r"line (\d+)", place)
    line = found[1] if found else text.count("\n") + 1  # else "at end of document"
    return f"{name}:{line}: {what or message}"


@records.dataclass(frozen=True, slots=True)
class Built:
    """What build() made of a tree.

    config      faulty values replaced by their defaults
    faults      one line each
    faulty      where they are
    provenance  the place of each value -> "FILE:12", "--listen" or "default"
    """

    config: Config
    faults: tuple[str, ...]
    faulty: frozenset[Path]
    provenance: Mapping[Path, str]


def build(tree: Tree) -> Built:
    builder = _Builder(tree)
    config = builder.config()
    return Built(config, tuple(builder.faults), frozenset(builder.faulty), builder.provenance)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> type; typing.get_type_hints does the same at ten times the cost."""
    names = vars(sys.modules[cls.__module__])
    return {field.name: eval(field.type, names) for field in records.fields(cls)}  # type: ignore[arg-type]  # noqa: S307


class _Wrong(Exception):
    """A value that doesn't fit; its text is the clause of the fault."""


class _Builder:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.faults: list[str] = []
        self.faulty: set[Path] = set()
        self.provenance: dict[Path, str] = {}
        self.overall: dict[str, Any] = {}  # the top's tables, which a [[listen]] lays its own over

    def fault(self, path: Path, clause: str) -> None:
        self.faulty.add(path)
        self.faults.append(fault_line(self.tree, path, clause))

    def config(self) -> Config:
        # [[listen]] comes last: it needs the tables that hold for all.
        fields = sorted(records.fields(Config), key=lambda field: field.name == "listen")
        raw = self.tree.values
        raw = self.refuse_unknown(raw, (), {field.name for field in fields})
        for field in fields:
            self.overall[field.name] = self.field(Config, field, raw, (), None)
        return Config(**self.overall)

    def table(self, cls: type[T], raw: Any, path: Path, under: T | None = None, **known: str) -> T:
        """The record of a raw table; what it doesn't say comes from `under`, else from the defaults.

        known  fields that the table's place tells, and the table must not
        """
        if not isinstance(raw, dict):
            self.fault(path, "must be a table")
            raw = {}
        fields = records.fields(cast(Any, cls))
        fields = tuple(field for field in fields if field.name not in known)
        raw = self.refuse_unknown(raw, path, {field.name for field in fields})
        return cls(**known, **{field.name: self.field(cls, field, raw, path, under) for field in fields})

    def listen(self, raw: Any, path: Path) -> Listen:
        """A [[listen]]: its own tables laid over the global ones; `tls` is a word, or a table with `mode`."""
        raw = dict(raw)
        own: dict[str, Any] = {}
        for name, cls in (("policy", Policy), ("limits", Limits)):
            if name in raw:
                own[name] = self.table(cls, raw.pop(name), (*path, name), self.overall[name])
        tls = raw.get("tls")
        if isinstance(tls, dict):
            inner = dict(tls)
            raw.pop("tls")
            if "mode" in inner:
                field = next(field for field in records.fields(Listen) if field.name == "tls")
                own["tls"] = self.value(field, str, inner.pop("mode"), (*path, "tls", "mode"))
            under = self.overall["tls"]
            if "certificate" in inner:
                # Its key is in its own file or named beside it, and never the global certificate's.
                under = records.replace(under, key="")
            elif "key" in inner:
                self.fault((*path, "tls", "key"), NO_CERTIFICATE)
            if "client_ca" in inner:
                # Revocation lists are their authority's.
                under = records.replace(under, client_crl="")
            if inner:
                own["tls_table"] = self.table(Tls, inner, (*path, "tls"), under)
        return records.replace(self.table(Listen, raw, path), **own)

    def field(self, cls: type, field: Any, raw: Mapping[str, Any], path: Path, under: Any) -> Any:
        """One field of a record: from raw, from `under`, or its default."""
        here = (*path, field.name)
        hint = hints(cls)[field.name]
        if field.name in raw:
            return self.member(field, hint, raw[field.name], here, under)
        if under is not None:
            # ("listen", 0, "limits", NAME) comes from where ("limits", NAME) does.
            value = getattr(under, field.name)
            for place in _leaves(value, here):
                self.provenance[place] = self.provenance.get(place[2:], DEFAULT)
            return value
        if is_required(field):
            self.fault(here, "is missing")
            return _placeholder(hint)
        for place in _leaves(field.default, here):
            self.provenance[place] = DEFAULT
        return field.default

    def refuse_unknown(self, raw: Mapping[str, Any], path: Path, known: set[str]) -> dict[str, Any]:
        """The table without the keys that we don't know, or don't have yet."""
        known = known - {"tls_table"}
        for name in raw:
            here = (*path, name)
            if name not in known:
                import difflib

                near = difflib.get_close_matches(name, sorted(known), 1)
                self.fault(here, "no such key" + (f"; did you mean {near[0]!r}?" if near else ""))
        return {name: value for name, value in raw.items() if name in known}

    def member(self, field: Any, hint: Any, raw: Any, path: Path, under: Any) -> Any:
        """A value that is there: a table, an array of tables, or a plain value."""
        if records.is_dataclass(hint):
            inherited = None if under is None else getattr(under, field.name)
            return self.table(cast(type, hint), raw, path, inherited)
        item = _item(hint)
        if item is ServerName:
            return self.named(raw, path)
        if item is Weight:
            return self.weights(raw, path)
        if item is not None and records.is_dataclass(item):
            return self.tables(cast(type, item), raw, path)
        return self.value(field, hint, raw, path)

    def tables(self, cls: type, raw: Any, path: Path) -> tuple[Any, ...]:
        if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
            self.fault(path, f"must be an array of tables, [[{plain(path)}]]")
            return ()
        build_one = self.listen if cls is Listen else functools.partial(self.table, cls)
        return tuple(build_one(table, (*path, index)) for index, table in enumerate(raw))

    def named(self, raw: Any, path: Path) -> tuple[ServerName, ...]:
        """[tls.names]: the tables' own keys are the names."""
        if not isinstance(raw, dict):
            self.fault(path, "must be a table")
            return ()
        names = []
        for name, table in raw.items():
            here = (*path, name)
            try:
                FORMS["server_name"](name)
            except ValueError as error:
                self.fault(here, str(error))
            names.append(self.table(ServerName, table, here, name=name))
        return tuple(names)

    def weights(self, raw: Any, path: Path) -> tuple[Weight, ...]:
        """{ a = 1, b = 3 }: names and their shares."""
        self.provenance[path] = self.tree.origin(path) or DEFAULT
        if not isinstance(raw, dict):
            self.fault(path, "must be a table, as { a = 1 }")
            return ()
        for name, weight in raw.items():
            if type(weight) is not int or not 1 <= weight <= 1_000_000:
                self.fault((*path, name), f"must be a whole number from 1 to 1_000_000, not {shown(weight)}")
        return tuple(Weight(name, weight) for name, weight in raw.items() if type(weight) is int)

    def value(self, field: Any, hint: Any, raw: Any, path: Path) -> Any:
        self.provenance[path] = self.tree.origin(path) or DEFAULT
        if _item(hint) is str:
            texts = self.texts(field.metadata, raw, path)
            if texts is not None:
                return texts
        else:
            try:
                return scalar(field.metadata, hint, raw)
            except _Wrong as wrong:
                self.fault(path, str(wrong))
        return _placeholder(hint) if is_required(field) else field.default

    def texts(self, metadata: Mapping[str, Any], raw: Any, path: Path) -> tuple[str, ...] | None:
        """A list of texts, or one text for a list of one; None when any was wrong."""
        if isinstance(raw, str):
            raw = [raw]
        if not isinstance(raw, list | tuple):
            self.fault(path, f"must be a list of texts, not {shown(raw)}")
            return None
        if len(raw) < metadata["fewest"]:
            self.fault(path, "must not be empty")
            return None
        is_right = True
        for index, text in enumerate(raw):
            try:
                if metadata["form"] in LISTS and isinstance(text, str) and text.startswith("/"):
                    continue
                if metadata["form"] == "domain" and text == ANY_DOMAIN and self.tree.is_program:
                    continue
                scalar(metadata, str, text)
            except _Wrong as wrong:
                is_right = False
                self.fault((*path, index), str(wrong))
        return tuple(raw) if is_right else None


def scalar(metadata: Mapping[str, Any], hint: Any, raw: Any) -> Any:
    """raw as hint's type and within the metadata's bounds; _Wrong with one clause else."""
    kind = _bare(hint)
    if kind is float and type(raw) is int:
        raw = float(raw)
    if type(raw) is not kind:
        raise _Wrong(f"must be {_KINDS[kind]}, not {shown(raw)}")
    choices = metadata["choices"]
    if choices and raw not in choices:
        import difflib

        near = difflib.get_close_matches(raw, choices, 1)
        raise _Wrong(
            f"must be {_listed(choices)}, not {raw!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if kind in _MOST:
        low, high = metadata["low"], metadata["high"]
        high = _MOST[kind] if high is None else high
        if low is not None and not raw >= low:
            raise _Wrong(f"must be at least {low:_}, not {shown(raw)}")
        if not raw <= high:
            raise _Wrong(f"must be at most {high:_}, not {shown(raw)}")
    if metadata["form"]:
        try:
            FORMS[metadata["form"]](raw)
        except ValueError as error:
            raise _Wrong(str(error)) from None
    return raw


def fault_line(tree: Tree, path: Path, clause: str) -> str:
    """FILE:12: limits.recipients: CLAUSE; without a file the key alone, for a flag the flag."""
    origin = tree.origin(path)
    if origin.startswith("--"):
        return f"{origin}: {clause}"
    return f"{origin}: {plain(path)}: {clause}" if origin else f"{dotted(path)}: {clause}"


def plain(path: Path) -> str:
    """("accept", 0, "domain") as accept.domain: beside a line number that says which."""
    return ".".join(key for key in path if isinstance(key, str))


def is_required(field: Any) -> bool:
    return field.default is records.MISSING


def shown(raw: Any) -> str:
    """A raw value in a fault, cut short."""
    if isinstance(raw, dict | list):
        return "a table" if isinstance(raw, dict) else "a list"
    text = str(raw).lower() if isinstance(raw, bool) else repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(choices[:-1]) + f" or {choices[-1]}"


def _bare(hint: Any) -> Any:
    """X of X | None."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in hint.__args__ if kind is not types.NoneType)
    return hint


def _item(hint: Any) -> Any:
    """X of tuple[X, ...]; None for anything else."""
    return hint.__args__[0] if getattr(hint, "__origin__", None) is tuple else None


def _placeholder(hint: Any) -> Any:
    """What stands for a required value that is missing or wrong, until the faults are reported."""
    return () if _item(hint) else ""


def _leaves(default: Any, path: Path) -> list[Path]:
    """The places of the plain values in a default."""
    if records.is_dataclass(default) and not isinstance(default, type):
        return [
            place
            for field in records.fields(default)
            for place in _leaves(getattr(default, field.name), (*path, field.name))
        ]
    if isinstance(default, tuple) and default and records.is_dataclass(default[0]):
        return [place for index, item in enumerate(default) for place in _leaves(item, (*path, index))]
    return [path]
