"""The ranks of the design (docs/architecture.md, section 4): a module imports no higher rank.

The sources are read, not imported: .py with ast, .pyx and .pxd by their import
and cimport lines.  A module that the table doesn't know fails, so a new file
states its rank when it comes.
"""

from __future__ import annotations

import ast
import pathlib
import re
from graphlib import CycleError, TopologicalSorter

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastsmtp"

# A name stands for the module or for the whole package below it; the longest one that fits wins.
RANKS = {
    0: [
        "errors",
        "patterns",
        "records",
        "typed",
        "clock",
        "_metrics",
        "metrics",
        "events",
        "log",
        "_logline",
        "log_format",
        "log_destination",
        "trace",
    ],
    1: [
        "_ascii",
        "_text",
        "_stuff",
        "_nexthop",
        "_parser",
        "_event",
        "_table",
        "_command",
        "_session",
        "_body",
        "_signatures",
        "_dnsblock",
        "_dnscodec",
        "_dnscache",
        "_dns",
        "reply",
        "address",
        "message",
        "fingerprint",
    ],
    2: ["config"],
    3: [
        "_counters",
        "promise",
        "_spawn",
        "cares",
        "dns_meters",
        "hosts",
        "dns_servers",
        "dns_tcp",
        "dns_cares",
        "resolver",
        "listcare",
        "authorities",
        "p0f",
        "certificate",
        "tls",
        "tls_asking",
        "store",
        "auth",
    ],
    4: ["policy"],
    5: ["_record", "_journalcalls", "_journal", "_glance", "_payload", "queue"],
    6: ["_transaction", "delivery"],
    7: ["sink", "queue_sink", "callable_sink"],
    8: ["smtp", "delegation", "pop3"],
    9: ["supervisor", "admin", "server"],
    10: ["cli", "compat"],
    11: ["", "__main__"],  # the package itself: its API, gathered from all of them
}
RANK = {name: rank for rank, names in RANKS.items() for name in names}

# Rank 4 decides; it sees neither the world nor what is done with its decisions.
POLICY_SEES = {0, 1, 2, 4}

# Ranks 1 and 4 are pure: no I/O, no clock, no randomness but what is passed in.
PURE_RANKS = {1, 4}
IMPURE = {
    "asyncio", "concurrent", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
    "selectors", "shutil", "signal", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time",
    "uvloop", "pycares", "cryptography",
}  # fmt: skip

# These cost 25 to 60 ms of CPU each; the command line and the configuration import them where they are used.
HEAVY = {"asyncio", "ssl", "cryptography", "msgspec", "uvloop", "pycares", "OpenSSL", "idna"}
LIGHT_PACKAGES = ("cli", "config")


def module_name(path: pathlib.Path) -> str:
    """The name below fastsmtp: "" for the package, "smtp.connection", "_parser"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, list[pathlib.Path]]:
    """Module name -> its files (a compiled module has .pyx and .pxd)."""
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in {".py", ".pyx", ".pxd"}:
            found.setdefault(module_name(path), []).append(path)
    return found


def rank_of(module: str) -> int | None:
    while module not in RANK and "." in module:
        module = module.rpartition(".")[0]
    return RANK.get(module)


def python_imports(path: pathlib.Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names that a .py file imports; `from a import b` gives a and a.b."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nodes: list[ast.AST] = list(ast.walk(tree))
    if top_level_only:
        inside = {
            id(inner)
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in ast.walk(node)
        }
        nodes = [node for node in nodes if id(node) not in inside and id(node) not in typing_only]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["fastsmtp", *path.relative_to(PACKAGE).parts[:-1]]
                base = ".".join([*here[: len(here) - node.level + 1], *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


CYTHON_FROM = re.compile(r"^\s*from\s+([\w.]+)\s+c?import\s+(.*)$", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^\s*c?import\s+([\w., ]+)$", re.MULTILINE)


def cython_imports(path: pathlib.Path) -> set[str]:
    """The same of a .pyx or .pxd file."""
    text = re.sub(r'"""[\s\S]*?"""', "", path.read_text())
    names: set[str] = set()
    for written, what in CYTHON_FROM.findall(text):
        # Compiled modules all stand in the package itself.
        base = f"fastsmtp.{written.lstrip('.')}".rstrip(".") if written.startswith(".") else written
        names.add(base)
        names.update(f"{base}.{name}" for name in re.findall(r"\w+", what.split("#")[0]))
    for what in CYTHON_IMPORT.findall(text):
        names.update(name.split(" as ")[0].strip() for name in what.split(","))
    return names


def imports(module: str) -> set[str]:
    found: set[str] = set()
    for path in SOURCES[module]:
        found |= python_imports(path) if path.suffix == ".py" else cython_imports(path)
    return found


def ours(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    below = {
        name.removeprefix("fastsmtp").removeprefix(".")
        for name in imports(module)
        if name.split(".")[0] == "fastsmtp"
    }
    modules = {name for name in below if name in SOURCES}
    return {name for name in modules if name and name != module and not module.startswith(f"{name}.")}


SOURCES = sources()


@pytest.mark.parametrize("module", SOURCES)
def test_every_module_has_a_rank(module: str) -> None:
    assert rank_of(module) is not None, f"give fastsmtp/{module} a rank in tests/test_layers.py"


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_no_higher_rank(module: str) -> None:
    rank = rank_of(module)
    assert rank is not None
    higher = {name: rank_of(name) for name in ours(module) if (rank_of(name) or 0) > rank}
    assert not higher, f"fastsmtp.{module} has rank {rank} and imports {higher}"
    if rank == 4:
        beside = {name for name in ours(module) if rank_of(name) not in POLICY_SEES}
        assert not beside, f"policy is a pure function of facts and settings; {module} imports {beside}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Only imports at module level: one inside a function can wait for the other module to be there."""
    graph = {
        module: {
            name
            for path in SOURCES[module]
            for full in (
                python_imports(path, top_level_only=True) if path.suffix == ".py" else cython_imports(path)
            )
            if (name := full.removeprefix("fastsmtp.")) in SOURCES
            and full.startswith("fastsmtp.")
            and name != module
        }
        for module in SOURCES
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as cycle:
        pytest.fail(" -> ".join(cycle.args[1]))


@pytest.mark.parametrize("module", [module for module in SOURCES if rank_of(module) in PURE_RANKS])
def test_codec_and_policy_are_pure(module: str) -> None:
    impure = {name for name in imports(module) if name.split(".")[0] in IMPURE}
    assert not impure, f"fastsmtp.{module} is pure; {impure} must be passed in"


@pytest.mark.parametrize("module", [module for module in SOURCES if module.split(".")[0] in LIGHT_PACKAGES])
def test_command_line_and_configuration_import_nothing_heavy(module: str) -> None:
    for path in SOURCES[module]:
        heavy = {name for name in python_imports(path, top_level_only=True) if name.split(".")[0] in HEAVY}
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy} at module level"


@pytest.mark.parametrize("module", SOURCES)
def test_compiled_modules_are_imported_name_by_name(module: str) -> None:
    """Meson's depfile misses `from . cimport _x` and `cimport fastsmtp._x`: an edit would rebuild nothing."""
    for path in SOURCES[module]:
        if path.suffix == ".py":
            continue
        text = path.read_text()
        lines = re.findall(
            r"^\s*(?:from \.? ?cimport .*|from fastsmtp cimport .*|cimport fastsmtp.*)$", text, re.MULTILINE
        )
        assert not lines, f"{path.name}: {lines}"


def test_the_table_names_each_module_once() -> None:
    assert len(RANK) == sum(map(len, RANKS.values()))
