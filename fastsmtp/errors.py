"""Errors by whose fault they are.

ProtocolError: the peer is wrong.  TemporaryError: the world is wrong, and the
mail is worth another try.  ConfigError: the operator is wrong, at start or on
reload.  Any other exception is our own defect: the client gets 451 4.3.0 with
an id, the log gets the traceback.

A leaf carries one sentence.  What a peer is told comes from reply.py, never
from an exception's text.  Rank 0: imports nothing of ours.
"""

import os


class FastsmtpError(Exception):
    """The root of everything that we raise on purpose."""


class ProtocolError(FastsmtpError):
    """A peer broke the protocol."""


class TemporaryError(FastsmtpError):
    """Something outside failed for now; the same mail may succeed later."""


class StorageFull(TemporaryError):
    """The disk, or a quota, has no room."""


class HostUnknown(TemporaryError):
    """A host name of the configuration does not exist, or has no address; the operator, or the zone, may mend that."""


class StorageFailed(TemporaryError):
    """The file system refused an operation for another reason than room."""


class QueueDamaged(FastsmtpError):
    """A file of the queue doesn't hold what must be there; the text says which, where and what."""


class QueueUnread(TemporaryError):
    """The server has just started, takes mail, and doesn't know yet what is in its queue."""


class NextHopDown(TemporaryError):
    """The next hop could not be reached, hung up, or did not answer in time."""


class NextHopBusy(NextHopDown):
    """As many connections to the next hop are open as we allow ourselves, and none came free in time."""


class NextHopInsecure(TemporaryError):
    """The next hop has not the TLS that is asked of it: none offered, a handshake that failed, a wrong certificate."""


class NextHopWithoutTls(NextHopInsecure):
    """The next hop does not offer STARTTLS, and must."""


class SourceUnusable(TemporaryError):
    """An address of ours that mail is to be sent from can't be bound, or has not the family that is needed."""


class SourceUnfit(SourceUnusable):
    """An address of ours is of the other family than the servers that mail is for."""


class NextHopGarbled(TemporaryError):
    """The next hop answered with something that is no SMTP reply."""


class NextHopOutOfStep(NextHopGarbled):
    """The next hop lost or refused commands that came behind the end of a message (RFC 2920 section 3.1)."""


class ConfigError(FastsmtpError):
    """The configuration is wrong; `faults` holds one line for each fault, with file and line or key."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class QueueTooNew(ConfigError):
    """A file of the queue was written by a later release in a format that this one doesn't know."""


def system_words(error: OSError) -> str:
    """What the system calls it: an event loop's own words are about its calls and their arguments."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
