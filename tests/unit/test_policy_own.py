"""Stages of the operator's own: loaded or refused with a reason, watched while they run; and docs/stages.md is true."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from types import GeneratorType
from typing import Any

import pytest

from fastsmtp import reply
from fastsmtp._parser import parse_mailbox
from fastsmtp.address import Address
from fastsmtp.cli import main
from fastsmtp.config.load import load
from fastsmtp.config.rules import PythonStage
from fastsmtp.config.settings import Settings
from fastsmtp.errors import ConfigError
from fastsmtp.policy.decision import Decision, Verdict
from fastsmtp.policy.facts import Client, Facts, Phase
from fastsmtp.policy.own import load_stage, load_stages
from fastsmtp.policy.rules import stages_of
from fastsmtp.policy.runner import Plan, Round
from tests.fakes.zone import MX, opinion_of

ROOT = pathlib.Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/stages.md").read_text(), re.DOTALL)

MODULE = """
import asyncio
from fastsmtp import reply
from fastsmtp.policy.decision import reject
from fastsmtp._dns import Question
NO = reject(reply.DENIED)
def says_no(facts, settings): return NO
def says_yes(facts, settings): return None
def says_nonsense(facts, settings): return "no"
def breaks(facts, settings): raise KeyError("a defect")
def asks_nonsense(facts, settings): yield "example.org"
def asks_nothing(facts, settings): yield ()
def ends_with_nonsense(facts, settings):
    yield (Question(b"example.org", 1),)
    return 5
async def waits(facts, settings): return NO
def takes_one(facts): return NO
number = 7
"""


@pytest.fixture
def site(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package of the operator's, gone afterwards."""
    package = tmp_path / "oursite"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text(MODULE)
    (package / "broken.py").write_text("import nothing_of_that_name\n")
    (package / "leaves.py").write_text("raise SystemExit(3)\n")
    (package / "syntax.py").write_text("def :\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.startswith("oursite")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("oursite.rules:absent", "there is no absent in oursite.rules"),
        ("oursite.rules:number", "is no function"),
        ("oursite.rules:waits", "is async"),
        ("oursite.rules:takes_one", "does not take"),
        ("oursite.absent:rule", "cannot be imported: ModuleNotFoundError"),
        ("oursite.broken:rule", "cannot be imported: ModuleNotFoundError"),
        ("oursite.leaves:rule", "cannot be imported: SystemExit"),
        ("oursite.syntax:rule", "cannot be imported: SyntaxError"),
    ],
)
def test_what_can_not_be_loaded(site: pathlib.Path, stage: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        load_stage(PythonStage(stage=stage))


def test_every_fault_is_named_and_check_says_them(
    site: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "fastsmtp.toml"
    tables = "".join(
        f'[[policy.python]]\nstage = "oursite.rules:{name}"\n' for name in ("absent", "waits", "says_no")
    )
    config.write_text(f'hostname = "mx.example"\nuser = "nobody"\n[deliver]\ndefault = "discard"\n{tables}')
    assert main(["check", "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert (
        f"{config}:6: policy.python.stage: oursite.rules:absent: there is no absent in oursite.rules\n"
        in said
    )
    assert f"{config}:8: policy.python.stage: oursite.rules:waits: is async" in said
    assert said.endswith("2 faults\n")


def settings(*stages: dict[str, Any], **policy: Any) -> Settings:
    accept = [{"domain": ["*"], "deliver": "discard"}]
    table = {"reject_at": "connect", "python": list(stages), **policy}
    return load(values={"hostname": "mx.example", "accept": accept, "policy": table}).settings[0]


@pytest.mark.parametrize(
    ("name", "on_error", "expected"),
    [
        ("says_no", "defer", reply.DENIED),
        ("says_yes", "defer", None),
        ("says_nonsense", "defer", reply.OUR_DEFECT),
        ("says_nonsense", "pass", None),
        ("breaks", "defer", reply.OUR_DEFECT),
        ("breaks", "pass", None),
        ("asks_nonsense", "defer", reply.OUR_DEFECT),
        ("asks_nothing", "defer", reply.OUR_DEFECT),
        ("ends_with_nonsense", "defer", reply.OUR_DEFECT),
        ("ends_with_nonsense", "pass", None),
    ],
)
def test_a_mistake_is_never_an_opinion(site: pathlib.Path, name: str, on_error: str, expected: Any) -> None:
    under = settings({"stage": f"oursite.rules:{name}", "at": "data", "on_error": on_error})
    own = load_stages([under.policy])
    plan = Plan(stages_of(under, own.values()), under)
    waiting = plan.run(Phase.DATA, Facts("ID", "mx", "", Client(Address("192.0.2.1"))))
    while isinstance(waiting, Round):
        waiting = waiting.resume({})
    assert waiting.reply == expected


def test_modes_and_order_are_the_configuration_s(site: pathlib.Path) -> None:
    under = settings(
        {"stage": "oursite.rules:says_yes", "at": "mail", "mode": "off"},
        {"stage": "oursite.rules:says_no", "at": "mail", "mode": "observe"},
        {"stage": "oursite.rules:breaks", "at": "mail"},
    )
    stages = list(load_stages([under.policy]).values())
    assert [(stage.name, stage.phase, stage.mode) for stage in stages] == [
        ("oursite.rules:says_no", Phase.MAIL, "observe"),
        ("oursite.rules:breaks", Phase.MAIL, "enforce"),
    ]


def test_a_reload_brings_the_new_text(site: pathlib.Path) -> None:
    under = settings({"stage": "oursite.rules:says_no", "at": "mail"})
    facts = Facts("ID", "mx", "", Client(Address("192.0.2.1")))

    def verdict(*, fresh: bool) -> Verdict | None:
        (stage,) = load_stages([under.policy], fresh=fresh).values()
        opinion = stage.function(facts, under)
        assert not isinstance(opinion, GeneratorType)
        return opinion.verdict if isinstance(opinion, Decision) else None

    assert verdict(fresh=False) is Verdict.REJECT
    (site / "rules.py").write_text("def says_no(facts, settings): return None  # another length\n")
    assert verdict(fresh=False) is Verdict.REJECT
    assert verdict(fresh=True) is None
    (site / "rules.py").write_text("def : a fault\n")
    with pytest.raises(ConfigError, match="SyntaxError"):
        verdict(fresh=True)


def test_the_page_s_rule_passes_the_page_s_test(tmp_path: pathlib.Path) -> None:
    rule, table = BLOCKS[:2]
    assert len([line for line in rule.splitlines() if line]) <= 10
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite/rules.py").write_text(rule)
    (tmp_path / "test_rules.py").write_text(table)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=prepend", "test_rules.py"],
        cwd=tmp_path, env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_page_s_asking_stage() -> None:
    space: dict[str, Any] = {}
    exec(compile(BLOCKS[2], "docs/stages.md", "exec"), space)
    facts = Facts("ID", "mx", "", Client(Address("192.0.2.1")))
    facts.sender = parse_mailbox(b"a@parked.example")  # type: ignore[assignment]
    zone = {("parked.example", MX): [(1, "a.parking.example")]}
    opinion, asked = opinion_of(space["no_parking"], facts, settings(), zone)
    assert opinion is space["PARKED"]
    assert asked == ["parked.example"]
    assert opinion_of(space["no_parking"], facts, settings(), {})[0] is None
