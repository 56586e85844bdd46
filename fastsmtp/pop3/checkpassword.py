"""The checkpassword interface: who can look at passwords is asked on descriptor 3, and runs the session itself.

    CHECKPASSWORD COMMAND...

reads name, password and timestamp, each ended by a NUL, from descriptor 3.  When
they are right it becomes the user and runs COMMAND in its place; else it ends
with 1, with 2 when it was called wrongly, with 111 when it can't tell now.

Rank 8.
"""

from __future__ import annotations

import os
import signal
from enum import Enum

from fastsmtp.pop3.login import Credentials

# What a checkpassword reads at most.
MESSAGE_BYTES_MAX = 512

# "Can't tell now" of the interface; every other status but 0 is a refusal, as for qmail-popup.
EXIT_TEMPORARY = 111

PASSWORD_FD = 3


class Verdict(Enum):
    """DONE: the password was right, and the session it led to is over."""

    DONE = 0
    REFUSED = 1
    FAILED = 2


def check(command: list[str], credentials: Credentials, timestamp: bytes) -> Verdict:
    """Ask, and wait until the session that follows is over.  OSError when the command can't be run."""
    message = b"".join(b"%s\0" % part for part in (*credentials, timestamp))
    if len(message) > MESSAGE_BYTES_MAX:
        return Verdict.REFUSED
    read_end, write_end = os.pipe()
    try:
        if read_end == PASSWORD_FD:
            os.set_inheritable(read_end, True)
        child = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, read_end, PASSWORD_FD)],
            # Python ignores two signals that the command must not inherit as ignored.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        os.close(read_end)
        read_end = -1
        _tell(write_end, message)
    finally:
        for end in (read_end, write_end):
            if end >= 0:
                os.close(end)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return Verdict.DONE
    return Verdict.FAILED if status < 0 or status == EXIT_TEMPORARY else Verdict.REFUSED


def _tell(write_end: int, message: bytes) -> None:
    """A pipe takes so little at once.  Who doesn't read it says by its exit status why."""
    try:
        os.write(write_end, message)
    except BrokenPipeError:
        return
