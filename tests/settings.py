"""Settings for tests, as no configuration says them alone."""

from __future__ import annotations

from dataclasses import replace

from fastsmtp.config.settings import Settings


def compatible(settings: Settings) -> Settings:
    """The same in compatible mode: qmail's reply codes."""
    return replace(settings, is_compatible=True)
