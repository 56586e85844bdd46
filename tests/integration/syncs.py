"""The oracle of the syncs: for each acknowledgement, everything that it needs was synced before it left.

The page cache survives SIGKILL, so killing proves nothing about syncs; the
order of system calls does.  strace writes them down, with the names of the files
(-y); a call counts as done where it returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from fastsmtp._record import HEADER_BYTES

# What strace is to write down: names, writes and syncs of files, and what leaves to clients.
FILES = "openat,rename,renameat,renameat2,pwrite64,pwritev,pwritev2,fsync,fdatasync"

CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
RESULT = re.compile(r"\) += (-?\d+)")
FILE = re.compile(r"^\d+<([^>]*)>")
RENAME = re.compile(r'^"([^"]+)", "([^"]+)"')
OPEN = re.compile(r'^[^,]+, "([^"]+)", ([A-Z_|]+)')


class Call(NamedTuple):
    """One system call: the lines of the trace where it began and ended."""

    name: str
    arguments: str
    result: int
    began: int
    ended: int

    @property
    def file(self) -> str:
        found = FILE.match(self.arguments)
        return found[1] if found else ""


def calls_of(text: str) -> list[Call]:
    """The calls that returned, in the order of their beginnings."""
    open_calls: dict[str, tuple[str, str, int]] = {}
    found = []
    for line_number, line in enumerate(text.splitlines()):
        if resumed := RESUMED.match(line):
            pid, rest = resumed[1], resumed[3]
            name, arguments, began = open_calls.pop(pid)
        elif call := CALL.match(line):
            pid, name, rest = call[1], call[2], call[3]
            arguments, began = rest, line_number
            if rest.endswith("<unfinished ...>"):
                open_calls[pid] = (name, rest.removesuffix("<unfinished ...>"), line_number)
                continue
        else:
            continue
        arguments = arguments if arguments == rest else arguments + rest
        result = RESULT.search(rest)
        if result is not None:
            found.append(Call(name, arguments, int(result[1]), began, line_number))
    return sorted(found, key=lambda call: call.began)


class Acknowledged(NamedTuple):
    """What a client was told.

    told             the system call that told it
    number, offset   of its segment, and where its record stands there
    size_bytes       of the payload
    body             number of its body file, or None
    """

    told: Call
    name: str
    number: int
    offset: int
    size_bytes: int
    body: int | None


class Oracle:
    """What was done, by file; says what an acknowledgement lacks."""

    def __init__(self, calls: list[Call], directory: str) -> None:
        self.directory = directory
        self.writes: dict[str, list[tuple[int, int, Call]]] = {}
        self.syncs: dict[str, list[Call]] = {}
        self.named: dict[str, Call] = {}
        for call in calls:
            if call.name in {"fsync", "fdatasync"} and call.result == 0:
                self.syncs.setdefault(call.file, []).append(call)
            elif call.name in {"pwritev", "pwrite64", "pwritev2"} and call.result > 0:
                # pwritev2, which os.pwritev calls, has flags behind the offset.
                pattern = r", (\d+), \d+ *\)" if call.name == "pwritev2" else r", (\d+) *\)"
                offset = int(re.findall(pattern, call.arguments)[-1])
                self.writes.setdefault(call.file, []).append((offset, offset + call.result, call))
            elif call.name in {"rename", "renameat", "renameat2"} and call.result == 0:
                renamed = re.findall(r'"([^"]+)"', call.arguments)
                self.named[renamed[1]] = call
            elif call.name == "openat" and "O_CREAT" in call.arguments and call.result >= 0:
                opened = OPEN.match(call.arguments)
                if opened:
                    self.named[opened[1]] = call

    def _synced(self, file: str, after: Call, before: Call) -> Call | None:
        """A sync of the file that began after one call had ended, and ended before another began."""
        for sync in self.syncs.get(file, ()):
            if sync.began > after.ended and sync.ended < before.began:
                return sync
        return None

    def missing(self, acknowledged: Iterable[Acknowledged]) -> list[str]:
        """What the acknowledgements lack; [] is a good trace."""
        lacks = []
        for told, name, number, offset, size_bytes, body in acknowledged:
            file = f"{self.directory}/mail-{number:016x}"
            start, end = offset, offset + HEADER_BYTES + size_bytes
            writes = [call for begin, stop, call in self.writes.get(file, ()) if begin < end and stop > start]
            covered = sum(
                min(stop, end) - max(begin, start)
                for begin, stop, call in self.writes.get(file, ())
                if begin < end and stop > start
            )
            if covered < end - start:
                lacks.append(f"{name}: its bytes were not written")
                continue
            if not all(self._synced(file, call, told) for call in writes):
                lacks.append(f"{name}: batch not synced")
            lacks += self._missing_names(name, file, self.directory, told)
            if body is not None:
                lacks += self._missing_body(name, f"{self.directory}/bodies/{body:016x}", writes[0], told)
        return lacks

    def _missing_names(self, name: str, file: str, directory: str, told: Call) -> list[str]:
        named = self.named.get(file)
        if named is None:
            return [f"{name}: nobody named {file}"]
        lacks = []
        if not self._synced(directory, named, told):
            lacks.append(f"{name}: directory not synced")
        if named.name != "openat":
            # It was written through, or got its header, under its former name.
            former = re.findall(r'"([^"]+)"', named.arguments)[0]
            written = [call for _, _, call in self.writes.get(former, ())]
            if not written or not self._synced(former, written[-1], named):
                lacks.append(f"{name}: segment not synced before it got its name")
        return lacks

    def _missing_body(self, name: str, file: str, record: Call, told: Call) -> list[str]:
        writes = [call for _, _, call in self.writes.get(file, ())]
        lacks = []
        if not writes or not self._synced(file, writes[-1], record):
            lacks.append(f"{name}: body not synced before its record was written")
        return lacks + [
            lack.replace("directory", "bodies")
            for lack in self._missing_names(name, file, f"{self.directory}/bodies", told)
        ]
