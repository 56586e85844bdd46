"""`fastsmtp` with one kind of sync left out in all of its processes.

    python -m tests.integration.forgetful SYNC ARGUMENTS

The kinds are those of journal_process.SYNCS.  For tests that show that leaving one out is noticed.
"""

from __future__ import annotations

import functools
import os
import sys

from fastsmtp import _journal
from tests.integration.journal_process import Forgetful


def forget(what: str) -> None:
    """Before anything of the server is imported; its processes are forks of this one."""
    system = Forgetful(what)
    for name in ("fsync", "fdatasync"):
        setattr(os, name, getattr(system, name))
    # The native thread doesn't ask os.
    _journal.Writer = functools.partial(_journal.Writer, system=system)  # type: ignore[misc, assignment]


if __name__ == "__main__":
    forget(sys.argv[1])
    from fastsmtp.cli import main

    sys.exit(main(sys.argv[2:]))
