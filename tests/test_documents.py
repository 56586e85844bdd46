"""Documents point at things that are there, and say what the Makefile says."""

from __future__ import annotations

import pathlib
import re

import pytest

from fastsmtp.cli import COMMANDS, PROGRAMS

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("contrib/**/*.md")]
)
PREREQUISITES = ("apt-get install gcc make python3-dev python3-venv", "dnf install gcc make python3-devel")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(document: pathlib.Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    broken = [
        target
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert broken == []


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    left_out = [
        path.name
        for path in (ROOT / "docs").glob("*.md")
        if path.name != "README.md" and f"({path.name})" not in index
    ]
    assert left_out == []


def test_the_prerequisites_are_the_same_everywhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "tools/prerequisites"):
        text = (ROOT / name).read_text()
        assert all(line in text for line in PREREQUISITES), name


def test_every_target_of_the_makefile_is_explained_at_its_top() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY:(.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    assert set(re.findall(r"make (\w+)", text.partition("\n\n")[0])) == targets - {"build"}


def test_every_test_that_the_patch_page_names_exists() -> None:
    """`tests/...py` or `tests/...py::test_...`; each line of the page that we act on has one."""
    text = (ROOT / "docs" / "patch-page.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 30
    for path, function in named:
        source = (ROOT / path).read_text()
        assert not function or re.search(rf"^(?:async )?def {function}\(", source, re.MULTILINE), (
            path,
            function,
        )
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| Shown by |" not in line]
    unproven = [row for row in rows if "`tests/" not in row and "not ours" not in row]
    assert unproven == []


def test_every_command_of_the_documents_exists() -> None:
    """What stands in a block of code and begins with fastsmtp; the design also names what comes later."""
    for document in DOCUMENTS:
        if document.name == "architecture.md":
            continue
        blocks = re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
        named = {
            name for block in blocks for name in re.findall(r"^(?:\$ |# )?fastsmtp ([a-z]\w*)", block, re.M)
        }
        assert named <= set(COMMANDS), document


def test_every_command_is_in_a_document() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    assert [name for name in COMMANDS if f"fastsmtp {name}" not in text] == []


def test_every_program_of_qmail_s_is_explained() -> None:
    text = (ROOT / "docs" / "qmail-programs.md").read_text()
    for program, command in PROGRAMS.items():
        assert f"| `{program}` | `fastsmtp {command}` |" in text
        assert f"\n## {command}\n" in text
