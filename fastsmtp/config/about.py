"""What is said of one key of the configuration: the metadata of a field of model.py.

Rank 2, and cheap to import.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastsmtp.typed import Any


def about(
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    fewest: int = 0,
    choices: tuple[str, ...] = (),
    form: str = "",
    shown: str = "",
    example: str = "",
    precedent: str = "",
) -> Mapping[str, Any]:
    """Metadata of one key.

    doc        one clause, as it stands in the example and the docs
    unit       s, h, bytes ...: also the end of the key's name where the design has one there
    low, high  the range, both ends allowed
    fewest     entries that a list must have
    choices    the only values
    form       the grammar of a text, or of each text of a list: a name in forms.FORMS
    shown      words for a default that is no value
    example    a TOML value to show in the docs
    precedent  who has the same default, or the RFC section that asks for it
    """
    return {
        "doc": doc,
        "unit": unit,
        "low": low,
        "high": high,
        "fewest": fewest,
        "choices": choices,
        "form": form,
        "shown": shown,
        "example": example,
        "precedent": precedent,
    }
