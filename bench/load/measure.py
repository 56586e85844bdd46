"""What a server's processes use: CPU time, memory, sockets, read from /proc.

A server is the process that was started and all its descendants, so workers
and helpers count and the load generator doesn't.  Linux only.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import time

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command's name; the first is the state."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """The process and its living descendants, the root first."""
    children: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [root]
    for pid in found:
        found.extend(sorted(children.get(pid, [])))
    return found


def cpu_s(pid: int, *, with_reaped: bool = True) -> float:
    """User and system seconds of a process so far, of the children that it has reaped too.

    The kernel's scheduler counts nanoseconds for each thread; where it doesn't (no schedstat), and for what
    has been reaped, there are only ticks of 10 ms.
    """
    user, system, reaped_user, reaped_system = map(int, _fields(pid)[11:15])
    reaped = (reaped_user + reaped_system) * TICK_S if with_reaped else 0.0
    try:
        threads = list(pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"))
        if threads:
            return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9 + reaped
    except (FileNotFoundError, ProcessLookupError):
        pass  # a thread ended between the two looks
    return (user + system) * TICK_S + reaped


def tree_cpu_s(root: int) -> float:
    """User and system seconds of a server's processes, those that have ended included."""
    total = 0.0
    for pid in tree(root):
        try:
            total += cpu_s(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now: its parent's account has it
    return total


def settled_cpu_s(root: int, *, quiet_s: float = 0.2, at_most_s: float = 20.0) -> float:
    """The same once the server has nothing left to do: a queue that drains is part of the message's cost."""
    deadline = time.monotonic() + at_most_s
    before = tree_cpu_s(root)
    while time.monotonic() < deadline:
        time.sleep(quiet_s)
        after = tree_cpu_s(root)
        if after - before <= 0.02 * quiet_s:
            return after
        before = after
    return before


def pss_bytes(root: int) -> int:
    """Proportional memory of a server's processes: a page shared by n counts 1/n in each."""
    total = 0
    for pid in tree(root):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def written_bytes(root: int) -> int:
    """What a server's processes have caused to be written to a disk so far; of processes that live."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = re.search(
                r"^write_bytes: (\d+)", pathlib.Path(f"/proc/{pid}/io").read_text(), re.MULTILINE
            )
            total += int(found[1]) if found else 0
    return total


def sockets(pid: int) -> int:
    """Open sockets of one process."""
    count = 0
    for descriptor in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += descriptor.readlink().name.startswith("socket:")
        except FileNotFoundError:
            continue
    return count
