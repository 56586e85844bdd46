"""The words of a report for a person: what happened, who said so, what to do.  Rank 5: pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fastsmtp.queue.model import QueuedMessage

if TYPE_CHECKING:
    from fastsmtp.queue.dsn import Part

# Named one by one; of the others, how many.
NAMED: Final = 100

_HOUR_MS: Final = 3_600_000

_INTRODUCTIONS: Final = {
    "failed": "could not be delivered to",
    "delayed": "has not been delivered yet to",
    "delivered": "was delivered to",
    "relayed": "was handed to a mail system that will not report further, for",
}

_SUBJECTS: Final = {
    "failed": "Your message could not be delivered",
    "delayed": "Your message is delayed",
    "delivered": "Your message was delivered",
    "relayed": "Your message was passed on",
}
_GRAVEST: Final = ("failed", "delayed", "relayed", "delivered")


def subject(parts: Sequence[Part], *, is_double: bool) -> str:
    if is_double:
        return "A notice could not be delivered"
    actions = {part.fate.action.value for part in parts}
    return next(_SUBJECTS[action] for action in _GRAVEST if action in actions)


def text_of(
    message: QueuedMessage,
    parts: Sequence[Part],
    *,
    hostname: str,
    postmaster: str,
    is_double: bool,
    returned: str,
) -> str:
    """Lines of 76 characters or so, CRLF.

    is_double  it goes to the postmaster, about a message that has no sender
    returned   what follows of the original: "all", "header", "" (nothing)
    """
    what = (
        "A message without a sender, as notices of other mail systems are," if is_double else "Your message"
    )
    lines = [f"This is the mail system at {hostname}.", ""]
    for action in _GRAVEST:
        some = [part for part in parts if part.fate.action.value == action]
        if not some:
            continue
        lines += _wrapped(f"{what} {_INTRODUCTIONS[action]}:")
        lines.append("")
        for part in some[:NAMED]:
            lines += _about(message, part)
            lines.append("")
        if len(some) > NAMED:
            lines += [f"and {len(some) - NAMED} more, which are listed in the next part.", ""]
        lines += _wrapped(_next(message, some, action))
        lines.append("")
    if returned:
        thing = "The message" if returned == "all" else "The header of the message"
        lines += [f"{thing} is at the end of this report.", ""]
    lines += _wrapped(f"If you need help, write to <{postmaster}> and name the message's id, {message.id}.")
    return "\r\n".join(lines) + "\r\n"


def _about(message: QueuedMessage, part: Part) -> list[str]:
    lines = [f"<{part.address}>"]
    if not part.diagnostic:
        return lines
    if part.host:
        lines += _wrapped(f"{part.host} said:" if part.fate.said.code else f"{part.host}:", "    ")
    lines += _wrapped(part.diagnostic, "    ")
    return lines


def _next(message: QueuedMessage, parts: Sequence[Part], action: str) -> str:
    if action == "failed":
        spent_ms = max(part.fate.attempt_ms for part in parts) - message.accepted_ms
        if any(part.status == "4.4.7" for part in parts) and spent_ms > 0:
            return f"It was tried again and again for {duration(spent_ms)}, and will not be tried any more."
        return "It will not be tried again."
    if action == "delayed":
        until_ms = max(part.fate.until_ms for part in parts) - message.accepted_ms
        limit = f" until it is {duration(until_ms)} old" if until_ms > 0 else ""
        return f"It will be tried again{limit}. You need not send it again."
    if action == "relayed":
        return "Whether it arrives is in the hands of that system."
    return "You asked for this notice."


def duration(ms: int) -> str:
    """As a person says it: 5 days, 4 hours, 20 minutes."""
    for unit_ms, name in ((24 * _HOUR_MS, "day"), (_HOUR_MS, "hour"), (60_000, "minute"), (1_000, "second")):
        # 47 hours say more than 1 day.
        count = ms // unit_ms
        if count >= 2 or (count and name == "second"):
            return f"{count} {name}{'s'[: count > 1]}"
    return "a moment"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, 76, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    ) or [indent]
