"""What a part of the message begins with, against the operator's signatures; the scanner has looked as it streamed in.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp import reply
from fastsmtp.config.settings import Settings
from fastsmtp.policy.decision import Decision, Tag, reject
from fastsmtp.policy.facts import Facts


def check_signatures(facts: Facts, settings: Settings) -> Decision | None:
    """END: the first signature that was found refuses the message, and is named to the sender and in the log."""
    hit = facts.signature
    if hit is None:
        return None
    text = "".join(
        chr(octet) if 32 < octet < 127 else "?" for octet in hit.signature[: reply.SIGNATURE_SHOWN]
    )
    return reject(reply.signature_found(text, hit.part), Tag("signature", text))
