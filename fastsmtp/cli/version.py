"""The version: from the tree we run in, else from the installed package.  Stands once, in meson.build."""

from __future__ import annotations

import re
from pathlib import Path


def version() -> str:
    """ "0.1.0"; "unknown" when this is neither a source tree nor installed."""
    build = Path(__file__).resolve().parent.parent.parent / "meson.build"
    try:
        found = re.match(r"project\('fastsmtp',.*?version: '([^']+)'", build.read_text(), re.DOTALL)
    except OSError:
        found = None
    if found:
        return found[1]

    from importlib import metadata

    try:
        return metadata.version("fastsmtp")
    except metadata.PackageNotFoundError:
        return "unknown"
