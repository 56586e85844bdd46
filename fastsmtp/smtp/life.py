"""Where a connection is in its life, and how long each kind of wait may last.

Rank 8.
"""

from __future__ import annotations

from enum import IntEnum

# Under stress (Postfix's smtpd_timeout for stress): whoever is silent that long makes room.
STRESSED_COMMAND_S = 10.0
# The rate of body bytes is averaged over this.
RATE_WINDOW_S = 30.0
# A proxy sends its header at once.
PROXY_S = 5.0
# A handshake is two round trips; Postfix gives starttls_timeout 300 s, nginx 60 s.
HANDSHAKE_S = 30.0
STRESSED_HANDSHAKE_S = 10.0
# After the last reply: input is dropped for so long, or for so many bytes, so that a reset doesn't eat the reply.
LINGER_S = 5.0
LINGER_BYTES = 1_048_576
NEVER = float("inf")


class Life(IntEnum):
    """Where a connection is in its life."""

    PROXY = 0  # waits for the PROXY header
    DECIDING = 1  # policy is asked before the greeting
    HANDSHAKE = 2  # TLS
    DELAY = 3  # the greeting is held back
    TALKING = 4
    LINGER = 5  # the last reply is out; input is dropped
    CLOSED = 6
