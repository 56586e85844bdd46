"""The command fastsmtp as it is installed, for tests that need a real process or another name for it."""

from __future__ import annotations

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def install(folder: pathlib.Path) -> pathlib.Path:
    """Write the script that pip would make for [project.scripts]; returns its path."""
    script = folder / "fastsmtp"
    script.write_text(
        f"#!{sys.executable}\nimport sys\n\nfrom fastsmtp.cli import main\n\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return script


def environment(**more: str) -> dict[str, str]:
    """Ours, with the tree that is under test in front."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}
