"""Every stage there is, in the order that decides between equal refusals.

Rank 4: pure.
"""

from __future__ import annotations

from fastsmtp.policy import greeting, limits, message, relay
from fastsmtp.policy.facts import Phase
from fastsmtp.policy.stage import Stage

STAGES: tuple[Stage, ...] = (
    Stage("client", Phase.CLIENT, relay.know_client, is_check=False),
    Stage("connections", Phase.CONNECT, limits.count_connections, is_check=False),
    Stage("early_talker", Phase.GREETING, greeting.refuse_early_talker),
    Stage("handshakes", Phase.STARTTLS, limits.count_handshakes, is_check=False),
    Stage("size", Phase.MAIL, message.check_declared_size, is_check=False),
    Stage("messages", Phase.MAIL, limits.count_messages, is_check=False),
    Stage("recipient", Phase.RCPT, relay.find_recipient, is_check=False),
    Stage("recipients", Phase.RCPT, limits.count_recipients, is_check=False),
    Stage("loop", Phase.END, message.stop_loop, is_check=False),
    Stage("pass", Phase.END, greeting.grant_pass),
)
