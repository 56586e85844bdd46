"""qmail-remote's report: what qmail-rspawn reads on its standard output (qmail-remote(8)).

    zero or more recipient reports, in the order of the arguments:  r accepted  h refused for good  s for now
    one message report:                                             K accepted  Z for now  D for good

Each ends with a NUL.  A recipient report comes only from a server that was asked about the recipient, so a
message that never got so far has the message report alone.  When every recipient was refused the message
report is D, whatever they were refused with: qmail-rspawn goes by the first letter then.

Rank 6: pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fastsmtp.delivery.outcome import Delivered, Failed, Outcome, Retry, without_address
from fastsmtp.reply import is_of_error

TEXT_BYTES: Final = 5_000
"""Of what a server says; qmail-send writes it to its log and into the bounce."""

_LINE_ENDS: Final = {ord("\r"): None, ord("\0"): "?", ord("\n"): " "}


def report(outcomes: Sequence[Outcome]) -> bytes:
    """The bytes; outcomes are one a recipient, at least one.

    Where the session broke off, a recipient that nobody has refused is "accepted", and the message report says
    what became of it.
    """
    broken = [outcome for outcome in outcomes if not _is_said(outcome)]
    if len(broken) == len(outcomes):
        # Nobody was asked about anybody: DNS, connection, TLS, or the message itself.
        return message_report(_worst(broken))
    parts = [_recipient(outcome) if _is_said(outcome) else b"r\0" for outcome in outcomes]
    delivered = next((one for one in outcomes if isinstance(one, Delivered)), None)
    if broken:
        parts.append(message_report(_worst(broken)))
    elif delivered is not None:
        parts.append(message_report(delivered))
    else:
        parts.append(_part("D", "Giving up on", f"{_host(outcomes[0])}.", ""))
    return b"".join(parts)


def _is_said(outcome: Outcome) -> bool:
    """Whether a server said so, not we."""
    if outcome.hop is None:
        return False
    return isinstance(outcome, Delivered) or not is_of_error(outcome.reply)


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    return next((one for one in outcomes if isinstance(one, Retry)), outcomes[0])


def message_report(outcome: Outcome) -> bytes:
    """The message report of one outcome that holds for all recipients."""
    if isinstance(outcome, Delivered):
        said = f"{outcome.enhanced} {outcome.said}".strip()
        return _part("K", "", f"{_host(outcome)} accepted message.", said)
    letter = "D" if isinstance(outcome, Failed) else "Z"
    also = " Possible duplicate!" if isinstance(outcome, Retry) and outcome.may_have_arrived else ""
    where = f"{outcome.remote}: " if outcome.remote else ""
    return fault(letter, f"{where}{without_address(outcome)}.{also}", outcome.reply.enhanced)


def fault(letter: str, text: str, enhanced: str) -> bytes:
    """A message report of our own: "Zwhy (#4.3.0)"."""
    return f"{letter}{_clean(text)} (#{enhanced})\n".encode("utf-8", "replace") + b"\0"


def _recipient(outcome: Outcome) -> bytes:
    if isinstance(outcome, Delivered):
        return b"r\0"
    letter = "h" if isinstance(outcome, Failed) else "s"
    return _part(letter, "", f"{_host(outcome)} does not like recipient.", outcome.reason)


def _part(letter: str, before: str, text: str, said: str) -> bytes:
    first = f"{letter}{f'{before} ' if before else ''}{_clean(text)}\n"
    second = f"Remote host said: {_clean(said)}\n" if said else ""
    return (first + second).encode("utf-8", "replace") + b"\0"


def _host(outcome: Outcome) -> str:
    return outcome.remote or str(outcome.hop)


def _clean(text: str) -> str:
    """One line, without what ends a report, of bounded length."""
    return text[:TEXT_BYTES].translate(_LINE_ENDS)
