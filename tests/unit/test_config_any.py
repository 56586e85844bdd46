"""Whatever a file holds: a configuration or a ConfigError, nothing else, and always with faults."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp.config.flags import Flags
from fastsmtp.config.load import load
from fastsmtp.config.settings import Settings
from fastsmtp.config.toml import build
from fastsmtp.config.tree import Tree
from fastsmtp.config.write import SECTIONS, effective, keys
from fastsmtp.errors import ConfigError
from tests.unit.config_host import FakeHost

NAMES = sorted(
    {field.name for _, record, _ in SECTIONS for field in keys(record)}
    | {
        "listen",
        "tls",
        "names",
        "limits",
        "relay",
        "accept",
        "deliver",
        "policy",
        "log",
        "mode",
        "queue",
        "dns",
        "x",
    }
)
TEXTS = st.sampled_from(
    ["", "any", "ask", "off", "starttls", "required", "enforce", "discard", "mx", "smtp://h", "lmtp://[::1]:24", "*",
     "maildir:/m/{local}", "/file", "/absent", "example.org", ".example.org", "bücher.example", "xn--a.example",
     "127.0.0.1:0", "[::1]:25", "127.0.0.0/8", "::/0", "a@example.org", "mx.example.org", "json", "xclient", "\0", "é"]
)  # fmt: skip
SCALARS = st.one_of(TEXTS, st.booleans(), st.integers(-2, 2**70), st.floats(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
TREES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
FLAGS = st.builds(
    Flags,
    listen=st.lists(TEXTS, max_size=2).map(tuple),
    workers=st.one_of(st.none(), TEXTS),
    hostname=st.one_of(st.none(), TEXTS),
    accept=st.lists(TEXTS, max_size=2).map(tuple),
    deliver=st.one_of(st.none(), TEXTS),
    no_queue=st.booleans(),
    state=st.one_of(st.none(), TEXTS),
    user=st.one_of(st.none(), TEXTS),
)


@settings(deadline=None, derandomize=True, database=None)
@given(TREES)
def test_the_reader_never_fails_and_always_gives_a_configuration(values: dict[str, Any]) -> None:
    built = build(Tree(values))
    hash(built.config)
    assert bool(built.faults) == bool(built.faulty)


@settings(deadline=None, derandomize=True, database=None)
@given(TREES, FLAGS)
def test_loading_gives_settings_or_faults(values: dict[str, Any], flags: Flags) -> None:
    try:
        result = load(flags, values=values, host=FakeHost({"/file": "# empty\n"}))
    except ConfigError as error:
        assert error.faults
        assert all(fault and "\n" not in fault for fault in error.faults)
    else:
        assert all(isinstance(settings, Settings) for settings in result.settings)
        assert effective(result.config, result.provenance)
