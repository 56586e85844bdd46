"""The example, the reference page and the design's names are all one with the model."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tomllib
from typing import Any

import pytest

from fastsmtp.config.flags import Flags
from fastsmtp.config.lines import find_lines
from fastsmtp.config.load import load
from fastsmtp.config.model import Config, Listen, ServerName
from fastsmtp.config.toml import build, read_toml
from fastsmtp.config.write import SECTIONS, comment, example, has_default, keys, markdown, toml
from tests.unit.config_host import FakeHost

ROOT = pathlib.Path(__file__).parent.parent.parent
DESIGN = (ROOT / "tests/data/design.example.toml").read_text()

TABLES = {
    title.strip("[]").rpartition(".")[2]: record
    for title, record, _ in SECTIONS
    if title and '"' not in title
}
TABLES["names"] = ServerName


def uncommented(text: str, wanted: str) -> str:
    """The example with the keys that `wanted` matches put into force."""
    return re.sub(rf"^# ({wanted}\s*= )", r"\1", text, flags=re.MULTILINE)


def test_the_example_loads_and_changes_nothing() -> None:
    host = FakeHost({"/example.toml": example()})
    result = load(Flags(config="/example.toml"), host=host)
    empty = load(Flags(config="/empty.toml"), host=FakeHost({"/empty.toml": ""}))
    assert result.config == empty.config


def sections(text: str) -> dict[str, str]:
    """Header -> what stands below it; a commented header is one too."""
    parts = re.split(r"^(?:# )?(\[.*?\])    # .*\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.mark.parametrize(("title", "record"), [(title, record) for title, record, _ in SECTIONS])
def test_each_default_of_the_example_is_the_default(title: str, record: type) -> None:
    body = sections(example())[title]
    for field in keys(record):
        (line,) = [line for line in body.splitlines() if re.match(rf"# {field.name}\s*= ", line)]
        value = tomllib.loads(line.removeprefix("# "))[field.name]
        if has_default(field):
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert value == default, field.name
        else:
            assert "# default: " in line or "# required" in line, field.name


def test_every_example_value_is_of_its_form() -> None:
    text = re.sub(r"^# (\[|\w+ *= )", r"\1", example(), flags=re.MULTILINE)
    text = re.sub(r"^\[listen\..*\n", "", text, flags=re.MULTILINE)
    built = build(read_toml("example", text.encode()))
    assert built.faults == ()
    assert built.config.hostname == "mx.example.org"


def test_the_reference_page_is_the_model_s() -> None:
    page = ROOT / "docs/configuration.md"
    assert page.read_text() == markdown(), "python -m fastsmtp config --markdown > docs/configuration.md"


def test_each_key_is_explained_once() -> None:
    for _, record, _ in SECTIONS:
        for field in keys(record):
            assert field.metadata["doc"], field.name
            assert "|" not in field.metadata["doc"], field.name
            assert comment(field)
            if field.name.endswith(("_s", "_h")) and not field.name.endswith("per_s"):
                assert field.metadata["unit"] == field.name.rpartition("_")[2], field.name
            if field.name.endswith("_bytes"):
                assert field.metadata["unit"] == "bytes", field.name


def design_names() -> list[tuple[str, ...]]:
    """Every name of the design's example, commented or not, with its table."""
    names: list[tuple[str, ...]] = []
    table: tuple[str, ...] = ()
    for line in DESIGN.splitlines():
        header = re.match(r"\[+([^\]]+)\]+", line)
        pair = re.match(r"(?:# )?([a-z0-9_]+)\s+= ", line)
        if header:
            # A server's name is data, not a name of ours.
            table = tuple(re.sub(r'\."[^"]*"', "", header[1]).split("."))
        elif pair:
            names.append((*table, pair[1]))
    return names


def in_model(path: tuple[str, ...]) -> bool:
    record: Any = Config
    for name in path:
        known = {field.name: field for field in dataclasses.fields(record)}
        if name not in known:
            return False
        record = TABLES.get(name, record) if "doc" not in known[name].metadata else record
    return True


def test_the_design_s_example_is_read_whole() -> None:
    names = design_names()
    assert len(names) > 100
    assert ("limits", "handshakes_per_client_per_min") in names
    assert ("tls", "names", "certificate") in names


@pytest.mark.parametrize("path", design_names(), ids=".".join)
def test_every_name_of_the_design_is_in_the_model(path: tuple[str, ...]) -> None:
    assert in_model(path)


def test_the_design_s_defaults_are_ours() -> None:
    """The commented values of the design's example, where they are values."""
    differing = []
    for section, body in design_sections().items():
        record = Config if not section else TABLES.get(section)
        if record is None:
            continue
        for field in keys(record):
            found = re.search(rf"^# {field.name}\s+= (.*?)(?:\s+#.*)?$", body, re.MULTILINE)
            if not found or not has_default(field):
                continue
            value = tomllib.loads(f"v = {found[1]}")["v"]
            if value != (list(field.default) if isinstance(field.default, tuple) else field.default):
                differing.append((section, field.name))
    assert differing == []


def design_sections() -> dict[str, str]:
    parts = re.split(r"^\[+(?:policy\.)?([a-z0-9_]+)\]+.*\n", DESIGN, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.mark.parametrize(
    "value", ["", 'a"b\\c\n\t\x00\x7f\u2028é', True, 0, 52_428_800, -5, 0.5, 7200.0, ("a", "b"), ()]
)
def test_values_are_written_as_toml_reads_them(value: object) -> None:
    read = tomllib.loads(f"v = {toml(value)}")["v"]
    assert read == (list(value) if isinstance(value, tuple) else value)
    assert type(read) is (list if isinstance(value, tuple) else type(value))


def test_the_sample_of_contrib_is_sound() -> None:
    text = (ROOT / "contrib/fastsmtp.toml").read_text()
    files = {
        "/etc/fastsmtp/fastsmtp.toml": text,
        "/etc/fastsmtp/cert.pem": "-----BEGIN CERTIFICATE-----",
        "/etc/fastsmtp/key.pem": "-----BEGIN PRIVATE KEY-----",
        "/etc/fastsmtp/recipients": "postmaster@example.org\n",
    }
    result = load(host=FakeHost(files, root=True, accounts=("fastsmtp",)))
    assert result.warnings == ()
    assert (
        find_lines(text)[("accept", 1, "deliver")]
        == text.splitlines().index('deliver = "smtp://127.0.0.1:10025"') + 1
    )
    assert isinstance(result.config.listen[0], Listen)
