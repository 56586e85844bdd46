"""fastsmtp pop3d: one POP3 session over a Maildir on standard input and output, in qmail-pop3d's place."""

from __future__ import annotations

import sys
from collections.abc import Sequence

USAGE = "usage: fastsmtp pop3d MAILDIR"


def run(arguments: Sequence[str]) -> int:
    """0 when a session was served, however it ended: another status would be checkpassword's `wrong password`."""
    if list(arguments) == ["--help"]:
        print(f"{USAGE}\n\nServe one POP3 session on standard input and output, behind checkpassword.")
        return 0
    if len(arguments) != 1:
        print(USAGE, file=sys.stderr)
        return 2
    import time

    from fastsmtp.pop3.connection import Hung, Wire, serve
    from fastsmtp.pop3.maildrop import Maildrop
    from fastsmtp.pop3.session import Session

    wire = Wire(0, 1)
    try:
        try:
            drop = Maildrop(arguments[0])
        except OSError as error:
            print(f"fastsmtp pop3d: {arguments[0]}: {error.strerror}", file=sys.stderr)
            wire.write(b"-ERR [SYS/PERM] there is no Maildir to be read\r\n")
            return 0
        drop.clean(time.time())
        serve(Session(drop), wire)
    except Hung:
        # Nothing is deleted without QUIT.
        return 0
    except OSError as error:
        print(f"fastsmtp pop3d: {arguments[0]}: {error.strerror}", file=sys.stderr)
    return 0
