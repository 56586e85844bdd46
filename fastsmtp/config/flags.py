"""The flags of the command line, and how they lie over the file.

cli/flags.py makes a Flags from the arguments.  Every flag ends as a raw value
in the Tree, with the flag as its origin, so that it is checked like any other.
"""

from __future__ import annotations

import os.path

from fastsmtp.config.tree import Tree
from fastsmtp.records import dataclass
from fastsmtp.typed import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What was given; None, () or False where nothing was."""

    config: str | None = None
    qmail: str | None = None
    tcprules: str | None = None
    listen: tuple[str, ...] = ()
    workers: int | str | None = None
    hostname: str | None = None
    accept: tuple[str, ...] = ()
    deliver: str | None = None
    no_queue: bool = False
    state: str | None = None
    dns: tuple[str, ...] = ()
    user: str | None = None

    @property
    def is_trial(self) -> bool:
        """True when no flag says what is taken and where it goes."""
        return not (self.accept or self.deliver or self.qmail)


def overlay(tree: Tree, flags: Flags, directory: str) -> None:
    """Lay the flags over the file's values.  Relative paths are taken from `directory`, the current one."""
    for name in ("hostname", "user"):
        value = getattr(flags, name)
        if value is not None:
            tree.set((name,), value, f"--{name}")
    if flags.workers is not None:
        # What is no number is left as it is: the reader says so.
        text = str(flags.workers)
        tree.set(("workers",), int(text) if text.isascii() and text.isdigit() else text, "--workers")
    for name in ("qmail", "tcprules"):
        value = getattr(flags, name)
        if value is not None:
            tree.set((name,), os.path.join(directory, value), f"--{name}")
    if flags.state is not None:
        tree.set(("state",), os.path.join(directory, flags.state), "--state")
    if flags.listen:
        tree.set(("listen", 0, "address"), list(flags.listen), "--listen")
    if flags.dns:
        tree.set(("dns", "servers"), list(flags.dns), "--dns")
    if flags.accept:
        tree.set(
            ("accept", tree.length("accept")), {"domain": list(flags.accept), "recipients": "any"}, "--accept"
        )
    if flags.deliver is not None:
        dest = _absolute(flags.deliver, directory)
        tree.set(("deliver", "default"), dest, "--deliver")
        _forget_user(tree.values.get("deliver"))
        for index in range(tree.length("accept")):
            tree.set(("accept", index, "deliver"), dest, "--deliver")
            _forget_user(tree.values["accept"][index])
        if tree.length("route"):
            tree.set(("route",), [], "--deliver")
    if flags.no_queue:
        tree.set(("deliver", "queue"), False, "--no-queue")
        for index in range(tree.length("accept")):
            tree.set(("accept", index, "queue"), False, "--no-queue")


def _forget_user(table: Any) -> None:
    """The account of the file is for the destination of the file."""
    if isinstance(table, dict):
        table.pop("user", None)


def _absolute(dest: str, directory: str) -> str:
    """A destination with its relative path made absolute; anything else as it is."""
    kind, _, path = dest.partition(":")
    if kind in ("maildir", "lmtp+unix", "qmail-queue") and path and not path.startswith("/"):
        return f"{kind}:{os.path.join(directory, path)}"
    return dest
